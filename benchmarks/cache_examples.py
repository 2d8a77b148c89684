"""Questions of three sets, with contexts that are cut to a length without losing the answer."""

from __future__ import annotations

import functools
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from pathlib import Path

from kompakt.compressor.errors import InputError
from kompakt.compressor.evaluation.data import Record, records_of, rows_of
from kompakt.compressor.evaluation.example import Example, TaskSettings
from kompakt.compressor.evaluation.task_registry import load_examples, sample_examples
from kompakt.compressor.evaluation.tasks.chance import hashed
from kompakt.compressor.evaluation.tasks.contexts import has_answer, joined
from kompakt.compressor.evaluation.tasks.sentences import CountedText, counted
from kompakt.compressor.models.tokenizers import Tokenizer
from kompakt.compressor.types import Document

_N_NEAR = 300
"""Characters on either side of an answer in which words of the question speak for it."""


def chosen_examples(data: Path, task: str, settings: TaskSettings, limit: int) -> list[Example]:
    """Return up to ``limit`` examples of a task whose answer stands in their context, fairly over its datasets.

    Args:
        data: The folder that holds ``TASK.jsonl`` or ``TASK.jsonl.gz``.
        task: One of ``TASKS``.
        settings: Tokenizer, the most tokens of a context, and seed.
        limit: The most examples; those for a smaller limit are the first of them.

    Raises:
        InputError: If there is no such file, or a row is wrong.
    """
    found = [one for one in TASKS[task](data, settings) if has_answer(joined(one.documents), one.answers)]
    if not found:
        raise InputError(f"{data} has no example of {task} of at most {settings.max_context} tokens")
    return sample_examples(found, limit, settings.seed)


def _niah(data: Path, settings: TaskSettings) -> Iterator[Example]:
    for record in _records(data, "niah_built"):
        text, needle = record.text("context"), record.text("needle")
        start = text.find(needle)
        length = record.fields.get("tokens_about", 0)
        yield from _example("niah_built", record, text, (start, start + len(needle)), f"{length}-tokens", settings)


def _longdoc(data: Path, settings: TaskSettings) -> Iterator[Example]:
    for row in _records(data, "longdoc_main"):
        text = row.text("document")
        for item in row.records("questions"):
            if item.text_or("answer_type", "extractive") != "extractive":
                continue
            place = answer_place(text, item.text("question"), item.texts("answers"))
            yield from _example("longdoc_main", item, text, place, "longdoc_main", settings, group=row.text("id"))


def _key_value(data: Path, settings: TaskSettings) -> list[Example]:
    return load_examples("key-value", data, settings)


TASKS: dict[str, Callable[[Path, TaskSettings], Iterator[Example] | list[Example]]] = {
    "niah_built": _niah,
    "longdoc_main": _longdoc,
    "kv_retrieval": _key_value,
}


def _records(data: Path, name: str) -> Iterator[Record]:
    rows = rows_of(data, [name])
    if not rows:
        raise InputError(f"{data} has no {name}.jsonl or {name}.jsonl.gz")
    return (record for _, record in records_of(rows))


def _example(
    task: str,
    record: Record,
    text: str,
    place: tuple[int, int],
    dataset: str,
    settings: TaskSettings,
    *,
    group: str = "",
) -> Iterator[Example]:
    name = record.text("id")
    cut = cut_around(text, place, settings, name) if place[0] >= 0 else ""
    if cut:
        yield Example(
            name,
            task,
            (Document(cut, id="0"),),
            question=record.text("question").strip(),
            answers=record.texts("answers"),
            dataset=dataset,
            group=group,
        )


def answer_place(text: str, question: str, answers: tuple[str, ...]) -> tuple[int, int]:
    """Return where an answer stands whose neighbourhood has most words of the question; (-1, -1) if nowhere."""
    wanted = _words(question)
    best, most = (-1, -1), -1
    for answer in answers:
        start = text.find(answer)
        while start >= 0:
            end = start + len(answer)
            n_shared = len(wanted & _words(text[max(0, start - _N_NEAR) : end + _N_NEAR]))
            if n_shared > most:
                best, most = (start, end), n_shared
            start = text.find(answer, end)
    return best


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


def cut_around(text: str, place: tuple[int, int], settings: TaskSettings, name: str) -> str:
    """Return sentences around a place, of at most ``max_context`` tokens; empty if its own ones have more.

    How far into them the place stands is left to chance.
    """
    limit = settings.max_context
    if limit is None:
        return text.strip()
    source, n_tokens = _counted(text, settings.tokenizer)
    if n_tokens <= limit:
        return text.strip()
    beginnings = [start for start, _ in source.ranges]
    own_first, own_last = bisect_right(beginnings, place[0]) - 1, bisect_left(beginnings, place[1])
    spare = limit - (source.before[own_last] - source.before[own_first])
    depth = hashed(settings.seed, name, "cut") % 1000 / 1000
    wanted = bisect_left(source.before, source.before[own_first] - depth * spare)
    # behind this sentence too little text is left to fill the context
    latest = bisect_left(source.before, source.n_tokens - limit)
    for first in range(min(wanted, latest, own_first), own_first + 1):
        last = source.end_of_stretch(first, limit)
        if last >= own_last:
            return source.cut(first, last)
    return ""


@functools.lru_cache(maxsize=2)
def _counted(text: str, tokenizer: Tokenizer) -> tuple[CountedText, int]:
    """Return a text's sentences and its tokens; questions on one document come one after the other."""
    return counted(text, tokenizer), tokenizer.count(text)
