"""Parquet: one document a row, read a few rows at a time."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from kompakt.compressor.errors import InputError, MissingExtraError
from kompakt.compressor.types import Document
from kompakt.retrieval.corpus.formats import (
    ReadOptions,
    Record,
    SourceFile,
    document_of,
    missing_field,
    too_large,
)

if TYPE_CHECKING:
    from pyarrow import DataType, RecordBatch, Scalar, Schema
    from pyarrow.parquet import ParquetFile

_BUFFER: Final = 1 << 20
_BATCH_BYTES: Final = 8 << 20
_MAX_BATCH_ROWS: Final = 64


def read_parquet(file: SourceFile, options: ReadOptions, *, start: int = 0) -> Iterator[Record]:
    """Read a file row by row; columns of bytes that hold neither text nor id are not read.

    A row that cannot be used is a record with an error. A file that cannot be read further ends with one.
    Memory is bounded by a few rows and the file's largest page, which is what its writer made it.

    Args:
        file: The file.
        options: How to read it.
        start: Rows before this one are passed over, whole row groups unread.

    Raises:
        MissingExtraError: If the extra ``corpus`` is not installed.
    """
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise MissingExtraError("reading Parquet files", "corpus") from error

    try:
        # by default, the bytes of whole columns are held
        source = ParquetFile(file.path, pre_buffer=False, buffer_size=_BUFFER, page_checksum_verification=True)
    except Exception as error:  # broken footers raise errors of any kind
        if start == 0:
            yield Record(file.name, 0, None, _failure(error))
        return
    with source:
        try:
            reader = _Reader(source, file.name, options, start, _columns(source.schema_arrow, options))
        except (InputError, ValueError) as error:  # names of columns that are not UTF-8
            if start == 0:
                yield Record(file.name, 0, None, _failure(error))
            return
        yield from reader.records()


def _failure(error: Exception) -> str:
    if isinstance(error, InputError):
        return str(error)
    return f"the Parquet file is broken, and ends here: {str(error).strip() or type(error).__name__}"


def _columns(schema: Schema, options: ReadOptions) -> list[str]:
    """Return the names of the columns to read."""
    n_texts = schema.names.count(options.text_field)
    if n_texts == 0:
        raise InputError(missing_field("column", options.text_field, schema.names))
    if n_texts > 1:
        raise InputError(f"{n_texts} columns are named {options.text_field!r}; name another with text_field=")
    asked = (options.text_field, options.id_field)
    return [column.name for column in schema if column.name in asked or not _is_bytes(column.type)]


def _is_bytes(kind: DataType) -> bool:
    from pyarrow import types

    return bool(types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind))


@dataclass(frozen=True, slots=True)
class _Reader:
    source: ParquetFile
    name: str
    options: ReadOptions
    start: int
    columns: list[str]

    def records(self) -> Iterator[Record]:
        first = 0
        for group in range(self.source.num_row_groups):
            n_rows = self.source.metadata.row_group(group).num_rows
            if first + n_rows > self.start:
                is_whole = yield from self._group(group, first, n_rows)
                if not is_whole:
                    return
            first += n_rows

    def _group(self, group: int, first: int, n_rows: int) -> Generator[Record, None, bool]:
        """Read the rows of a group from ``start`` on; return whether all went well."""
        position = first
        try:
            for batch in self._batches(group, n_rows):
                for row in range(max(0, self.start - position), len(batch)):
                    yield self._record(batch, row, position + row)
                position += len(batch)
            if position != first + n_rows:
                raise InputError(f"row group {group} should have {n_rows} rows, and has {position - first}")
        except Exception as error:  # broken pages raise errors of any kind
            if position >= self.start:
                yield Record(self.name, position, None, _failure(error))
            return False
        return True

    def _batches(self, group: int, n_rows: int) -> Iterator[RecordBatch]:
        n_bytes = max(1, self.source.metadata.row_group(group).total_byte_size)
        size = max(1, min(_MAX_BATCH_ROWS, _BATCH_BYTES * n_rows // n_bytes))
        batches: Iterator[RecordBatch] = self.source.iter_batches(
            size, row_groups=[group], columns=self.columns, use_threads=False
        )
        return batches

    def _record(self, batch: RecordBatch, row: int, position: int) -> Record:
        try:
            document = self._document(batch, row, f"{self.name}#{position}")
        except InputError as error:
            return Record(self.name, position, None, str(error))
        except RecursionError:
            return Record(self.name, position, None, "the row is nested too deeply")
        return Record(self.name, position, document)

    def _document(self, batch: RecordBatch, row: int, fallback_id: str) -> Document:
        columns = zip(batch.schema.names, batch.columns, strict=True)
        fields = {name: _value(values[row], name) for name, values in columns}
        document = document_of(fields, fallback_id, self.options)
        size = len(document.text.encode())
        if size > self.options.max_document_bytes:
            raise too_large("the text", str(size), self.options)
        return document


def _value(cell: Scalar, name: str) -> object:
    """Return a cell as a Python value; what Python's types cannot hold, such as nanoseconds, as text."""
    if _has_nanoseconds(cell.type):
        # with pandas installed they would be its own types, without it errors
        return _as_text(cell)
    try:
        return cell.as_py()
    except UnicodeDecodeError as error:
        raise InputError(f"the column {name!r} is not utf-8 text: bad byte at offset {error.start}") from error
    except (ValueError, OverflowError):
        return _as_text(cell)


def _as_text(cell: Scalar) -> object:
    import pyarrow as pa

    try:
        return cell.cast(pa.string()).as_py()
    except (pa.ArrowException, ValueError):
        return cell


def _has_nanoseconds(kind: DataType) -> bool:
    """Tell whether a type is, or contains, one that counts nanoseconds."""
    import pyarrow as pa

    if getattr(kind, "unit", "") == "ns":
        return True
    nested = [kind.field(index).type for index in range(kind.num_fields)]
    return any(map(_has_nanoseconds, nested)) or (pa.types.is_dictionary(kind) and _has_nanoseconds(kind.value_type))
