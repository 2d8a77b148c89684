"""What a corpus job has done so far, in a SQLite file that a kill at any time leaves consistent."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from kompakt.compressor.errors import InputError, StoreError
from kompakt.retrieval.corpus.formats import SourceFile
from kompakt.retrieval.corpus.ledger import Failure, FileProgress, KnownDocument, PendingFile, Work
from kompakt.retrieval.corpus.schema import APPLICATION, LIVE, SCHEMA, SCHEMA_VERSION, SUMS, UPSERT, WITH_FILES
from kompakt.retrieval.database import Database

STATE_FILE: Final = "corpus.sqlite"
_BUSY_SECONDS: Final = 60.0
_RUN: Final = ("number", "started", "finished", "seconds", "n_deleted", "n_stored", "n_compressed")


class State(Database):
    """The state of a job. Made by ``open``; one process at a time may change it.

    A run is what one ``build`` or ``update`` does from start to end, however often it is interrupted. A reading is
    one pass over a file from its beginning; a document is live if the last reading of its file found it.

    Args:
        path: The file.
        connection: A connection to it.
    """

    what = "state"

    @classmethod
    def open(cls, folder: Path, *, create: bool = False) -> State:
        """Open the state in a folder; where that cannot be written, it is read as it stands.

        Args:
            folder: The folder.
            create: Make it if there is none.

        Raises:
            StoreError: If there is none, or it is damaged, of another program or of another kompakt.
        """
        path = (folder / STATE_FILE).absolute()
        if not path.is_file():
            if not create:
                raise StoreError(f"there is no corpus job in {folder}: it has no {STATE_FILE}")
            _create(path)
        mode = "rw" if os.access(folder, os.W_OK) and os.access(path, os.W_OK) else "ro"
        if mode == "ro" and not path.with_name(f"{path.name}-wal").exists():
            # without it, SQLite would make files beside it even to read
            mode = "ro&immutable=1"
        state = cls(path, _connected(path, mode))
        try:
            state._recognise()
        except BaseException:
            state.close()
            raise
        return state

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def settings(self) -> dict[str, Any]:
        """Return the settings of the job; empty for a new one."""
        [(settings,)] = self._rows("SELECT settings FROM job")
        return dict(json.loads(settings)) if settings else {}

    def set_settings(self, settings: Mapping[str, object]) -> None:
        """Write the settings of a new job."""
        self._rows("UPDATE job SET settings = ?", [json.dumps(settings)])

    def run(self) -> dict[str, Any]:
        """Return the last run by column; ``finished`` is None until it is."""
        rows = self._rows(f"SELECT {', '.join(_RUN)} FROM runs ORDER BY number DESC LIMIT 1")  # noqa: S608
        return dict(zip(_RUN, rows[0] if rows else (0, "", "", 0.0, 0, 0, 0), strict=True))

    def begin_run(self) -> None:
        """Go on with the unfinished run, or begin a new one."""
        with self._transaction():
            if self.run()["finished"] is not None:
                insert = "INSERT INTO runs SELECT NULL, ?, NULL, 0, readings + 1, 0, 0, 0 FROM job"
                self._rows(insert, [_now()])

    def finish_run(self) -> None:
        """Note that the run is at its end."""
        with self._transaction():
            known = "SELECT 1 FROM files AS f WHERE f.name = source AND f.reading = passed_over.reading"
            self._rows(f"DELETE FROM passed_over WHERE NOT EXISTS ({known} AND f.status != 'gone')")  # noqa: S608
            self._rows("DELETE FROM attempts")
            self._rows("UPDATE runs SET finished = ? WHERE finished IS NULL", [_now()])

    def scan(self, files: Iterable[SourceFile]) -> None:
        """Compare the corpus with what is known, and note which files are to be read and which are gone.

        A file of the same size and time as before is not read again, or read on from where its reading stopped.

        Raises:
            InputError: If there is no file: what looks empty is often only not mounted.
        """
        with self._transaction():
            self._rows("UPDATE job SET readings = readings + 1")
            [(scan,)] = self._rows("SELECT readings FROM job")
            ordinal = -1
            for ordinal, file in enumerate(files):
                self._note(file, ordinal, scan)
            if ordinal < 0:
                raise InputError("the inputs hold no file that can be read; nothing was changed")
            self._rows("UPDATE files SET status = 'gone' WHERE scan != ?", [scan])

    def _note(self, file: SourceFile, ordinal: int, scan: int) -> None:
        known = self._rows("SELECT n_bytes, modified_ns, status, reading FROM files WHERE name = ?", [file.name])
        n_bytes, modified_ns, status, reading = known[0] if known else (-1, -1, "", None)
        path = os.fsencode(file.path)
        if (n_bytes, modified_ns) == (file.n_bytes, file.modified_ns) and status != "gone":
            self._rows(
                "UPDATE files SET ordinal = ?, path = ?, scan = ? WHERE name = ?", [ordinal, path, scan, file.name]
            )
            return
        previous = reading if status == "done" else None
        self._rows(
            "INSERT INTO files VALUES (?, ?, ?, ?, ?, ?, ?, ?, 'pending', 0, 0, 0, '') ON CONFLICT (name) DO UPDATE "
            "SET ordinal = excluded.ordinal, path = excluded.path, n_bytes = excluded.n_bytes, "
            "modified_ns = excluded.modified_ns, scan = excluded.scan, reading = excluded.reading, "
            "previous = excluded.previous, status = 'pending', position = 0, n_records = 0, n_read = 0",
            [file.name, ordinal, path, file.n_bytes, file.modified_ns, scan, scan, previous],
        )

    def pending(self, after: int) -> PendingFile | None:
        """Return the first file to be read whose ordinal is above ``after``; None if there is none."""
        rows = self._rows(
            "SELECT path, name, n_bytes, modified_ns, ordinal, reading, position, n_records, n_read, sha256, "
            "previous FROM files WHERE status = 'pending' AND ordinal > ? ORDER BY ordinal LIMIT 1",
            [after],
        )
        if not rows:
            return None
        path, name, n_bytes, modified_ns, ordinal, reading, position, n_records, n_read, digest, previous = rows[0]
        file = SourceFile(Path(os.fsdecode(path)), name, n_bytes, modified_ns)
        progress = FileProgress(position, n_records, n_read, digest)
        return PendingFile(file, ordinal, reading, progress, previous is not None)

    def keep_reading(self, name: str) -> None:
        """Note that a file has the content that it had when it was last read, and so all its documents."""
        self._rows("UPDATE files SET status = 'done', reading = previous, previous = NULL WHERE name = ?", [name])

    def bytes_of_run(self) -> tuple[int, int]:
        """Return the bytes of files that the run has read, and those of all that it is to read."""
        [(done, total)] = self._rows(
            "SELECT coalesce(sum(iif(status = 'done', n_bytes, min(n_read, n_bytes))), 0), coalesce(sum(n_bytes), 0) "
            "FROM files WHERE status != 'gone' AND reading >= (SELECT max(first_reading) FROM runs)"
        )
        return done, total

    def find(self, document_id: str) -> KnownDocument | None:
        """Return what is known of a document; None if nothing is."""
        columns = f"d.sha256, d.status, d.source, d.position, {LIVE}"
        rows = self._rows(f"SELECT {columns} FROM {WITH_FILES} WHERE d.id = ?", [document_id])  # noqa: S608
        if not rows:
            return None
        digest, status, source, position, is_live = rows[0]
        return KnownDocument(digest, status, source, position, bool(is_live))

    def attempts(self) -> dict[str, int]:
        """Return what was in work when the process died, and how often it did so while that was in work alone."""
        return dict(self._rows("SELECT id, n FROM attempts"))

    def begin(self, keys: Sequence[str], *, is_alone: bool, survived: Sequence[str]) -> None:
        """Note what is in work from now on.

        Args:
            keys: What.
            is_alone: Whether nothing else is, so that a death is its own.
            survived: What was in work before.
        """
        with self._transaction():
            self._many("DELETE FROM attempts WHERE id = ?", [(key,) for key in survived])
            self._many(
                "INSERT INTO attempts VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET n = n + excluded.n",
                [(key, int(is_alone)) for key in keys],
            )

    def withdraw(self, keys: Sequence[str], *, is_alone: bool) -> None:
        """Take back what ``begin`` noted: the work was stopped, but not by a death."""
        with self._transaction():
            self._many("UPDATE attempts SET n = n - ? WHERE id = ?", [(int(is_alone), key) for key in keys])
            self._many("DELETE FROM attempts WHERE id = ? AND n <= 0", [(key,) for key in keys])

    def checkpoint(self, work: Work, seconds: float) -> None:
        """Write down what was done, once the sink has saved it.

        Args:
            work: What.
            seconds: How long it took.
        """
        number = self.run()["number"]
        with self._transaction():
            self._many(UPSERT, [(*row, number, number) for row in work.documents])
            self._many("UPDATE documents SET source = ?, position = ?, reading = ? WHERE id = ?", work.unchanged)
            self._many(
                "INSERT INTO passed_over VALUES (?, ?, ?, ?, ?) ON CONFLICT (source, position) DO UPDATE "
                "SET reading = excluded.reading, id = excluded.id, reason = excluded.reason",
                work.passed_over,
            )
            self._many(
                "UPDATE files SET position = ?, n_records = ?, n_read = ?, sha256 = ?, status = ?, previous = NULL "
                "WHERE name = ?",
                [
                    (*progress[:-1], "done" if progress.is_done else "pending", name)
                    for name, progress in work.files.items()
                ],
            )
            # they may still hold a copy, so that equal content is no longer reason enough to leave them alone
            self._many("UPDATE files SET previous = NULL WHERE name = ?", [(name,) for name in work.robbed])
            self._many("DELETE FROM attempts WHERE id = ?", [(key,) for key in work.survived])
            self._rows(
                "UPDATE runs SET seconds = seconds + ?, n_stored = n_stored + ?, n_compressed = n_compressed + ? "
                "WHERE number = ?",
                [seconds, work.n_stored, work.n_compressed, number],
            )

    def read_again(self) -> int:
        """Note that files are to be read again which hold another copy of what vanished or changed in this run.

        Returns:
            How many.
        """
        with self._transaction():
            changed = "d.made_run = (SELECT max(number) FROM runs) AND d.first_run < d.made_run"
            pairs = f"{WITH_FILES} JOIN passed_over AS p ON p.id = d.id"
            copied = f"SELECT p.source FROM {pairs} WHERE NOT {LIVE} OR {changed}"  # noqa: S608
            in_this_scan = "SELECT readings FROM job"
            return self._reread(f"reading < ({in_this_scan}) AND name IN ({copied})")

    def retry(self) -> int:
        """Forget what was quarantined or could not be read, so that it is tried again; return how many files."""
        with self._transaction():
            n_files = self._reread(
                "name IN (SELECT source FROM documents WHERE status = 'quarantined' "
                "UNION SELECT source FROM passed_over WHERE reason != '')"
            )
            self._rows("DELETE FROM documents WHERE status = 'quarantined'")
            self._rows("DELETE FROM passed_over WHERE reason != ''")
            self._rows("DELETE FROM attempts")
        return n_files

    def _reread(self, condition: str) -> int:
        """Note that the files that were read and meet a condition are to be read again, and return how many."""
        [(scan,)] = self._rows("SELECT readings FROM job")
        before = self._connection.total_changes
        again = "status = 'pending', reading = ?, previous = NULL, position = 0, n_records = 0, n_read = 0"
        self._rows(f"UPDATE files SET {again} WHERE status = 'done' AND {condition}", [scan])  # noqa: S608
        return self._connection.total_changes - before

    def vanished(self, limit: int) -> list[str]:
        """Return ids of documents that are no longer in the corpus, at most ``limit``."""
        rows = self._rows(f"SELECT d.id FROM {WITH_FILES} WHERE NOT {LIVE} LIMIT ?", [limit])  # noqa: S608
        return [name for (name,) in rows]

    def forget(self, document_ids: Sequence[str]) -> None:
        """Remove documents that were deleted from the sink."""
        with self._transaction():
            self._many("DELETE FROM documents WHERE id = ?", [(name,) for name in document_ids])
            update = "UPDATE runs SET n_deleted = n_deleted + ? WHERE finished IS NULL"
            self._rows(update, [len(document_ids)])

    def forget_files(self) -> None:
        """Remove the files that are gone."""
        self._rows("DELETE FROM files WHERE status = 'gone'")

    def files(self) -> tuple[int, int]:
        """Return how many files were read to their end, and their bytes."""
        [found] = self._rows("SELECT count(*), coalesce(sum(n_bytes), 0) FROM files WHERE status = 'done'")
        return found[0], found[1]

    def totals(self) -> dict[str, dict[str, int]]:
        """Return numbers and sums of documents by status: ok, quarantined, unreadable, duplicate."""
        columns = ("n", *SUMS)
        rows = self._rows(f"SELECT status, {', '.join(columns)} FROM totals")  # noqa: S608
        return {status: dict(zip(columns, sums, strict=True)) for status, *sums in rows}

    def changes(self) -> dict[str, int]:
        """Return how many documents are new in the last run, were changed in it, and are as they were before."""
        number = self.run()["number"]
        [counts] = self._rows(
            "SELECT coalesce(sum(first_run = ?1), 0), coalesce(sum(first_run < ?1 AND made_run = ?1), 0), "
            "coalesce(sum(made_run < ?1), 0) FROM documents WHERE status = 'ok'",
            [number],
        )
        return dict(zip(("added", "changed", "unchanged"), counts, strict=True))

    def n_equal_texts(self) -> int:
        """Return how many documents have the text of another one."""
        query = "SELECT count(*) - count(DISTINCT text_sha256) FROM documents WHERE status = 'ok'"
        return int(self._rows(query)[0][0])

    def digest(self) -> str:
        """Return the SHA-256 over id, hash and number of segments of each document in the order of ids, in hex."""
        found = sha256()
        with self._named_errors():
            rows = self._connection.execute("SELECT id, sha256, n_segments FROM documents ORDER BY id")
            for name, digest, n_segments in rows:
                found.update(f"{json.dumps([name, digest.hex(), n_segments])}\n".encode())
        return found.hexdigest()

    def failures(self) -> Iterator[Failure]:
        """Return what was quarantined and what could not be read, in the order of files and positions."""
        with self._named_errors():
            rows = self._connection.execute(
                "SELECT source, position, id, reason FROM documents WHERE status = 'quarantined' UNION ALL "
                "SELECT source, position, id, reason FROM passed_over WHERE reason != '' ORDER BY 1, 2"
            )
            yield from (Failure(*row) for row in rows)

    def _recognise(self) -> None:
        [(application,)] = self._rows("PRAGMA application_id")
        [(version,)] = self._rows("PRAGMA user_version")
        if application != APPLICATION:
            raise StoreError(f"{self._path} is not the state of a corpus job")
        if version != SCHEMA_VERSION:
            raise StoreError(f"{self._path} has schema {version}, this kompakt reads {SCHEMA_VERSION}")
        # a power failure may cost the last checkpoints, never the file; a kill costs nothing
        self._rows("PRAGMA synchronous = NORMAL")

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """Make several changes one: all of them or, after an exception, none."""
        self._rows("BEGIN IMMEDIATE")
        try:
            yield
            self._rows("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise


def _connected(path: Path, mode: str) -> sqlite3.Connection:
    try:
        return sqlite3.connect(f"{path.as_uri()}?mode={mode}", timeout=_BUSY_SECONDS, isolation_level=None, uri=True)
    except sqlite3.Error as error:
        raise StoreError(f"the state {path} cannot be opened: {error}") from error


def _create(path: Path) -> None:
    """Make an empty state under another name first, so that a kill leaves none or a whole one."""
    new = path.with_name(f".{path.name}.new")
    try:
        for ending in ("", "-journal", "-wal", "-shm"):
            new.with_name(new.name + ending).unlink(missing_ok=True)
        with closing(_connected(new, "rwc")) as connection:
            connection.execute("PRAGMA journal_mode = WAL").fetchall()
            for statement in ("BEGIN", *SCHEMA, "COMMIT"):
                connection.execute(statement)
        new.replace(path)
    except (OSError, sqlite3.Error) as error:
        raise StoreError(f"cannot make the state {path}: {error}") from error


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
