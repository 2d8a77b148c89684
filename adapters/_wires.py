"""Where the texts stand in the requests of four interfaces: OpenAI's three and Anthropic's.

Nothing here decides what is compressed: that is for ``_messages``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Final, TypeAlias

from kompakt.adapters._json_splice import Path

Json: TypeAlias = Mapping[str, Any]


class Role(StrEnum):
    """Who says a text."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"
    DOCUMENT = "document"
    """A block that the interface itself calls a document or a search result."""


@dataclass(frozen=True, slots=True)
class Slot:
    """A text in the body of a request.

    Args:
        path: Where it stands in the body.
        text: The text.
        role: Who says it.
        message: Number of its message, from 0.
        turn: How often the assistant has spoken before; texts of one turn are sent together.
        tool: The name of the tool whose output it is; empty if unknown or of no tool.
        title: What a document is called.
        is_fixed: Whether it must not change, whatever the rules: an error of a tool, a document that is cited by
            offsets.
        is_cached: Whether a cache breakpoint stands at it or after it: the provider may have it in its cache.
    """

    path: Path
    text: str
    role: Role
    message: int
    turn: int = 0
    tool: str = ""
    title: str = ""
    is_fixed: bool = False
    is_cached: bool = False


class Wire(StrEnum):
    """An interface, by the end of its path."""

    CHAT_COMPLETIONS = "/chat/completions"
    COMPLETIONS = "/completions"
    RESPONSES = "/responses"
    MESSAGES = "/messages"


def wire_of(path: str) -> Wire | None:
    """Return the interface that a URL's path belongs to, or None if it is none of these."""
    clean = path.rstrip("/")
    return next((wire for wire in Wire if clean.endswith(wire.value)), None)


def find_slots(body: Json, wire: Wire) -> list[Slot]:
    """Return the texts of a request in the order in which the model reads them.

    What is not of the expected form is passed over: the server may know it, or will complain.

    Args:
        body: The request's parsed body.
        wire: The interface that it is for.
    """
    slots = list(_READERS[wire](body))
    last = max((index for index, (_, is_breakpoint) in enumerate(slots) if is_breakpoint), default=-1)
    return [replace(slot, is_cached=index <= last) for index, (slot, _) in enumerate(slots) if slot.text]


_Found: TypeAlias = tuple[Slot, bool]
"""A slot, and whether a cache breakpoint stands at it."""


def _items(value: object) -> Iterator[tuple[int, Json]]:
    if isinstance(value, Sequence) and not isinstance(value, str):
        yield from ((index, item) for index, item in enumerate(value) if isinstance(item, Mapping))


def _texts(content: object, path: Path, slot: Slot, *, types: Sequence[str]) -> Iterator[_Found]:
    """Find the texts of a message's content: a string, or a list of parts."""
    if isinstance(content, str):
        yield replace(slot, path=path, text=content), False
    for index, part in _items(content):
        text = part.get("text")
        if part.get("type") in types and isinstance(text, str):
            yield replace(slot, path=(*path, index, "text"), text=text), _is_breakpoint(part)
        elif _is_breakpoint(part):
            yield replace(slot, path=(*path, index), text=""), True


def _is_breakpoint(part: Json) -> bool:
    return any(part.get(name) is not None for name in _BREAKPOINTS)


_BREAKPOINTS: Final = ("cache_control", "prompt_cache_breakpoint")

_CHAT_ROLES: Final = {
    "system": Role.SYSTEM,
    "developer": Role.SYSTEM,
    "user": Role.USER,
    "assistant": Role.ASSISTANT,
    "tool": Role.TOOL,
    "function": Role.TOOL,
}


def _chat_completions(body: Json) -> Iterator[_Found]:
    tools: dict[object, str] = {}
    turn = 0
    for number, message in _items(body.get("messages")):
        for _, call in _items(message.get("tool_calls")):
            tools[call.get("id")] = _name_of(call.get("function")) or _name_of(call.get("custom"))
        role = _CHAT_ROLES.get(str(message.get("role")))
        if role is None:
            continue
        turn += role is Role.ASSISTANT
        tool = tools.get(message.get("tool_call_id")) or str(message.get("name") or "")
        slot = Slot((), "", role, number, turn, tool=tool if role is Role.TOOL else "")
        yield from _texts(message.get("content"), ("messages", number, "content"), slot, types=("text",))
        # some servers take breakpoints of whole messages, as LiteLLM does
        if _is_breakpoint(message):
            yield replace(slot, path=("messages", number)), True


def _name_of(function: object) -> str:
    return str(function.get("name") or "") if isinstance(function, Mapping) else ""


def _completions(body: Json) -> Iterator[_Found]:
    # the prompts of a list are requests of their own, with a question each
    if isinstance(body.get("prompt"), str):
        yield Slot(("prompt",), body["prompt"], Role.USER, 0), False


def _responses(body: Json) -> Iterator[_Found]:
    instructions, given = body.get("instructions"), body.get("input")
    if isinstance(instructions, str):
        yield Slot(("instructions",), instructions, Role.SYSTEM, 0), False
    if isinstance(given, str):
        yield Slot(("input",), given, Role.USER, 0), False
    tools: dict[object, str] = {}
    turn = 0
    for number, item in _items(given):
        kind, path = str(item.get("type", "message")), ("input", number)
        slot = Slot((), "", Role.TOOL, number, turn, tool=tools.get(item.get("call_id"), ""))
        if kind.endswith("_call_output"):
            yield from _texts(item.get("output"), (*path, "output"), slot, types=("input_text",))
        elif kind.endswith("_call") or kind == "reasoning":
            turn += 1
            tools[item.get("call_id")] = str(item.get("name") or "")
            if isinstance(item.get("output"), str):
                called = replace(slot, tool=str(item.get("name") or ""))
                yield from _texts(item["output"], (*path, "output"), called, types=())
        elif kind == "message" and (role := _CHAT_ROLES.get(str(item.get("role")))):
            turn += role is Role.ASSISTANT
            said = replace(slot, role=role, turn=turn, tool="")
            yield from _texts(item.get("content"), (*path, "content"), said, types=("input_text", "output_text"))


def _messages(body: Json) -> Iterator[_Found]:
    # tools stand before the system prompt, which stands before the messages
    for _, tool in _items(body.get("tools")):
        if _is_breakpoint(tool):
            yield Slot(("tools",), "", Role.SYSTEM, 0), True
    yield from _texts(body.get("system"), ("system",), Slot((), "", Role.SYSTEM, 0), types=("text",))
    tools: dict[object, str] = {}
    turn = 0
    for number, message in _items(body.get("messages")):
        role = _CHAT_ROLES.get(str(message.get("role")))
        if role is None:
            continue
        turn += role is Role.ASSISTANT
        slot, path = Slot((), "", role, number, turn), ("messages", number, "content")
        content = message.get("content")
        if isinstance(content, str):
            yield replace(slot, path=path, text=content), False
        for index, block in _items(content):
            if block.get("type") == "tool_use":
                tools[block.get("id")] = str(block.get("name") or "")
            yield from _block(block, (*path, index), slot, tools)
            if _is_breakpoint(block):
                yield replace(slot, path=(*path, index)), True


def _block(block: Json, path: Path, slot: Slot, tools: Mapping[object, str]) -> Iterator[_Found]:
    match block.get("type"):
        case "text" if isinstance(block.get("text"), str):
            yield replace(slot, path=(*path, "text"), text=block["text"]), False
        case "tool_result":
            output = replace(
                slot,
                role=Role.TOOL,
                tool=tools.get(block.get("tool_use_id"), ""),
                is_fixed=bool(block.get("is_error")),
            )
            content = block.get("content")
            if isinstance(content, str):
                yield replace(output, path=(*path, "content"), text=content), False
            for index, inner in _items(content):
                if inner.get("type") == "text" and isinstance(inner.get("text"), str):
                    yield (
                        replace(output, path=(*path, "content", index, "text"), text=inner["text"]),
                        _is_breakpoint(inner),
                    )
                else:
                    yield from _source(inner, (*path, "content", index), output)
                    if _is_breakpoint(inner):
                        yield replace(output, path=(*path, "content", index)), True
        case _:
            yield from _source(block, path, slot)


def _source(block: Json, path: Path, slot: Slot) -> Iterator[_Found]:
    """Find the texts of a document or a search result, which are fixed where answers cite them by offsets."""
    cites = block.get("citations")
    is_fixed = slot.is_fixed or (isinstance(cites, Mapping) and bool(cites.get("enabled")))
    title = str(block.get("title") or "")
    found = replace(slot, role=Role.DOCUMENT, title=title, is_fixed=is_fixed)
    source = block.get("source")
    match block.get("type"):
        case "search_result":
            yield from _texts(block.get("content"), (*path, "content"), found, types=("text",))
        case "document" if isinstance(source, Mapping) and source.get("type") == "text":
            if isinstance(source.get("data"), str):
                yield replace(found, path=(*path, "source", "data"), text=source["data"]), False
        case "document" if isinstance(source, Mapping) and source.get("type") == "content":
            yield from _texts(source.get("content"), (*path, "source", "content"), found, types=("text",))


_READERS: Final[Mapping[Wire, Callable[[Json], Iterator[_Found]]]] = {
    Wire.CHAT_COMPLETIONS: _chat_completions,
    Wire.COMPLETIONS: _completions,
    Wire.RESPONSES: _responses,
    Wire.MESSAGES: _messages,
}
