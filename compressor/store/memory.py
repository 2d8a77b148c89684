"""The store in memory: bounded in bytes, least recently used first out."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from threading import Lock
from typing import Final

from cachetools import Cache, LRUCache

from kompakt.compressor.errors import ConfigError
from kompakt.compressor.store.base import Store, StoreStats, checked_ttl

DEFAULT_BYTES: Final = 256 * 2**20
_ENTRY_BYTES: Final = 200
"""What an entry takes beside its value: key, tuple and place in the order of use."""

_Entry = tuple[bytes, float | None]


class MemoryStore(Store):
    """Values in this process; gone when it ends.

    Args:
        max_bytes: The most bytes of values, their keys included; the least recently used go first.
        ttl: Seconds that a value is kept unless told otherwise; None for as long as there is room.

    Raises:
        ConfigError: If ``max_bytes`` or ``ttl`` is not above 0.
    """

    def __init__(self, max_bytes: int = DEFAULT_BYTES, *, ttl: float | None = None) -> None:
        if max_bytes < 1:
            raise ConfigError(f"max_bytes must be at least 1, got {max_bytes}")
        self._ttl = checked_ttl(ttl)
        self._entries: LRUCache[bytes, _Entry] = LRUCache(max_bytes, getsizeof=_size)
        self._lock = Lock()
        self._owner = os.getpid()

    @property
    def location(self) -> str:
        """Always ``memory``."""
        return "memory"

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the value of each key; see ``Store.get_many``."""
        now = time.time()
        with self._guard():
            return [self._get(key, now) for key in keys]

    def _guard(self) -> Lock:
        """Return the lock, a new one after a fork."""
        if self._owner != os.getpid():
            # a thread that is not in this process may hold it, with the entries half changed
            if self._lock.locked():
                self._entries = LRUCache(self._entries.maxsize, getsizeof=_size)
            self._lock, self._owner = Lock(), os.getpid()
        return self._lock

    def _get(self, key: bytes, now: float) -> bytes | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        if _is_over(entry, now):
            del self._entries[key]
            return None
        return entry[0]

    def put_many(self, items: Mapping[bytes, bytes], *, expires_at: float | None = None) -> None:
        """Keep values for the life of this process; one larger than the whole bound is not kept."""
        if expires_at is None and self._ttl is not None:
            expires_at = time.time() + self._ttl
        with self._guard():
            for key, value in items.items():
                entry = (value, expires_at)
                if _size(entry) <= self._entries.maxsize:
                    self._entries[key] = entry
                else:
                    self._entries.pop(key, None)

    def delete_many(self, keys: Sequence[bytes]) -> None:
        """Remove entries."""
        with self._guard():
            for key in keys:
                self._entries.pop(key, None)

    def clear(self) -> None:
        """Remove all entries."""
        with self._guard():
            self._entries.clear()

    def keys(self) -> Iterator[bytes]:
        """Return the keys of all entries."""
        with self._guard():
            return iter(list(self._entries))

    def stats(self) -> StoreStats:
        """Return what is in it; the bytes are those that count against the bound."""
        with self._guard():
            return StoreStats(
                self.location, len(self._entries), int(self._entries.currsize), int(self._entries.maxsize)
            )

    def collect_garbage(self) -> int:
        """Remove what has expired."""
        now = time.time()
        with self._guard():
            old = [key for key in self._entries if _is_over(self._peek(key), now)]
            for key in old:
                del self._entries[key]
        return len(old)

    def _peek(self, key: bytes) -> _Entry:
        """Return an entry without counting that as a use."""
        return Cache.__getitem__(self._entries, key)


def _is_over(entry: _Entry, now: float) -> bool:
    return entry[1] is not None and entry[1] <= now


def _size(entry: _Entry) -> int:
    return len(entry[0]) + _ENTRY_BYTES
