"""JSON Lines: one object a line, read in pieces so that a line of any length fits."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from itertools import count
from typing import Final

from kompakt.compressor.errors import InputError
from kompakt.compressor.types import Document
from kompakt.retrieval.corpus.formats import (
    READ_ERRORS,
    ReadOptions,
    Record,
    SourceFile,
    Stream,
    decode,
    document_of,
    open_stream,
    read_failure,
    too_large,
)

_PIECE: Final = 1 << 16
_UTF16: Final = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_jsonl(file: SourceFile, options: ReadOptions, *, start: int = 0) -> Iterator[Record]:
    """Read a file line by line; blank lines are counted and give no record.

    A line that cannot be used is a record with an error. A file that cannot be read further, such as a truncated
    gzip file, ends with one.

    Args:
        file: The file, packed if its name ends in ``.gz``.
        options: How to read it.
        start: Lines before this one are passed over unread.
    """
    position = 0
    failure = ""
    try:
        with open_stream(file) as stream:
            failure = _obstacle(stream.peek(2), options.encoding)
            for position in count() if not failure else ():
                if position < start:
                    is_there = _skip_line(stream) > 0
                    record = None
                else:
                    is_there, record = _next_record(stream, file.name, position, options)
                if record is not None:
                    yield record
                if not is_there:
                    break
    except READ_ERRORS as error:
        failure = read_failure(error)
    if failure and position >= start:
        yield Record(file.name, position, None, failure)


def _obstacle(head: bytes, encoding: str) -> str:
    """Return why a file that begins with ``head`` cannot be cut into lines; empty if it can."""
    codec = codecs.lookup(encoding).name
    is_utf8 = codec in ("utf-8", "utf-8-sig")
    if is_utf8 and head.startswith(_UTF16):
        return "starts with the byte order mark of UTF-16, in which lines cannot be told apart; convert it to UTF-8"
    if not is_utf8 and "\n".encode(codec) != b"\n":
        return f"lines cannot be told apart in encoding={encoding!r}; convert the file to UTF-8"
    return ""


def _next_record(stream: Stream, name: str, position: int, options: ReadOptions) -> tuple[bool, Record | None]:
    """Return whether there is a line, and its record unless it is blank."""
    try:
        line = _next_line(stream, options)
        if not line.strip():
            return bool(line), None
        return True, Record(name, position, _document(line, f"{name}#{position}", options))
    except InputError as error:
        return True, Record(name, position, None, str(error))


def _next_line(stream: Stream, options: ReadOptions) -> bytes:
    """Return the next line with its end; empty at the end of the file."""
    limit = options.max_document_bytes
    line = stream.readline(limit + 1)
    if len(line) <= limit or line.endswith(b"\n"):
        return line
    size = len(line)
    del line
    raise too_large("the line", str(size + _skip_line(stream)), options)


def _skip_line(stream: Stream) -> int:
    """Pass over the rest of a line without holding it; return its bytes, with the line's end if it has one."""
    size = 0
    while piece := stream.readline(_PIECE):
        size += len(piece)
        if piece.endswith(b"\n"):
            break
    return size


def _document(line: bytes, fallback_id: str, options: ReadOptions) -> Document:
    text = decode(line, options.encoding).rstrip("\r\n")
    try:
        # JSON has no NaN; many writers put it all the same, for what is missing
        fields = json.loads(text, parse_constant=lambda _: None)
        if not isinstance(fields, dict):
            raise InputError(f"a line must be a JSON object, got {type(fields).__name__}")
        return document_of(fields, fallback_id, options)
    except InputError:
        raise
    except json.JSONDecodeError as error:
        raise InputError(f"not JSON: {error.msg} (column {error.colno})") from error
    except RecursionError as error:
        raise InputError("not usable JSON: nested too deeply") from error
    except ValueError as error:  # a number of too many digits
        raise InputError(f"not usable JSON: {error}") from error
