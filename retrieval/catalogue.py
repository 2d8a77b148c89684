"""What an index knows of its documents and segments, in one SQLite file that can be searched by words."""

from __future__ import annotations

import json
import os
import re
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import blake2b, sha256
from pathlib import Path
from typing import Any, Final

from kompakt.compressor.errors import InputError, StoreError
from kompakt.compressor.text.bm25 import query_terms, terms
from kompakt.compressor.types import Document, require_unicode
from kompakt.retrieval.chunks import Chunk
from kompakt.retrieval.database import Database
from kompakt.retrieval.filters import Where, compile_filter

_APPLICATION: Final = 0x6B6D7069
"""Stands in the file's header and tells a catalogue from other databases."""
_SCHEMA_VERSION: Final = 1
_BUSY_SECONDS: Final = 60.0
_SCHEMA: Final = (
    f"PRAGMA application_id = {_APPLICATION}",
    f"PRAGMA user_version = {_SCHEMA_VERSION}",
    "CREATE TABLE documents (number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, sha256 TEXT NOT NULL, "
    "metadata TEXT NOT NULL, n_segments INTEGER NOT NULL, added_at TEXT NOT NULL)",
    # ids are never used again: a file of vectors may still hold those of segments that are gone
    "CREATE TABLE segments (id INTEGER PRIMARY KEY AUTOINCREMENT, document INTEGER NOT NULL REFERENCES documents, "
    '"start" INTEGER NOT NULL, "end" INTEGER NOT NULL, text TEXT NOT NULL, context TEXT NOT NULL)',
    "CREATE INDEX segments_by_document ON segments (document)",
    "CREATE VIRTUAL TABLE words USING fts5 (terms, tokenize = \"ascii tokenchars '_'\")",
    "CREATE TABLE state (generation INTEGER NOT NULL, vectors_sha256 TEXT NOT NULL)",
    "INSERT INTO state VALUES (0, '')",
)
_PLAIN_TERM: Final = re.compile(r"[a-z0-9]{1,64}")
_MAX_TERM_BYTES: Final = 64
_SEGMENT: Final = 'segments.id, documents.id, "start", "end", text, context, metadata'
_DOCUMENTS: Final = "SELECT id, sha256, metadata, n_segments, added_at FROM documents"
_JOINED: Final = "segments JOIN documents ON documents.number = segments.document"


@dataclass(frozen=True, slots=True)
class Segment:
    """A chunk of an indexed document.

    Args:
        id: Its number in the index, which is never used again.
        document_id: The document's id.
        start: Offset of the first character in the document's text.
        end: Offset after the last character.
        text: ``document.text[start:end]``.
        context: What stands above it: title and headings, joined by ``" > "``.
        metadata: The document's.
    """

    id: int
    document_id: str
    start: int
    end: int
    text: str
    context: str
    metadata: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class IndexedDocument:
    """What an index knows of a document.

    Args:
        id: The document's id.
        sha256: SHA-256 of its text, in hex.
        metadata: Its metadata.
        n_segments: Segments that it was cut into; 0 if it is blank.
        added_at: When it was added, in UTC, as ISO 8601.
    """

    id: str
    sha256: str
    metadata: Mapping[str, object]
    n_segments: int
    added_at: str

    def holds(self, document: Document) -> bool:
        """Tell whether a document has this text and metadata.

        Raises:
            InputError: If its metadata is no JSON.
        """
        old, new = (metadata_json(self.id, metadata) for metadata in (self.metadata, document.metadata))
        return old == new and self.sha256 == text_hash(document.text)


class Catalogue(Database):
    """Documents, their segments, and the terms of these. Made by ``create`` or ``open``.

    The first change begins a transaction that lasts until ``commit``: other connections see all of it or nothing, and
    so does the next process after a crash. Every change is made as a whole or not at all.

    Args:
        path: The file.
        connection: A connection to it.
    """

    what = "catalogue"

    @classmethod
    def create(cls, path: str | os.PathLike[str]) -> Catalogue:
        """Make a file.

        Raises:
            StoreError: If it exists or cannot be made.
        """
        file = Path(path)
        if file.exists():
            raise StoreError(f"{file} exists; remove it or name another")
        catalogue = cls(file, _connected(f"{file.absolute().as_uri()}?mode=rwc"))
        try:
            catalogue._rows("PRAGMA journal_mode = WAL")
            with catalogue.atomic():
                for statement in _SCHEMA:
                    catalogue._rows(statement)
            catalogue.commit()
        except BaseException:
            catalogue.close()
            raise
        return catalogue

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Catalogue:
        """Open a file that ``create`` made. Where its folder cannot be written, it is read as it stands.

        Raises:
            StoreError: If it is missing, damaged, of another program or of a newer kompakt.
        """
        file = Path(path).absolute()
        if not file.is_file():
            raise StoreError(f"there is no catalogue {file}")
        mode = "rw" if os.access(file.parent, os.W_OK) and os.access(file, os.W_OK) else "ro"
        if mode == "ro" and not file.with_name(f"{file.name}-wal").exists():
            # without it, SQLite would make files beside it even to read
            mode = "ro&immutable=1"
        catalogue = cls(file, _connected(f"{file.as_uri()}?mode={mode}"))
        try:
            [(application,)] = catalogue._rows("PRAGMA application_id")
            [(version,)] = catalogue._rows("PRAGMA user_version")
            if application != _APPLICATION:
                raise StoreError(f"{file} is no catalogue of kompakt")
            if version != _SCHEMA_VERSION:
                raise StoreError(f"{file} has schema {version}, this kompakt reads {_SCHEMA_VERSION}")
        except BaseException:
            catalogue.close()
            raise
        return catalogue

    def add_document(self, document: Document, chunks: Sequence[Chunk]) -> list[int]:
        """Add a document with its chunks and return their segment ids.

        Raises:
            InputError: If the document has no id or one that is there already, or its metadata cannot be kept.
        """
        if document.id is None:
            raise InputError("a document needs an id in an index: Document(text, id=...)")
        metadata = metadata_json(document.id, document.metadata)
        if self.document_hash(document.id) is not None:
            raise InputError(f"the document {document.id!r} is there already; delete it first")
        with self.atomic():
            now = datetime.now(UTC).isoformat(timespec="seconds")
            insert = "INSERT INTO documents (id, sha256, metadata, n_segments, added_at) VALUES (?, ?, ?, ?, ?)"
            self._rows(insert, [document.id, text_hash(document.text), metadata, len(chunks), now])
            [(number,)] = self._rows("SELECT last_insert_rowid()")
            [(last,)] = self._rows("SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'segments'")
            ids = list(range(last + 1, last + 1 + len(chunks)))
            segments = [
                (segment_id, number, chunk.start, chunk.end, chunk.text, chunk.context)
                for segment_id, chunk in zip(ids, chunks, strict=True)
            ]
            self._many("INSERT INTO segments VALUES (?, ?, ?, ?, ?, ?)", segments)
            words = [_tokens(terms(f"{chunk.context}\n{chunk.text}")) for chunk in chunks]
            self._many("INSERT INTO words (rowid, terms) VALUES (?, ?)", list(zip(ids, words, strict=True)))
        return ids

    def delete_documents(self, ids: Iterable[str]) -> list[int]:
        """Remove documents and return the ids of their segments; unknown documents are passed over."""
        removed: list[tuple[int]] = []
        with self.atomic():
            for document_id in ids:
                for (number,) in self._rows("SELECT number FROM documents WHERE id = ?", [document_id]):
                    removed += self._rows("SELECT id FROM segments WHERE document = ?", [number])
                    self._rows("DELETE FROM segments WHERE document = ?", [number])
                    self._rows("DELETE FROM documents WHERE number = ?", [number])
            self._many("DELETE FROM words WHERE rowid = ?", removed)
        return [segment_id for (segment_id,) in removed]

    def segments_of(self, document_ids: Iterable[str]) -> list[Segment]:
        """Return the segments of documents, in the order of their ids; unknown documents have none."""
        numbers: list[int] = []
        for document_id in document_ids:
            chosen = (
                "SELECT s.id FROM segments s JOIN documents d ON d.number = s.document WHERE d.id = ? ORDER BY s.id"
            )
            numbers += [number for (number,) in self._rows(chosen, [document_id])]
        return self.get_segments(numbers)

    def get_segments(self, ids: Iterable[int]) -> list[Segment]:
        """Return segments in the order of ``ids``, without those that are not there."""
        wanted = list(ids)
        query = f"SELECT {_SEGMENT} FROM {_JOINED} WHERE segments.id IN (SELECT value FROM json_each(?))"  # noqa: S608
        rows = {row[0]: row for row in self._rows(query, [_listed(wanted)])}
        return [_segment(rows[segment_id]) for segment_id in wanted if segment_id in rows]

    def search_words(self, query: str, k: int, where: Where | None = None) -> list[tuple[int, float]]:
        """Return the segments that share terms with a query.

        Args:
            query: Words; those of grammar do not count unless there are no others.
            k: The most to return.
            where: Conditions on the metadata of their documents.

        Returns:
            Segment ids and BM25 scores, best first, the lower id first among equals.

        Raises:
            InputError: If a condition cannot be used.
        """
        condition, values = compile_filter(where, column="metadata")
        wanted = " OR ".join(f'"{token}"' for token in map(_token, query_terms(query)))
        if not wanted:
            return []
        source = f"words JOIN ({_JOINED}) ON segments.id = words.rowid" if where else "words"
        return self._rows(
            f"SELECT words.rowid, -bm25(words) AS score FROM {source} "  # noqa: S608 (values are parameters)
            f"WHERE words MATCH ? AND {condition} ORDER BY score DESC, words.rowid LIMIT ?",
            [wanted, *values, k],
        )

    def matching(self, where: Where | None) -> list[int]:
        """Return the ids of all segments whose documents' metadata meet conditions, ascending.

        Raises:
            InputError: If a condition cannot be used.
        """
        condition, values = compile_filter(where, column="metadata")
        source = _JOINED if where else "segments"
        query = f"SELECT segments.id FROM {source} WHERE {condition} ORDER BY segments.id"  # noqa: S608 (as above)
        return [segment_id for (segment_id,) in self._rows(query, values)]

    def document(self, document_id: str) -> IndexedDocument | None:
        """Return what is known of a document; None if it is not there."""
        rows = self._rows(f"{_DOCUMENTS} WHERE id = ?", [document_id])
        return _document(rows[0]) if rows else None

    def documents(self) -> list[IndexedDocument]:
        """Return all documents, in the order in which they were added."""
        return [_document(row) for row in self._rows(f"{_DOCUMENTS} ORDER BY number")]

    def document_hash(self, document_id: str) -> str | None:
        """Return the SHA-256 of a document's text, in hex; None if the document is not there."""
        known = self.document(document_id)
        return known.sha256 if known else None

    def count_documents(self) -> int:
        """Return how many documents there are."""
        return int(self._rows("SELECT count(*) FROM documents")[0][0])

    def count_segments(self) -> int:
        """Return how many segments there are."""
        return int(self._rows("SELECT count(*) FROM segments")[0][0])

    def state(self) -> tuple[int, str]:
        """Return the generation of the index and the SHA-256 of its file of vectors, empty if it has none."""
        [(generation, sha256)] = self._rows("SELECT generation, vectors_sha256 FROM state")
        return int(generation), str(sha256)

    def set_state(self, generation: int, vectors_sha256: str) -> None:
        """Note to which file of vectors the segments belong, from the next ``commit`` on."""
        with self.atomic():
            self._rows("UPDATE state SET generation = ?, vectors_sha256 = ?", [generation, vectors_sha256])

    @contextmanager
    def atomic(self) -> Iterator[None]:
        """Make several changes one: all of them or, after an exception, none."""
        if not self._connection.in_transaction:
            self._rows("BEGIN IMMEDIATE")
        self._rows("SAVEPOINT step")
        try:
            yield
        except BaseException:
            # a full disk ends the whole transaction
            if self._connection.in_transaction:
                self._rows("ROLLBACK TO step")
                self._rows("RELEASE step")
            raise
        self._rows("RELEASE step")

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Read what was committed at one moment, whatever others commit meanwhile."""
        if self._connection.in_transaction:
            yield
            return
        self._rows("BEGIN")
        try:
            yield
        finally:
            self._rows("ROLLBACK")

    def commit(self) -> None:
        """Make the changes since the last commit durable and visible to others."""
        if self._connection.in_transaction:
            self._rows("COMMIT")

    def close(self) -> None:
        """Close the file, without what was not committed."""
        self._connection.close()


def text_hash(text: str) -> str:
    """Return the SHA-256 of a text, in hex."""
    return sha256(text.encode()).hexdigest()


def metadata_json(document_id: str, metadata: Mapping[str, object]) -> str:
    """Return a document's metadata as JSON, equal for equal metadata.

    Raises:
        InputError: If it cannot be written as JSON.
    """
    odd = [key for key in metadata if not isinstance(key, str)]
    if odd:
        raise InputError(f"metadata keys of document {document_id!r} must be strings, got {odd[0]!r}")
    try:
        text = json.dumps(dict(metadata), ensure_ascii=False, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"the metadata of document {document_id!r} is no JSON: {error}") from error
    require_unicode(text, f"the metadata of document {document_id!r}")
    return text


def _connected(uri: str) -> sqlite3.Connection:
    try:
        return sqlite3.connect(uri, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False, uri=True)
    except sqlite3.Error as error:
        raise StoreError(f"cannot open {uri}: {error}") from error


def _listed(ids: Iterable[int]) -> str:
    # one parameter holds any number of ids
    return json.dumps([int(segment_id) for segment_id in ids])


def _segment(row: Sequence[Any]) -> Segment:
    segment_id, document_id, start, end, text, context, metadata = row
    return Segment(segment_id, document_id, start, end, text, context, json.loads(metadata))


def _document(row: Sequence[Any]) -> IndexedDocument:
    document_id, sha256, metadata, n_segments, added_at = row
    return IndexedDocument(document_id, sha256, json.loads(metadata), n_segments, added_at)


def _tokens(found: Iterable[str]) -> str:
    """Return terms as text that SQLite cuts into just these."""
    return " ".join(map(_token, found))


@lru_cache(maxsize=1 << 16)
def _token(term: str) -> str:
    if _PLAIN_TERM.fullmatch(term):
        return term
    data = term.encode()
    # no plain term begins with the mark
    return f"_{data.hex()}" if len(data) <= _MAX_TERM_BYTES else f"__{blake2b(data, digest_size=16).hexdigest()}"
