"""The tables in which a corpus job keeps its state."""

from __future__ import annotations

from typing import Final

APPLICATION: Final = 0x6B6D7063
"""Stands in the file's header and tells a job from other databases."""
SCHEMA_VERSION: Final = 1

DOCUMENT_COLUMNS: Final = (
    "id",
    "source",
    "position",
    "reading",
    "sha256",
    "text_sha256",
    "status",
    "reason",
    "n_segments",
    "n_bytes",
    "tokens_before",
    "tokens_after",
)
"""The columns of a document that a row of the ledger has."""
SUMS: Final = ("n_segments", "n_bytes", "tokens_before", "tokens_after")
"""The columns that are added up by status."""


def _counted(sign: str, row: str) -> str:
    """Return the statement that adds a document to the totals, or takes it away."""
    sums = ", ".join(f"{name} = {name} {sign} {row}.{name}" for name in SUMS)
    return f"UPDATE totals SET n = n {sign} 1, {sums} WHERE status = {row}.status;"  # noqa: S608 (names of this file)


def _counted_over(sign: str, row: str) -> str:
    """Return the statement that adds a record that was passed over to the totals, or takes it away."""
    status = f"CASE {row}.reason WHEN '' THEN 'duplicate' ELSE 'unreadable' END"
    return f"UPDATE totals SET n = n {sign} 1 WHERE status = {status};"  # noqa: S608 (as above)


SCHEMA: Final = (
    f"PRAGMA application_id = {APPLICATION}",
    f"PRAGMA user_version = {SCHEMA_VERSION}",
    "CREATE TABLE job (settings TEXT NOT NULL, readings INTEGER NOT NULL)",
    "INSERT INTO job VALUES ('', 0)",
    "CREATE TABLE runs (number INTEGER PRIMARY KEY, started TEXT NOT NULL, finished TEXT, seconds REAL NOT NULL, "
    "first_reading INTEGER NOT NULL, n_deleted INTEGER NOT NULL, n_stored INTEGER NOT NULL, "
    "n_compressed INTEGER NOT NULL)",
    # paths need not be text; previous is the reading that a changed file had before
    "CREATE TABLE files (name TEXT PRIMARY KEY NOT NULL, ordinal INTEGER NOT NULL, path BLOB NOT NULL, "
    "n_bytes INTEGER NOT NULL, modified_ns INTEGER NOT NULL, scan INTEGER NOT NULL, reading INTEGER NOT NULL, "
    "previous INTEGER, status TEXT NOT NULL, position INTEGER NOT NULL, n_records INTEGER NOT NULL, "
    "n_read INTEGER NOT NULL, sha256 TEXT NOT NULL)",
    "CREATE INDEX files_pending ON files (ordinal) WHERE status = 'pending'",
    "CREATE TABLE documents (id TEXT PRIMARY KEY NOT NULL, source TEXT NOT NULL, position INTEGER NOT NULL, "
    "reading INTEGER NOT NULL, sha256 BLOB NOT NULL, text_sha256 BLOB NOT NULL, status TEXT NOT NULL, "
    "reason TEXT NOT NULL, n_segments INTEGER NOT NULL, n_bytes INTEGER NOT NULL, tokens_before INTEGER NOT NULL, "
    "tokens_after INTEGER NOT NULL, first_run INTEGER NOT NULL, made_run INTEGER NOT NULL)",
    "CREATE INDEX documents_quarantined ON documents (source, position) WHERE status = 'quarantined'",
    "CREATE TABLE passed_over (source TEXT NOT NULL, position INTEGER NOT NULL, reading INTEGER NOT NULL, "
    "id TEXT NOT NULL, reason TEXT NOT NULL, PRIMARY KEY (source, position)) WITHOUT ROWID",
    "CREATE INDEX passed_over_by_id ON passed_over (id)",
    "CREATE TABLE attempts (id TEXT PRIMARY KEY NOT NULL, n INTEGER NOT NULL)",
    # kept by triggers: counting millions of rows at each checkpoint would take longer than the checkpoint
    "CREATE TABLE totals (status TEXT PRIMARY KEY, n INTEGER NOT NULL, n_segments INTEGER NOT NULL, "
    "n_bytes INTEGER NOT NULL, tokens_before INTEGER NOT NULL, tokens_after INTEGER NOT NULL)",
    "INSERT INTO totals VALUES ('ok', 0, 0, 0, 0, 0), ('quarantined', 0, 0, 0, 0, 0), "
    "('unreadable', 0, 0, 0, 0, 0), ('duplicate', 0, 0, 0, 0, 0)",
    f"CREATE TRIGGER documents_added AFTER INSERT ON documents BEGIN {_counted('+', 'NEW')} END",
    f"CREATE TRIGGER documents_changed AFTER UPDATE ON documents BEGIN {_counted('-', 'OLD')} "
    f"{_counted('+', 'NEW')} END",
    f"CREATE TRIGGER documents_removed AFTER DELETE ON documents BEGIN {_counted('-', 'OLD')} END",
    f"CREATE TRIGGER passed_over_added AFTER INSERT ON passed_over BEGIN {_counted_over('+', 'NEW')} END",
    f"CREATE TRIGGER passed_over_changed AFTER UPDATE ON passed_over BEGIN {_counted_over('-', 'OLD')} "
    f"{_counted_over('+', 'NEW')} END",
    f"CREATE TRIGGER passed_over_removed AFTER DELETE ON passed_over BEGIN {_counted_over('-', 'OLD')} END",
)

WITH_FILES: Final = "documents AS d LEFT JOIN files AS f ON f.name = d.source"
LIVE: Final = "coalesce(f.status != 'gone' AND f.reading = d.reading, 0)"
"""Whether the last reading of its file found a document, in a query over ``WITH_FILES``."""
UPSERT: Final = (
    f"INSERT INTO documents ({', '.join(DOCUMENT_COLUMNS)}, first_run, made_run) "  # noqa: S608 (as above)
    f"VALUES ({', '.join('?' * (len(DOCUMENT_COLUMNS) + 2))}) ON CONFLICT (id) DO UPDATE SET "
    + ", ".join(f"{name} = excluded.{name}" for name in (*DOCUMENT_COLUMNS[1:], "made_run"))
)
"""Writes a document down; the run in which it was first written stays."""
