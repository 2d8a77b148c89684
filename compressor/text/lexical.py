"""BM25 over units: no model, no torch, and the floor that every learned compressor must beat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from kompakt.compressor.base import ScoringCompressor
from kompakt.compressor.text.bm25 import bm25_scores, centrality
from kompakt.compressor.units.unit import Units


@dataclass(frozen=True)
class Lexical(ScoringCompressor):
    """Keep the units that share rare words with the query.

    Without a query, units that share words with the rest of the text come first, repeats last.

    Source: Robertson and Zaragoza 2009, "The Probabilistic Relevance Framework: BM25 and Beyond".
    """

    name: ClassVar[str] = "lexical"

    def score(self, units: Units, query: str | None) -> Sequence[float]:
        """Return the BM25 score of each unit."""
        return bm25_scores(units, query) if query else centrality(units)
