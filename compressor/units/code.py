"""Code by definitions and statements: any subset that includes its parents parses again."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import TYPE_CHECKING, Final

from kompakt.compressor.types import Kind
from kompakt.compressor.units.sentences import Range, lines_of
from kompakt.compressor.units.syntax import GRAMMARS, character_offsets, parse
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
     "interface_body", "constructor_body"}
)  # fmt: skip
_OPENS_BODY: Final = re.compile(
    r"function|method|class|constructor|impl_item|mod_item|trait_item|interface|namespace|linkage"
)
_WRAPPERS: Final = frozenset({"decorated_definition", "export_statement", "template_declaration"})
_ATTRIBUTES: Final = frozenset({"decorator", "attribute_item"})
_COMMENTS: Final = frozenset({"comment", "line_comment", "block_comment"})
_MAX_DEPTH: Final = 12


def language_of(name: str) -> str | None:
    """Return the grammar for a file name, an extension or a language's common name; None if there is none."""
    lowered = name.strip().lower()
    suffix = PurePath(lowered).suffix.lstrip(".") or lowered
    language = EXTENSIONS.get(suffix) or _ALIASES.get(lowered, lowered)
    return language if language in GRAMMARS and language != "json" else None


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
    tree = _Tree(text, document, character_offsets(text), inner, has_bodies=language != "bash")
    whole = (0, len(text))
    tree.add(whole, "", None, inside=whole, layout=outer)
    if root.has_error:
        tree.add_lines(context)
    else:
        tree.add_pieces(tree.pieces(root.named_children), whole, context, parent=0, depth=0)
    return tree.units


@dataclass(frozen=True, slots=True)
class _Piece:
    """Statements that cannot be parted, with the offset of the line on which they begin."""

    start: int
    nodes: list[Node]


@dataclass(slots=True)
class _Tree:
    text: str
    document: int
    offset: Callable[[int], int]
    layout: Layout
    has_bodies: bool
    units: list[Unit] = field(default_factory=list)

    def pieces(self, nodes: Sequence[Node], indent: str | None = None) -> list[_Piece]:
        """Group consecutive nodes into pieces of whole lines.

        Args:
            nodes: The statements of one block.
            indent: What every piece must start with, where that carries meaning; None elsewhere.
        """
        found: list[_Piece] = []
        for node in nodes:
            start = self._line_start(node)
            if found and (
                not self._is_alone(node, indent) or self._belongs_below(found[-1].nodes[-1], start, indent)
            ):
                found[-1].nodes.append(node)
            else:
                found.append(_Piece(start, [node]))
        return found

    def _belongs_below(self, node: Node, start: int, indent: str | None) -> bool:
        """Tell whether ``node`` says something about the statement on the line that begins at ``start``."""
        if node.type in _ATTRIBUTES:
            return True
        if node.type not in _COMMENTS or not self._is_alone(node, indent):
            return False
        gap = self.text[self.offset(node.end_byte) : start]
        return gap.count("\n") <= 1 and not gap.strip()

    def add_pieces(self, pieces: Sequence[_Piece], area: Range, context: str, *, parent: int, depth: int) -> None:
        """Add pieces that tile ``area``, each with the lines up to the next."""
        bounds = [area[0], *(piece.start for piece in pieces[1:]), area[1]]
        for piece, start, end in zip(pieces, bounds, bounds[1:], strict=False):
            self._add_piece(piece.nodes, (start, end), context, parent, depth)

    def _add_piece(self, nodes: Sequence[Node], area: Range, context: str, parent: int, depth: int) -> None:
        statements = [node for node in nodes if node.type not in _COMMENTS | _ATTRIBUTES]
        can_open = self.has_bodies and depth < _MAX_DEPTH and len(statements) == 1
        members = _members(statements[0]) if can_open else []
        inner = self._inside(statements[0], members, area) if members else None
        if inner is None:
            self.add(area, context, parent)
            return
        pieces, inside = inner
        index = self.add(area, context, parent, inside=inside, layout=self.layout)
        signature = self.text[area[0] : inside[0]].strip()
        self.add_pieces(pieces, inside, f"{context} {signature}".strip(), parent=index, depth=depth + 1)

    def _inside(self, owner: Node, members: Sequence[Node], area: Range) -> tuple[list[_Piece], Range] | None:
        """Return the pieces and the whole lines of a body, or None if it shares a line with what is around it."""
        is_python = self.layout is Layout.PYTHON_BLOCK
        if is_python:
            # comments may be indented at will
            members = members[next((i for i, node in enumerate(members) if node.type not in _COMMENTS), 0) :]
        start = self._line_start(members[0])
        end = self._line_end(self.offset(members[-1].end_byte), area[1])
        indent = self._indent(members[0])
        if start <= area[0] or indent is None or end <= start:
            return None
        if not is_python and not self.text[end : self.offset(owner.end_byte)].strip():
            return None
        return self.pieces(members, indent if is_python else None), (start, end)

    def add_lines(self, context: str) -> None:
        """Add every line, for want of a structure."""
        start = 0
        for line in lines_of(self.text):
            self.add((start, start + len(line)), context, 0)
            start += len(line)

    def add(
        self,
        area: Range,
        context: str,
        parent: int | None,
        *,
        inside: Range | None = None,
        layout: Layout = Layout.FLAT,
    ) -> int:
        """Add a unit, with room for children in ``inside`` if that is given, and return its index."""
        head_end, tail_start = inside or (area[1], area[1])
        head = self.text[area[0] : head_end]
        unit = Unit(
            self.document, *area, Kind.CODE, head, context, head_end, tail_start, parent, layout=layout, noun="lines"
        )
        self.units.append(unit)
        return len(self.units) - 1

    def _is_alone(self, node: Node, indent: str | None) -> bool:
        """Tell whether nothing but ``indent``, or any white space if that is None, stands before a node."""
        before = self._indent(node)
        return before is not None and indent in (None, before)

    def _line_start(self, node: Node) -> int:
        """Return where the line begins on which a node does."""
        # the parser has counted the bytes: a look back would read all of a file that is one line, once a node
        return self.offset(node.start_byte - node.start_point.column)

    def _indent(self, node: Node) -> str | None:
        """Return the white space before a node on its line; None if anything else stands there."""
        start, position = self._line_start(node), self.offset(node.start_byte)
        blank = position
        while blank > start and self.text[blank - 1].isspace():
            blank -= 1
        return self.text[start:position] if blank == start else None

    def _line_end(self, position: int, limit: int) -> int:
        if self.text[position - 1] == "\n":
            return position
        newline = self.text.find("\n", position, limit)
        return limit if newline < 0 else newline + 1


def _members(node: Node) -> list[Node]:
    """Return the statements of a definition's body; none if it has no body that can be cut."""
    if node.type in _WRAPPERS:
        wrapped = [child for child in node.named_children if _OPENS_BODY.search(child.type)]
        return _members(wrapped[-1]) if wrapped else []
    if node.type == "preproc_ifdef":
        return [] if node.child_by_field_name("alternative") else node.named_children[1:]
    body = node.child_by_field_name("body") if _OPENS_BODY.search(node.type) else None
    if body is None or body.type not in _BODIES:
        return []
    return [
        member
        for child in body.named_children
        for member in (child.named_children if child.type == "statement_list" else [child])
    ]
