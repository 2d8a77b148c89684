"""JSON, code, logs and tables: what is relevant, what stands out, and what the rest cannot do without."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

from kompakt.compressor.base import ScoringCompressor
from kompakt.compressor.text.bm25 import relevance
from kompakt.compressor.text.outliers import is_alarm, outlying_rows, repeated_lines
from kompakt.compressor.types import Kind
from kompakt.compressor.units.unit import Layout, Units

_OUTLIER: Final = 0.4
_ALARM: Final = 0.5
_SIGNATURE: Final = 0.3
_WITHOUT_QUERY: Final = 3.5
"""Without a query relevance says little, so that what stands out and what the rest needs come before all else."""
_REPEAT: Final = 0.5


@dataclass(frozen=True)
class Structured(ScoringCompressor):
    """Keep structured content valid and keep what would be missed.

    JSON loses rows and keys by relevance, never its shape: every object and array says how many members were left
    out, and rows unlike their siblings stay. Code loses bodies before signatures and still parses. Logs keep their
    errors and lose lines that repeat a template. Prose is ranked as ``lexical`` does.
    """

    name: ClassVar[str] = "structured"

    def score(self, units: Units, query: str | None) -> Sequence[float]:
        """Return the lexical relevance of each unit plus what its place in the structure is worth."""
        return [
            value + bonus for value, bonus in zip(relevance(units, query), structure_bonus(units, query), strict=True)
        ]


def structure_bonus(units: Units, query: str | None) -> list[float]:
    """Return what to add to the relevance (0 to 1) of each unit because of its place in the structure.

    Positive for rows that stand out, lines that report a failure and signatures; negative for log lines whose
    template came before. Zero for prose. Without a query, each is worth more than any relevance.
    """
    weight = 1.0 if query else _WITHOUT_QUERY
    bonus = [0.0] * len(units)
    for index in outlying_rows(units):
        bonus[index] += _OUTLIER * weight
    for index, n_before in repeated_lines(units).items():
        bonus[index] -= _REPEAT * n_before / (n_before + 1)
    for index, unit in enumerate(units):
        in_string = unit.parent is not None and units[unit.parent].layout is Layout.JSON_STRING
        if (unit.kind is Kind.LOG or in_string) and is_alarm(unit.text):
            bonus[index] += _ALARM * weight
        elif unit.kind is Kind.CODE and unit.is_container:
            bonus[index] += _SIGNATURE * weight
    return bonus
