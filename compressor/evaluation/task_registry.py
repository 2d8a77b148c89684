"""Tasks by name, their examples, and a fair choice among these."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from importlib import import_module
from itertools import chain, zip_longest
from typing import Final, TypeVar, cast

from kompakt.compressor.errors import ConfigError, InputError
from kompakt.compressor.evaluation.data import files_of, rows_of
from kompakt.compressor.evaluation.example import Example, Task, TaskSettings
from kompakt.compressor.evaluation.tasks.chance import hashed
from kompakt.compressor.evaluation.tasks.contexts import has_answer, joined, require_distinct_ids

TASKS: Final = {
    "multi-document-qa": "multi_document_qa",
    "long-document-qa": "long_document_qa",
    "filings-qa": "filings_qa",
    "agent-transcripts": "agent_transcripts",
    "needle": "needle",
    "key-value": "key_value",
    "demonstrations": "demonstrations",
    "language-modelling": "language_modelling",
    "reconstruction": "reconstruction",
    "questions": "questions",
}
"""Modules of the folder ``tasks`` by the name of their task, in the order of reports."""

_Item = TypeVar("_Item")


def task_names() -> list[str]:
    """Return the names of all tasks, in the order of reports."""
    return list(TASKS)


def get_task(name: str) -> Task:
    """Return a task, importing its module.

    Raises:
        ConfigError: If there is no such name; the message suggests one.
    """
    module = TASKS.get(name) if isinstance(name, str) else None
    if module is None:
        close = get_close_matches(str(name), TASKS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else "."
        raise ConfigError(f"there is no task {name!r}{hint} Known: {', '.join(TASKS)}")
    return cast("Task", import_module(f"kompakt.compressor.evaluation.tasks.{module}").TASK)


def tasks_of(folder: str | os.PathLike[str]) -> list[str]:
    """Return the names of the tasks that a data folder has a file for, in the order of reports.

    Raises:
        InputError: If there is no such folder.
    """
    return [name for name in TASKS if files_of(folder, get_task(name).files)]


def load_examples(task: str, folder: str | os.PathLike[str], settings: TaskSettings) -> list[Example]:
    """Return the examples that a task makes of a data folder, without those whose answer is not in the context.

    Args:
        task: The task's name.
        folder: The data folder; ``samples_folder()`` is the one that comes with the package.
        settings: Tokenizer, limit and seed.

    Returns:
        The examples in the order of the data; empty if the folder has nothing that fits.

    Raises:
        ConfigError: If there is no such task, or the limit is below 1.
        InputError: If the folder has no file for the task, a row is wrong, or two examples have the same id.
    """
    found = get_task(task)
    if settings.max_context is not None and settings.max_context < 1:
        raise ConfigError(f"max_context must be at least 1, or None for no limit, got {settings.max_context!r}")
    rows = rows_of(folder, found.files)
    if not rows:
        wanted = " or ".join(f"{pattern}.jsonl[.gz]" for pattern in found.files)
        raise InputError(f"{folder} has no data for the task {task}; it reads {wanted}")
    examples = [example for example in found.examples(rows, settings) if _is_answerable(example)]
    require_distinct_ids(examples)
    return examples


def _is_answerable(example: Example) -> bool:
    return example.target != "answer" or has_answer(joined(example.documents), example.answers)


def sample_examples(
    examples: Iterable[Example], limit: int | None, seed: int = 0, per_group: int = 5
) -> list[Example]:
    """Choose examples by chance, fairly over datasets and, within these, over groups.

    The choice is a prefix of the one for any larger limit, and does not depend on the order of the examples.

    Args:
        examples: What to choose from, with distinct ids.
        limit: The most examples; None for as many as there are.
        seed: Decides the choice.
        per_group: The most examples of a group; examples without a group are groups of their own.

    Raises:
        ConfigError: If a limit is below 1.
    """
    for name, value in (("limit", limit), ("per_group", per_group)):
        if value is not None and value < 1:
            raise ConfigError(f"{name} must be at least 1, got {value!r}")
    ordered = sorted(examples, key=lambda example: hashed(seed, example.id))
    datasets: dict[str, dict[str, list[Example]]] = defaultdict(lambda: defaultdict(list))
    for example in ordered:
        datasets[example.dataset][example.group or example.id].append(example)
    by_dataset = [list(_in_turn([group[:per_group] for group in groups.values()])) for groups in datasets.values()]
    return list(_in_turn(by_dataset))[:limit]


def _in_turn(sequences: Sequence[Sequence[_Item]]) -> Iterator[_Item]:
    """Yield the first item of each, then the second of each, and so on."""
    missing = object()
    rounds = chain.from_iterable(zip_longest(*sequences, fillvalue=missing))
    return (cast("_Item", item) for item in rounds if item is not missing)
