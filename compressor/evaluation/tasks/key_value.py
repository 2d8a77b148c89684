"""The value of one key among many that look alike.

Files ``kv_retrieval*``. A row is ``{"id", "records": [[key, value], ...], "value", "gold_index"}``, all strings but
for the last, which is the position of the record that is asked for.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from typing import TypeAlias

from kompakt.compressor.evaluation.data import Record, records_of
from kompakt.compressor.evaluation.example import Example, Rows, Task, TaskSettings
from kompakt.compressor.evaluation.tasks.chance import shuffled
from kompakt.compressor.types import Document

_Pair: TypeAlias = tuple[str, str]


def examples(rows: Rows, settings: TaskSettings) -> Iterator[Example]:
    """Yield an example a row, with as many other records as fit; the dataset names how many the row has.

    Raises:
        InputError: If a row lacks a field.
    """
    for _, record in records_of(rows):
        pairs = _pairs(record)
        gold = _gold(record, pairs)
        text = _fitted(record.text("id"), pairs, gold, settings)
        if text:
            yield Example(
                record.text("id"),
                "key-value",
                (Document(text, id="0"),),
                question=f'Extract the value of the key "{pairs[gold][0]}" from the JSON object.',
                answers=(record.text("value"),),
                dataset=f"{len(pairs)}-keys",
            )


def _pairs(record: Record) -> list[_Pair]:
    pairs: list[_Pair] = []
    for item in record.items("records"):
        match item:
            case [str(key), str(value)]:
                pairs.append((key, value))
            case _:
                raise record.wrong("records", "a list of pairs of strings")
    return pairs


def _gold(record: Record, pairs: list[_Pair]) -> int:
    gold = record.fields.get("gold_index")
    if type(gold) is not int or not 0 <= gold < len(pairs):
        raise record.wrong("gold_index", "the position of a record")
    if record.text("value") != pairs[gold][1]:
        raise record.wrong("value", f"{pairs[gold][1]!r} as in the record at gold_index")
    return gold


def _fitted(name: str, pairs: list[_Pair], gold: int, settings: TaskSettings) -> str:
    """Return the object with as many of the records as fit; empty if not even the one asked for does."""
    limit, count = settings.max_context, settings.tokenizer.count
    if limit is None:
        return _object(pairs, range(len(pairs)))
    sizes = settings.tokenizer.count_batch([f' "{key}": "{value}",\n' for key, value in pairs])
    kept, total = set(range(len(pairs))), sum(sizes)
    droppable = shuffled(kept - {gold}, int, settings.seed, name)
    while True:
        # the exact count is needed near the limit only
        if total - 2 * len(kept) <= limit:
            text = _object(pairs, kept)
            if count(text) <= limit:
                return text
        if not droppable:
            return ""
        position = droppable.pop()
        kept.remove(position)
        total -= sizes[position]


def _object(pairs: list[_Pair], kept: Collection[int]) -> str:
    return json.dumps({key: value for position, (key, value) in enumerate(pairs) if position in kept}, indent=1)


TASK = Task(
    "key-value",
    "Key-value retrieval",
    "Find the value of one key among random ones, where no word helps",
    ("kv_retrieval*",),
    examples,
)
