"""What a corpus job writes down of files, documents and records."""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import sha256
from typing import Literal, NamedTuple, TypeAlias

from kompakt.compressor.types import Document
from kompakt.retrieval.catalogue import metadata_json
from kompakt.retrieval.corpus.formats import SourceFile

DocumentStatus: TypeAlias = Literal["ok", "quarantined"]


class Hashes(NamedTuple):
    """SHA-256 of a document, and of its text alone."""

    document: bytes
    text: bytes


class KnownDocument(NamedTuple):
    """What is known of a document.

    Args:
        sha256: Hash of its text and metadata.
        status: Whether it is in the sink.
        source: Name of the file that it stands in.
        position: Its line or row there.
        is_live: Whether the last reading of that file found it; if not, it may have changed, moved or gone.
    """

    sha256: bytes
    status: DocumentStatus
    source: str
    position: int
    is_live: bool


class FileProgress(NamedTuple):
    """How far a file was read.

    Args:
        position: The line or row to go on with.
        n_records: Records before it.
        n_read: Bytes before it, roughly.
        sha256: Hash of the file's content; empty if it could not be read.
        is_done: Whether that is its end.
    """

    position: int
    n_records: int
    n_read: int
    sha256: str
    is_done: bool = False


class PendingFile(NamedTuple):
    """A file that is to be read, or read further.

    Args:
        file: The file.
        ordinal: Its place among all files.
        reading: Number of the reading, by which the documents that it finds are told from those of earlier ones.
        progress: How far it was read; of a file that was changed, position 0 and the hash of its old content.
        is_known: Whether it was read to its end before, so that it can be left alone if its hash is the same.
    """

    file: SourceFile
    ordinal: int
    reading: int
    progress: FileProgress
    is_known: bool


class DocumentRow(NamedTuple):
    """A document that was put into the sink or quarantined.

    Args:
        id: Its id.
        source: Name of its file.
        position: Its line or row there.
        reading: The reading that found it.
        sha256: Hash of its text and metadata.
        text_sha256: Hash of its text.
        status: Whether it is in the sink.
        reason: Why it is not.
        n_segments: Segments that it was cut into.
        n_bytes: Bytes of its text.
        tokens_before: Tokens of its segments.
        tokens_after: Tokens of their compressed forms.
    """

    id: str
    source: str
    position: int
    reading: int
    sha256: bytes
    text_sha256: bytes
    status: DocumentStatus
    reason: str
    n_segments: int
    n_bytes: int
    tokens_before: int
    tokens_after: int


class PassedOver(NamedTuple):
    """A record that is no document of its own.

    Args:
        source: Name of its file.
        position: Its line or row there.
        reading: The reading that found it.
        id: Its id; empty if it could not be read.
        reason: What is wrong with it; empty for a document that stands elsewhere as well.
    """

    source: str
    position: int
    reading: int
    id: str
    reason: str


@dataclass(slots=True)
class Work:
    """What was done since the last checkpoint.

    Args:
        documents: Documents that were put into the sink, or quarantined.
        unchanged: Source, position, reading and id of documents that were found again.
        passed_over: Records that are no documents of their own.
        files: How far each file was read, by name.
        robbed: Names of files whose documents were found elsewhere, and are taken to stand there now.
        survived: Keys of attempts that are over.
        n_stored: Segments that were found in the store.
        n_compressed: Segments that were compressed.
    """

    documents: list[DocumentRow] = field(default_factory=list)
    unchanged: list[tuple[str, int, int, str]] = field(default_factory=list)
    passed_over: list[PassedOver] = field(default_factory=list)
    files: dict[str, FileProgress] = field(default_factory=dict)
    robbed: set[str] = field(default_factory=set)
    survived: list[str] = field(default_factory=list)
    n_stored: int = 0
    n_compressed: int = 0

    def add(self, other: Work) -> None:
        """Add what was done after it."""
        self.documents += other.documents
        self.unchanged += other.unchanged
        self.passed_over += other.passed_over
        self.robbed |= other.robbed
        self.survived += other.survived
        self.n_stored += other.n_stored
        self.n_compressed += other.n_compressed
        # last: what is interrupted here must be read again
        self.files |= other.files


class Failure(NamedTuple):
    """A document that was quarantined, or a record that could not be read.

    Args:
        source: Name of its file.
        position: Its line or row there.
        id: Its id; empty if it could not be read.
        reason: Why.
    """

    source: str
    position: int
    id: str
    reason: str


def hashes_of(document: Document) -> Hashes:
    """Return the hashes of a document, whose id does not count.

    Raises:
        InputError: If its metadata cannot be written as JSON.
    """
    about = metadata_json(document.id or "", document.metadata).encode()
    text = document.text.encode()
    # the length keeps metadata and text apart
    whole = sha256(len(about).to_bytes(8, "big") + about)
    whole.update(text)
    return Hashes(whole.digest(), sha256(text).digest())
