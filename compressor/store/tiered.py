"""A store behind memory, whose failures are misses."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from threading import Lock
from typing import Final

from kompakt.compressor.errors import StoreError
from kompakt.compressor.store.base import Store, StoreStats, checked_ttl
from kompakt.compressor.store.envelope import seal, unseal
from kompakt.compressor.store.memory import MemoryStore

_LOG = logging.getLogger(__name__)
_PAUSE_SECONDS: Final = 5.0
"""How long a store that failed is left alone: a dead server must not cost every call its timeout."""


class TieredStore(Store):
    """Memory in front of a file or a server.

    Values are sealed with a checksum behind, and plain in front. A damaged value is a miss. Where the store behind
    cannot be used, memory alone goes on, with one warning; it is tried again every few seconds, and what was put
    meanwhile stays in memory only.

    Args:
        back: The store behind.
        front: The memory in front.
        ttl: Seconds that a value is kept; None for as long as there is room.

    Raises:
        ConfigError: If ``ttl`` is not above 0.
    """

    def __init__(self, back: Store, *, front: MemoryStore | None = None, ttl: float | None = None) -> None:
        self.back = back
        self.front = front or MemoryStore()
        self._ttl = checked_ttl(ttl)
        self._reading = _Breaker("read")
        self._writing = _Breaker("written")
        self._told_of_damage = False

    @property
    def location(self) -> str:
        """Where the store behind is."""
        return self.back.location

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the value of each key, from memory or else from behind; never raises ``StoreError``."""
        values = self.front.get_many(keys)
        missing = list(dict.fromkeys(key for key, value in zip(keys, values, strict=True) if value is None))
        if not missing or self._reading.is_paused():
            return values
        try:
            sealed = self.back.get_many(missing)
        except StoreError as error:
            self._reading.fail(error)
            # it would cost another timeout and say the same
            self._writing.pause()
            return values
        self._reading.succeed(self.location)
        found = self._unsealed(missing, sealed)
        return [found.get(key) if value is None else value for key, value in zip(keys, values, strict=True)]

    def _unsealed(self, keys: Sequence[bytes], sealed: Sequence[bytes | None]) -> dict[bytes, bytes]:
        found: dict[bytes, bytes] = {}
        now = time.time()
        for key, value in zip(keys, sealed, strict=True):
            if value is None:
                continue
            try:
                opened = unseal(key, value)
            except StoreError as error:
                self._tell_of_damage(error)
                continue
            if opened.expires_at is None or opened.expires_at > now:
                found[key] = opened.payload
                self.front.put_many({key: opened.payload}, expires_at=opened.expires_at)
        return found

    def put_many(self, items: Mapping[bytes, bytes], *, expires_at: float | None = None) -> None:
        """Keep values in memory, and behind if that can be used; never raises ``StoreError``."""
        if not items:
            return
        if expires_at is None and self._ttl is not None:
            expires_at = time.time() + self._ttl
        self.front.put_many(items, expires_at=expires_at)
        if self._writing.is_paused():
            return
        sealed = {key: seal(key, value, expires_at) for key, value in items.items()}
        try:
            self.back.put_many(sealed, expires_at=expires_at)
        except StoreError as error:
            self._writing.fail(error)
        else:
            self._writing.succeed(self.location)

    def delete_many(self, keys: Sequence[bytes]) -> None:
        """Remove entries from both.

        Raises:
            StoreError: If the store behind cannot be used: they would come back.
        """
        self.front.delete_many(keys)
        self.back.delete_many(keys)

    def keys(self) -> Iterator[bytes]:
        """Return the keys of the store behind."""
        return self.back.keys()

    def stats(self) -> StoreStats:
        """Return what is in the store behind."""
        return self.back.stats()

    def collect_garbage(self) -> int:
        """Remove what has expired or exceeds the bound, behind and in memory."""
        self.front.collect_garbage()
        return self.back.collect_garbage()

    def close(self) -> None:
        """Close the store behind."""
        self.back.close()

    def _tell_of_damage(self, error: StoreError) -> None:
        if not self._told_of_damage:
            self._told_of_damage = True
            _LOG.warning(
                "%s in the store %s; it is computed again. Find all of them with: kompakt store verify %s",
                error,
                self.location,
                self.location,
            )


class _Breaker:
    """Leaves a store alone for a while after it failed, and says so once, until it works again."""

    def __init__(self, verb: str) -> None:
        self._verb = verb
        self._lock = Lock()
        self._paused_until: float | None = None

    def is_paused(self) -> bool:
        until = self._paused_until
        return until is not None and time.monotonic() < until

    def pause(self) -> bool:
        """Leave the store alone for a while; tell whether that is new."""
        with self._lock:
            is_new = self._paused_until is None
            self._paused_until = time.monotonic() + _PAUSE_SECONDS
        return is_new

    def fail(self, error: StoreError) -> None:
        if self.pause():
            _LOG.warning("%s; going on in memory, and trying it again every %g s", error, _PAUSE_SECONDS)

    def succeed(self, location: str) -> None:
        if self._paused_until is None:
            return
        with self._lock:
            self._paused_until = None
        _LOG.info("the store %s can be %s again", location, self._verb)
