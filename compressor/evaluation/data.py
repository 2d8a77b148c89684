"""Rows of JSON Lines files, and fields that say where they are wrong.

A data folder holds files named ``NAME.jsonl`` or ``NAME.jsonl.gz``: UTF-8, one object a line. Which names and which
fields a task reads stands at the top of its file in ``tasks/``; fields that it does not name are left alone.
"""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

from kompakt.compressor.errors import InputError
from kompakt.compressor.evaluation.example import Row, Rows
from kompakt.compressor.types import require_unicode

_SUFFIXES: Final = (".jsonl", ".jsonl.gz")


class _PlacedRow(dict[str, Any]):
    """A row that knows its file and line."""

    __slots__ = ("place",)

    def __init__(self, fields: Mapping[str, Any], place: str) -> None:
        super().__init__(fields)
        self.place = place


def read_rows(path: str | os.PathLike[str]) -> list[Row]:
    """Return the objects of a JSON Lines file; empty lines are skipped.

    Args:
        path: The file. If its name ends in ``.gz``, it is unpacked.

    Raises:
        InputError: If the file cannot be read or unpacked, or a line is not a JSON object in UTF-8; the message
            names file and line.
    """
    file = Path(path)
    lines = _content(file).removeprefix(b"\xef\xbb\xbf").split(b"\n")
    return [_parse(line, f"{file}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]


def _content(file: Path) -> bytes:
    try:
        data = file.read_bytes()
        return gzip.decompress(data) if file.name.endswith(".gz") else data
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"cannot unpack {file}: {error}") from error
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror or error}") from error


def _parse(line: bytes, place: str) -> Row:
    try:
        text = line.decode()
        value = json.loads(text)
    except UnicodeDecodeError as error:
        raise InputError(f"{place}: not UTF-8: {error.reason} at byte {error.start}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place}: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{place}: must be a JSON object, got {_named(value)}")
    # only an escape can bring a lone surrogate into text that was UTF-8
    if "\\u" in text:
        require_unicode(json.dumps(value, ensure_ascii=False), place)
    return _PlacedRow(value, place)


def name_of(path: str | os.PathLike[str]) -> str:
    """Return a file's name without ``.jsonl`` or ``.jsonl.gz``."""
    name = Path(path).name
    return name.removesuffix(".gz").removesuffix(".jsonl")


def rows_of(folder: str | os.PathLike[str], patterns: Sequence[str]) -> Rows:
    """Return the rows of a folder's files by their names without suffixes, in the order of the names.

    Args:
        folder: The data folder.
        patterns: Shell patterns of names without suffixes, such as ``"multidoc_*"``.

    Raises:
        InputError: If there is no such folder, two files differ in nothing but their suffix, or a file is wrong.
    """
    return {name: read_rows(file) for name, file in files_of(folder, patterns).items()}


def files_of(folder: str | os.PathLike[str], patterns: Sequence[str]) -> dict[str, Path]:
    """Return the files that ``rows_of`` would read, by their names without suffixes, in the order of the names.

    Raises:
        InputError: If there is no such folder, or two files differ in nothing but their suffix.
    """
    found: dict[str, Path] = {}
    try:
        files = sorted(Path(folder).iterdir())
    except OSError as error:
        raise InputError(f"cannot read the data folder {folder}: {error.strerror or error}") from error
    for file in files:
        name = name_of(file)
        if not file.name.endswith(_SUFFIXES) or not any(fnmatchcase(name, pattern) for pattern in patterns):
            continue
        if name in found:
            raise InputError(f"{found[name]} and {file.name} hold the same rows; remove one of them")
        found[name] = file
    return dict(sorted(found.items()))


def samples_folder() -> Path:
    """Return the folder of the sample data that comes with the package."""
    return Path(__file__).parent / "samples"


@dataclass(frozen=True, slots=True)
class Record:
    """An object whose fields are checked as they are read.

    Args:
        fields: The object.
        place: Where it stands, for messages.
    """

    fields: Mapping[str, Any]
    place: str

    def text(self, name: str) -> str:
        """Return a field that must be a string.

        Raises:
            InputError: If it is missing or something else.
        """
        value = self._value(name)
        if not isinstance(value, str):
            raise self.wrong(name, "a string")
        return value

    def text_or(self, name: str, default: str) -> str:
        """Return a field that must be a string, or ``default`` if it is missing or null.

        Raises:
            InputError: If it is something else.
        """
        return default if self.fields.get(name) is None else self.text(name)

    def texts(self, name: str) -> tuple[str, ...]:
        """Return a field that must be a list of strings, without the blank ones.

        Raises:
            InputError: If it is missing or something else.
        """
        values = self.items(name)
        if not all(isinstance(value, str) for value in values):
            raise self.wrong(name, "a list of strings")
        return tuple(value for value in values if value.strip())

    def items(self, name: str) -> list[Any]:
        """Return a field that must be a list.

        Raises:
            InputError: If it is missing or something else.
        """
        value = self._value(name)
        if not isinstance(value, list):
            raise self.wrong(name, "a list")
        return value

    def records(self, name: str) -> list[Record]:
        """Return a field that must be a list of objects.

        Raises:
            InputError: If it is missing or something else.
        """
        values = self.items(name)
        if not all(isinstance(value, Mapping) for value in values):
            raise self.wrong(name, "a list of objects")
        return [Record(value, f"{self.place}, {name}[{index}]") for index, value in enumerate(values)]

    def _value(self, name: str) -> object:
        if name not in self.fields:
            raise InputError(
                f"{self.place}: the field {name!r} is missing; found: {', '.join(self.fields) or 'none'}"
            )
        return self.fields[name]

    def wrong(self, name: str, expected: str) -> InputError:
        """Return the error of a field that is not what it must be."""
        return InputError(f"{self.place}: the field {name!r} must be {expected}, got {_named(self.fields.get(name))}")


def _named(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def records_of(rows: Rows, patterns: Sequence[str] = ("*",)) -> Iterator[tuple[str, Record]]:
    """Yield each row with the name of its file, ready for checked reading.

    Args:
        rows: The rows by file.
        patterns: Shell patterns of the names that are wanted.
    """
    for name, found in rows.items():
        if any(fnmatchcase(name, pattern) for pattern in patterns):
            for number, row in enumerate(found, 1):
                yield name, Record(row, row.place if isinstance(row, _PlacedRow) else f"{name}, row {number}")


def dataset_of(file: str, record: Record) -> str:
    """Return a row's ``dataset``; without one, what stands behind the first underscore of its file's name."""
    return record.text_or("dataset", "") or file.partition("_")[2] or file
