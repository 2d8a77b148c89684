"""Protected ranges: what the caller said must survive byte for byte."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from kompakt.compressor.types import Document, Kind
from kompakt.compressor.units.sentences import Range
from kompakt.compressor.units.unit import Layout, Unit

_CUTTABLE = (Kind.PROSE, Kind.LOG)


def mark_protected(units: Sequence[Unit], document: Document) -> list[Unit]:
    """Mark the units that touch a protected range of their document.

    Prose and log lines are cut around the range, so that a long sentence is not kept for the sake of a short
    number in it; the words that the range touches stay whole. Table rows, members of JSON and statements of code
    are not cut.

    Args:
        units: The units of this document alone.
        document: The document.
    """
    ranges = _whole_words(document.text, document.protected)
    if not ranges:
        return list(units)
    position: list[int] = []
    marked: list[Unit] = []
    for unit, begin in zip(units, reaches(units), strict=True):
        position.append(len(marked))
        marked.extend(_mark(unit, _touching(ranges, begin, unit.end), begin, document.text))
    return [_renumber(unit, position) for unit in marked]


def reaches(units: Sequence[Unit]) -> list[int]:
    """Return the offset from which each unit is written: for members of JSON after the member before."""
    begins = [unit.start for unit in units]
    written = [unit.head_end for unit in units]
    for index, unit in enumerate(units):
        parent = unit.parent
        if parent is not None and units[parent].layout in (Layout.JSON_ARRAY, Layout.JSON_OBJECT):
            begins[index], written[parent] = written[parent], unit.end
    return begins


def _whole_words(text: str, protected: Sequence[Range]) -> list[Range]:
    """Return the ranges extended to whole words, ascending and disjoint."""
    merged: list[Range] = []
    for start, end in sorted(protected):
        floor = merged[-1][1] if merged else 0
        if start >= end or end <= floor:
            continue
        while start > floor and not text[start - 1].isspace():
            start -= 1
        while end < len(text) and not text[end].isspace():
            end += 1
        if merged and start <= floor:
            start = merged.pop()[0]
        merged.append((start, end))
    return merged


def _touching(ranges: Sequence[Range], start: int, end: int) -> Sequence[Range]:
    first = bisect_right(ranges, start, key=lambda pair: pair[1])
    return ranges[first : bisect_left(ranges, end, key=lambda pair: pair[0])]


def _mark(unit: Unit, ranges: Sequence[Range], begin: int, text: str) -> list[Unit]:
    if not ranges:
        return [unit]
    if unit.is_container:
        in_head = ranges[0][0] < unit.head_end and ranges[0][1] > begin
        return [replace(unit, protected=unit.protected or in_head or ranges[-1][1] > unit.tail_start)]
    if unit.kind not in _CUTTABLE:
        return [replace(unit, protected=True)]
    cuts = {unit.start, unit.end, *(cut for pair in ranges for cut in pair if unit.start < cut < unit.end)}
    starts = {max(unit.start, start) for start, _ in ranges}
    return [
        replace(unit, start=a, end=b, head_end=b, tail_start=b, text=text[a:b], protected=a in starts)
        for a, b in pairwise(sorted(cuts))
    ]


def _renumber(unit: Unit, position: Sequence[int]) -> Unit:
    if unit.parent is None and not unit.requires:
        return unit
    return replace(
        unit,
        parent=None if unit.parent is None else position[unit.parent],
        requires=tuple(position[index] for index in unit.requires),
    )
