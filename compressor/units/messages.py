"""Chat transcripts as JSON: messages keep their roles, ids and tool calls, whatever is cut from their text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from kompakt.compressor.types import Kind
from kompakt.compressor.units.unit import Unit

_ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
_UNTOUCHED = frozenset({"system", "developer"})


def keep_messages_valid(units: list[Unit], text: str) -> list[Unit]:
    """Protect what a chat API needs, if the JSON is a list of messages or an object with one under ``messages``.

    System messages and the last user message stay whole. Of the others only the text of long ``content`` strings
    may be cut, so that tool calls keep their results and all ids stay as they are.
    """
    messages, root = _messages(units, json.loads(text))
    if messages is None:
        return units
    members = [index for index, unit in enumerate(units) if unit.parent == root]
    whole = _whole_messages(messages)
    message_of = {index: position for position, index in enumerate(members)}
    for index, unit in enumerate(units):
        if unit.parent is not None and unit.parent in message_of:
            message_of[index] = message_of[unit.parent]
    return [
        _protect(unit, units, in_message=message_of.get(index), whole=whole)
        for index, unit in enumerate(units)
    ]  # fmt: skip


def _messages(units: Sequence[Unit], data: Any) -> tuple[list[dict[str, Any]] | None, int]:  # noqa: ANN401 (JSON)
    if _is_chat(data):
        return data, 0
    if isinstance(data, dict) and _is_chat(data.get("messages")):
        for index, unit in enumerate(units):
            if unit.parent == 0 and unit.noun == "messages":
                return data["messages"], index
    return None, 0


def _is_chat(data: object) -> bool:
    return (
        isinstance(data, list)
        and len(data) > 0
        and all(isinstance(item, dict) and item.get("role") in _ROLES for item in data)
    )


def _whole_messages(messages: Sequence[dict[str, Any]]) -> set[int]:
    users = [index for index, message in enumerate(messages) if message["role"] == "user"]
    return {index for index, message in enumerate(messages) if message["role"] in _UNTOUCHED} | set(users[-1:])


def _protect(unit: Unit, units: Sequence[Unit], *, in_message: int | None, whole: set[int]) -> Unit:
    if in_message is None:
        return unit
    inside_string = unit.parent is not None and units[unit.parent].noun == "sentences"
    is_text = inside_string and _last_key(unit) in ("content", "text")
    return replace(unit, kind=Kind.MESSAGE, protected=in_message in whole or not is_text)


def _last_key(unit: Unit) -> str:
    return unit.context.rsplit(" ", 1)[-1]
