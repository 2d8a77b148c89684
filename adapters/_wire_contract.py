"""The de-facto interface for compressing messages and getting originals back: ``/v1/compress``, ``/v1/retrieve``."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from kompakt.adapters._engine import Engine
from kompakt.adapters._json_splice import replace_strings
from kompakt.adapters._wires import Role, Slot, Wire, find_slots
from kompakt.compressor.errors import InputError
from kompakt.compressor.store.artefacts import Artefacts
from kompakt.compressor.store.keys import text_keys
from kompakt.compressor.types import Document, Kind, Status
from kompakt.compressor.units.segment import recognise

_HASH_CHARACTERS: Final = 24
_HASH: Final = re.compile(r"[a-f0-9]{12,24}")
_MODES: Final = (None, "ccr", "lossy_inline")
_BLOCKS: Final = ("document", "search_result", "tool_result", "tool_use")
_OPTIONS: Final = ("mode", "frozen_message_count")


def compress_messages(engine: Engine, request: Mapping[str, Any], *, owner: str = "") -> dict[str, Any]:
    """Answer ``POST /v1/compress``.

    Args:
        engine: What compresses.
        owner: Whose texts they are; see ``Engine.artefacts``.
        request: ``messages`` of OpenAI's chat completions or of Anthropic's messages, and ``config`` with ``mode``
            and ``frozen_message_count``: the first messages, which stay as they are. Each text that was compressed
            ends with the hash by which its original can be had, unless it is JSON, code, a table or a user's; in mode
            ``lossy_inline`` none does, and no originals are kept. Other keys say nothing to kompakt.

    Returns:
        As many messages in the same order, and what was done. ``compression_ratio`` is the share that was removed,
        ``ccr_hashes`` are those that stand in the texts, ``originals`` those of all texts that were compressed, with
        the number of the message of each.

    Raises:
        InputError: If the request is not of this form.
    """
    messages, mode, n_frozen = _checked(request)
    wire = Wire.MESSAGES if _has_results(messages) else Wire.CHAT_COMPLETIONS
    settings = replace(engine.settings, rules=replace(engine.settings.rules, first_message=n_frozen))
    text = json.dumps({"messages": messages})
    done = engine.rewrite(text, wire, settings=settings, query=_query(messages), owner=owner)
    before, after = (find_slots(json.loads(one), wire) for one in (text, done.text or text))
    changed = [(old, new.text) for old, new in zip(before, after, strict=True) if old.text != new.text]
    finals = [_final(engine, old, new, is_named=mode != "lossy_inline") for old, new in changed]
    kept = [final for final in finals if final.text != final.slot.text]
    hashes = keep_originals(engine.artefacts(owner), [final.slot for final in kept] if mode != "lossy_inline" else [])
    report = done.report
    saved = sum(final.n_saved for final in finals)
    is_smaller = saved > 0 or report.outcome.status is not Status.COMPRESSED
    return {
        "messages": json.loads(replace_strings(text, {final.slot.path: final.text for final in kept}))["messages"],
        "tokens_before": report.tokens_before,
        "tokens_after": report.tokens_before - saved,
        "tokens_saved": saved,
        "compression_ratio": round(saved / report.tokens_before, 4) if report.tokens_before else 0.0,
        "transforms_applied": [stage.compressor.name for stage in engine.pipeline.stages] if kept else [],
        "ccr_hashes": [name for name in dict.fromkeys(hashes) if any(name in final.text for final in kept)],
        "originals": [
            {"message": final.slot.message, "hash": name} for final, name in zip(kept, hashes, strict=False)
        ],
        "outcome": report.outcome.status.value if is_smaller else Status.PASSED_THROUGH.value,
        "reason": report.outcome.reason if is_smaller else "what could go is less than the hash of the original",
    }


@dataclass(frozen=True, slots=True)
class _Final:
    """What becomes of a text: its place, what is written there, and the tokens that this saves."""

    slot: Slot
    text: str
    n_saved: int


def _final(engine: Engine, slot: Slot, text: str, *, is_named: bool) -> _Final:
    """Return a compressed text with the hash of its original, or the original if that is no larger."""
    written = (
        f"{text}\n[original: headroom_retrieve hash={_hash(slot.text)}]" if is_named and _takes_a_note(slot) else text
    )
    n_saved = engine.count([slot.text]) - engine.count([written])
    return _Final(slot, written, n_saved) if n_saved > 0 else _Final(slot, slot.text, 0)


def _checked(request: Mapping[str, Any]) -> tuple[list[Any], str | None, int]:
    messages, config = request.get("messages"), request.get("config") or {}
    if not isinstance(messages, list) or not all(isinstance(message, Mapping) for message in messages):
        raise InputError("messages must be a list of objects")
    if not isinstance(config, Mapping):
        raise InputError(f"config must be an object, got {config!r}")
    unknown = sorted(set(config) - set(_OPTIONS))
    if unknown:
        raise InputError(f"config has no option {unknown[0]!r}. Known: {', '.join(_OPTIONS)}")
    mode, n_frozen = config.get("mode"), config.get("frozen_message_count") or 0
    if mode not in _MODES:
        raise InputError(f"mode must be null, 'ccr' or 'lossy_inline', got {mode!r}")
    if isinstance(n_frozen, bool) or not isinstance(n_frozen, int) or n_frozen < 0:
        raise InputError(f"frozen_message_count must be a whole number of at least 0, got {n_frozen!r}")
    return messages, mode, n_frozen


def _query(messages: Sequence[Mapping[str, Any]]) -> str | None:
    """Return an empty question where the live one was not sent.

    Some callers keep it back, with all that the model said. Outputs of tools answer calls of a model, so without any
    of its messages these are not the whole conversation, and their last question is an old one.
    """
    roles = {message.get("role") for message in messages}
    return "" if "tool" in roles and "assistant" not in roles else None


def _has_results(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether messages have blocks that only Anthropic's have."""
    contents = (message.get("content") for message in messages)
    blocks = (block for content in contents if isinstance(content, list) for block in content)
    return any(isinstance(block, Mapping) and block.get("type") in _BLOCKS for block in blocks)


def _takes_a_note(slot: Slot) -> bool:
    """Return whether a line after a text does no harm, as it does to a user's words, JSON, code and tables."""
    return slot.role is not Role.USER and recognise(Document(slot.text)).kind in (Kind.PROSE, Kind.LOG)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:_HASH_CHARACTERS]


def keep_originals(artefacts: Artefacts, slots: Sequence[Slot]) -> list[str]:
    """Keep texts in the store, and return the hash by which each is found.

    Args:
        artefacts: The store, and whose texts these are.
        slots: The texts.
    """
    texts = [slot.text for slot in slots]
    hashes = [_hash(text) for text in texts]
    artefacts.store.put_many({_key(artefacts, name): text.encode() for name, text in zip(hashes, texts, strict=True)})
    return hashes


def find_original(artefacts: Artefacts, name: str) -> str | None:
    """Return the text of a hash, or None if it is not in the store.

    Raises:
        InputError: If it is no hash of this interface.
    """
    if not _HASH.fullmatch(name):
        raise InputError(f"a hash has 12 to 24 characters of a-f and 0-9, got {name!r}")
    [value] = artefacts.store.get_many([_key(artefacts, name)])
    return None if value is None else value.decode()


def _key(artefacts: Artefacts, name: str) -> bytes:
    return text_keys(["original"], [name], tenant=artefacts.tenant)[0]
