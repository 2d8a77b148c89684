"""One file a format, and here what they share: the values in and out, and text and fields that can be used."""

from __future__ import annotations

import codecs
import gzip
import io
import math
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date, time
from decimal import Decimal
from pathlib import Path
from typing import Final, TypeAlias

from kompakt.compressor.errors import ConfigError, InputError
from kompakt.compressor.types import Document, require_unicode

FIX_ENCODING: Final = "give its encoding with encoding=, for example encoding='cp1252'"
READ_ERRORS: Final = (OSError, EOFError, zlib.error)
"""What reading bytes from a file, compressed or not, raises."""

_MAX_NAMED: Final = 8

Stream: TypeAlias = io.BufferedReader | gzip.GzipFile
Extracted: TypeAlias = tuple[str, dict[str, object]]
"""The text of a whole file, and what is known about it besides."""


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file of a corpus.

    Args:
        path: Where it is: absolute, links resolved.
        name: What its documents are called: its path relative to the input that it was found under, with ``/``;
            distinct within a corpus.
        n_bytes: Its size.
        modified_ns: When it was last changed, in nanoseconds since 1970.
    """

    path: Path
    name: str
    n_bytes: int
    modified_ns: int


@dataclass(frozen=True, slots=True)
class Record:
    """One document of a file, or why one could not be read.

    Args:
        source: Name of the file.
        position: Number, from 0, of the line (JSON Lines) or row (Parquet); 0 if the file is one document.
        document: The document; None if it could not be read.
        error: Why there is no document; empty if there is one.
    """

    source: str
    position: int
    document: Document | None
    error: str = ""


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How files become documents.

    Args:
        text_field: The field or column that holds the text, in JSON Lines and Parquet.
        id_field: The one that holds the document's id; it may be absent.
        encoding: How bytes become text, where the file itself does not say so. A byte order mark is dropped.
        max_document_bytes: The most bytes of one document: a line, a Parquet text, or a whole file, unpacked.

    Raises:
        ConfigError: If a value makes no sense.
    """

    text_field: str = "text"
    id_field: str = "id"
    encoding: str = "utf-8"
    max_document_bytes: int = 64 * 2**20

    def __post_init__(self) -> None:
        for option in ("text_field", "id_field"):
            value = getattr(self, option)
            if not isinstance(value, str) or not value:
                raise ConfigError(f"{option} must be the name of a field, got {value!r}")
        if self.text_field == self.id_field:
            raise ConfigError(f"text_field and id_field must differ, got {self.text_field!r} for both")
        if not is_encoding(self.encoding):
            raise ConfigError(f"encoding {self.encoding!r} is not a text encoding that Python knows")
        limit = self.max_document_bytes
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
            raise ConfigError(f"max_document_bytes must be a whole number of at least 1, got {limit!r}")


def is_encoding(name: object) -> bool:
    """Tell whether Python knows a text encoding of this name."""
    try:
        b"x".decode(name)  # type: ignore[arg-type]
    except UnicodeDecodeError:
        return True
    except (LookupError, TypeError, ValueError):
        return False
    return True


def open_stream(file: SourceFile) -> Stream:
    """Open a file to read its bytes, unpacked if its name ends in ``.gz``.

    Raises:
        OSError: If it cannot be opened.
    """
    return gzip.GzipFile(file.path, "rb") if file.name.lower().endswith(".gz") else file.path.open("rb")


def read_failure(error: Exception) -> str:
    """Say why a file could not be read, or read further, given one of ``READ_ERRORS``."""
    if isinstance(error, EOFError):
        return "the gzip file is truncated: it ends before its end mark; copy or pack it again"
    if isinstance(error, (gzip.BadGzipFile, zlib.error)):
        return f"the gzip file is broken: {error}; copy or pack it again"
    return f"the file cannot be read: {getattr(error, 'strerror', None) or error}"


def too_large(what: str, size: str, options: ReadOptions) -> InputError:
    """Return the error for a document above the limit, with its size and the fix."""
    limit = options.max_document_bytes
    return InputError(f"{what} has {size} bytes, above max_document_bytes={limit}; split it or raise the limit")


def decode(data: bytes, encoding: str, fix: str = FIX_ENCODING) -> str:
    """Return bytes as text, newlines as they are, without a byte order mark.

    Args:
        data: The bytes.
        encoding: A text encoding that Python knows.
        fix: What the caller of the reader can do if they are not in this encoding.

    Raises:
        InputError: If they are not text in this encoding; the message names the offset of the first bad byte.
    """
    codec = codecs.lookup(encoding).name
    is_utf8 = codec in ("utf-8", "utf-8-sig")
    if is_utf8 and data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise InputError("starts with the byte order mark of UTF-16; try encoding='utf-16'")
    try:
        # utf-8-sig would count offsets from after the mark
        text = data.decode("utf-8" if is_utf8 else codec)
    except UnicodeDecodeError as error:
        bad = data[error.start : error.start + 1].hex()
        raise InputError(f"not {encoding} text: byte 0x{bad} at offset {error.start}; {fix}") from error
    except UnicodeError as error:
        raise InputError(f"not {encoding} text: {error}; {fix}") from error
    text = text.removeprefix("\ufeff")
    nul = text.find("\0")
    if nul >= 0:
        raise InputError(f"looks binary: a NUL character at offset {nul}; {fix}")
    return text


def require_text(text: str) -> str:
    """Return ``text`` if it says something.

    Raises:
        InputError: If it is empty or blank, or holds a lone surrogate.
    """
    if not text.strip():
        raise InputError("the text is empty")
    require_unicode(text, "the text")
    return text


def whole_document(file: SourceFile, extracted: Extracted) -> Document:
    """Return a whole file as a document, with its name as ``path`` beside what was found.

    Raises:
        InputError: If its text cannot be used.
    """
    text, found = extracted
    return Document(require_text(text), id=file.name, metadata={"path": file.name, **_jsonable_fields(found)})


def document_of(fields: Mapping[str, object], fallback_id: str, options: ReadOptions) -> Document:
    """Return the fields of a line or a row as a document; what is neither text nor id becomes metadata.

    Dates and times become ISO 8601 text, decimals text, and numbers that are not finite null. A field that JSON
    cannot carry, such as bytes, is left out.

    Args:
        fields: By name.
        fallback_id: The id, if the fields have none or an empty one.
        options: Names the fields of text and id.

    Raises:
        InputError: If text or id are missing or of a wrong type, or a field holds a lone surrogate.
        RecursionError: If a field is nested too deeply.
    """
    if options.text_field not in fields:
        raise InputError(missing_field("field", options.text_field, fields))
    text = require_text(_as_text(fields[options.text_field], options))
    name = _as_id(fields.get(options.id_field), options) or fallback_id
    rest = {key: value for key, value in fields.items() if key not in (options.text_field, options.id_field)}
    return Document(text, id=name, metadata=_jsonable_fields(rest))


def missing_field(kind: str, name: str, names: Iterable[str]) -> str:
    """Say that a field or column is not there, and which ones are."""
    known = [repr(other) for other in names]
    listed = ", ".join(known[:_MAX_NAMED]) + (", ..." if len(known) > _MAX_NAMED else "")
    return f"no {kind} {name!r}; name one with text_field=. It has: {listed or 'none'}"


def _as_text(value: object, options: ReadOptions) -> str:
    if isinstance(value, bytes):
        return decode(value, options.encoding)
    if not isinstance(value, str):
        got = "null" if value is None else type(value).__name__
        raise InputError(f"{options.text_field!r} must be text, got {got}; name another field with text_field=")
    return value


def _as_id(value: object, options: ReadOptions) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    if isinstance(value, bytes):
        value = decode(value, options.encoding)
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise InputError(
            f"{options.id_field!r} must be text or a number, got {type(value).__name__}; "
            "name another field with id_field="
        )
    name = str(value)
    require_unicode(name, "the id")
    return name


def _jsonable_fields(fields: Mapping[str, object]) -> dict[str, object]:
    kept = {}
    for key, value in fields.items():
        require_unicode(key, "the name of a field")
        try:
            kept[key] = _jsonable(value, f"the field {key!r}")
        except TypeError:
            continue
    return kept


def _jsonable(value: object, what: str) -> object:
    """Return ``value`` as JSON can carry it; raise ``TypeError`` if it cannot."""
    match value:
        case None | bool() | int():
            return value
        case float():
            return value if math.isfinite(value) else None
        case str():
            require_unicode(value, what)
            return value
        case date() | time():
            return value.isoformat()
        case Decimal():
            return str(value)
        case list() | tuple():
            return [_jsonable(item, what) for item in value]
        case dict():
            return {_key(key, what): _jsonable(item, what) for key, item in value.items()}
        case _:
            raise TypeError


def _key(key: object, what: str) -> str:
    if not isinstance(key, str):
        raise TypeError
    require_unicode(key, what)
    return key
