"""What a run amounts to: estimates with intervals for each task, method and budget."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from kompakt.compressor.inspection import View

Role: TypeAlias = Literal["reference", "control", "kompakt", "peer"]
"""``reference`` is the full context or none at all; ``control`` is a baseline at the same budget."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over examples with its 95 % bootstrap interval.

    Args:
        mean: The mean.
        low: Lower end of the interval.
        high: Upper end of the interval.
        n: Number of examples.
    """

    mean: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True)
class Method:
    """Something that was compared.

    Args:
        name: Its name in the rows.
        role: What it is in the comparison.
        note: What a reader of the report must know of it; empty if nothing.
    """

    name: str
    role: Role
    note: str = ""


@dataclass(frozen=True, slots=True)
class Cell:
    """One method at one budget on one task.

    Args:
        task: The task's name.
        method: The method's name.
        keep: The fraction of tokens asked for; 1 for the full context, 0 for none.
        n: Number of examples that were compressed.
        kept: Fraction of the tokens that was really kept, over all of them.
        estimates: Estimate by metric.
        n_over_budget: Results with more tokens than the budget.
        n_invalid: Results that broke JSON or code.
        n_checked: Results whose validity could be checked.
        n_passed_through: Results returned as they came.
        n_failed: Examples that ended in an error.
        failure: The most frequent error; empty if none.
        seconds: Median seconds of compression; not a number if none was measured.
        tokens: Mean number of tokens, or positions, that remain.
        n_bytes: Mean size of the payload.
        seconds_to_first: Median time of the reader to its first token; not a number without a reader.
        tokens_per_second: Median rate of the reader's decoding; not a number without one.
    """

    task: str
    method: str
    keep: float
    n: int
    kept: float
    estimates: Mapping[str, Estimate]
    n_over_budget: int = 0
    n_invalid: int = 0
    n_checked: int = 0
    n_passed_through: int = 0
    n_failed: int = 0
    failure: str = ""
    seconds: float = math.nan
    tokens: float = math.nan
    n_bytes: float = math.nan
    seconds_to_first: float = math.nan
    tokens_per_second: float = math.nan


@dataclass(frozen=True, slots=True)
class Difference:
    """A paired difference on the same examples at the same budget: ``method`` less ``against``.

    Args:
        task: The task's name; empty for all tasks together.
        method: The method's name.
        against: What it is compared with.
        keep: The budget.
        metric: The metric's name.
        estimate: Mean difference with its interval.
    """

    task: str
    method: str
    against: str
    keep: float
    metric: str
    estimate: Estimate


@dataclass(frozen=True, slots=True)
class Latency:
    """How long one compression took.

    Args:
        method: The method's name.
        tokens_before: Tokens that went in.
        seconds: Wall time.
    """

    method: str
    tokens_before: int
    seconds: float


@dataclass(frozen=True, slots=True)
class GridCell:
    """Quality of one method at one budget at one point of a task's grid.

    Args:
        task: The task's name.
        method: The method's name.
        keep: The budget.
        x: Position on the first axis.
        y: Position on the second axis.
        metric: The metric's name.
        estimate: Mean with its interval.
    """

    task: str
    method: str
    keep: float
    x: float
    y: float
    metric: str
    estimate: Estimate


@dataclass(frozen=True, slots=True)
class ShownExample:
    """An example to look at, with what each method made of it.

    Args:
        task: The task's name.
        id: The example's id.
        question: What was asked.
        answers: Acceptable answers.
        views: One for each method and budget, over the same documents.
    """

    task: str
    id: str
    question: str
    answers: tuple[str, ...]
    views: tuple[View, ...]


@dataclass(frozen=True, slots=True)
class TaskInfo:
    """A task as the report tells of it.

    Args:
        name: Its name.
        title: A heading for people.
        summary: One line on what it measures.
        n: Number of examples.
        axes: Names of the axes of its grid.
    """

    name: str
    title: str
    summary: str
    n: int
    axes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Summary:
    """Everything that a report shows.

    Args:
        title: A heading.
        stamp: Machine, versions, commit, seed and settings, as label and value.
        tasks: The tasks, in order.
        methods: What was compared, in order.
        metrics: Metrics by name with what they mean, in order; all of them are better when higher.
        cells: One for each task, method and budget, and for the mean over tasks under an empty task name.
        differences: Paired differences.
        latencies: One for each compression.
        grid: Quality on the axes of tasks that have them.
        examples: Examples to look at.
    """

    title: str
    stamp: Mapping[str, str]
    tasks: tuple[TaskInfo, ...]
    methods: tuple[Method, ...]
    metrics: Mapping[str, str]
    cells: tuple[Cell, ...]
    differences: tuple[Difference, ...] = ()
    latencies: tuple[Latency, ...] = ()
    grid: tuple[GridCell, ...] = ()
    examples: tuple[ShownExample, ...] = field(default=(), repr=False)
