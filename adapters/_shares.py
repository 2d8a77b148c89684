"""Which texts of a request are compressed now, which are sent as before, and how much may remain of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Shares:
    """What is done to the texts of a request.

    Args:
        reused: Those that are sent as in an earlier turn.
        new: Those that are compressed now.
        keeps: The fraction of the free tokens that may remain of each new one.
        note: What the caller should know of it; empty if nothing.
    """

    reused: Sequence[Text]
    new: Sequence[Text]
    keeps: Sequence[float]
    note: str = ""


def share_out(texts: Sequence[Text], settings: Settings, *, is_triggered: bool) -> Shares:
    """Decide what is done to the texts of a request.

    Under a ceiling on all texts, new ones are compressed about as far as those of earlier turns. When next to nothing
    is left for them, all are compressed anew, with room for the turns that follow: the provider's cache is missed
    once, not every turn.

    Args:
        texts: The targets of the request.
        settings: Budget and rules.
        is_triggered: Whether the request is long enough for anything new to be compressed.
    """
    reused = [text for text in texts if text.frozen is not None]
    large = [text for text in texts if text.frozen is None and text.n_free >= max(1, settings.rules.min_tokens)]
    new = [text for text in large if settings.rules.before_breakpoint or not text.target.slot.is_cached]
    if not is_triggered or not new:
        n_cached = len(large) - len(new)
        note = f"texts that stand before a cache breakpoint: {n_cached}" if is_triggered and n_cached else ""
        return Shares(reused, [], [], "" if reused else note)
    if settings.max_tokens is None:
        keep = settings.keep or 1.0
        return Shares(reused, new, [text.target.keep or keep for text in new])
    n_new = sum(text.n_free for text in new)
    left = settings.max_tokens - sum(text.frozen.tokens for text in reused if text.frozen)
    if n_new <= left:
        return Shares(reused, [], [])
    if reused and left >= _MIN_KEEP * n_new:
        level = sum(text.frozen.tokens for text in reused if text.frozen) / sum(text.n_free for text in reused)
        return Shares(reused, new, _keeps(new, min(left / n_new, max(level, _MIN_KEEP))))
    note = "the ceiling was hit, and all texts were compressed anew: the provider reads the conversation again"
    every = [*reused, *new]
    n_all = sum(text.n_free for text in every)
    return Shares([], every, _keeps(every, min(1.0, _ROOM * settings.max_tokens / n_all)), note if reused else "")


def _keeps(texts: Sequence[Text], keep: float) -> list[float]:
    return [min(keep, text.target.keep or 1.0) for text in texts]
