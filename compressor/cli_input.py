"""What the command line reads: files as documents, and JSON Lines as requests."""

from __future__ import annotations

import codecs
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from kompakt.compressor.errors import InputError
from kompakt.compressor.types import Document

STDIN = "-"

_UTF8 = ("utf-8", "utf-8-sig")
_RECORD_KEYS = ("documents", "text", "query", "id")
_DOCUMENT_KEYS = ("text", "id", "metadata")
_BATCH_RECORDS = 16
_BATCH_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Record:
    """One line of a JSON Lines input.

    Args:
        number: Number of the line, from 1.
        id: What its result is called: its own id, else the number.
        documents: What to compress.
        query: Its own question, or None.
        error: Why the line cannot be used; empty if it can.
    """

    number: int
    id: str | int
    documents: tuple[Document, ...] = ()
    query: str | None = None
    error: str = ""


def check_encoding(encoding: str) -> None:
    """Check that there is such a text encoding.

    Raises:
        InputError: If there is none.
    """
    try:
        b"x".decode(encoding)
    except UnicodeDecodeError:
        return
    except (LookupError, ValueError) as error:
        raise InputError(f"--encoding {encoding!r} is not a text encoding that Python knows") from error


def read_documents(names: Sequence[str], encoding: str) -> list[Document]:
    """Read files as documents whose ids are the names as given.

    Args:
        names: Paths; ``-`` is the standard input.
        encoding: How their bytes become text. A byte order mark is not part of the text.

    Raises:
        InputError: If one is missing, a folder, or not text in this encoding.
    """
    return [_read_document(name, encoding) for name in names]


def _read_document(name: str, encoding: str) -> Document:
    if name == STDIN:
        return Document(decode(stdin().read(), encoding, "standard input"), id=STDIN)
    try:
        data = Path(name).read_bytes()
    except IsADirectoryError as error:
        raise InputError(f"{name} is a folder; name the files in it") from error
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {name}: {_reason(error)}") from error
    return Document(decode(data, encoding, name), id=name, metadata={"path": name})


def open_binary(name: str) -> BinaryIO:
    """Open a file, or the standard input for ``-``.

    Raises:
        InputError: If it cannot be opened.
    """
    if name == STDIN:
        return stdin()
    try:
        return Path(name).open("rb")
    except IsADirectoryError as error:
        raise InputError(f"{name} is a folder; name a file") from error
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {name}: {_reason(error)}") from error


def stdin() -> BinaryIO:
    """Return the standard input as bytes.

    Raises:
        InputError: If it is closed.
    """
    if sys.stdin is None:
        raise InputError("standard input is closed; name a file")
    return sys.stdin.buffer


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def decode(data: bytes, encoding: str, what: str) -> str:
    """Return bytes as text.

    Args:
        data: The bytes.
        encoding: The encoding.
        what: Names them in messages.

    Raises:
        InputError: If they are not text in this encoding; the message names the offset.
    """
    is_utf8 = encoding.lower().replace("_", "-") in (*_UTF8, "utf8")
    if is_utf8 and data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise InputError(f"{what} starts with the byte order mark of UTF-16; try --encoding utf-16")
    try:
        text = data.decode("utf-8-sig" if is_utf8 else encoding)
    except UnicodeDecodeError as error:
        # utf-8-sig counts from after the mark
        offset = error.start + (len(data) - len(error.object) if isinstance(error.object, bytes) else 0)
        looks = " (it looks binary)" if b"\0" in data else ""
        raise InputError(
            f"{what} is not {encoding} text{looks}: byte 0x{data[offset : offset + 1].hex()} at offset {offset}; "
            "give its encoding with --encoding, for example --encoding cp1252"
        ) from error
    nul = text.find("\0")
    if nul >= 0:
        raise InputError(f"{what} looks binary: a NUL character at offset {nul}; name text files, or try --encoding")
    return text


def read_batches(lines: Iterable[bytes], encoding: str) -> Iterator[list[Record]]:
    """Read JSON Lines in batches that are bounded in lines and bytes, so that memory is too.

    Empty lines are skipped; a line that cannot be used gives a record with an error.
    """
    batch: list[Record] = []
    size = 0
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        batch.append(_read_record(line, number, encoding))
        size += len(line)
        if len(batch) >= _BATCH_RECORDS or size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _read_record(line: bytes, number: int, encoding: str) -> Record:
    try:
        return _parse_record(json.loads(decode(line, encoding, "the line")), number)
    except json.JSONDecodeError as error:
        return Record(number, number, error=f"not JSON: {error.msg} at column {error.colno}")
    except RecursionError:
        return Record(number, number, error="not usable JSON: nested too deeply")
    except (InputError, ValueError) as error:
        return Record(number, number, error=str(error))


def _parse_record(data: object, number: int) -> Record:
    if not isinstance(data, dict):
        raise InputError(f'a line must be an object with "documents" or "text", got {type(data).__name__}')
    _check_keys(data, _RECORD_KEYS, "a line")
    if ("documents" in data) == ("text" in data):
        raise InputError('a line needs exactly one of "documents" and "text"')
    items = data["documents"] if "documents" in data else [data["text"]]
    if not isinstance(items, list):
        raise InputError(f'"documents" must be a list, got {type(items).__name__}')
    query, name = data.get("query"), data.get("id", number)
    if query is not None and not isinstance(query, str):
        raise InputError(f'"query" must be a string, got {type(query).__name__}')
    if isinstance(name, bool) or not isinstance(name, (str, int)):
        raise InputError(f'"id" must be a string or a whole number, got {type(name).__name__}')
    return Record(number, name, tuple(map(_parse_document, items)), query)


def _parse_document(item: object) -> Document:
    if isinstance(item, str):
        return Document(item)
    if not isinstance(item, dict) or "text" not in item:
        raise InputError(f'a document must be a string or an object with "text", got {type(item).__name__}')
    _check_keys(item, _DOCUMENT_KEYS, "a document")
    name, metadata = item.get("id"), item.get("metadata", {})
    if name is not None and not isinstance(name, str):
        raise InputError(f'a document\'s "id" must be a string, got {type(name).__name__}')
    if not isinstance(metadata, dict):
        raise InputError(f'a document\'s "metadata" must be an object, got {type(metadata).__name__}')
    return Document(item["text"], id=name, metadata=metadata)


def _check_keys(data: dict[str, Any], known: Sequence[str], what: str) -> None:
    unknown = [key for key in data if key not in known]
    if unknown:
        raise InputError(f"{what} has no key {unknown[0]!r}; it takes: {', '.join(known)}")
