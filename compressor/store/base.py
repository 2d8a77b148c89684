"""What every store does: bytes by key, in batches."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from kompakt.compressor.errors import ConfigError


@dataclass(frozen=True, slots=True)
class StoreStats:
    """What is in a store.

    Args:
        location: Where it is, without passwords.
        n_entries: Entries, those that have expired and were not removed yet included.
        n_bytes: Bytes of their values.
        max_bytes: The most bytes that it keeps; None if the store's own server decides.
    """

    location: str
    n_entries: int
    n_bytes: int
    max_bytes: int | None


class Store(ABC):
    """Values by key.

    Keys say what a value is made of (``kompakt.compressor.store.keys``), so a value never changes: an entry may be
    missing, and is then computed again, but never stale. All methods may be called from several threads.

    Methods raise ``StoreError`` if the store cannot be used. ``TieredStore`` turns that into misses.
    """

    @property
    @abstractmethod
    def location(self) -> str:
        """Where it is, for people; without passwords."""

    @abstractmethod
    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the value of each key, None where there is none or it has expired."""

    @abstractmethod
    def put_many(self, items: Mapping[bytes, bytes], *, expires_at: float | None = None) -> None:
        """Keep values; when this returns, they survive the end of this process.

        Args:
            items: Values by key.
            expires_at: Seconds since the epoch after which they are gone; None for never.
        """

    @abstractmethod
    def delete_many(self, keys: Sequence[bytes]) -> None:
        """Remove entries; keys that are not there are passed over."""

    @abstractmethod
    def keys(self) -> Iterator[bytes]:
        """Return the keys of all entries, in no particular order."""

    @abstractmethod
    def stats(self) -> StoreStats:
        """Return what is in it."""

    @abstractmethod
    def collect_garbage(self) -> int:
        """Remove what has expired or exceeds the bound, give the space back, and return the entries removed."""

    def close(self) -> None:  # noqa: B027 (nothing to give back, unless a store says so)
        """Give back files and connections; the next call opens them again."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def checked_ttl(ttl: float | None) -> float | None:
    """Return a time to live in seconds.

    Raises:
        ConfigError: If it is not above 0 and finite.
    """
    if ttl is not None and not 0 < ttl < math.inf:
        raise ConfigError(f"ttl must be above 0 seconds and finite, or None to keep values for good; got {ttl}")
    return ttl
