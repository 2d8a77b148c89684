"""Parse trees with character offsets, by tree-sitter and the grammars that come in wheels."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tree_sitter import Language, Node, Tree

GRAMMARS: Final = {
    "bash": ("tree_sitter_bash", "language"),
    "c": ("tree_sitter_c", "language"),
    "cpp": ("tree_sitter_cpp", "language"),
    "go": ("tree_sitter_go", "language"),
    "java": ("tree_sitter_java", "language"),
    "javascript": ("tree_sitter_javascript", "language"),
    "json": ("tree_sitter_json", "language"),
    "python": ("tree_sitter_python", "language"),
    "rust": ("tree_sitter_rust", "language"),
    "tsx": ("tree_sitter_typescript", "language_tsx"),
    "typescript": ("tree_sitter_typescript", "language_typescript"),
}


@cache
def _grammar(language: str) -> Language:
    from tree_sitter import Language

    module, function = GRAMMARS[language]
    return Language(getattr(importlib.import_module(module), function)())


def parse(text: str, language: str) -> Tree:
    """Parse ``text``; ``language`` is a key of ``GRAMMARS``."""
    from tree_sitter import Parser

    return Parser(_grammar(language)).parse(text.encode())


# one document at a time: its language is guessed, it is cut, and its compressed form is compared with it
@lru_cache(maxsize=4)
def parses(text: str, language: str) -> bool:
    """Tell whether ``text`` is free of syntax errors."""
    return not parse(text, language).root_node.has_error


def n_errors(text: str, language: str) -> int:
    """Count the places that the grammar cannot explain."""
    found = 0
    stack = [parse(text, language).root_node]
    while stack:
        node = stack.pop()
        if node.is_error or node.is_missing:
            found += 1
        elif node.has_error:
            stack.extend(node.children)
    return found


def character_offsets(text: str) -> Callable[[int], int]:
    """Return the function that turns a byte offset of the UTF-8 form of ``text`` into a character offset.

    The byte offset must be that of the start or end of a character.
    """
    if text.isascii():
        return lambda offset: offset
    import numpy as np

    data = np.frombuffer(text.encode(), dtype=np.uint8)
    # all bytes of a character but its first have the form 10xxxxxx
    begun: list[int] = np.cumsum((data & 0xC0) != 0x80).tolist()
    return lambda offset: begun[offset - 1] if offset else 0


def extent(node: Node, offset: Callable[[int], int]) -> tuple[int, int]:
    """Return the character range of a node."""
    return offset(node.start_byte), offset(node.end_byte)
