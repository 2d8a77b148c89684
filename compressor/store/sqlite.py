"""The store in a SQLite file: many processes, bounded, and whole after a kill."""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from threading import RLock
from typing import Final

from kompakt.compressor.errors import ConfigError, StoreError
from kompakt.compressor.store.base import Store, StoreStats
from kompakt.compressor.store.forks import keep_forks_out
from kompakt.compressor.store.sqlite_schema import (
    SCHEMA,
    SCHEMA_VERSION,
    delete,
    delete_expired,
    find_faults,
    is_damage,
    recognise,
    totals,
)

_LOG = logging.getLogger(__name__)

DEFAULT_BYTES: Final = 10 * 2**30
_BUSY_SECONDS: Final = 60.0
_KEYS_PER_QUERY: Final = 500
_TOUCHES: Final = 2000
"""Uses that are noted in memory before they are written: the order of use is worth little, a write much."""
_TOUCH_SECONDS: Final = 60.0
_EVICT_TO: Final = 0.9
"""Share of the bound that is left after an eviction, so that not every write evicts."""

_abandoned: Final[list[sqlite3.Connection | None]] = []
"""Connections of a parent process, kept from the garbage collector, which would close them."""


class SQLiteStore(Store):
    """Values in one file, shared by the processes of a machine.

    Written in write-ahead mode: readers never wait, writers wait for each other. What ``put_many`` has acknowledged
    survives the end of the process, however it ends; after a power failure the last seconds may be missing, never
    damaged. Where the folder cannot be written, an existing file is read as it stands.

    Args:
        path: The file; it and its folder are made by the first write.
        max_bytes: The most bytes of values; beyond it the least recently used go. The file itself is a little larger.
            A value of more than nine tenths of it is not kept.

    Raises:
        ConfigError: If ``max_bytes`` is not above 0.
    """

    def __init__(self, path: str | os.PathLike[str], *, max_bytes: int = DEFAULT_BYTES) -> None:
        if max_bytes < 1:
            raise ConfigError(f"max_bytes must be at least 1, got {max_bytes}")
        if "\0" in os.fspath(path):
            raise ConfigError(f"the path of a store must not hold a zero byte, got {os.fspath(path)!r}")
        self._path = Path(os.path.expanduser(path)).absolute()
        self._max_bytes = max_bytes
        self._lock = RLock()
        self._connection: sqlite3.Connection | None = None
        self._owner = os.getpid()
        self._identity: tuple[int, int] | None = None
        self._is_read_only = False
        self._touched: dict[bytes, int] = {}
        self._touched_at = time.monotonic()
        self._told_of_damage = False
        keep_forks_out(self)

    @property
    def lock(self) -> RLock:
        """What a thread holds while it is inside SQLite."""
        return self._lock

    @property
    def location(self) -> str:
        """The path of the file."""
        return str(self._path)

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the value of each key; a key on a damaged page of the file has none."""
        if not keys or not self._exists():
            return [None] * len(keys)
        found: dict[bytes, bytes] = {}
        with self._session() as connection:
            now = time.time()
            for group in _groups(list(dict.fromkeys(keys))):
                found.update(self._select(connection, group, now))
            self._note_use(found)
        return [found.get(key) for key in keys]

    def _select(self, connection: sqlite3.Connection, keys: Sequence[bytes], now: float) -> dict[bytes, bytes]:
        marks = ",".join("?" * len(keys))
        # a damaged row can hold a value of another type, which the cast hands on as bytes for the checksum to judge
        query = (
            f"SELECT key, CAST(value AS BLOB) FROM entries WHERE key IN ({marks}) "  # noqa: S608
            "AND (expires_at IS NULL OR expires_at > ?)"
        )
        try:
            return {key: value or b"" for key, value in connection.execute(query, [*keys, now])}
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise
            # one bad page must not hide the good ones
            self._tell_of_damage(error)
            if len(keys) == 1:
                return {}
            half = len(keys) // 2
            return self._select(connection, keys[:half], now) | self._select(connection, keys[half:], now)

    def put_many(self, items: Mapping[bytes, bytes], *, expires_at: float | None = None) -> None:
        """Keep values; see ``Store.put_many``."""
        if not items:
            return
        now = time.time_ns()
        room = int(_EVICT_TO * self._max_bytes)
        rows = [(key, value, now, expires_at) for key, value in items.items() if len(value) <= room]
        with self._writing() as connection:
            connection.executemany(
                "INSERT INTO entries VALUES (?, ?, ?, ?) ON CONFLICT (key) DO UPDATE "
                "SET value = excluded.value, used_at = excluded.used_at, expires_at = excluded.expires_at",
                rows,
            )
            if len(rows) < len(items):
                delete(connection, (key for key, value in items.items() if len(value) > room))
            self._evict(connection)

    def delete_many(self, keys: Sequence[bytes]) -> None:
        """Remove entries."""
        if keys and self._exists():
            with self._writing() as connection:
                delete(connection, keys)

    def keys(self) -> Iterator[bytes]:
        """Return the keys of all entries, as of now; of a damaged file, those that can be read."""
        if not self._exists():
            return iter(())
        found: dict[bytes, None] = {}
        with self._session() as connection:
            # the index of keys and the table lie on different pages: what one has lost the other may have
            for query in ("SELECT key FROM entries", "SELECT key FROM entries NOT INDEXED"):
                try:
                    found.update((key, None) for (key,) in connection.execute(query) if isinstance(key, bytes))
                    break
                except sqlite3.OperationalError:
                    raise
                except sqlite3.DatabaseError as error:
                    self._tell_of_damage(error)
        return iter(list(found))

    def scan(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield the entries of the table, from either end up to what cannot be read, whatever became of its index."""
        with self._session() as connection:
            for direction in ("ASC", "DESC"):
                query = f"SELECT key, CAST(value AS BLOB) FROM entries NOT INDEXED ORDER BY rowid {direction}"  # noqa: S608
                try:
                    for key, value in connection.execute(query):
                        if isinstance(key, bytes) and value is not None:
                            yield key, value
                    break
                except sqlite3.DatabaseError as error:
                    if not is_damage(error):
                        raise
                    self._tell_of_damage(error)

    def stats(self) -> StoreStats:
        """Return what is in it."""
        if not self._exists():
            return StoreStats(self.location, 0, 0, self._max_bytes)
        with self._session() as connection:
            n_entries, n_bytes = totals(connection)
        return StoreStats(self.location, n_entries, n_bytes, self._max_bytes)

    def collect_garbage(self) -> int:
        """Remove what has expired or exceeds the bound, and shorten the file."""
        if not self._exists():
            return 0
        with self._writing() as connection:
            before, _ = totals(connection)
            delete_expired(connection)
            self._evict(connection)
            n_removed = before - totals(connection)[0]
        with self._session() as connection:
            # as a script, since it gives a page back at each step, and execute makes one
            connection.executescript("PRAGMA incremental_vacuum")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        return n_removed

    def create(self) -> None:
        """Make the file if it is not there yet."""
        with self._session():
            pass

    def check(self) -> list[str]:
        """Return what is wrong with the file; nothing if it is whole.

        Raises:
            StoreError: If that cannot be told, because the file cannot be read at all or is in use.
        """
        if not self._exists():
            return []
        try:
            with self._session() as connection:
                return find_faults(connection)
        except StoreError as error:
            if not is_damage(error.__cause__):
                raise
            return [str(error.__cause__)]

    def close(self) -> None:
        """Write what was noted and close the file."""
        self._leave_parent()
        with self._lock:
            if self._connection is not None:
                try:
                    self._write_touches(self._connection)
                    self._connection.close()
                except sqlite3.Error as error:
                    _LOG.debug("closing %s: %s", self._path, error)
            self._connection = None

    def _evict(self, connection: sqlite3.Connection) -> None:
        if totals(connection)[1] <= self._max_bytes:
            return
        delete_expired(connection)
        _, n_bytes = totals(connection)
        if n_bytes <= self._max_bytes:
            return
        self._write_touches(connection)
        excess = n_bytes - int(_EVICT_TO * self._max_bytes)
        doomed = []
        for key, size in connection.execute("SELECT key, length(value) FROM entries ORDER BY used_at, rowid"):
            if excess <= 0:
                break
            doomed.append(key)
            excess -= size or 0
        delete(connection, doomed)

    def _note_use(self, keys: Iterable[bytes]) -> None:
        """Remember which entries were used, and write it down once there is enough to write."""
        if self._is_read_only or self._connection is None:
            return
        self._touched.update(dict.fromkeys(keys, time.time_ns()))
        if len(self._touched) >= _TOUCHES or time.monotonic() - self._touched_at >= _TOUCH_SECONDS:
            self._write_touches(self._connection)

    def _write_touches(self, connection: sqlite3.Connection) -> None:
        """Write down which entries were used, within the transaction if one is open."""
        if not self._touched:
            return
        used = [(used_at, key) for key, used_at in self._touched.items()]
        self._touched.clear()
        self._touched_at = time.monotonic()
        is_alone = not connection.in_transaction
        try:
            if is_alone:
                # a read does not wait for those who write: the order of use is worth less
                connection.execute("PRAGMA busy_timeout = 0")
                connection.execute("BEGIN IMMEDIATE")
            connection.executemany("UPDATE entries SET used_at = max(used_at, ?) WHERE key = ?", used)
            if is_alone:
                connection.execute("COMMIT")
        except sqlite3.Error as error:  # a read that was answered must not fail because its use cannot be noted
            _LOG.debug("the order of use in %s was not written: %s", self._path, error)
        if is_alone:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            connection.execute(f"PRAGMA busy_timeout = {1000 * _BUSY_SECONDS:.0f}")

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """Open a transaction; it is committed at the end, or undone as a whole."""
        if self._is_read_only:
            self.close()  # perhaps it can be written by now
        with self._session() as connection:
            if self._is_read_only:
                raise StoreError(f"the store {self._path} cannot be written: its folder is read-only")
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    @contextmanager
    def _session(self) -> Iterator[sqlite3.Connection]:
        self._leave_parent()
        with self._lock:
            try:
                if self._connection is not None and self._identity != _identity(self._path):
                    # the file was removed or replaced: what is written to the old one would be lost
                    old, self._connection = self._connection, None
                    old.close()
                if self._connection is None:
                    self._connection = self._connect()
                    self._identity = _identity(self._path)
                yield self._connection
            # what SQLite says of a damaged file can be no Unicode
            except (sqlite3.Error, OSError, UnicodeDecodeError) as error:
                raise StoreError(f"the store {self._path} cannot be used: {error}") from error

    def _leave_parent(self) -> None:
        """Leave lock and connection behind after a fork.

        A thread that is not in this process may hold the lock, and closing the connection here would release the
        parent's locks on the file.
        """
        if self._owner != os.getpid():
            _abandoned.append(self._connection)
            self._connection, self._owner, self._lock = None, os.getpid(), RLock()

    def _exists(self) -> bool:
        # unlike Path.exists, False as well where the folder may not be searched
        return os.path.exists(self._path)

    def _connect(self) -> sqlite3.Connection:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            connection = _connected(str(self._path))
        except OSError:
            return self._connect_to_read()
        try:
            recognise(connection, self._path)
            # only an empty file takes it; the next setting writes the first page
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            _use_wal(connection)
            connection.execute("PRAGMA synchronous = NORMAL")
            if connection.execute("PRAGMA user_version").fetchone() != (SCHEMA_VERSION,):
                connection.executescript(SCHEMA)
        except sqlite3.OperationalError as error:
            connection.close()
            if "readonly" in str(error) or "unable to open" in str(error):
                return self._connect_to_read()
            raise
        except BaseException:
            connection.close()
            raise
        self._is_read_only = False
        return connection

    def _connect_to_read(self) -> sqlite3.Connection:
        if not self._exists():
            raise StoreError(f"the store {self._path} cannot be made: its folder cannot be written")
        self._is_read_only = True
        location = f"{self._path.as_uri()}?mode=ro"
        try:
            return self._recognised(_connected(location, uri=True))
        except sqlite3.OperationalError:  # without the files of a process that has it open: as it stands
            return self._recognised(_connected(f"{location}&immutable=1", uri=True))

    def _recognised(self, connection: sqlite3.Connection) -> sqlite3.Connection:
        try:
            recognise(connection, self._path)
        except BaseException:
            connection.close()
            raise
        return connection

    def _tell_of_damage(self, error: sqlite3.Error) -> None:
        if not self._told_of_damage:
            self._told_of_damage = True
            _LOG.warning(
                "the store %s is damaged (%s); what cannot be read is computed again. "
                "Mend it with: kompakt store verify --repair %s",
                self._path,
                error,
                self._path,
            )


def _connected(target: str, *, uri: bool = False) -> sqlite3.Connection:
    return sqlite3.connect(target, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False, uri=uri)


def _use_wal(connection: sqlite3.Connection) -> None:
    """Let readers and a writer work at once; where several processes ask for it, SQLite does not wait by itself."""
    end = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL").fetchall()
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > end:
                raise
            time.sleep(0.01)


def _groups(keys: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    rest = iter(keys)
    while group := list(islice(rest, _KEYS_PER_QUERY)):
        yield group


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
