"""Questions over pages of annual reports. Files ``rag_*``; the rows are those of ``passages.py``."""

from __future__ import annotations

from collections.abc import Iterator

from kompakt.compressor.evaluation.example import Example, Rows, Task, TaskSettings
from kompakt.compressor.evaluation.tasks.passages import passage_examples


def examples(rows: Rows, settings: TaskSettings) -> Iterator[Example]:
    """Yield an example a row, with as many other pages as fit."""
    return passage_examples("filings-qa", rows, settings)


TASK = Task(
    "filings-qa",
    "Questions over annual reports",
    "Find a figure or a statement in tables and prose of several reports",
    ("rag_*",),
    examples,
)
