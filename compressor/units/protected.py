"""Protected ranges: what the caller said must survive byte for byte."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from kompakt.compressor.types import Document, Kind
from kompakt.compressor.units.sentences import Range
from kompakt.compressor.units.unit import Unit


def mark_protected(units: Sequence[Unit], document: Document) -> list[Unit]:
    """Mark the units that touch a protected range of their document.

    Prose, logs and tables are cut around the range, so that a long sentence is not kept for the sake of a short
    number in it; the words that the range touches stay whole. Members of JSON and statements of code cannot be cut.
    """
    if not document.protected:
        return list(units)
    ranges = [_whole_words(document.text, start, end) for start, end in document.protected if start < end]
    position: dict[int, int] = {}
    marked: list[Unit] = []
    for index, unit in enumerate(units):
        position[index] = len(marked)
        touching = [(a, b) for a, b in ranges if a < unit.end and b > unit.start]
        marked.extend(_mark(unit, touching, document.text) if touching else [unit])
    return [_renumber(unit, position) for unit in marked]


def _mark(unit: Unit, ranges: Sequence[Range], text: str) -> list[Unit]:
    if unit.is_container:
        in_ends = any(a < unit.head_end or b > unit.tail_start for a, b in ranges)
        return [replace(unit, protected=in_ends)]
    if unit.kind in (Kind.JSON, Kind.CODE):
        return [replace(unit, protected=True)]
    cuts = {unit.start, unit.end}
    cuts.update(cut for pair in ranges for cut in pair if unit.start < cut < unit.end)
    edges = sorted(cuts)
    return [
        replace(
            unit, start=a, end=b, head_end=b, tail_start=b, text=text[a:b],
            protected=any(start < b and end > a for start, end in ranges),
        )
        for a, b in zip(edges, edges[1:], strict=False)
    ]  # fmt: skip


def _whole_words(text: str, start: int, end: int) -> Range:
    while start > 0 and not text[start - 1].isspace():
        start -= 1
    while end < len(text) and not text[end].isspace():
        end += 1
    return start, end


def _renumber(unit: Unit, position: dict[int, int]) -> Unit:
    return replace(
        unit,
        parent=None if unit.parent is None else position[unit.parent],
        requires=tuple(position[index] for index in unit.requires),
    )
