"""The files of a corpus, as a job reads them."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import file_digest
from pathlib import Path
from typing import Final

from kompakt.retrieval.corpus.readers import SUFFIXES, ReadOptions, Record, SourceFile, read_file
from kompakt.retrieval.corpus.sink import ENDS_THE_JOB, reason_of

ROW_FORMATS: Final = ("jsonl", "parquet")
"""Formats of files with a document in each line or row; a file of any other is one document."""
_UNPACKED: Final = 3
"""Bytes of text in a byte of a packed file, roughly: how far a file is read cannot be told exactly."""


def format_of(name: str) -> str:
    """Return the format of a file by its name; empty if it has none that can be read."""
    return next((SUFFIXES[suffix] for suffix in SUFFIXES if name.lower().endswith(suffix)), "")


def is_one_document(name: str) -> bool:
    """Tell by its name whether a file is one document."""
    return format_of(name) not in ROW_FORMATS


def records_of(file: SourceFile, options: ReadOptions, *, start: int) -> Iterator[Record]:
    """Read a file as ``read_file`` does; if that fails, it ends with a record that says so.

    Raises:
        KompaktError: One of ``ENDS_THE_JOB``, such as for a missing extra.
    """
    position = start
    try:
        for record in read_file(file, options, start=start):
            yield record
            position = record.position + 1
    except ENDS_THE_JOB:
        raise
    except Exception as error:  # whatever it is, one file must not end a run
        yield Record(file.name, position, None, reason_of(error))


def bytes_read(file: SourceFile, text_bytes: int) -> int:
    """Return roughly how many bytes of a file hold so many bytes of text."""
    is_packed = file.name.lower().endswith(".gz") or format_of(file.name) == "parquet"
    return min(file.n_bytes, text_bytes // (_UNPACKED if is_packed else 1))


def content_hash(path: Path) -> str:
    """Return the SHA-256 of a file, in hex; empty if it cannot be read."""
    try:
        with path.open("rb") as file:
            return file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""
