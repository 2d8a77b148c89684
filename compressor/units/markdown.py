"""Markdown and plain prose by block: headings give context, tables and fences keep their shape."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import accumulate
from typing import TYPE_CHECKING, Final

from kompakt.compressor.types import Kind
from kompakt.compressor.units.code import language_of, split_code
from kompakt.compressor.units.json_tree import embedded_json, is_json, split_json
from kompakt.compressor.units.lines import split_lines, split_table
from kompakt.compressor.units.sentences import ProseSplitter, Range, lines_of
from kompakt.compressor.units.unit import Unit, shift

if TYPE_CHECKING:
    from markdown_it import MarkdownIt

_MARKUP: Final = re.compile(r"^(?:#{1,6} |```|~~~|\s{0,3}[-*+] |\s{0,3}\d+[.)] |\s{0,3}\|.*\||> )", re.MULTILINE)
_TITLE: Final = re.compile(r"\A\s*(\S[^\n]{0,99})\n+(?=\S[^\n]{100})")
_FENCE: Final = re.compile(r"^[^\S\n]*(?:```|~~~)", re.MULTILINE)
_OPENING: Final = re.compile(r"\s*\S[^\n]*\n")
_CLOSING: Final = re.compile(r"(?m)^[ \t>]*(?:`{3,}|~{3,})\s*\Z")
_SPECIAL: Final = frozenset({"heading_open", "fence", "code_block", "table_open"})


@cache
def _parser() -> MarkdownIt:
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark").enable("table")
    # only the blocks' line numbers are used
    parser.core.ruler.disable(["inline", "text_join"])
    return parser


@dataclass(frozen=True, slots=True)
class _Block:
    """A heading, fence, indented code or table: what is not running text."""

    start: int
    end: int
    type: str
    info: str = ""
    level: int = 0


def split_markdown(text: str, splitter: ProseSplitter, *, document: int, context: str = "") -> list[Unit]:
    """Cut prose with or without Markdown into units.

    Args:
        text: The text.
        splitter: Cuts running text, usually into sentences.
        document: Index of the document in the request.
        context: What stands above it, such as a title.
    """
    cutter = _Cutter(text, splitter, document, context)
    position = 0
    # the content of a fence is recognised as such
    for start, end in [] if _FENCE.search(text) else embedded_json(text):
        cutter.stretch(position, start)
        cutter.json(start, end)
        position = end
    cutter.stretch(position, len(text))
    return cutter.units


def _blocks(text: str) -> list[_Block]:
    """Return the blocks that are not running text, in order, each with the blank lines after it."""
    lines = lines_of(text)
    starts = list(accumulate(map(len, lines), initial=0))
    found: list[_Block] = []
    line = 0
    for token in _parser().parse(text.replace("\r", " ")):
        if token.map is None or token.type not in _SPECIAL or token.map[0] < line:
            continue
        is_heading = token.type == "heading_open"
        if is_heading and token.level > 0:
            continue
        first, line = token.map
        while line < len(lines) and not lines[line].strip():
            line += 1
        # blank lines before the first block go with it
        start = 0 if not found and not text[: starts[first]].strip() else starts[first]
        level = int(token.tag[1]) if is_heading else 0
        found.append(_Block(start, starts[line], token.type, token.info, level))
    return found


@dataclass(slots=True)
class _Cutter:
    text: str
    splitter: ProseSplitter
    document: int
    title: str
    units: list[Unit] = field(default_factory=list)
    headings: list[tuple[int, str]] = field(default_factory=list)

    @property
    def context(self) -> str:
        return " ".join([self.title, *(heading for _, heading in self.headings)]).strip()

    def stretch(self, start: int, end: int) -> None:
        """Add prose with or without Markdown."""
        text = self.text[start:end]
        blocks = _blocks(text) if _MARKUP.search(text) else []
        position = start if blocks or start else self._title(end)
        for block in blocks:
            placed = replace(block, start=block.start + start, end=block.end + start)
            self.prose(position, placed.start)
            self.add(placed)
            position = placed.end
        self.prose(position, end)

    def json(self, start: int, end: int) -> None:
        """Add JSON that stands between prose."""
        self._extend(split_json(self.text[start:end], document=self.document, context=self.context), start)

    def _title(self, end: int) -> int:
        """Add a short first line before long text as its title; return where the rest begins."""
        title = _TITLE.match(self.text, 0, end)
        if not title or title[1][-1] in ".!?:,;。！？":  # noqa: RUF001
            return 0
        self.prose(0, title.end())
        self.headings = [(1, title[1])]
        return title.end()

    def add(self, block: _Block) -> None:
        """Add a block that is not running text."""
        piece = self.text[block.start : block.end]
        match block.type:
            case "heading_open":
                self._heading(block)
            case "fence":
                self._fence(block)
            case "table_open":
                self._extend(split_table(piece, document=self.document, context=self.context), block.start)
            case _:
                units = split_lines(piece, document=self.document, kind=Kind.CODE, context=self.context)
                self._extend(units, block.start)

    def _heading(self, block: _Block) -> None:
        while self.headings and self.headings[-1][0] >= block.level:
            self.headings.pop()
        self._add(block.start, block.end)
        self.headings.append((block.level, self.text[block.start : block.end].strip().strip("#=- \n")))

    def _fence(self, block: _Block) -> None:
        piece = self.text[block.start : block.end]
        opening, closing = _OPENING.match(piece), _CLOSING.search(piece)
        first, last = opening.end() if opening else 0, closing.start() if closing else len(piece)
        if not 0 < first < last:
            self._add(block.start, block.end, Kind.CODE)
            return
        index = len(self.units)
        self._add(block.start, block.end, Kind.CODE, inside=(block.start + first, block.start + last))
        self._extend(self._fenced(piece[first:last], block.info), block.start + first, parent=index)

    def _fenced(self, inner: str, info: str) -> list[Unit]:
        language = language_of(info.split()[0]) if info.split() else None
        if language:
            return split_code(inner, language, document=self.document, context=self.context)
        if is_json(inner):
            return split_json(inner, document=self.document, context=self.context)
        return split_lines(inner, document=self.document, kind=Kind.CODE, context=self.context)

    def prose(self, start: int, end: int) -> None:
        """Add running text."""
        context = self.context
        for a, b in self.splitter(self.text[start:end]):
            sentence = self.text[start + a : start + b]
            self.units.append(Unit(self.document, start + a, start + b, Kind.PROSE, sentence, context))

    def _add(self, start: int, end: int, kind: Kind = Kind.PROSE, *, inside: Range | None = None) -> None:
        head_end, tail_start = inside or (end, end)
        head = self.text[start:head_end]
        self.units.append(Unit(self.document, start, end, kind, head, self.context, head_end, tail_start))

    def _extend(self, units: list[Unit], offset: int, parent: int | None = None) -> None:
        before = len(self.units)
        self.units.extend(shift(unit, by=offset, units_before=before, parent=parent) for unit in units)
