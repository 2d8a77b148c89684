"""Which texts of a request are compressed, and which part of each stays as it is. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from kompakt.adapters._wires import Role, Slot
from kompakt.compressor.errors import ConfigError
from kompakt.compressor.types import Document

Range: TypeAlias = tuple[int, int]

_FENCE: Final = re.compile(
    r"^(?P<fence>`{3,}|~{3,})[^\n]*\n(?P<inside>.*?)\n(?P=fence)[ \t]*$", re.MULTILINE | re.DOTALL
)
_TAG: Final = re.compile(r"<(?P<name>[A-Za-z][\w.-]*)(?:\s[^<>]*)?>(?P<inside>.*?)</(?P=name)>", re.DOTALL)
_GAP: Final = re.compile(r"\n[ \t]*\n\s*")

_MIN_CHARACTERS: Final = 400
"""A shorter block in a user's message may be part of what is asked: an example, a name, a command."""

_QUESTION_CHARACTERS: Final = 2000
"""What is asked is at the end of a long instruction more often than in its middle."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """Which texts of a request may be compressed.

    System prompts, what the assistant said, errors of tools, and the arguments of calls never are. Of a user's
    message only pasted context is: blocks in code fences or tags, and where there are none, the paragraphs between
    the first and the last.

    Args:
        tool_outputs: Whether outputs of tools are.
        documents: Whether blocks are that the interface itself calls documents or search results; never those that
            answers cite by their offsets.
        user_context: Whether context pasted into a user's message is.
        tools: What may remain of the outputs of single tools, by name: a fraction, or 1 to leave them as they are.
        min_tokens: Texts with fewer tokens that could go are left as they are.
        before_breakpoint: Whether texts are compressed at first sight, too, if they stand before a cache breakpoint
            of the request. A provider that has them in its cache must then read them again once.
        first_message: Messages before the one with this number stay as they are.
    """

    tool_outputs: bool = True
    documents: bool = True
    user_context: bool = True
    tools: Mapping[str, float] = field(default_factory=dict)
    min_tokens: int = 200
    before_breakpoint: bool = False
    first_message: int = 0

    def __post_init__(self) -> None:
        for name, keep in self.tools.items():
            if isinstance(keep, bool) or not isinstance(keep, (int, float)) or not 0 < keep <= 1:
                raise ConfigError(f"what may remain of the tool {name!r} must be above 0 and at most 1, got {keep!r}")
        if self.min_tokens < 0:
            raise ConfigError(f"min_tokens must be at least 0, got {self.min_tokens}")


@dataclass(frozen=True, slots=True)
class Target:
    """A text that may be compressed.

    Args:
        slot: Where it stands.
        document: The text, with what must stay protected.
        keep: The fraction of the rest that may remain, if a rule says so.
    """

    slot: Slot
    document: Document
    keep: float | None = None


def find_targets(slots: Sequence[Slot], rules: Rules) -> list[Target]:
    """Return the texts of a request that may be compressed, whatever their size.

    Args:
        slots: Its texts, in order.
        rules: What may be compressed.
    """
    return [target for slot in slots if (target := _target(slot, rules)) is not None]


def _target(slot: Slot, rules: Rules) -> Target | None:
    if slot.is_fixed or slot.message < rules.first_message or not _is_unicode(slot.text):
        return None
    keep = rules.tools.get(slot.tool) if slot.tool else None
    match slot.role:
        case Role.TOOL if rules.tool_outputs and keep != 1:
            return Target(slot, Document(slot.text), keep)
        case Role.DOCUMENT if rules.documents:
            return Target(slot, Document(slot.text, metadata={"title": slot.title} if slot.title else {}))
        case Role.USER if rules.user_context and (context := pasted_context(slot.text)):
            return Target(slot, Document(slot.text, protected=_complement(context, len(slot.text))))
    return None


def _is_unicode(text: str) -> bool:
    # JSON can spell half of a surrogate pair, which no tokenizer takes
    return not any("\ud800" <= character <= "\udfff" for character in text) if not text.isascii() else True


def live_question(slots: Sequence[Slot]) -> str | None:
    """Return what the last message of the user asks, without the context that is pasted into it.

    Args:
        slots: The texts of a request, in order.
    """
    asked = [slot for slot in slots if slot.role is Role.USER and slot.text.strip()]
    if not asked:
        return None
    texts = [_without(slot.text, pasted_context(slot.text)) for slot in asked if slot.message == asked[-1].message]
    return "\n".join(text for text in texts if text)[-_QUESTION_CHARACTERS:].strip() or None


def pasted_context(text: str) -> list[Range]:
    """Return the ranges of a user's message that look like context and not like instructions.

    Long blocks in code fences or tags; if there are none, what stands between the first and the last paragraph.
    Instructions stand at the ends of messages: one of a single paragraph has no context.

    Args:
        text: The message.
    """
    blocks = _outermost([match.span("inside") for pattern in (_FENCE, _TAG) for match in pattern.finditer(text)])
    blocks = [(start, end) for start, end in blocks if end - start >= _MIN_CHARACTERS]
    return blocks or _middle(text)


def _outermost(ranges: Sequence[Range]) -> list[Range]:
    found: list[Range] = []
    for start, end in sorted(ranges, key=lambda one: (one[0], -one[1])):
        if not found or start >= found[-1][1]:
            found.append((start, end))
    return found


def _middle(text: str) -> list[Range]:
    gaps = [match.span() for match in _GAP.finditer(text, *_inner(text))]
    if len(gaps) < 2:
        return []
    start, end = gaps[0][1], gaps[-1][0]
    return [(start, end)] if end - start >= _MIN_CHARACTERS else []


def _inner(text: str) -> Range:
    """Return the range of a text without the white space at its ends."""
    return len(text) - len(text.lstrip()), len(text.rstrip())


def _complement(ranges: Sequence[Range], length: int) -> tuple[Range, ...]:
    ends = [0, *(end for _, end in ranges)]
    starts = [*(start for start, _ in ranges), length]
    return tuple((start, end) for start, end in zip(ends, starts, strict=True) if start < end)


def _without(text: str, ranges: Sequence[Range]) -> str:
    return "\n".join(text[start:end].strip() for start, end in _complement(ranges, len(text)))
