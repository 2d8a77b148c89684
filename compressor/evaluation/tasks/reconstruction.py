"""How much of a passage can be written again from what is left of it.

Files ``haystack*``, ``longdoc_*`` and ``text*``. A row is ``{"text", "id"?, "dataset"?}``, or has its text as
``document``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from kompakt.compressor.evaluation.example import Example, Rows, Task, TaskSettings
from kompakt.compressor.evaluation.tasks.sentences import counted, stretches, texts_of
from kompakt.compressor.types import Document

PASSAGE: Final = 256
PER_TEXT: Final = 2


def examples(rows: Rows, settings: TaskSettings) -> Iterator[Example]:
    """Yield a few passages of each text that has enough of it.

    Raises:
        InputError: If a row lacks a field.
    """
    size = min(PASSAGE, settings.max_context or PASSAGE)
    for name, dataset, text in texts_of(rows):
        source = counted(text, settings.tokenizer)
        parts = (settings.seed, name, "reconstruction")
        for first, last in stretches(source, PER_TEXT, size, *parts, least=size // 2):
            passage = source.cut(first, last)
            yield Example(
                f"{name}/{first}",
                "reconstruction",
                (Document(passage, id="0"),),
                answers=(passage,),
                dataset=dataset,
                group=name,
                target="reconstruction",
            )


TASK = Task(
    "reconstruction",
    "Reconstruction",
    "Write a passage again from what is left of it",
    ("haystack*", "longdoc_*", "text*"),
    examples,
    has_query=False,
)
