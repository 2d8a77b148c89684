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

_FENCE: Final = re.compile(r"^ {0,3}(`{3,}|~{3,})([^\n]*)$", re.MULTILINE)
_TAG: Final = re.compile(
    r"<(/?)((?:article|attachment|content|context|data|doc|document|email|excerpt|file|log|output|page|passage|paste"
    r"|report|result|search_result|source|text|transcript|web_page)s?(?:[_-]?\d+)?)(?:\s[^<>]*)?>",
    re.IGNORECASE,
)
"""Tags that hold context. Others may hold instructions, rules or formats."""

_LABEL: Final = re.compile(
    r"^\W{0,4}(?:(?:the|retrieved|relevant|provided|given|following|additional|background|search)\s+){0,2}"
    r"(?:articles?|background|context|documents?|excerpts?|information|passages?|results?|sources?|texts?)\W{0,4}:\W{0,4}",
    re.MULTILINE | re.IGNORECASE,
)
"""What people write above the context of a question."""

_GAP: Final = re.compile(r"\n[ \t]*\n\s*")

_MIN_CHARACTERS: Final = 400
"""A shorter block in a user's message may be part of what is asked: an example, a name, a command."""

_QUESTION_CHARACTERS: Final = 2000
"""What is asked is at the end of a long instruction more often than in its middle."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """Which texts of a request may be compressed.

    System prompts, what the assistant said, errors of tools, and the arguments of calls never are. Of a user's
    message only marked context is: blocks in code fences or in tags such as ``<document>``, and where there are none,
    what follows a label such as ``Context:`` up to the last paragraph.

    Args:
        tool_outputs: Whether outputs of tools are. Those of unknown tools are not where some tool's must stay.
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
    if not slot.tool and slot.role is Role.TOOL and 1 in rules.tools.values():
        # it may be the output of a tool that must stay as it is
        return None
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


def readable(text: str) -> str:
    """Return a text with what no tokenizer takes replaced."""
    return text.encode("utf-8", "replace").decode()


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
    """Return the ranges of a user's message that are marked as context, and so are no instructions.

    Long blocks in code fences or in tags such as ``<document>``; where there are none, what follows a label such as
    ``Context:`` up to the last paragraph. All else may be what is asked.

    Args:
        text: The message.
    """
    blocks = _outermost([*_fenced(text), *_tagged(text)])
    blocks = [(start, end) for start, end in blocks if end - start >= _MIN_CHARACTERS]
    return blocks or _labelled(text)


def _fenced(text: str) -> list[Range]:
    found, opened = [], None
    for match in _FENCE.finditer(text):
        fence, rest = match.groups()
        if opened is None:
            opened = (fence, match.end() + 1)
        elif fence[0] == opened[0][0] and len(fence) >= len(opened[0]) and not rest.strip():
            found.append((opened[1], match.start()))
            opened = None
    return found


def _tagged(text: str) -> list[Range]:
    found: list[Range] = []
    opened: dict[str, list[int]] = {}
    for match in _TAG.finditer(text):
        starts = opened.setdefault(match[2].lower(), [])
        if not match[1]:
            starts.append(match.end())
        elif starts:
            found.append((starts.pop(), match.start()))
    return found


def _outermost(ranges: Sequence[Range]) -> list[Range]:
    found: list[Range] = []
    for start, end in sorted(ranges, key=lambda one: (one[0], -one[1])):
        if not found or start >= found[-1][1]:
            found.append((start, end))
    return found


def _labelled(text: str) -> list[Range]:
    label = _LABEL.search(text)
    if label is None:
        return []
    gaps = [match.span() for match in _GAP.finditer(text, label.end(), len(text.rstrip()))]
    if not gaps:
        return []
    end = gaps[-1][0]
    return [(label.end(), end)] if end - label.end() >= _MIN_CHARACTERS else []


def _complement(ranges: Sequence[Range], length: int) -> tuple[Range, ...]:
    ends = [0, *(end for _, end in ranges)]
    starts = [*(start for start, _ in ranges), length]
    return tuple((start, end) for start, end in zip(ends, starts, strict=True) if start < end)


def _without(text: str, ranges: Sequence[Range]) -> str:
    return "\n".join(text[start:end].strip() for start, end in _complement(ranges, len(text)))
