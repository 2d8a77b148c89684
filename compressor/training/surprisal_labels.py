"""What a smaller scorer is trained on: windows of texts with the surprisals that the whole model gives them."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from kompakt.compressor.errors import ConfigError, ModelError
from kompakt.compressor.models.causal_lm import tokenize
from kompakt.compressor.models.self_information import Scorer, self_information
from kompakt.compressor.store.codec import TensorCodec

if TYPE_CHECKING:
    from numpy.typing import NDArray

_TOKENS_AT_ONCE: Final = 16384
"""Tokens that are gathered before they are scored: enough to fill batches with windows of about one length."""


@dataclass(frozen=True, slots=True, eq=False)
class Labelled:
    """A window of a text, read from its beginning behind the prefix token.

    Args:
        ids: Token ids ``[T]``, without the prefix.
        nats: How surprising the whole model finds each ``[T]``.

    Raises:
        ConfigError: If the two are not of one length.
    """

    ids: NDArray[np.int64]
    nats: NDArray[np.float32]

    def __post_init__(self) -> None:
        if self.ids.ndim != 1 or self.ids.shape != self.nats.shape:
            raise ConfigError(f"ids and nats must be [T], got {list(self.ids.shape)} and {list(self.nats.shape)}")

    def __len__(self) -> int:
        return len(self.ids)


def label(
    texts: Iterable[str],
    scorer: Scorer,
    *,
    window: int = 1024,
    windows_per_text: int = 2,
    min_tokens: int = 32,
    seed: int = 0,
) -> Iterator[Labelled]:
    """Score windows of texts, at random places of those that have many.

    Args:
        texts: The texts, read as they are needed.
        scorer: The whole model; see ``language_model_scorer``.
        window: Tokens of a window, at most what the model reads.
        windows_per_text: The most windows of one text: many of one make a set of windows that are alike.
        min_tokens: Shorter windows are left out.
        seed: Decides the places.

    Returns:
        An iterator of labelled windows, in the order of the texts.

    Raises:
        ConfigError: If an option makes no sense.
    """
    size = min(window, scorer.longest)
    if windows_per_text < 1 or not 1 <= min_tokens <= size:
        raise ConfigError(
            f"windows_per_text must be at least 1 and min_tokens in [1, {size}], "
            f"got {windows_per_text} and {min_tokens}"
        )
    cut = _cut(texts, scorer, size, windows_per_text, min_tokens, random.Random(seed))  # noqa: S311 (no secret)
    return _scored(cut, scorer, size)


def _cut(
    texts: Iterable[str], scorer: Scorer, size: int, n_windows: int, least: int, draws: random.Random
) -> Iterator[NDArray[np.int64]]:
    for text in texts:
        ids = tokenize(scorer.lm, [text])[0].ids
        starts = range(0, len(ids), size)
        for start in draws.sample(starts, min(n_windows, len(starts))):
            if len(ids) - start >= least:
                yield ids[start : start + size]


def _scored(cut: Iterable[NDArray[np.int64]], scorer: Scorer, size: int) -> Iterator[Labelled]:
    waiting: list[NDArray[np.int64]] = []
    for ids in cut:
        waiting.append(ids)
        if sum(map(len, waiting)) >= _TOKENS_AT_ONCE:
            yield from _labelled(waiting, scorer, size)
            waiting = []
    yield from _labelled(waiting, scorer, size)


def _labelled(windows: Sequence[NDArray[np.int64]], scorer: Scorer, size: int) -> Iterator[Labelled]:
    scores = self_information(scorer, windows, window=size, overlap=0)
    yield from (Labelled(ids, nats) for ids, nats in zip(windows, scores, strict=True))


def write_labels(file: str | os.PathLike[str], labelled: Sequence[Labelled]) -> None:
    """Write labelled windows as safetensors, which take 8 bytes a token.

    Args:
        file: Where; what is there is replaced.
        labelled: The windows.

    Raises:
        ConfigError: If there are none.
    """
    if not labelled:
        raise ConfigError("there must be at least one labelled window to write, got none")
    arrays = {
        "ids": np.concatenate([one.ids for one in labelled]).astype(np.int32),
        "nats": np.concatenate([one.nats for one in labelled]).astype(np.float32),
        "lengths": np.array([len(one) for one in labelled], dtype=np.int32),
    }
    path = Path(file)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        unfinished.write_bytes(TensorCodec().encode(arrays))
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def read_labels(file: str | os.PathLike[str]) -> list[Labelled]:
    """Return the windows that ``write_labels`` wrote.

    Raises:
        ModelError: If they cannot be read.
    """
    path = Path(file)
    try:
        arrays = TensorCodec.decode(path.read_bytes())
        ends = np.cumsum(arrays["lengths"])
        if not len(arrays["ids"]) == len(arrays["nats"]) == ends[-1]:
            raise ValueError(f"it describes {ends[-1]} tokens and holds {len(arrays['ids'])}")
        parts = (np.split(arrays[name], ends[:-1]) for name in ("ids", "nats"))
        return [Labelled(ids.astype(np.int64), nats) for ids, nats in zip(*parts, strict=True)]
    except (OSError, ValueError, LookupError) as error:
        raise ModelError(f"the labels in {path} cannot be read: {error}") from error
