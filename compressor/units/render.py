"""Writing a subset of the units back as text, with every piece tied to its source."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Final
from unicodedata import east_asian_width

from kompakt.compressor.types import Document, Kind, Span
from kompakt.compressor.units.unit import Layout, Unit, Units

OMISSION_MARK: Final = "[…]"

_FIRST_BREAK: Final = re.compile(r"\r?\n")


@dataclass(frozen=True, slots=True)
class Fragment:
    """A piece of output and the source range it stands for."""

    text: str
    span: Span


def render(units: Units, kept: Collection[int], *, mark_omissions: bool = False) -> list[list[Fragment]]:
    """Write the kept units of each document in source order.

    Args:
        units: All units of the request.
        kept: Indices of the units to write; the parent of a kept unit must be kept too.
        mark_omissions: Whether prose, logs and tables get a mark where something is missing. JSON and code
            always do, because there absence reads as evidence.

    Returns:
        One list of fragments a document, empty where nothing was kept.
    """
    children = units.children()
    tops: list[list[int]] = [[] for _ in units.documents]
    for index in children.get(None, ()):
        tops[units[index].document].append(index)
    writers = [_Writer(document, units, children, frozenset(kept), mark_omissions) for document in units.documents]
    return [writer.write(top) for writer, top in zip(writers, tops, strict=True)]


def longest_mark(unit: Unit, n_children: int) -> str:
    """Return the longest mark that a container may have to write, so that its tokens can be set aside."""
    return _mark(unit, n_children, n_children) if n_children and unit.layout is not Layout.FLAT else ""


@dataclass(slots=True)
class _Writer:
    document: Document
    units: Units
    children: dict[int | None, list[int]]
    kept: frozenset[int]
    mark_omissions: bool
    fragments: list[Fragment] = field(default_factory=list)

    def write(self, top: Sequence[int]) -> list[Fragment]:
        """Write the document; nothing if all that is kept is a root without text of its own."""
        if any(self._says_something(index) for index in top):
            written = self._flat(top, 0)
            if written < len(self.document.text):
                self._close(written)
        return self.fragments

    def _says_something(self, index: int) -> bool:
        unit = self.units[index]
        has_text = unit.start < unit.head_end
        return index in self.kept and (has_text or any(child in self.kept for child in self.children.get(index, ())))

    def _unit(self, index: int, start: int) -> None:
        unit = self.units[index]
        self._source(start, unit.head_end, unit)
        children = self.children.get(index, [])
        match unit.layout:
            case Layout.FLAT if children:
                written = self._flat(children, unit.head_end)
                if written < unit.tail_start and self.mark_omissions:
                    self._omit(written, unit.tail_start, f"{OMISSION_MARK}\n")
            case Layout.JSON_ARRAY | Layout.JSON_OBJECT:
                self._json(children, unit)
            case Layout.JSON_LINES:
                self._json_lines(children, unit)
            case _:
                self._block(children, unit)
        self._source(unit.tail_start, unit.end, unit)

    def _flat(self, children: Sequence[int], start: int) -> int:
        """Write kept children one after another; return the source offset after the last."""
        written = start
        for index in children:
            if index in self.kept:
                unit = self.units[index]
                self._unit(index, self._bridge(written, unit) if unit.start > written else unit.start)
                written = unit.end
        return written

    def _bridge(self, written: int, unit: Unit) -> int:
        """Join a unit to text that did not precede it in the source; return the offset it is written from."""
        text = self.document.text
        gap = text[written : unit.start]
        line_break = written + _line_break(gap)
        if self.mark_omissions:
            self._omit(written, line_break, OMISSION_MARK if self._ends_with_space() else f" {OMISSION_MARK}")
        if line_break < unit.start:
            if self.fragments and self._last_character() != "\n":
                self._source(line_break, unit.start, unit)
        elif self._ends_with_space():
            return unit.start if unit.protected else _skip_spaces(text, unit.start, unit.head_end)
        elif _would_fuse(self._last_character(), text[unit.start]):
            self._separate(unit.start)
        return unit.start

    def _close(self, written: int) -> None:
        """End a document whose last units are missing: with a mark if asked for, else without white space."""
        if self.mark_omissions:
            mark = OMISSION_MARK if self._ends_with_space() else f" {OMISSION_MARK}"
            self._omit(written, len(self.document.text), mark)
            return
        last = self.fragments[-1]
        trimmed = last.text.rstrip()
        if trimmed and not last.span.protected and last.span.kind is not Kind.OMISSION:
            self.fragments[-1] = Fragment(trimmed, replace(last.span, end=last.span.start + len(trimmed)))

    def _json(self, children: Sequence[int], unit: Unit) -> None:
        """Write kept members with the commas that stood before them, and one member that counts the missing."""
        text = self.document.text
        starts = [self.units[index].start for index in children]
        ends = [self.units[index].end for index in children]
        kept = [position for position, index in enumerate(children) if index in self.kept]
        for position in kept:
            is_first = position == kept[0]
            self._source(*((unit.head_end, starts[0]) if is_first else (ends[position - 1], starts[position])), unit)
            self._unit(children[position], starts[position])
        if len(kept) < len(children):
            glue = text[ends[-2] : starts[-1]] if len(children) > 1 else ", "
            separator = glue if kept else text[unit.head_end : starts[0]]
            key = _free_key(text[unit.start : unit.end]) if unit.layout is Layout.JSON_OBJECT else ""
            self._omit(starts[0], ends[-1], separator + _mark(unit, len(children) - len(kept), len(children), key))

    def _json_lines(self, children: Sequence[int], unit: Unit) -> None:
        """Write kept rows, and one row that counts the missing."""
        missing = [self.units[index] for index in children if index not in self.kept]
        for index in children:
            if index in self.kept:
                self._unit(index, self.units[index].start)
        if missing:
            line_end = "\r\n" if "\r\n" in self.document.text[unit.start : unit.end] else "\n"
            line_break = "" if not self.fragments or self._last_character() == "\n" else line_end
            mark = line_break + _mark(unit, len(missing), len(children), line_end=line_end)
            self._omit(missing[0].start, missing[-1].end, mark)

    def _block(self, children: Sequence[int], unit: Unit) -> None:
        """Write kept children, with a mark for each run that is missing."""
        missing: list[Unit] = []
        for index in children:
            if index in self.kept:
                self._omit_run(missing, unit)
                missing = []
                self._unit(index, self.units[index].start)
            else:
                missing.append(self.units[index])
        self._omit_run(missing, unit)

    def _omit_run(self, missing: Sequence[Unit], unit: Unit) -> None:
        if missing:
            start, end = missing[0].start, missing[-1].end
            source = self.document.text[start:end]
            indent = source[: len(source) - len(source.lstrip(" \t"))]
            n_lines = source.strip("\n").count("\n") + 1
            self._omit(start, end, _mark(unit, n_lines, n_lines, indent, "\r\n" if "\r\n" in source else "\n"))

    def _ends_with_space(self) -> bool:
        return not self.fragments or self._last_character().isspace()

    def _last_character(self) -> str:
        return self.fragments[-1].text[-1]

    def _source(self, start: int, end: int, unit: Unit) -> None:
        if start < end:
            span = Span(self.document.id or "", start, end, unit.kind, unit.protected)
            self.fragments.append(Fragment(self.document.text[start:end], span))

    def _omit(self, start: int, end: int, text: str) -> None:
        self.fragments.append(Fragment(text, Span(self.document.id or "", start, end, Kind.OMISSION)))

    def _separate(self, at: int) -> None:
        self.fragments.append(Fragment(" ", Span(self.document.id or "", at, at, Kind.SEPARATOR)))


def _line_break(gap: str) -> int:
    """Return where the line breaks begin that end ``gap``, or its length if it ends in the middle of a line."""
    blank = len(gap.rstrip())
    found = _FIRST_BREAK.search(gap, blank)
    return found.start() if found else len(gap)


def _would_fuse(last: str, first: str) -> bool:
    """Tell whether two characters would read as one word; scripts that are written wide know no spaces."""
    return not first.isspace() and "W" not in (east_asian_width(last), east_asian_width(first))


def _free_key(source: str) -> str:
    """Return a key for the count of what is missing that is not a key of the object ``source`` already."""
    written = source.replace("\\u2026", "…")
    key = "…"
    while f'"{key}"' in written:
        key += "…"
    return key


def _skip_spaces(text: str, start: int, end: int) -> int:
    while start < end and text[start] in " \t":
        start += 1
    return start


def _mark(unit: Unit, n_missing: int, n_all: int, prefix: str = "", line_end: str = "\n") -> str:
    """Return what stands in place of missing children; ``prefix`` is an object's free key or a block's indent."""
    lines = f"{n_missing} {'line' if n_missing == 1 else 'lines'} omitted"
    match unit.layout:
        case Layout.JSON_ARRAY:
            return f'"… {n_missing} of {n_all} {_plain(unit.noun)} omitted"'
        case Layout.JSON_OBJECT:
            return f'"{prefix or "…"}": "{n_missing} of {n_all} keys omitted"'
        case Layout.JSON_STRING:
            return " …"
        case Layout.JSON_LINES:
            return f'{{"…": "{n_missing} of {n_all} rows omitted"}}{line_end}'
        case Layout.HASH_BLOCK:
            return f"{prefix}# {lines}{line_end}"
        case Layout.PYTHON_BLOCK:
            return f"{prefix}...  # {lines}{line_end}"
        case Layout.BRACE_BLOCK:
            return f"{prefix}/* {lines} */{line_end}"
        case Layout.FLAT:
            return f" {OMISSION_MARK}"


def _plain(noun: str) -> str:
    """Keep a key as the name of its rows only where it needs no escaping."""
    return noun if noun.replace("_", "").replace("-", "").isalnum() else "items"
