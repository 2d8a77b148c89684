"""The tables of a store's SQLite file, what tells it from other files, and what tells damage from bad luck."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Final

from kompakt.compressor.errors import ConfigError, StoreError

SCHEMA_VERSION: Final = 1
_APPLICATION: Final = 0x6B6D706B
"""Stands in the file's header and tells a store from other databases."""
_COLUMNS: Final = "key BLOB PRIMARY KEY NOT NULL, value BLOB NOT NULL, used_at INTEGER NOT NULL, expires_at REAL"

SCHEMA: Final = f"""
BEGIN IMMEDIATE;
PRAGMA application_id = {_APPLICATION};
PRAGMA user_version = {SCHEMA_VERSION};
CREATE TABLE IF NOT EXISTS entries ({_COLUMNS});
CREATE INDEX IF NOT EXISTS entries_by_use ON entries (used_at);
CREATE INDEX IF NOT EXISTS entries_by_expiry ON entries (expires_at) WHERE expires_at IS NOT NULL;
CREATE TABLE IF NOT EXISTS totals (id INTEGER PRIMARY KEY CHECK (id = 1), n_entries INTEGER, n_bytes INTEGER);
INSERT OR IGNORE INTO totals VALUES (1, 0, 0);
CREATE TRIGGER IF NOT EXISTS entries_added AFTER INSERT ON entries BEGIN
  UPDATE totals SET n_entries = n_entries + 1, n_bytes = n_bytes + length(NEW.value);
END;
CREATE TRIGGER IF NOT EXISTS entries_changed AFTER UPDATE OF value ON entries BEGIN
  UPDATE totals SET n_bytes = n_bytes + length(NEW.value) - length(OLD.value);
END;
CREATE TRIGGER IF NOT EXISTS entries_removed AFTER DELETE ON entries BEGIN
  UPDATE totals SET n_entries = n_entries - 1, n_bytes = n_bytes - length(OLD.value);
END;
COMMIT;
"""  # noqa: S608 (numbers of this file)

_DAMAGE: Final = frozenset({sqlite3.SQLITE_ERROR, sqlite3.SQLITE_SCHEMA, sqlite3.SQLITE_IOERR_SHORT_READ})
"""Codes of operational errors that a damaged file causes; the others pass by, such as a lock or a full disk."""


def recognise(connection: sqlite3.Connection, path: Path) -> None:
    """Check that a database is a store that can be used, or empty.

    Raises:
        ConfigError: If it is another program's.
        StoreError: If a newer version of kompakt wrote it.
    """
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    tables = connection.execute("SELECT coalesce(sql, '') FROM sqlite_master").fetchall()
    # the number may be damaged
    is_own = application == _APPLICATION or any(_COLUMNS in sql for (sql,) in tables)
    if not is_own and (tables or application):
        raise ConfigError(f"{path} is the database of another program, not a store; name another file")
    if version > SCHEMA_VERSION:
        raise StoreError(f"the store {path} was written by a newer kompakt (schema {version}); upgrade kompakt")


def find_faults(connection: sqlite3.Connection) -> list[str]:
    """Return what is wrong with a file that can be read at all; nothing if it is whole."""
    found = [text for (text,) in connection.execute("PRAGMA integrity_check(20)") if text != "ok"]
    parts = "SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL"
    with closing(sqlite3.connect(":memory:")) as fresh:
        fresh.executescript(SCHEMA)
        wrong = set(fresh.execute(parts)) - set(connection.execute(parts))
    found.extend(f"{name} is not as it was made" for name, _ in sorted(wrong))
    counted = connection.execute("SELECT count(*), coalesce(sum(length(value)), 0) FROM entries").fetchone()
    written = totals(connection)
    if counted != written:
        found.append(f"it holds {counted} entries and bytes where {written} are written down")
    return found


def totals(connection: sqlite3.Connection) -> tuple[int, int]:
    """Return the number of entries and the bytes of their values, as triggers keep them.

    Raises:
        sqlite3.DatabaseError: If they are damaged.
    """
    match connection.execute("SELECT n_entries, n_bytes FROM totals").fetchone():
        case (int(n_entries), int(n_bytes)):
            return n_entries, n_bytes
    raise sqlite3.DatabaseError("the number of its entries is damaged")


def delete(connection: sqlite3.Connection, keys: Iterable[bytes]) -> None:
    """Remove entries by key."""
    connection.executemany("DELETE FROM entries WHERE key = ?", [(key,) for key in keys])


def delete_expired(connection: sqlite3.Connection) -> None:
    """Remove the entries whose time is over."""
    connection.execute("DELETE FROM entries WHERE expires_at <= ?", [time.time()])


def is_damage(error: BaseException | None) -> bool:
    """Tell whether an error is the file's fault, rather than that of its folder, the disk or another process."""
    if isinstance(error, sqlite3.OperationalError):
        return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) in _DAMAGE
    return isinstance(error, (sqlite3.Error, UnicodeDecodeError))
