"""Texts that were compressed once, and are sent the same way in every later turn of their conversation."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from kompakt.adapters._messages import Target
from kompakt.adapters._wires import Slot
from kompakt.compressor.errors import StoreError
from kompakt.compressor.store.artefacts import Artefacts
from kompakt.compressor.store.keys import text_keys

_LOG = logging.getLogger(__name__)

_SCHEMA: Final = 1

_SECONDS_OF_FAILURES: Final = 3600.0
"""What could not be compressed in time is sent as it is for so long: by then providers have forgotten it."""


@dataclass(frozen=True, slots=True)
class Frozen:
    """What became of a text when it was first seen.

    Args:
        text: What is sent in its place; None if it is sent as it is.
        tokens: The tokens of that which could have been compressed away.
        reason: Why it is sent as it is, if that was not intended.
    """

    text: str | None
    tokens: int
    reason: str = ""


class FrozenTexts:
    """Remembers, in a store, what became of each text of a conversation.

    A text is known by its place and by all texts up to the end of its turn: what one conversation froze under its
    question is not found by another. Turn n+1 of a conversation begins with the bytes of turn n.

    Args:
        artefacts: The store, and whose texts these are.
        recipe: What decides a result beside the texts: pipeline, tokenizer, budget.
    """

    def __init__(self, artefacts: Artefacts, recipe: Sequence[object]) -> None:
        self._artefacts = artefacts
        self._recipe = ["frozen", _SCHEMA, *recipe]

    def keys(self, slots: Sequence[Slot], targets: Sequence[Target]) -> list[bytes]:
        """Return the key of each target of a request with these texts."""
        chain, until = hashlib.sha256(), {}
        for slot in slots:
            for part in (slot.role, slot.tool, slot.text):
                data = part.encode("utf-8", "surrogatepass")
                chain.update(len(data).to_bytes(8, "big") + data)
            until[slot.turn] = chain.hexdigest()
        names = [json.dumps([until[target.slot.turn], target.slot.path]) for target in targets]
        return text_keys(self._recipe, names, tenant=self._artefacts.tenant)

    def find(self, keys: Sequence[bytes]) -> list[Frozen | None]:
        """Return what is known under each key."""
        return [None if value is None else _decoded(value) for value in self._artefacts.store.get_many(keys)]

    def keep(self, frozen: Mapping[bytes, Frozen]) -> None:
        """Remember what became of texts; a store that cannot is a line in the log."""
        lasting = {key: one for key, one in frozen.items() if not one.reason}
        passing = {key: one for key, one in frozen.items() if one.reason}
        for some, expires_at in ((lasting, None), (passing, time.time() + _SECONDS_OF_FAILURES)):
            values = {key: json.dumps([one.text, one.tokens, one.reason]).encode() for key, one in some.items()}
            try:
                if values:
                    self._artefacts.store.put_many(values, expires_at=expires_at)
            except StoreError as error:
                _LOG.warning("what was sent cannot be remembered for later turns: %s", error)


def _decoded(value: bytes) -> Frozen | None:
    try:
        match json.loads(value):
            case [str() | None as text, int(tokens), str(reason)]:
                return Frozen(text, tokens, reason)
    except ValueError:  # a damaged entry is a miss
        return None
    return None
