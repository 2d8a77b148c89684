"""Chat transcripts as JSON: messages keep their roles, ids and tool calls, whatever is cut from their text."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from kompakt.compressor.types import Kind
from kompakt.compressor.units.json_tree import read_json
from kompakt.compressor.units.unit import Layout, Unit

_ROLES: Final = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
_UNTOUCHED: Final = frozenset({"system", "developer"})
_TEXT_KEYS: Final = frozenset({"content", "text"})
_KEY: Final = re.compile(r'\s*("(?:[^"\\]|\\.)*")\s*:')


def keep_messages_valid(units: list[Unit], text: str) -> list[Unit]:
    """Protect what a chat API needs, if the JSON is a list of messages or an object with one under ``messages``.

    System messages and the last user message stay whole. Of the others only the text of long ``content`` strings
    may be cut, so that tool calls keep their results and all ids stay as they are.
    """
    messages = chat_of(text)
    if messages is None:
        return units
    whole = _whole(messages)
    paths = _paths(units)
    return [
        replace(unit, kind=Kind.MESSAGE, protected=not _may_go(unit, units, path, whole))
        for unit, path in zip(units, paths, strict=True)
    ]


def chat_of(text: str) -> list[dict[str, Any]] | None:
    """Return the messages of a chat that is written as JSON; None if it is something else."""
    try:
        data = read_json(text)
    except (ValueError, RecursionError):
        return None
    messages = data.get("messages") if isinstance(data, dict) else data
    return messages if isinstance(messages, list) and messages and all(map(_is_message, messages)) else None


def is_same_chat(text: str, source: str) -> bool:
    """Tell whether ``text`` is the chat of ``source`` but for what may be cut from the texts of messages."""
    chat, original = chat_of(text), chat_of(source)
    if chat is None or original is None or len(chat) != len(original):
        return False
    whole = _whole(original)
    return all(
        one == other if index in whole else _frame(one) == _frame(other)
        for index, (one, other) in enumerate(zip(chat, original, strict=True))
    )


def _is_message(item: object) -> bool:
    if not isinstance(item, dict) or not ({"content", "tool_calls"} & item.keys()):
        return False
    return isinstance(item.get("role"), str) and item["role"] in _ROLES


def _whole(messages: Sequence[dict[str, Any]]) -> set[int]:
    """Return the positions of the messages that stay as they are."""
    users = [index for index, message in enumerate(messages) if message["role"] == "user"]
    return {index for index, message in enumerate(messages) if message["role"] in _UNTOUCHED} | set(users[-1:])


def _frame(value: Any, *, is_text: bool = True) -> Any:  # noqa: ANN401 (any JSON)
    """Return a message with the strings left out from which something may be cut."""
    if isinstance(value, dict):
        return {key: _frame(item, is_text=is_text and key in _TEXT_KEYS) for key, item in value.items()}
    if isinstance(value, list):
        return [_frame(item, is_text=is_text) for item in value]
    return None if is_text and isinstance(value, str) else value


_Path = tuple[str | int, ...]


def _paths(units: Sequence[Unit]) -> list[_Path]:
    """Return the keys and positions that lead to each unit."""
    paths: list[_Path] = []
    n_children = [0] * len(units)
    for unit in units:
        if unit.parent is None:
            paths.append(())
            continue
        above = units[unit.parent]
        key = _KEY.match(unit.text) if above.layout is Layout.JSON_OBJECT else None
        paths.append((*paths[unit.parent], json.loads(key[1]) if key else n_children[unit.parent]))
        n_children[unit.parent] += 1
    return paths


def _may_go(unit: Unit, units: Sequence[Unit], path: _Path, whole: set[int]) -> bool:
    """Tell whether a unit is part of a long text of a message that need not stay whole."""
    if unit.parent is None or units[unit.parent].layout is not Layout.JSON_STRING:
        return False
    position, *inside = path[1:] if path[0] == "messages" else path
    keys = [key for key in inside if isinstance(key, str)]
    return isinstance(position, int) and position not in whole and bool(keys) and _TEXT_KEYS.issuperset(keys)
