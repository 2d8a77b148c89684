"""JSON by rows and keys: a tree of units from which any subset that includes the root is valid JSON again."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

from kompakt.compressor.types import Kind
from kompakt.compressor.units.sentences import filled_lines, split_sentences
from kompakt.compressor.units.syntax import character_offsets, extent, parse
from kompakt.compressor.units.unit import Layout, Unit, shift

if TYPE_CHECKING:
    from tree_sitter import Node

_JSON_LINE: Final = re.compile(r"^[ \t]*(?=[\[{])", re.MULTILINE)
_MIN_EMBEDDED: Final = 100
_MAX_ATTEMPTS: Final = 50
_MAX_LEAF: Final = 400
"""Characters up to which an object, array or string is kept or dropped whole: about a hundred tokens."""
_MAX_ROW: Final = 2000
"""Characters up to which a row of a JSON Lines file is kept or dropped whole."""
_MAX_DEPTH: Final = 64


def read_json(text: str) -> Any:  # noqa: ANN401 (any JSON)
    """Return the value of a JSON text, with whole numbers as strings: Python refuses those of over 4300 digits.

    Raises:
        ValueError: If it is not JSON.
        RecursionError: If it is nested too deeply to be read.
    """
    return json.loads(text, parse_int=str)


def is_json(text: str) -> bool:
    """Tell whether ``text`` is one JSON object or array."""
    stripped = text.strip()
    if not stripped or stripped[0] + stripped[-1] not in ("{}", "[]"):
        return False
    try:
        read_json(stripped)
    except (ValueError, RecursionError):
        return False
    return True


def is_json_lines(text: str) -> bool:
    """Tell whether every line of ``text`` that is not blank is a JSON object or array, and there are two or more."""
    if not text.lstrip().startswith(("{", "[")):
        return False
    lines = [line for line in text.split("\n") if line.strip()]
    return len(lines) > 1 and all(is_json(line) for line in lines)


def embedded_json(text: str) -> list[tuple[int, int]]:
    """Return the ranges of whole lines that hold one JSON object or array of some length, with prose around them."""
    decoder = json.JSONDecoder()
    found: list[tuple[int, int]] = []
    attempts = _MAX_ATTEMPTS
    for match in _JSON_LINE.finditer(text):
        if found and match.start() < found[-1][1]:
            continue
        if not attempts:
            break
        attempts -= 1
        try:
            _, end = decoder.raw_decode(text, match.end())
        except (ValueError, RecursionError):
            continue
        line_end = text.find("\n", end) + 1 or len(text)
        if end - match.end() >= _MIN_EMBEDDED and not text[end:line_end].strip():
            found.append((match.start(), line_end))
    return found


def split_json(text: str, *, document: int, context: str = "") -> list[Unit]:
    """Cut one JSON value into rows, keys and, inside long strings, sentences.

    Args:
        text: Valid JSON.
        document: Index of the document in the request.
        context: What stands above it.

    Returns:
        A root unit that spans the text, and what is inside it.
    """
    root = parse(text, "json").root_node
    values = [node for node in root.named_children if node.type in ("object", "array")]
    if root.has_error or len(values) != 1:
        return [Unit(document, 0, len(text), Kind.JSON, text, context)]
    tree = _Tree(text, document, character_offsets(text))
    start, _ = extent(values[0], tree.offset)
    tree.container(values[0], _Place(start, context))
    # white space around the root belongs to it
    tree.units[0] = replace(tree.units[0], start=0, end=len(text))
    return tree.units


def split_json_lines(text: str, *, document: int, context: str = "") -> list[Unit]:
    """Cut JSON Lines into rows, and rows of over 2000 characters further.

    Args:
        text: JSON objects or arrays, one a line.
        document: Index of the document in the request.
        context: What stands above it.

    Returns:
        A root unit that spans the text and has the rows as its children.
    """
    end = len(text)
    units = [
        Unit(document, 0, end, Kind.JSON, "", head_end=0, tail_start=end, layout=Layout.JSON_LINES, noun="rows")
    ]  # fmt: skip
    start = 0
    for row in filled_lines(text):
        is_short = len(row) <= _MAX_ROW
        made = [Unit(document, 0, len(row), Kind.JSON, row, context)] if is_short else split_json(
            row, document=document, context=context
        )  # fmt: skip
        before = len(units)
        units.extend(shift(unit, by=start, units_before=before, parent=0) for unit in made)
        start += len(row)
    return units


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
        is_small = end - place.start <= _MAX_LEAF or place.depth >= _MAX_DEPTH
        if node.type in ("object", "array") and node.named_child_count and not is_small:
            self.container(node, place)
        elif node.type == "string" and not is_small:
            self._string(node, place)
        else:
            self._add(place, end, end, end, Layout.FLAT)

    def container(self, node: Node, place: _Place) -> None:
        start, end = extent(node, self.offset)
        children = node.named_children
        tail_start = extent(children[-1], self.offset)[1] if children else end - 1
        is_array = node.type == "array"
        layout = Layout.JSON_ARRAY if is_array else Layout.JSON_OBJECT
        index = self._add(place, start + 1, tail_start, end, layout)
        for child in children:
            child_start, _ = extent(child, self.offset)
            inside = _Place(child_start, place.path, index, place.depth + 1)
            if is_array:
                self.value(child, inside)
            else:
                self._pair(child, inside)

    def _pair(self, node: Node, place: _Place) -> None:
        key, value = node.named_children
        start, end = extent(key, self.offset)
        name = self.text[start + 1 : end - 1]
        path = f"{place.path} {name}" if place.path else name
        self.value(value, _Place(place.start, path, place.parent, place.depth, name or "items"))

    def _string(self, node: Node, place: _Place) -> None:
        start, end = extent(node, self.offset)
        index = self._add(replace(place, noun="sentences"), start + 1, end - 1, end, Layout.JSON_STRING)
        readable = _ESCAPE.sub(_unescape, self.text[start + 1 : end - 1])
        cuts = [a for a, _ in split_sentences(readable) if a == 0 or readable[a - 1] != _FILLER]
        cuts = _finer([*cuts, len(readable)], readable)
        for a, b in pairwise(start + 1 + cut for cut in cuts):
            self._add(_Place(a, place.path, index, place.depth, place.noun), b, b, b, Layout.FLAT)

    def _add(self, place: _Place, head_end: int, tail_start: int, end: int, layout: Layout) -> int:
        self.units.append(
            Unit(
                self.document,
                place.start,
                end,
                Kind.JSON,
                self.text[place.start : head_end],
                place.path,
                head_end,
                tail_start,
                place.parent,
                layout=layout,
                noun=place.noun,
            )
        )
        return len(self.units) - 1


def _finer(cuts: list[int], readable: str) -> list[int]:
    """Cut what is long for a sentence, such as JSON in a string, after its members too."""
    members = (
        match.end()
        for a, b in pairwise(cuts)
        if b - a > _MAX_LEAF
        for match in _MEMBER_END.finditer(readable, a, b)
        if match.end() < b
    )
    return sorted({*cuts, *members})


_MEMBER_END: Final = re.compile(r"[}\]],\s*")
_ESCAPE: Final = re.compile(r"\\(?:u([0-9a-fA-F]{4})|(.))")
_FILLER: Final = "\ue000"
"""Stands for the characters of an escape sequence but its last; there is no cut after it."""
_CONTROLS: Final = {"n": " \n", "r": "  ", "t": "  ", "f": "  ", "b": "  "}


def _unescape(match: re.Match[str]) -> str:
    """Return what an escape sequence means, filled up to its length so that offsets stay."""
    code, letter = match.groups()
    if letter is not None:
        return _CONTROLS.get(letter, _FILLER + letter)
    character = chr(int(code, 16))
    if "\ud800" <= character <= "\udbff" or character.isspace():
        # a cut here would part a surrogate pair, or move to the start of the white space
        return _FILLER * 6
    return _FILLER * 5 + ("x" if "\udc00" <= character <= "\udfff" else character)
