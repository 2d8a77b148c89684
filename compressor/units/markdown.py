"""Markdown and plain prose by block: headings give context, tables and fences keep their shape."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING

from kompakt.compressor.types import Kind
from kompakt.compressor.units.code import language_of, split_code
from kompakt.compressor.units.json_tree import is_json, split_json
from kompakt.compressor.units.lines import split_lines, split_table
from kompakt.compressor.units.sentences import ProseSplitter, lines_of
from kompakt.compressor.units.unit import Unit, shift

if TYPE_CHECKING:
    from markdown_it import MarkdownIt

_MARKUP = re.compile(r"^(?:#{1,6} |```|~~~|\s{0,3}[-*+] |\s{0,3}\d+[.)] |\s{0,3}\|.*\||> )", re.MULTILINE)
_TITLE = re.compile(r"\A\s*(\S[^\n]{0,99})\n+(?=\S[^\n]{100})")


@cache
def _parser() -> MarkdownIt:
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark").enable("table")
    # only the blocks' line numbers are used
    parser.core.ruler.disable(["inline", "text_join"])
    return parser


@dataclass(frozen=True, slots=True)
class _Block:
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
    blocks = list(_blocks(text)) if _MARKUP.search(text) else []
    if not blocks:
        cutter.plain()
    for block in blocks:
        cutter.add(block)
    return cutter.units


def _blocks(text: str) -> Iterator[_Block]:
    """Return consecutive blocks that tile the text."""
    lines = [0]
    for line in lines_of(text):
        lines.append(lines[-1] + len(line))
    marks = [token for token in _parser().parse(text.replace("\r", " ")) if token.map and token.level <= 1]
    wanted = ("heading_open", "fence", "code_block", "table_open", "paragraph_open", "list_item_open", "html_block",
              "hr", "blockquote_open", "bullet_list_open", "ordered_list_open")  # fmt: skip
    starts: dict[int, _Block] = {}
    for token in marks:
        if token.type in wanted and token.map:
            first, last = token.map
            level = int(token.tag[1]) if token.type == "heading_open" else 0
            starts.setdefault(
                lines[first],
                _Block(lines[first], lines[min(last, len(lines) - 1)], token.type, token.info, level),
            )
    ordered = [starts[start] for start in sorted(starts)]
    if not ordered:
        return
    bounds = [0, *(block.start for block in ordered[1:]), len(text)]
    for block, start, end in zip(ordered, bounds, bounds[1:], strict=False):
        if end > start:
            yield _Block(start, end, block.type, block.info, block.level)


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

    def plain(self) -> None:
        """Add the whole text as prose; a short first line before long text is its title."""
        title = _TITLE.match(self.text)
        start = 0
        if title and title.group(1)[-1] not in ".!?:,;。！？":
            start = title.end()
            self._prose(0, start)
            self.headings = [(1, title.group(1))]
        self._prose(start, len(self.text))

    def add(self, block: _Block) -> None:
        match block.type:
            case "heading_open":
                self._heading(block)
            case "fence":
                self._fence(block)
            case "table_open":
                piece = self.text[block.start : block.end]
                self._extend(split_table(piece, document=self.document, context=self.context), block.start)
            case "code_block":
                piece = self.text[block.start : block.end]
                units = split_lines(piece, document=self.document, kind=Kind.CODE, context=self.context)
                self._extend(units, block.start)
            case _:
                self._prose(block.start, block.end)

    def _heading(self, block: _Block) -> None:
        while self.headings and self.headings[-1][0] >= block.level:
            self.headings.pop()
        self._add(block.start, block.end)
        self.headings.append((block.level, self.text[block.start : block.end].strip().strip("#=- \n")))

    def _fence(self, block: _Block) -> None:
        piece = self.text[block.start : block.end]
        first, last = piece.find("\n") + 1, piece.rstrip().rfind("\n") + 1
        if not 0 < first < last:
            self._add(block.start, block.end, Kind.CODE)
            return
        index = len(self.units)
        self.units.append(
            Unit(
                self.document,
                block.start,
                block.end,
                Kind.CODE,
                piece[:first],
                self.context,
                block.start + first,
                block.start + last,
            )  # fmt: skip
        )
        self._extend(self._fenced(piece[first:last], block.info), block.start + first, parent=index)

    def _fenced(self, inner: str, info: str) -> list[Unit]:
        language = language_of(info.split()[0]) if info.split() else None
        if language:
            return split_code(inner, language, document=self.document, context=self.context)
        if is_json(inner):
            return split_json(inner, document=self.document, context=self.context)
        return split_lines(inner, document=self.document, kind=Kind.CODE, context=self.context)

    def _prose(self, start: int, end: int) -> None:
        for a, b in self.splitter(self.text[start:end]):
            self._add(start + a, start + b)

    def _add(self, start: int, end: int, kind: Kind = Kind.PROSE) -> None:
        if end > start:
            self.units.append(Unit(self.document, start, end, kind, self.text[start:end], self.context))

    def _extend(self, units: list[Unit], offset: int, parent: int | None = None) -> None:
        before = len(self.units)
        self.units.extend(shift(unit, by=offset, units_before=before, parent=parent) for unit in units)
