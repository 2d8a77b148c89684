"""Query-aware extraction: sentence embeddings fused with BM25."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final, Literal

from kompakt.compressor.base import Request, ScoringCompressor
from kompakt.compressor.errors import ConfigError
from kompakt.compressor.models.locate import model_path, weights_fingerprint
from kompakt.compressor.models.sentence_encoder import SentenceEncoder, recent_sentence_encoder
from kompakt.compressor.store.artefacts import Artefacts
from kompakt.compressor.text.bm25 import relevance
from kompakt.compressor.text.spread import spread
from kompakt.compressor.units.sentences import ProseSplitter, pack_chunks, split_sentences
from kompakt.compressor.units.unit import Units

if TYPE_CHECKING:
    import numpy as np

_LEXICAL: Final = 0.5
"""Weight of the words against the embedding."""
_NOISE: Final = 0.3
"""Cosine that an unrelated sentence reaches by chance: below it, the best one is no sign of relevance."""
_BLOCK: Final = 1024


@dataclass(frozen=True)
class Extractive(ScoringCompressor):
    """Keep the sentences or chunks that answer the query, in their original order.

    With a query, the cosine of sentence embeddings is fused with BM25; relevance then reaches neighbouring sentences,
    the rest of a relevant document, the documents that the best sentences name, and the sentence that one opening
    with a pronoun leans on. Without a query, sentences central to their document come first and those that repeat
    earlier ones last.

    Source: Jha et al. 2024, "Characterizing Prompt Compression Methods for Long Context Inference", section 3.

    Args:
        model: A named sentence encoder or a local folder.
        granularity: ``"sentence"``, or ``"chunk"`` for sentences packed up to ``chunk_tokens`` tokens.
        chunk_tokens: The size of chunks.
    """

    model: str = "minilm-l6"
    granularity: Literal["sentence", "chunk"] = "sentence"
    chunk_tokens: int = 128

    name: ClassVar[str] = "extractive"

    def __post_init__(self) -> None:
        if self.granularity not in ("sentence", "chunk"):
            raise ConfigError(f"granularity must be 'sentence' or 'chunk', got {self.granularity!r}")
        if self.chunk_tokens < 1:
            raise ConfigError(f"chunk_tokens must be at least 1, got {self.chunk_tokens}")

    @property
    def weights_fingerprint(self) -> str:
        """SHA-256 of the sentence encoder's files."""
        return weights_fingerprint(model_path(self.model))

    def prose_splitter(self, request: Request) -> ProseSplitter:
        """Return the sentence splitter, or one that packs sentences into chunks."""
        if self.granularity == "sentence":
            return split_sentences

        def split_chunks(text: str) -> list[tuple[int, int]]:
            sentences = split_sentences(text)
            n_tokens = request.tokenizer.count_batch([text[start:end] for start, end in sentences])
            return pack_chunks(sentences, n_tokens, max_tokens=self.chunk_tokens)

        return split_chunks

    def read_ahead_units(self, jobs: Sequence[tuple[Units, str | None]], artefacts: Artefacts) -> None:
        """Embed the units and queries of several requests at once."""
        texts = [unit.text for units, _ in jobs for unit in units]
        queries = [query for _, query in jobs if query]
        recent_sentence_encoder(self.model).encode([*queries, *texts], artefacts=artefacts, is_ahead=True)

    def score(self, units: Units, query: str | None) -> Sequence[float]:
        """Return the fused relevance to the query, or centrality less redundancy without one."""
        encoder = recent_sentence_encoder(self.model)
        if query:
            relevances = fused_relevance(units, query, encoder, embedded=range(len(units)))
            return list(spread(units, relevances, query))
        vectors = encoder.encode([unit.text for unit in units], artefacts=units.artefacts)
        return list(centrality_less_redundancy([unit.document for unit in units], vectors))


def fused_relevance(units: Units, query: str, encoder: SentenceEncoder, *, embedded: Sequence[int]) -> np.ndarray:
    """Return relevance from 0 to 1: BM25 fused with the cosine to the query where a unit is embedded, ``[n]``.

    Args:
        units: The units of a request.
        query: The question.
        encoder: Embeds query and units.
        embedded: Indices of the units to embed; the others are judged by their words alone.
    """
    import numpy as np

    scores = np.array(relevance(units, query))
    if embedded:
        chosen = list(embedded)
        texts = [query, *(units[index].text for index in chosen)]
        vectors = encoder.encode(texts, artefacts=units.artefacts)
        cosine = np.clip(vectors[1:] @ vectors[0], 0.0, 1.0)
        scores[chosen] = _LEXICAL * scores[chosen] + (1 - _LEXICAL) * cosine / max(float(cosine.max()), _NOISE)
    return scores


def centrality_less_redundancy(documents: Sequence[int], vectors: np.ndarray) -> np.ndarray:
    """Score units without a query: near the centre of their document first, close to an earlier unit last.

    Args:
        documents: For each unit, the document it belongs to.
        vectors: The units' embeddings, of length 1, ``[n, D]``.

    Returns:
        Scores, ``[n]``.
    """
    import numpy as np

    owners = np.array(documents)
    centrality = np.zeros(len(owners))
    for document in np.unique(owners):
        members = owners == document
        centre = vectors[members].mean(axis=0)
        centrality[members] = vectors[members] @ (centre / max(float(np.linalg.norm(centre)), 1e-9))
    return centrality - np.clip(_closest_earlier(vectors) - 0.5, 0.0, None) * 2


def _closest_earlier(vectors: np.ndarray) -> np.ndarray:
    """Return for each row the highest cosine to a row before it, in blocks so that memory stays bounded, ``[n]``."""
    import numpy as np

    closest = np.zeros(len(vectors))
    for start in range(0, len(vectors), _BLOCK):
        block = vectors[start : start + _BLOCK] @ vectors[: start + _BLOCK].T
        rows = np.arange(block.shape[0])[:, None] + start
        earlier = np.arange(block.shape[1])[None, :] < rows
        closest[start : start + _BLOCK] = np.where(earlier, block, 0.0).max(axis=1, initial=0.0)
    return closest
