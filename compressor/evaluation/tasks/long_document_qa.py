"""Several questions about one long document.

Files ``longdoc_*``. A row is ``{"id", "document", "questions": [{"id", "question", "answers": [str],
"answer_type"?}], "dataset"?}``. Of the answer types only ``extractive`` is read, which is also what a question
without one has: answers in other words cannot be looked for in a compressed text.
"""

from __future__ import annotations

from collections.abc import Iterator

from kompakt.compressor.evaluation.data import dataset_of, records_of
from kompakt.compressor.evaluation.example import Example, Rows, Task, TaskSettings
from kompakt.compressor.evaluation.tasks.contexts import fits
from kompakt.compressor.types import Document


def examples(rows: Rows, settings: TaskSettings) -> Iterator[Example]:
    """Yield an example a question, for the documents that fit.

    Raises:
        InputError: If a row lacks a field.
    """
    for file, record in records_of(rows):
        name = record.text("id")
        documents = (Document(record.text("document"), id=name),)
        if not fits(documents, settings):
            continue
        for item in record.records("questions"):
            if item.text_or("answer_type", "extractive") == "extractive":
                yield Example(
                    item.text("id"),
                    "long-document-qa",
                    documents,
                    question=item.text("question"),
                    answers=item.texts("answers"),
                    dataset=dataset_of(file, record),
                    group=name,
                )


TASK = Task(
    "long-document-qa",
    "Long-document questions",
    "Find the sentence with the answer in one long document",
    ("longdoc_*",),
    examples,
)
