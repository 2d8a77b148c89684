"""Questions over many passages. Files ``multidoc_*``; the rows are those of ``passages.py``."""

from __future__ import annotations

from collections.abc import Iterator

from kompakt.compressor.evaluation.example import Example, Rows, Task, TaskSettings
from kompakt.compressor.evaluation.tasks.passages import passage_examples


def examples(rows: Rows, settings: TaskSettings) -> Iterator[Example]:
    """Yield an example a row, with as many distractors as fit."""
    return passage_examples("multi-document-qa", rows, settings)


TASK = Task(
    "multi-document-qa",
    "Multi-document questions",
    "Find the passages with the answer among passages on similar matters",
    ("multidoc_*",),
    examples,
)
