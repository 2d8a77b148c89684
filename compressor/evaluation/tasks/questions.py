"""The user's own questions.

Files ``questions*``. A row is ``{"query", "documents": [...]}`` with ``"text": str`` instead of ``documents`` for a
context of one document, and ``"answers": [str]`` or ``"answer": str``. A document is a string or ``{"text", "id"?,
"title"?, "metadata"?}``. ``id`` and ``dataset`` may be added; the id is a string or a whole number.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

from kompakt.compressor.errors import InputError
from kompakt.compressor.evaluation.data import Record, name_of, read_rows, records_of
from kompakt.compressor.evaluation.example import Example, Rows, Task, TaskSettings
from kompakt.compressor.evaluation.tasks.contexts import fits, require_distinct_ids
from kompakt.compressor.types import Document, as_documents

NAME = "questions"


def examples(rows: Rows, settings: TaskSettings) -> Iterator[Example]:
    """Yield an example a row whose context fits.

    Raises:
        InputError: If a row lacks a field.
    """
    return (example for example in _examples(rows) if fits(example.documents, settings))


def read_questions(path: str | os.PathLike[str]) -> list[Example]:
    """Return the questions of one file, whatever their length and wherever their answers stand.

    Args:
        path: A JSON Lines file, gzip'd if its name ends in ``.gz``. A row is ``{"query", "documents", "answers"}``,
            or with ``text`` for a single document and ``answer`` for a single answer. A document is a string or an
            object with ``text`` and perhaps ``id``, ``title`` and ``metadata``. ``id`` and ``dataset`` are optional.

    Raises:
        InputError: If the file cannot be read, a row lacks a field, or two have the same id.
    """
    found = list(_examples({name_of(path): read_rows(path)}))
    require_distinct_ids(found)
    return found


def _examples(rows: Rows) -> Iterator[Example]:
    for number, (file, record) in enumerate(records_of(rows), 1):
        yield Example(
            _id_of(record, f"{file}-{number}"),
            NAME,
            _documents(record),
            question=record.text("query"),
            answers=record.texts("answers") if "answers" in record.fields else (record.text("answer"),),
            dataset=record.text_or("dataset", file),
        )


def _id_of(record: Record, default: str) -> str:
    value = record.fields.get("id")
    return str(value) if type(value) is int else record.text_or("id", default)


def _documents(record: Record) -> tuple[Document, ...]:
    items = record.items("documents") if "documents" in record.fields else [record.text("text")]
    documents = [_document(item, record, position) for position, item in enumerate(items)]
    if not documents:
        raise record.wrong("documents", "a list with a document in it")
    try:
        return as_documents(documents)
    except InputError as error:
        raise InputError(f"{record.place}: {error}") from error


def _document(item: object, record: Record, position: int) -> Document:
    if isinstance(item, str):
        return Document(item)
    if not isinstance(item, Mapping):
        raise record.wrong("documents", "a list of strings and objects")
    fields = Record(item, f"{record.place}, documents[{position}]")
    metadata = item.get("metadata") or {}
    if not isinstance(metadata, Mapping):
        raise fields.wrong("metadata", "an object")
    title = fields.text_or("title", "")
    return Document(
        fields.text("text"),
        id=_id_of(fields, "") or None,
        metadata={**metadata, "title": title} if title else metadata,
    )


TASK = Task(
    NAME,
    "Your own questions",
    "Find the answers to your questions in your documents",
    ("questions*",),
    examples,
)
