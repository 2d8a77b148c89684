"""Selective Context: keep what a small language model could not have guessed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar, Final, Literal, TypeAlias, get_args

import numpy as np

from kompakt.compressor.base import Request, ScoringCompressor
from kompakt.compressor.errors import ConfigError
from kompakt.compressor.models.causal_lm import tokenize
from kompakt.compressor.models.locate import model_path, recent_fingerprint, weights_fingerprint
from kompakt.compressor.models.noun_chunks import CHUNKER, load_chunker, noun_chunks, split_phrases
from kompakt.compressor.models.scorers import recent_scorer
from kompakt.compressor.models.self_information import Scorer, self_information
from kompakt.compressor.store.artefacts import Artefacts, Recipe
from kompakt.compressor.units.segment import segment
from kompakt.compressor.units.sentences import ProseSplitter, Range, split_sentences, split_words
from kompakt.compressor.units.unit import Unit, Units

if TYPE_CHECKING:
    from numpy.typing import NDArray

Granularity: TypeAlias = Literal["phrase", "sentence", "token"]
Context: TypeAlias = Literal["document", "sentence"]
Reduction: TypeAlias = Literal["mean", "sum"]

WINDOW: Final = 1024
"""Tokens that are read at once where the context is the document."""

OVERLAP: Final = 128
"""Tokens that the next window reads again, so that none is scored on fewer (the document's first apart); an eighth
of a shorter window."""

_SCHEMA: Final = 2
"""Raised where the same weights come to give other surprisals, be it by rounding."""


@dataclass(frozen=True)
class Information:
    """How surprising the tokens of a text are.

    Args:
        ends: Offset after the last character that each token reaches [T], ascending.
        nats: Surprisal of each token [T].
    """

    ends: NDArray[np.int64]
    nats: NDArray[np.float32]


@dataclass(frozen=True)
class SelectiveContext(ScoringCompressor):
    """Keep the units with the highest self-information under a small causal language model; no query is used.

    Where the paper removes a fraction of the units below a percentile, units are here chosen by the same order under
    a budget of tokens. JSON, code, logs and tables are cut as always and scored by the tokens they consist of.
    Whole words only are removed, whatever the granularity.

    Source: Li et al. 2023, "Compressing Context to Enhance Inference Efficiency of Large Language Models".

    Args:
        model: A named model, or the folder of a causal language model. ``surprisal-lite`` reads three times as
            fast as ``smollm2-135m``, which it was trained to imitate.
        granularity: How running text is cut: into noun chunks and single words (``phrase``, the paper's best),
            ``sentence``, or ``token``: language-model tokens joined to the words that they are parts of. Scripts
            without an English noun chunk are cut into words, those without spaces into characters.
        context: What a token is conditioned on: the running ``document``, or its ``sentence`` alone as in the
            authors' code, which takes the first words of every sentence for surprising and so keeps too many of them.
        reduce: A unit's score from its tokens: their ``mean`` as in the authors' code, or ``sum`` as in the paper,
            which favours long units.

    Raises:
        ConfigError: If an option is none of these.
    """

    name: ClassVar[str] = "selective-context"
    uses_query = False

    model: str = "smollm2-135m"
    granularity: Granularity = "phrase"
    context: Context = "document"
    reduce: Reduction = "mean"

    def __post_init__(self) -> None:
        choices = {"granularity": Granularity, "context": Context, "reduce": Reduction}
        for option, allowed in choices.items():
            if getattr(self, option) not in get_args(allowed):
                listed = ", ".join(map(repr, get_args(allowed)))
                raise ConfigError(f"{option} must be one of {listed}, got {getattr(self, option)!r}")

    @property
    def weights_fingerprint(self) -> str:
        """SHA-256 of the model's files, and of the pipeline's that finds phrases."""
        scorer = weights_fingerprint(model_path(self.model))
        if self.granularity != "phrase":
            return scorer
        return hashlib.sha256(f"{scorer} {weights_fingerprint(model_path(CHUNKER))}".encode()).hexdigest()

    def read_ahead(self, requests: Sequence[Request], artefacts: Artefacts) -> None:
        """Find the phrases and read the texts of several requests at once."""
        if self.granularity == "phrase":
            _phrases(requests, artefacts, is_ahead=True)
        recipe = information_recipe(recent_scorer(self.model), context=self.context)
        texts = [document.text for request in requests for document in request.documents]
        artefacts.fetch(recipe, texts, is_ahead=True)

    def prose_splitter(self, request: Request) -> ProseSplitter:
        """Return how running text is cut.

        Raises:
            ModelNotFoundError: If phrases are wanted and the English pipeline is not on this machine.
        """
        match self.granularity:
            case "sentence":
                return split_sentences
            case "token":
                return split_words
            case _:
                return _phrase_splitter(request)

    def score(self, units: Units, query: str | None) -> Sequence[float]:
        """Return the information of each unit in nats, of containers that of their head; 0 for white space.

        Raises:
            ModelNotFoundError: If the model is not on this machine.
        """
        del query
        scores = np.zeros(len(units))
        members: list[list[int]] = [[] for _ in units.documents]
        for index, unit in enumerate(units):
            members[unit.document].append(index)
        texts = [document.text for document in units.documents]
        recipe = information_recipe(recent_scorer(self.model), context=self.context)
        for text, information, indices in zip(texts, units.artefacts.fetch(recipe, texts), members, strict=True):
            if indices:
                ranges = [_own_range(units[index]) for index in indices]
                scores[indices] = unit_information(text, ranges, information, reduce=self.reduce)
        return scores.tolist()


def _own_range(unit: Unit) -> Range:
    return unit.start, unit.head_end


def information_recipe(scorer: Scorer, *, context: Context) -> Recipe[Information]:
    """Return how the surprisal of each token of a text is made and stored.

    Args:
        scorer: What reads.
        context: What a token is conditioned on.
    """

    def compute(texts: list[str]) -> list[Information]:
        return _running(scorer, texts) if context == "document" else _by_sentence(scorer, texts)

    lm = scorer.lm
    identity = ["self-information", lm.fingerprint, lm.dtype, lm.device, context, *_windows(scorer), _SCHEMA]
    return Recipe(identity, compute, _encoded, _decoded)


def _encoded(information: Information) -> bytes:
    return information.ends.astype("<i4").tobytes() + information.nats.astype("<f4").tobytes()


def _decoded(data: bytes) -> Information:
    half = len(data) // 2
    if half % 4 or len(data) % 2:
        raise ValueError(f"{len(data)} bytes are no surprisals")
    ends = np.frombuffer(data[:half], dtype="<i4").astype(np.int64)
    return Information(ends, np.frombuffer(data[half:], dtype="<f4"))


def _windows(scorer: Scorer) -> tuple[int, int]:
    window = min(WINDOW, scorer.longest)
    return window, min(OVERLAP, window // 8)


def _running(scorer: Scorer, texts: Sequence[str]) -> list[Information]:
    tokens = tokenize(scorer.lm, texts)
    window, overlap = _windows(scorer)
    nats = self_information(scorer, [one.ids for one in tokens], window=window, overlap=overlap)
    return [Information(one.ends, values) for one, values in zip(tokens, nats, strict=True)]


def _by_sentence(scorer: Scorer, texts: Sequence[str]) -> list[Information]:
    sentences = [[(start, text[start:end]) for start, end in split_sentences(text)] for text in texts]
    stripped = [sentence.lstrip() for own in sentences for _, sentence in own]
    tokens = tokenize(scorer.lm, stripped)
    nats = self_information(scorer, [one.ids for one in tokens], window=_windows(scorer)[0])
    # white space at the start of a sentence has no token
    offsets = [start + len(source) - len(source.lstrip()) for own in sentences for start, source in own]
    ends = [one.ends + offset for one, offset in zip(tokens, offsets, strict=True)]
    cuts = np.cumsum([0, *map(len, sentences)]).tolist()
    return [
        Information(
            np.concatenate([np.empty(0, np.int64), *ends[first:last]]),
            np.concatenate([np.empty(0, np.float32), *nats[first:last]]),
        )
        for first, last in pairwise(cuts)
    ]


def unit_information(
    text: str, ranges: Sequence[Range], information: Information, *, reduce: Reduction = "mean"
) -> NDArray[np.float64]:
    """Hand the information of tokens to the units that they complete, and reduce it to one score a unit.

    A token that reaches the last characters of several units gives each an equal share; one that ends within a unit
    gives it all; one of white space alone gives nothing. A unit ends with its last character other than white space.

    Args:
        text: The document.
        ranges: The units' ranges, ascending and disjoint, not necessarily tiling the text.
        information: The tokens of the document.
        reduce: How a unit's contributions become its score.

    Returns:
        A score for each unit in nats, 0 for one that no token completes or lies in.

    Source: Li et al. 2023, section 2.2, with the alignment of the released code.
    """
    owners, ends = _stretches(text, ranges)
    scores = np.zeros(len(ranges))
    if not len(ends) or not len(information.ends):
        return scores
    starts = _token_starts(information.ends)
    first = np.searchsorted(ends, starts, side="right")
    completed = np.searchsorted(ends, information.ends, side="right") - first
    lies_inside = (first < len(ends)) & ~_is_blank(text, starts, information.ends)
    shares = np.where(completed > 0, completed, lies_inside.astype(np.int64))
    # the stretches that each token gives to: ``shares`` of them, from ``first`` on
    token = np.repeat(np.arange(len(shares)), shares)
    step = np.arange(len(token)) - np.repeat(np.cumsum(shares) - shares, shares)
    receiver = first[token] + step
    given = information.nats.astype(np.float64)[token] / shares[token]
    totals = np.bincount(receiver, weights=given, minlength=len(ends))
    counts = np.bincount(receiver, minlength=len(ends))
    values = totals if reduce == "sum" else totals / np.maximum(counts, 1)
    owned = owners >= 0
    scores[owners[owned]] = values[owned]
    return scores


def _stretches(text: str, ranges: Sequence[Range]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the owner (-1 for text between units) and the end of each stretch that is more than white space."""
    owners: list[int] = []
    ends: list[int] = []

    def add(owner: int, start: int, end: int) -> None:
        source = text[start:end].rstrip()
        if source:
            owners.append(owner)
            ends.append(start + len(source))

    position = 0
    for owner, (start, end) in enumerate(ranges):
        add(-1, position, start)
        add(owner, start, end)
        position = max(position, end)
    add(-1, position, len(text))
    return np.array(owners, dtype=np.int64), np.array(ends, dtype=np.int64)


def _token_starts(ends: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return where each token begins: at the last smaller end, so that pieces of one character share a range."""
    is_new = np.concatenate([[True], ends[1:] != ends[:-1]])
    distinct = ends[is_new]
    before = np.concatenate([[0], distinct[:-1]])
    starts: NDArray[np.int64] = before[np.cumsum(is_new) - 1]
    return starts


def _is_blank(text: str, starts: NDArray[np.int64], ends: NDArray[np.int64]) -> NDArray[np.bool_]:
    pairs = zip(starts.tolist(), ends.tolist(), strict=True)
    return np.array([text[start:end].isspace() for start, end in pairs], dtype=np.bool_)


def _phrase_splitter(request: Request) -> ProseSplitter:
    return partial(_split_known, known=_phrases([request], request.artefacts, is_ahead=False))


def _split_known(text: str, *, known: dict[str, list[Range]]) -> list[Range]:
    return split_phrases(text, known[text] if text in known else noun_chunks([text])[0])


def _phrases(requests: Sequence[Request], artefacts: Artefacts, *, is_ahead: bool) -> dict[str, list[Range]]:
    """Find the noun chunks of all running text of requests at once: the parser is fast in batches only."""
    load_chunker()
    texts: list[str] = []

    def record(text: str) -> list[Range]:
        texts.append(text)
        return [(0, len(text))] if text else []

    for request in requests:
        segment(request.documents, prose=record)
    identity = ["noun-chunks", recent_fingerprint(model_path(CHUNKER))]
    recipe = Recipe(identity, noun_chunks, _encoded_ranges, _decoded_ranges)
    return dict(zip(texts, artefacts.fetch(recipe, texts, is_ahead=is_ahead), strict=True))


def _encoded_ranges(ranges: Sequence[Range]) -> bytes:
    return np.array(ranges, dtype="<i4").tobytes()


def _decoded_ranges(data: bytes) -> list[Range]:
    return [(start, end) for start, end in np.frombuffer(data, dtype="<i4").reshape(-1, 2).tolist()]
