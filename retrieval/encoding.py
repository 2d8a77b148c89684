"""Segments to vectors: what encodes them, and a file of vectors that agrees with the catalogue."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, runtime_checkable

from kompakt.compressor.errors import ConfigError, ModelError, StoreError
from kompakt.compressor.models.locate import model_path, weights_fingerprint
from kompakt.compressor.store.artefacts import Artefacts
from kompakt.retrieval.catalogue import Catalogue

if TYPE_CHECKING:
    import numpy as np

    from kompakt.retrieval.vectors import VectorIndex

_LOG = logging.getLogger(__name__)

BATCH: Final = 256
"""Segments that are encoded at once: what bounds the memory beside the vectors themselves."""


@runtime_checkable
class Encoder(Protocol):
    """What turns texts into vectors, such that a question is near the passages that answer it."""

    @property
    def fingerprint(self) -> str:
        """What tells encoders with different vectors apart: for a model the SHA-256 of its weights."""

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Return a vector a text, ``[N, D]``; only their directions count."""


@dataclass(frozen=True, slots=True)
class _NamedEncoder:
    """A model that is loaded when it is first needed."""

    name: str
    fingerprint: str
    artefacts: Artefacts

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        from kompakt.compressor.models.sentence_encoder import load_sentence_encoder

        encoder = load_sentence_encoder(self.name)
        if encoder.fingerprint != self.fingerprint:
            raise StoreError(
                f"the model {self.name} has changed since the index was opened ({encoder.fingerprint}, then "
                f"{self.fingerprint}): its vectors do not go with those of the index; open or make the index anew"
            )
        return encoder.encode(texts, artefacts=self.artefacts)


def as_encoder(
    encoder: str | os.PathLike[str] | Encoder, *, artefacts: Artefacts | None = None
) -> tuple[str, Encoder]:
    """Return an encoder and its name, which is empty for one that was given as an object.

    Args:
        encoder: A model's name, the folder of one, or an encoder.
        artefacts: Where the vectors of a named model are found again; the memory of this process without one.

    Raises:
        ConfigError: If it is neither a name nor an encoder.
        ModelNotFoundError: If there is no model of that name on this machine.
    """
    if isinstance(encoder, (str, os.PathLike)):
        name = os.fspath(encoder)
        return name, _NamedEncoder(name, weights_fingerprint(model_path(encoder)), artefacts or Artefacts())
    if not isinstance(encoder, Encoder):
        raise ConfigError(f"encoder must be a model's name or have encode and fingerprint, got {encoder!r}")
    return "", encoder


def embedded(context: str, text: str) -> str:
    """Return what is encoded of a segment: its text below what stands above it."""
    return f"{context}\n{text}" if context else text


class SegmentVectors:
    """The vectors of the segments in a catalogue, in files of which the catalogue names one.

    Args:
        folder: Where the files are.
        encoder: What makes the vectors.
        memory_map: Leave vectors in their file until they are needed.
    """

    def __init__(self, folder: Path, encoder: Encoder, *, memory_map: bool) -> None:
        self._folder = folder
        self._encoder = encoder
        self._memory_map = memory_map
        self._index: VectorIndex | None = None

    @property
    def is_empty(self) -> bool:
        """Whether there are none."""
        return self._index is None or not len(self._index)

    def load(self, catalogue: Catalogue) -> bool:
        """Read the vectors that belong to a catalogue, make those that are missing and drop those of no segment.

        Returns:
            Whether the file did not agree with the catalogue.
        """
        import numpy as np

        from kompakt.retrieval.vectors import VectorIndex

        generation, sha256 = catalogue.state()
        self._index, problem = None, "there are segments without a vector"
        if sha256:
            try:
                self._index = VectorIndex.open(self._path(generation), sha256=sha256, memory_map=self._memory_map)
            except StoreError as error:
                problem = str(error)
        known = np.asarray(catalogue.matching(None), dtype=np.int64)
        found = known[:0] if self._index is None else self._index.ids
        stale = np.setdiff1d(found, known, assume_unique=True).tolist()
        missing = np.setdiff1d(known, found, assume_unique=True).tolist()
        if missing:
            _LOG.warning("%s: %s; encoding %d segments again", self._folder, problem, len(missing))
        self.drop(stale)
        for start in range(0, len(missing), BATCH):
            batch = catalogue.get_segments(missing[start : start + BATCH])
            self.encode([segment.id for segment in batch], [embedded(one.context, one.text) for one in batch])
        return bool(stale or missing)

    def encode(self, ids: Sequence[int], texts: Sequence[str]) -> None:
        """Add the vectors of new segments.

        Raises:
            ModelError: If the encoder does not return a finite vector for each.
        """
        from kompakt.retrieval.vectors import VectorIndex

        vectors = self.embed(texts)
        if self._index is None:
            self._index = VectorIndex.create(vectors.shape[1])
        self._index.add(ids, vectors)

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Return the unit vectors of texts, ``[N, D]``.

        Raises:
            ModelError: If the encoder does not return a finite vector for each.
        """
        import numpy as np

        vectors = np.asarray(self._encoder.encode(texts), dtype=np.float32)
        if vectors.ndim != 2 or len(vectors) != len(texts) or not np.isfinite(vectors).all():
            raise ModelError(
                f"the encoder must return a finite vector for each of {len(texts)} texts, got {list(vectors.shape)}"
            )
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.asarray(vectors / np.where(norms > 0, norms, 1.0), dtype=np.float32)

    def drop(self, ids: Sequence[int]) -> None:
        """Remove the vectors of segments; those that have none are passed over."""
        if self._index is not None and len(ids):
            self._index.remove(ids)

    def search(self, vector: np.ndarray, k: int, *, allowed: Sequence[int] | None = None) -> list[tuple[int, float]]:
        """Return the ids and cosines of the nearest segments, best first; see ``VectorIndex.search``."""
        if self._index is None:
            return []
        ids, scores = self._index.search(vector, k, allowed=allowed)
        return list(zip(ids.tolist(), scores.tolist(), strict=True))

    def save(self, generation: int) -> str:
        """Write the file of a generation and return its SHA-256 in hex; empty if there never were vectors.

        Raises:
            StoreError: If it cannot be written.
        """
        return "" if self._index is None else self._index.save(self._path(generation))

    def clean(self, generation: int) -> None:
        """Remove the files of all generations but this one and the one before, which others may just be opening."""
        kept = {self._path(generation), self._path(generation - 1)}
        for path in [*self._folder.glob("vectors-*.faiss"), *self._folder.glob(".vectors-*.tmp")]:
            if path not in kept:
                # some systems keep files that are mapped; the next one removes them
                with contextlib.suppress(OSError):
                    path.unlink()

    def _path(self, generation: int) -> Path:
        return self._folder / f"vectors-{generation}.faiss"
