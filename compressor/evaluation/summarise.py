"""From rows to a summary: means with intervals, paired differences, what to look at."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from kompakt.compressor.evaluation.example import Task
from kompakt.compressor.evaluation.rows import Key, ResultRow
from kompakt.compressor.evaluation.statistics import estimate, mean_of_means
from kompakt.compressor.evaluation.summary import (
    Cell,
    Difference,
    Estimate,
    GridCell,
    Latency,
    Method,
    ShownExample,
    Summary,
    TaskInfo,
)
from kompakt.compressor.inspection import View

METRICS: Final[Mapping[str, str]] = {
    "answer_recall": "share of questions for which a gold answer stands in the compressed context",
    "log_likelihood": "mean ln P of a token of the right answer under the reader, in nats",
    "f1": "word F1 of the reader's answer, normalised as LongBench does",
    "exact_match": "share of the reader's answers that equal a gold answer, normalised",
    "unaltered": "share of results without a number, date or identifier that the source does not have",
    "numbers_kept": "share of the distinct numbers that were kept",
    "dates_kept": "share of the distinct dates that were kept",
    "identifiers_kept": "share of the distinct identifiers that were kept",
    "quotations_kept": "share of the distinct quotations that were kept",
}
"""What is estimated, in the order of reports; all are better when higher."""

COMPARED: Final = ("answer_recall", "log_likelihood", "f1")
"""Metrics of which paired differences are told."""

_Pairs: TypeAlias = tuple[Sequence[float], Sequence[str]]


@dataclass(frozen=True)
class Shown:
    """An example as the report shows it: its question and answers, by task and id."""

    question: str
    answers: tuple[str, ...]


def summarise(
    rows: Iterable[ResultRow],
    *,
    title: str,
    stamp: Mapping[str, str],
    tasks: Sequence[Task],
    methods: Sequence[Method],
    seed: int,
    views: Iterable[tuple[Key, View]] = (),
    shown: Mapping[tuple[str, str], Shown] | None = None,
) -> Summary:
    """Reduce the rows of a run to what a report shows.

    Args:
        rows: The rows.
        title: A heading.
        stamp: Machine, versions, commit, seed and settings.
        tasks: The tasks in the order of the report.
        methods: The methods in the order of the report.
        seed: Decides the bootstrap's resamples.
        views: What can be looked at.
        shown: Question and answers of what can be looked at.
    """
    table = _Table(rows)
    infos = tuple(
        TaskInfo(task.name, task.title, task.summary, table.n_examples(task.name), task.axes) for task in tasks
    )
    present = [info.name for info in infos if info.n]
    found = {metric for row in table.rows for metric in row.metrics}
    return Summary(
        title=title,
        stamp=stamp,
        tasks=tuple(info for info in infos if info.n),
        methods=tuple(method for method in methods if table.keeps(method.name)),
        metrics={name: meaning for name, meaning in METRICS.items() if name in found},
        cells=(*_cells(table, present, methods, seed), *_mean_cells(table, present, methods, seed)),
        differences=tuple(_differences(table, present, methods, seed)),
        latencies=tuple(
            Latency(row.method, row.tokens_before, row.seconds)
            for row in table.rows
            if row.seconds and row.status == "compressed"
        ),
        grid=tuple(_grid(table, tasks, methods, seed)),
        examples=tuple(_shown(present, methods, views, shown or {})),
    )


class _Table:
    """Rows by task, method and budget."""

    def __init__(self, rows: Iterable[ResultRow]) -> None:
        self.rows = list(rows)
        self._cells: dict[tuple[str, str, float], list[ResultRow]] = {}
        self.metrics: dict[str, set[str]] = {}
        for row in self.rows:
            self.metrics.setdefault(row.task, set()).update(row.metrics)
            self._cells.setdefault((row.task, row.method, row.keep), []).append(row)

    def n_examples(self, task: str) -> int:
        return len({row.example for row in self.rows if row.task == task})

    def keeps(self, method: str) -> list[float]:
        return sorted({keep for _, name, keep in self._cells if name == method}, reverse=True)

    def cell(self, task: str, method: str, keep: float) -> list[ResultRow]:
        return self._cells.get((task, method, keep), [])

    def values(self, task: str, method: str, keep: float, metric: str) -> _Pairs:
        """Return the values of a metric and the groups of their examples."""
        judged = [row for row in self.cell(task, method, keep) if _is_number(row.metrics.get(metric))]
        return [row.metrics[metric] for row in judged], [row.group for row in judged]

    def differences(self, task: str, method: str, against: str, keep: float, metric: str) -> _Pairs:
        """Return the differences of two methods on the same examples, and the groups of these."""
        others = {row.example: row for row in self.cell(task, against, keep)}
        pairs = [(row, others[row.example]) for row in self.cell(task, method, keep) if row.example in others]
        judged = [
            (row, other)
            for row, other in pairs
            if _is_number(row.metrics.get(metric)) and _is_number(other.metrics.get(metric))
        ]
        return [row.metrics[metric] - other.metrics[metric] for row, other in judged], [
            row.group for row, _ in judged
        ]


def _is_number(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _cells(table: _Table, tasks: Sequence[str], methods: Sequence[Method], seed: int) -> Iterator[Cell]:
    for task in tasks:
        for method in methods:
            for keep in table.keeps(method.name):
                rows = table.cell(task, method.name, keep)
                if rows:
                    estimates = {}
                    for metric in METRICS:
                        values, groups = table.values(task, method.name, keep, metric)
                        if values:
                            estimates[metric] = estimate(values, groups, seed=seed)
                    yield _cell(task, method.name, keep, rows, estimates)


def _mean_cells(table: _Table, tasks: Sequence[str], methods: Sequence[Method], seed: int) -> Iterator[Cell]:
    """Yield the means over tasks, each counting alike, of metrics that the method has on all tasks that have them."""
    for method in methods:
        for keep in table.keeps(method.name):
            rows = [row for task in tasks for row in table.cell(task, method.name, keep)]
            estimates = {}
            for metric in METRICS:
                wanted = [
                    task for task in tasks if any(metric in row.metrics for row in table.rows if row.task == task)
                ]
                samples = [table.values(task, method.name, keep, metric) for task in wanted]
                if samples and all(values for values, _ in samples):
                    estimates[metric] = mean_of_means(samples, seed=seed)
            yield _cell("", method.name, keep, rows, estimates)


def _cell(task: str, method: str, keep: float, rows: Sequence[ResultRow], estimates: Mapping[str, Estimate]) -> Cell:
    done = [row for row in rows if row.status != "failed"]
    failures = Counter(row.reason for row in rows if row.status == "failed")
    return Cell(
        task=task,
        method=method,
        keep=keep,
        n=len(rows),
        kept=sum(row.tokens_after for row in done) / max(1, sum(row.tokens_before for row in done)),
        estimates=estimates,
        n_over_budget=sum(row.tokens_after > row.max_tokens for row in done),
        n_invalid=sum(row.is_valid is False for row in done),
        n_checked=sum(row.is_valid is not None for row in done),
        n_passed_through=sum(row.status == "passed_through" for row in done),
        n_failed=failures.total(),
        failure=failures.most_common(1)[0][0] if failures else "",
        seconds=_median(row.seconds for row in done),
        tokens=_mean(row.tokens_after for row in done),
        n_bytes=_mean(row.n_bytes for row in done),
        seconds_to_first=_median(row.seconds_to_first or None for row in done),
        tokens_per_second=_median(row.tokens_per_second or None for row in done),
    )


def _median(values: Iterable[float | None]) -> float:
    found = [value for value in values if value is not None]
    return statistics.median(found) if found else math.nan


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return statistics.fmean(found) if found else math.nan


def _differences(table: _Table, tasks: Sequence[str], methods: Sequence[Method], seed: int) -> Iterator[Difference]:
    """Yield every compressor against the controls, and ``default`` against every peer."""
    controls = [method.name for method in methods if method.role == "control"]
    pairs = [
        (method.name, control) for method in methods if method.role in ("kompakt", "peer") for control in controls
    ]
    pairs += [("default", method.name) for method in methods if method.role == "peer"]
    for method_name, against in pairs:
        for keep in table.keeps(method_name):
            for metric in COMPARED:
                yield from _difference(table, tasks, (method_name, against), keep, metric, seed)


def _difference(
    table: _Table, tasks: Sequence[str], pair: tuple[str, str], keep: float, metric: str, seed: int
) -> Iterator[Difference]:
    samples = [(task, table.differences(task, *pair, keep, metric)) for task in tasks]
    told = [(task, sample) for task, sample in samples if sample[0]]
    for task, (values, groups) in told:
        yield Difference(task, *pair, keep, metric, estimate(values, groups, seed=seed))
    if told:
        yield Difference("", *pair, keep, metric, mean_of_means([sample for _, sample in told], seed=seed))


def _grid(table: _Table, tasks: Sequence[Task], methods: Sequence[Method], seed: int) -> Iterator[GridCell]:
    for task in tasks:
        if len(task.axes) != 2:
            continue
        for method in (method for method in methods if method.role != "reference"):
            for keep in table.keeps(method.name):
                points: dict[tuple[float, float], list[ResultRow]] = {}
                for row in table.cell(task.name, method.name, keep):
                    points.setdefault((row.axes[task.axes[0]], row.axes[task.axes[1]]), []).append(row)
                for (x, y), rows in sorted(points.items()):
                    for metric in COMPARED:
                        values = [row.metrics[metric] for row in rows if _is_number(row.metrics.get(metric))]
                        if values:
                            groups = [row.group for row in rows if _is_number(row.metrics.get(metric))]
                            made = estimate(values, groups, seed=seed)
                            yield GridCell(task.name, method.name, keep, x, y, metric, made)


def _shown(
    tasks: Sequence[str],
    methods: Sequence[Method],
    views: Iterable[tuple[Key, View]],
    shown: Mapping[tuple[str, str], Shown],
) -> Iterator[ShownExample]:
    order = {method.name: index for index, method in enumerate(methods)}
    found: dict[tuple[str, str], dict[tuple[str, float], View]] = {}
    for (task, example, method, keep), view in views:
        if task in tasks and method in order:
            # a run that was killed between view and row writes the view again
            found.setdefault((task, example), {})[method, keep] = view
    by_method: Callable[[View], tuple[int, float]] = lambda view: (order[view.method], -(view.keep or 0))  # noqa: E731
    for task, example in sorted(found, key=lambda key: tasks.index(key[0])):
        about = shown.get((task, example), Shown("", ()))
        yield ShownExample(
            task, example, about.question, about.answers, tuple(sorted(found[task, example].values(), key=by_method))
        )
