"""JSON by rows and keys: a tree of units from which any subset that includes the root is valid JSON again."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

from kompakt.compressor.types import Kind
from kompakt.compressor.units.sentences import split_sentences
from kompakt.compressor.units.syntax import character_offsets, extent, parse
from kompakt.compressor.units.unit import Layout, Unit

if TYPE_CHECKING:
    from tree_sitter import Node

_MAX_LEAF = 400
"""Characters up to which an object, array or string is kept or dropped whole: about a hundred tokens."""
_MAX_DEPTH = 64


def is_json(text: str) -> bool:
    """Tell whether ``text`` is one JSON object or array."""
    stripped = text.strip()
    if not stripped or stripped[0] + stripped[-1] not in ("{}", "[]"):
        return False
    try:
        json.loads(stripped)
    except (ValueError, RecursionError):
        return False
    return True


def is_json_lines(text: str) -> bool:
    """Tell whether every line of ``text`` that is not blank is a JSON object or array, and there are two or more."""
    lines = [line for line in text.splitlines() if line.strip()]
    return len(lines) > 1 and all(is_json(line) for line in lines)


def split_json(text: str, *, document: int, context: str = "") -> list[Unit]:
    """Cut one JSON value into rows, keys and, inside long strings, sentences.

    Args:
        text: Valid JSON.
        document: Index of the document in the request.
        context: What stands above it.
    """
    root = parse(text, "json").root_node
    values = [node for node in root.named_children if node.type in ("object", "array")]
    if root.has_error or len(values) != 1:
        return [Unit(document, 0, len(text), Kind.JSON, text, context)]
    tree = _Tree(text, document, character_offsets(text))
    start, end = extent(values[0], tree.offset)
    tree.container(values[0], _Place(start, context), atomic=False)
    first = tree.units[0]
    # white space around the root belongs to it
    tree.units[0] = Unit(
        document, 0, len(text), Kind.JSON, first.text, context,
        first.head_end, first.tail_start, None, (), first.protected, first.layout, first.noun,
    )  # fmt: skip
    return tree.units


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a value stands: the offset its unit begins at, its keys, and its parent."""

    start: int
    path: str
    parent: int | None = None
    depth: int = 0
    noun: str = "items"


@dataclass(slots=True)
class _Tree:
    text: str
    document: int
    offset: Callable[[int], int]
    units: list[Unit] = field(default_factory=list)

    def value(self, node: Node, place: _Place) -> None:
        _, end = extent(node, self.offset)
        if end - place.start <= _MAX_LEAF or place.depth >= _MAX_DEPTH:
            self._leaf(place, end)
        elif node.type in ("object", "array"):
            self.container(node, place)
        elif node.type == "string":
            self._string(node, place)
        else:
            self._leaf(place, end)

    def container(self, node: Node, place: _Place, *, atomic: bool = True) -> None:
        start, end = extent(node, self.offset)
        children = [child for child in node.named_children if child.type != "comment"]
        if not children and atomic:
            self._leaf(place, end)
            return
        is_array = node.type == "array"
        tail_start = extent(children[-1], self.offset)[1] if children else end - 1
        index = self._add(
            place,
            start + 1,
            tail_start,
            end,
            Layout.JSON_ARRAY if is_array else Layout.JSON_OBJECT,
            place.noun,
        )
        for child in children:
            child_start, _ = extent(child, self.offset)
            inside = _Place(child_start, place.path, index, place.depth + 1)
            if is_array:
                self.value(child, inside)
            else:
                self._pair(child, inside)

    def _pair(self, node: Node, place: _Place) -> None:
        key, value = node.child_by_field_name("key"), node.child_by_field_name("value")
        if key is None or value is None:
            self._leaf(place, extent(node, self.offset)[1])
            return
        name = self.text[slice(*extent(key, self.offset))].strip('"')
        path = f"{place.path} {name}" if place.path else name
        self.value(value, _Place(place.start, path, place.parent, place.depth, name or "items"))

    def _string(self, node: Node, place: _Place) -> None:
        start, end = extent(node, self.offset)
        inner = self.text[start + 1 : end - 1]
        index = self._add(place, start + 1, end - 1, end, Layout.JSON_STRING, "sentences")
        cuts = {start + 1 + a for a, _ in split_sentences(inner)} - self._inside_escapes(node)
        for a, b in pairwise([*sorted(cuts), end - 1]):
            piece = self.text[a:b]
            self.units.append(Unit(self.document, a, b, Kind.JSON, piece, place.path, parent=index))

    def _inside_escapes(self, string: Node) -> set[int]:
        """Offsets at which a cut would part an escape sequence such as ``\\u00e9``."""
        inside: set[int] = set()
        stack = list(string.children)
        while stack:
            node = stack.pop()
            stack.extend(node.children)
            if node.type == "escape_sequence":
                start, end = extent(node, self.offset)
                inside.update(range(start + 1, end))
        return inside

    def _leaf(self, place: _Place, end: int) -> None:
        self.units.append(
            Unit(
                self.document,
                place.start,
                end,
                Kind.JSON,
                self.text[place.start : end],
                place.path,
                parent=place.parent,
            )  # fmt: skip
        )

    def _add(self, place: _Place, head_end: int, tail_start: int, end: int, layout: Layout, noun: str) -> int:
        head = self.text[place.start : head_end]
        self.units.append(
            Unit(
                self.document,
                place.start,
                end,
                Kind.JSON,
                head,
                place.path,
                head_end,
                tail_start,
                place.parent,
                (),
                False,
                layout,
                noun,
            )  # fmt: skip
        )
        return len(self.units) - 1
