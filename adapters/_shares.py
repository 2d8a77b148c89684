"""Which texts of a request are compressed now, which are sent as before, and how much may remain of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from kompakt.adapters._frozen import Frozen
from kompakt.adapters._json_splice import Path
from kompakt.adapters._messages import Target
from kompakt.adapters._settings import Settings

_ROOM: Final = 0.7
"""How much of a ceiling that is hit is used when all is compressed anew: the rest is for the turns that follow."""

_MIN_KEEP: Final = 0.1
"""With less a new text would be left with next to nothing; everything is compressed anew instead."""


@dataclass(frozen=True, slots=True)
class Text:
    """A target of a request, with what is known of it.

    Args:
        target: The text.
        n_tokens: Its tokens.
        n_free: Those that are not protected.
        key: Under which it is frozen; None where nothing is reused.
        frozen: What became of it in an earlier turn.
    """

    target: Target
    n_tokens: int
    n_free: int
    key: bytes | None = None
    frozen: Frozen | None = None

    @property
    def path(self) -> Path:
        """Where it stands in the body."""
        return self.target.slot.path

    @property
    def n_sent(self) -> int:
        """Its free tokens as they are sent if nothing is done to it now."""
        return self.n_free if self.frozen is None else self.frozen.tokens


@dataclass(frozen=True, slots=True)
class Shares:
    """What is done to the texts of a request.

    Args:
        kept: Those that are sent as in an earlier turn, or as they are, now and later.
        new: Those that are compressed now.
        keeps: The fraction of the free tokens that may remain of each new one.
        note: What the caller should know of it; empty if nothing.
    """

    kept: Sequence[Text] = ()
    new: Sequence[Text] = ()
    keeps: Sequence[float] = ()
    note: str = ""


@dataclass
class _Sorted:
    """The texts of a request by what may be done to them."""

    known: list[Text] = field(default_factory=list)
    small: list[Text] = field(default_factory=list)
    cached: list[Text] = field(default_factory=list)
    new: list[Text] = field(default_factory=list)


def share_out(texts: Sequence[Text], settings: Settings, *, is_triggered: bool) -> Shares:
    """Decide what is done to the texts of a request.

    Under a ceiling, new texts are compressed about as far as those of earlier turns. When next to nothing is left for
    them, all are compressed anew, with room for the turns that follow: the provider's cache is missed once, not every
    turn.

    Args:
        texts: The targets of the request.
        settings: Budget and rules.
        is_triggered: Whether the request is long enough for anything new to be compressed.
    """
    if not is_triggered:
        # nothing is settled for texts that come before the trigger
        return Shares([text for text in texts if text.frozen is not None])
    found = _sorted(texts, settings)
    note = _note(found, settings)
    kept = [*found.known, *found.cached]
    if settings.max_tokens is None:
        keep = settings.keep or 1.0
        return Shares(kept, found.new, [text.target.keep or keep for text in found.new], note)
    fixed = sum(text.n_sent for text in (*found.small, *found.cached))
    return _under_ceiling(found, settings.max_tokens - fixed, kept, note)


def _note(found: _Sorted, settings: Settings) -> str:
    if not found.new:
        return f"texts that stand before a cache breakpoint: {len(found.cached)}" if found.cached else ""
    turns = {text.target.slot.turn for text in found.new}
    if settings.trigger_tokens and len(turns) > 1 and not found.known:
        return "texts of earlier turns are compressed for the first time: the provider reads them again"
    return ""


def _sorted(texts: Sequence[Text], settings: Settings) -> _Sorted:
    found = _Sorted()
    for text in texts:
        if text.frozen is not None:
            found.known.append(text)
        elif text.n_free < max(1, settings.rules.min_tokens):
            found.small.append(text)
        elif text.target.slot.is_cached and not settings.rules.before_breakpoint:
            found.cached.append(text)
        else:
            found.new.append(text)
    return found


def _under_ceiling(found: _Sorted, ceiling: int, kept: Sequence[Text], note: str) -> Shares:
    n_new = sum(text.n_free for text in found.new)
    n_known = sum(text.n_sent for text in found.known)
    left = ceiling - n_known
    if n_new <= left:
        return Shares([*kept, *found.new], note=note)
    if found.known and left >= _MIN_KEEP * n_new:
        level = n_known / sum(text.n_free for text in found.known)
        return Shares(kept, found.new, _keeps(found.new, min(left / n_new, max(level, _MIN_KEEP))), note)
    every = [*found.known, *found.new]
    n_all = sum(text.n_free for text in every)
    if not n_all or ceiling < 1:
        return Shares(kept, note=f"{-left + n_new} tokens above the ceiling: the rules let go of nothing more")
    anew = "the ceiling was hit, and all texts were compressed anew: the provider reads the conversation again"
    keeps = _keeps(every, min(1.0, _ROOM * ceiling / n_all))
    return Shares(found.cached, every, keeps, anew if found.known else note)


def _keeps(texts: Sequence[Text], keep: float) -> list[float]:
    return [min(keep, text.target.keep or 1.0) for text in texts]
