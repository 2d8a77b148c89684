"""Looking after a store: verify it, mend it, and carry its content elsewhere."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

from kompakt.compressor.errors import ConfigError, StoreError
from kompakt.compressor.store.base import Store
from kompakt.compressor.store.envelope import unseal
from kompakt.compressor.store.keys import is_key
from kompakt.compressor.store.sqlite import SQLiteStore

_ENTRIES_AT_ONCE: Final = 200
_NO_BOUND: Final = 1 << 62

OnEntries = Callable[[int], None]
"""Called with the number of entries that are done."""


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What verification found.

    Args:
        n_entries: Entries that were looked at.
        n_expired: Of those, entries whose time is over.
        damaged: Keys of entries whose checksum is wrong, or that cannot be read.
        structure: What is wrong with the file as a whole; nothing if it is sound.
    """

    n_entries: int
    n_expired: int
    damaged: tuple[bytes, ...]
    structure: tuple[str, ...]

    @property
    def is_sound(self) -> bool:
        """Whether nothing is wrong."""
        return not self.damaged and not self.structure


def verify(store: Store, *, on_entries: OnEntries | None = None) -> VerifyReport:
    """Read every entry of a store and compare it with its checksum.

    Args:
        store: A file or server, without memory in front.
        on_entries: Called as it goes on.

    Raises:
        StoreError: If the store cannot be read at all.
    """
    structure = tuple(store.check()) if isinstance(store, SQLiteStore) else ()
    if structure and not _is_readable(store):
        return VerifyReport(0, 0, (), structure)
    n_entries = n_expired = 0
    damaged: list[bytes] = []
    now = time.time()
    for keys in _groups(store):
        for key, value in zip(keys, store.get_many(keys), strict=True):
            n_entries += 1
            if value is None:
                # expired entries are not returned; what is on a bad page of the file is not either
                n_expired += not structure
                continue
            try:
                expires_at = unseal(key, value).expires_at
            except StoreError:
                damaged.append(key)
            else:
                n_expired += expires_at is not None and expires_at <= now
        if on_entries:
            on_entries(n_entries)
    return VerifyReport(n_entries, n_expired, tuple(damaged), structure)


def repair(store: Store, report: VerifyReport) -> str:
    """Remove what verification found to be damaged; a file that is damaged as a whole is written anew.

    The damaged file is kept beside the new one.

    Args:
        store: The store.
        report: What ``verify`` returned for it.

    Returns:
        What was done, for people.

    Raises:
        StoreError: If the store cannot be written.
    """
    if report.structure and isinstance(store, SQLiteStore):
        return _rewrite(store)
    store.delete_many(report.damaged)
    return f"{len(report.damaged)} damaged entries removed"


def _rewrite(store: SQLiteStore) -> str:
    """Copy all that is readable into a new file and put it in the place of the old one."""
    old = Path(store.location)
    new = old.with_name(f"{old.name}.mended")
    aside = old.with_name(f"{old.name}.damaged-{int(time.time())}")
    _remove_file(new)
    with SQLiteStore(new, max_bytes=_NO_BOUND) as copy:
        copy.create()
        if _is_readable(store):
            # by the index of keys, then by the table: they lie on different pages
            copy_entries(store, copy)
            entries = store.scan()
            while group := list(islice(entries, _ENTRIES_AT_ONCE)):
                _copy(group, copy)
        n_copied = copy.stats().n_entries
    store.close()
    _remove_file(old, but_itself=True)
    os.replace(old, aside)
    os.replace(new, old)
    return f"{n_copied} entries were readable and are in the new file; the damaged one is {aside}"


def copy_entries(source: Store, target: Store, *, on_entries: OnEntries | None = None) -> int:
    """Copy every sound entry that has not expired, and return how many.

    Args:
        source: Where from.
        target: Where to; entries that it has already are written again.
        on_entries: Called as it goes on.

    Raises:
        StoreError: If one of them cannot be used.
    """
    n_copied = n_seen = 0
    for keys in _groups(source):
        n_copied += _copy(zip(keys, source.get_many(keys), strict=True), target)
        n_seen += len(keys)
        if on_entries:
            on_entries(n_seen)
    return n_copied


def _copy(entries: Iterable[tuple[bytes, bytes | None]], target: Store) -> int:
    by_expiry: dict[float | None, dict[bytes, bytes]] = {}
    now = time.time()
    for key, value in entries:
        if value is None or not is_key(key):
            continue
        try:
            expires_at = unseal(key, value).expires_at
        except StoreError:
            continue
        if expires_at is None or expires_at > now:
            by_expiry.setdefault(expires_at, {})[key] = value
    for expires_at, items in by_expiry.items():
        target.put_many(items, expires_at=expires_at)
    return sum(map(len, by_expiry.values()))


def export(source: Store, path: str | os.PathLike[str], *, on_entries: OnEntries | None = None) -> int:
    """Write every entry into a new SQLite file, which ``copy_entries`` reads back into any store.

    Raises:
        ConfigError: If the file exists.
        StoreError: If the store cannot be read or the file not be written.
    """
    target = Path(path)
    if target.exists():
        raise ConfigError(f"{target} exists; name a new file, or import into it")
    unfinished = target.with_name(f"{target.name}.unfinished")
    _remove_file(unfinished)
    with SQLiteStore(unfinished, max_bytes=_NO_BOUND) as copy:
        copy.create()
        n_copied = copy_entries(source, copy, on_entries=on_entries)
        copy.collect_garbage()
    os.replace(unfinished, target)
    return n_copied


def _remove_file(path: Path, *, but_itself: bool = False) -> None:
    """Remove what an interrupted run left of a SQLite file, with the files that SQLite keeps beside it."""
    for suffix in ("-wal", "-shm") if but_itself else ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def _is_readable(store: Store) -> bool:
    try:
        store.get_many([bytes(32)])
    except StoreError:
        return False
    return True


def _groups(store: Store) -> Iterator[list[bytes]]:
    keys = store.keys()
    while group := list(islice(keys, _ENTRIES_AT_ONCE)):
        yield group
