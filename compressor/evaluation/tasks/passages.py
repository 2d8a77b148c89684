"""Questions over many passages of which some hold the answer: shared by the tasks with distractors.

A row is ``{"id", "question", "answers": [str], "docs": [{"title", "text", "is_gold"}], "dataset"?, "answer_type"?}``.
Rows whose ``answer_type`` is ``yesno`` are left out: a yes or no is in the context by chance or not at all.
"""

from __future__ import annotations

from collections.abc import Iterator

from kompakt.compressor.evaluation.data import Record, dataset_of, records_of
from kompakt.compressor.evaluation.example import Example, Rows, TaskSettings
from kompakt.compressor.evaluation.tasks.chance import shuffled
from kompakt.compressor.evaluation.tasks.contexts import Fitter
from kompakt.compressor.types import Document


def passage_examples(task: str, rows: Rows, settings: TaskSettings) -> Iterator[Example]:
    """Yield an example a row; where the limit asks for it, with fewer distractors and never without a gold passage.

    Raises:
        InputError: If a row lacks a field.
    """
    for file, record in records_of(rows):
        if record.text_or("answer_type", "") == "yesno":
            continue
        name = record.text("id")
        documents = _fitted(name, record.records("docs"), settings)
        if documents:
            yield Example(
                name,
                task,
                documents,
                question=record.text("question"),
                answers=record.texts("answers"),
                dataset=dataset_of(file, record),
            )


def _fitted(name: str, passages: list[Record], settings: TaskSettings) -> tuple[Document, ...] | None:
    distractors = [position for position, passage in enumerate(passages) if not _is_gold(passage)]
    documents = [_document(passage, position) for position, passage in enumerate(passages)]
    return Fitter.of(documents, settings).with_some(shuffled(distractors, int, settings.seed, name))


def _is_gold(passage: Record) -> bool:
    value = passage.fields.get("is_gold", False)
    if not isinstance(value, bool):
        raise passage.wrong("is_gold", "true or false")
    return value


def _document(passage: Record, position: int) -> Document:
    title = passage.text("title")
    return Document(f"{title}\n\n{passage.text('text')}", id=str(position), metadata={"title": title})
