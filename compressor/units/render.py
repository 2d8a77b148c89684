"""Writing a subset of the units back as text, with every piece tied to its source."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

from kompakt.compressor.types import Document, Kind, Span
from kompakt.compressor.units.unit import Layout, Unit, Units

OMISSION_MARK = "[…]"


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
        if any(index in self.kept for index in top):
            self._flat(top, 0, len(self.document.text))
        return self.fragments

    def _unit(self, index: int, start: int) -> None:
        unit = self.units[index]
        self._source(start, unit.head_end, unit)
        children = self.children.get(index, [])
        match unit.layout:
            case Layout.FLAT:
                self._flat(children, unit.head_end, unit.tail_start)
            case Layout.JSON_ARRAY | Layout.JSON_OBJECT:
                self._json(children, unit)
            case _:
                self._block(children, unit)
        self._source(unit.tail_start, unit.end, unit)

    def _flat(self, children: Sequence[int], start: int, end: int) -> None:
        written = start
        for index in children:
            if index in self.kept:
                unit = self.units[index]
                self._unit(index, self._bridge(written, unit) if unit.start > written else unit.start)
                written = unit.end
        if written < end and children:
            self._close(written, end)

    def _bridge(self, written: int, unit: Unit) -> int:
        """Join a unit to text that did not precede it in the source; return the offset it is written from."""
        text = self.document.text
        if self.mark_omissions:
            mark = OMISSION_MARK if self._ends_blank() else f" {OMISSION_MARK}"
            self._omit(written, unit.start, mark)
        line_break = unit.start
        while line_break > written and text[line_break - 1] == "\n":
            line_break -= 1
        if line_break < unit.start:
            if not self._ends_blank():
                self._source(line_break, unit.start, unit)
            return unit.start
        if self._ends_blank():
            return _skip_spaces(text, unit.start, unit.head_end)
        if self._last_character().isalnum() and text[unit.start].isalnum():
            self._separate(unit.start)
        return unit.start

    def _close(self, written: int, end: int) -> None:
        """End a stretch whose last units are missing: no dangling white space, a mark if asked for."""
        if self.fragments and not self.fragments[-1].span.protected:
            last = self.fragments[-1]
            trimmed = last.text.rstrip()
            if trimmed:
                shorter = replace(last.span, end=last.span.end - len(last.text) + len(trimmed))
                self.fragments[-1] = Fragment(trimmed, shorter)
        if self.mark_omissions:
            self._omit(written, end, f" {OMISSION_MARK}")

    def _json(self, children: Sequence[int], unit: Unit) -> None:
        """Write kept members with the commas that stood before them, and one member that counts the missing."""
        text = self.document.text
        kept = [position for position, index in enumerate(children) if index in self.kept]
        opening = text[unit.head_end : self.units[children[0]].start] if children else ""
        for position in kept:
            child = self.units[children[position]]
            if position == kept[0]:
                self._source(unit.head_end, unit.head_end + len(opening), unit)
            else:
                self._source(self.units[children[position - 1]].end, child.start, unit)
            self._unit(children[position], child.start)
        if len(kept) < len(children):
            last, before = self.units[children[-1]], self.units[children[-2]] if len(children) > 1 else None
            separator = (text[before.end : last.start] if before else ", ") if kept else opening
            mark = _mark(unit, len(children) - len(kept), len(children))
            self._omit(self.units[children[0]].start, last.end, separator + mark)

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
            n_lines = len(source.strip("\n").split("\n"))
            self._omit(start, end, _mark(unit, n_lines, n_lines, indent))

    def _ends_blank(self) -> bool:
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


def _skip_spaces(text: str, start: int, end: int) -> int:
    while start < end and text[start] in " \t":
        start += 1
    return start


def _mark(unit: Unit, n_missing: int, n_all: int, indent: str = "") -> str:
    match unit.layout:
        case Layout.JSON_ARRAY:
            return f'"… {n_missing} of {n_all} {_plain(unit.noun)} omitted"'
        case Layout.JSON_OBJECT:
            return f'"…": "{n_missing} of {n_all} keys omitted"'
        case Layout.JSON_STRING:
            return " …"
        case Layout.HASH_BLOCK:
            return f"{indent}# {n_missing} lines omitted\n"
        case Layout.PYTHON_BLOCK:
            return f"{indent}...  # {n_missing} lines omitted\n"
        case Layout.BRACE_BLOCK:
            return f"{indent}/* {n_missing} lines omitted */\n"
        case Layout.FLAT:
            return f" {OMISSION_MARK}"


def _plain(noun: str) -> str:
    """Keep a key as the name of its rows only where it needs no escaping."""
    return noun if noun.replace("_", "").replace("-", "").isalnum() else "items"
