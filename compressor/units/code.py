"""Code by definitions and statements: any subset that includes its parents parses again."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import TYPE_CHECKING, Final

from kompakt.compressor.types import Kind
from kompakt.compressor.units.sentences import lines_of
from kompakt.compressor.units.syntax import GRAMMARS, character_offsets, extent, n_errors, parse
from kompakt.compressor.units.unit import Layout, Unit

if TYPE_CHECKING:
    from tree_sitter import Node

EXTENSIONS: Final = {
    "py": "python", "pyi": "python", "js": "javascript", "jsx": "javascript", "mjs": "javascript",
    "ts": "typescript", "tsx": "tsx", "java": "java", "go": "go", "rs": "rust", "c": "c", "h": "c",
    "cc": "cpp", "cpp": "cpp", "cxx": "cpp", "hpp": "cpp", "sh": "bash", "bash": "bash",
}  # fmt: skip
_ALIASES: Final = {"py": "python", "python3": "python", "shell": "bash", "c++": "cpp", "golang": "go"}

_BODIES: Final = frozenset(
    {"block", "statement_block", "class_body", "compound_statement", "declaration_list", "field_declaration_list",
     "interface_body", "enum_body", "constructor_body"}
)  # fmt: skip
_OPENS_BODY = re.compile(r"function|method|class|constructor|impl_item|mod_item|trait_item|interface|namespace")
_CODE_LINE = re.compile(
    r"^\s*(?:def |class |import |from \S+ import|func |fn |pub |use |package |#include|const |let |var |return\b"
    r"|if \(|for \(|while \(|public |private |static |@\w+|\}|.*[;{]\s*$|.*\):\s*$)"
)
_GUESSES: Final = ("python", "javascript", "typescript", "go", "rust", "java", "c", "cpp", "bash")


def language_of(name: str) -> str | None:
    """Return the grammar for a file name, an extension or a language's common name; None if there is none."""
    lowered = name.strip().lower()
    suffix = PurePath(lowered).suffix.lstrip(".") or lowered
    language = EXTENSIONS.get(suffix) or _ALIASES.get(lowered, lowered)
    return language if language in GRAMMARS and language != "json" else None


def guess_language(text: str) -> str | None:
    """Return the language that explains ``text`` without a syntax error, if most of its lines look like code."""
    lines = [line for line in text.splitlines() if line.strip()]
    code_like = sum(1 for line in lines if _CODE_LINE.match(line))
    if len(lines) < 3 or code_like < max(2, 0.2 * len(lines)):
        return None
    return next((language for language in _GUESSES if n_errors(text, language) == 0), None)


def split_code(text: str, language: str, *, document: int, context: str = "") -> list[Unit]:
    """Cut source code into top-level statements, signatures and the statements of bodies.

    Args:
        text: Source code.
        language: A key of ``GRAMMARS``.
        document: Index of the document in the request.
        context: What stands above it.

    Returns:
        A root unit and, below it, units that tile whole lines; code with syntax errors is one unit a line.
    """
    root = parse(text, language).root_node
    inner = Layout.PYTHON_BLOCK if language == "python" else Layout.BRACE_BLOCK
    outer = Layout.HASH_BLOCK if language in ("python", "bash") else inner
    tree = _Tree(text, document, character_offsets(text), inner, bodies=language != "bash")
    top = tree.root(outer)
    if root.has_error:
        tree.lines(context, top)
    else:
        tree.body(root, (0, len(text)), context, top)
    return tree.units


@dataclass(slots=True)
class _Tree:
    text: str
    document: int
    offset: Callable[[int], int]
    layout: Layout
    bodies: bool
    units: list[Unit] = field(default_factory=list)

    def root(self, layout: Layout) -> int:
        end = len(self.text)
        self.units.append(
            Unit(self.document, 0, end, Kind.CODE, "", head_end=0, tail_start=end, layout=layout, noun="lines")
        )
        return 0

    def body(self, node: Node, area: tuple[int, int], context: str, parent: int) -> None:
        """Cut ``area`` at the lines on which a child of ``node`` begins."""
        start, end = area
        children = node.named_children
        starts = [self._line_start(self.offset(child.start_byte), start) for child in children]
        previous = start
        pending: list[Node] = []
        for child, child_start in zip(children, starts, strict=True):
            # a statement that shares its line with the one before it cannot be parted from it
            if child_start > previous and pending:
                self._statement(pending, (previous, child_start), context, parent)
                previous, pending = child_start, []
            pending.append(child)
        if previous < end:
            self._statement(pending, (previous, end), context, parent)

    def lines(self, context: str, parent: int) -> None:
        start = 0
        for line in lines_of(self.text):
            self._add((start, start + len(line)), context, parent)
            start += len(line)

    def _statement(self, nodes: list[Node], area: tuple[int, int], context: str, parent: int) -> None:
        block = _body_of(nodes[0]) if self.bodies and len(nodes) == 1 else None
        inner = self._inside(block, area) if block is not None else None
        if block is None or inner is None:
            self._add(area, context, parent)
            return
        signature = self.text[area[0] : inner[0]].strip()
        index = self._add(area, context, parent, inner)
        self.body(block, inner, f"{context} {signature}".strip(), index)

    def _inside(self, block: Node, area: tuple[int, int]) -> tuple[int, int] | None:
        """Return the whole lines of a body, or None if it shares a line with what is around it."""
        named = block.named_children
        if not named:
            return None
        start = self._line_start(self.offset(named[0].start_byte), area[0])
        last = self.offset(named[-1].end_byte)
        newline = self.text.find("\n", last)
        end = area[1] if newline < 0 or newline >= area[1] else newline + 1
        body_start, body_end = extent(block, self.offset)
        shares_first = start <= area[0] or (block.start_byte != named[0].start_byte and start <= body_start)
        shares_last = self.layout is Layout.BRACE_BLOCK and end >= body_end
        return None if shares_first or shares_last or end <= start else (start, end)

    def _line_start(self, position: int, floor: int) -> int:
        return max(self.text.rfind("\n", 0, position) + 1, floor)

    def _add(self, area: tuple[int, int], context: str, parent: int, inner: tuple[int, int] | None = None) -> int:
        head_end, tail_start = inner or (area[1], area[1])
        self.units.append(
            Unit(
                self.document,
                *area,
                Kind.CODE,
                self.text[area[0] : head_end],
                context,
                head_end,
                tail_start,
                parent,
                layout=self.layout if inner else Layout.FLAT,
                noun="lines",
            )  # fmt: skip
        )
        return len(self.units) - 1


def _body_of(node: Node) -> Node | None:
    """Return the body of a definition, looking through decorators and exports."""
    if node.type in ("decorated_definition", "export_statement"):
        inner = node.child_by_field_name("definition") or node.child_by_field_name("declaration")
        return _body_of(inner) if inner is not None else None
    if not _OPENS_BODY.search(node.type):
        return None
    body = node.child_by_field_name("body")
    return body if body is not None and body.type in _BODIES else None
