"""Inputs to be labelled as the demonstrations in the context show.

Files ``icl*``. A row is ``{"id", "task", "instruction", "demos": [{"input", "output"}], "queries": [{"id", "input",
"output"}]}``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from kompakt.compressor.evaluation.data import Record, records_of
from kompakt.compressor.evaluation.example import Example, Rows, Task, TaskSettings
from kompakt.compressor.evaluation.tasks.chance import shuffled
from kompakt.compressor.evaluation.tasks.contexts import fits
from kompakt.compressor.types import DOCUMENT_SEPARATOR, Document

MAX_DEMONSTRATIONS: Final = 100


def examples(rows: Rows, settings: TaskSettings) -> Iterator[Example]:
    """Yield an example a query whose label is among the demonstrations; the queries of a row share these.

    Raises:
        InputError: If a row lacks a field.
    """
    for _, record in records_of(rows):
        name = record.text("id")
        demos = record.records("demos")
        chosen = _chosen(name, demos, settings)
        documents = tuple(_document(demos[position], position) for position in chosen)
        labels = {demos[position].text("output") for position in chosen}
        for query in record.records("queries"):
            if query.text("output") in labels:
                yield Example(
                    query.text("id"),
                    "demonstrations",
                    documents,
                    question=query.text("input"),
                    answers=(query.text("output"),),
                    dataset=record.text("task"),
                    group=name,
                    instruction=record.text("instruction"),
                    asked="Input: {}\nOutput:",
                )


def _document(demo: Record, position: int) -> Document:
    return Document(f"Input: {demo.text('input')}\nOutput: {demo.text('output')}", id=f"d{position}")


def _chosen(name: str, demos: list[Record], settings: TaskSettings) -> list[int]:
    """Return positions of demonstrations that fit together, in an order left to chance.

    One of each label comes first, since a query whose label is not shown cannot be asked.
    """
    order = shuffled(range(len(demos)), int, settings.seed, name)
    firsts: dict[str, int] = {}
    for position in order:
        firsts.setdefault(demos[position].text("output"), position)
    leading = set(firsts.values())
    wanted = [*firsts.values(), *(position for position in order if position not in leading)]
    fitting = _fitting(demos, wanted, settings)
    rank = {position: index for index, position in enumerate(order)}
    while True:
        chosen = sorted(fitting, key=rank.__getitem__)
        if fits([_document(demos[position], position) for position in chosen], settings):
            return chosen
        fitting.pop()


def _fitting(demos: list[Record], wanted: list[int], settings: TaskSettings) -> list[int]:
    """Return those of the wanted that fit by the sum of their sizes, which may be a little off."""
    texts = [_document(demos[position], position).text + DOCUMENT_SEPARATOR for position in wanted]
    left = settings.max_context
    fitting: list[int] = []
    for position, size in zip(wanted, settings.tokenizer.count_batch(texts), strict=True):
        if len(fitting) < MAX_DEMONSTRATIONS and (left is None or size <= left):
            fitting.append(position)
            left = None if left is None else left - size
    return fitting


TASK = Task(
    "demonstrations",
    "Many-shot demonstrations",
    "Label an input as the demonstrations in the context do",
    ("icl*",),
    examples,
)
