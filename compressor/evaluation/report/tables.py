"""The tables of a report: which cells stand where."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from kompakt.compressor.evaluation.summary import (
    Cell,
    Difference,
    Estimate,
    GridCell,
    Method,
    Role,
    Summary,
    TaskInfo,
)

ROLES: Final[Mapping[Role, str]] = {
    "kompakt": "kompakt",
    "peer": "Peers",
    "control": "Controls at the same budget",
    "reference": "References",
}
"""Headings of the groups of methods, in the order of the tables."""


def metric_names(summary: Summary) -> list[str]:
    """Return every metric that a cell has a number for or that the summary describes, in order."""
    found = (metric for cell in summary.cells for metric in cell.estimates)
    return list(dict.fromkeys((*summary.metrics, *found)))


@dataclass(frozen=True, slots=True)
class Scale:
    """The range that small bars of a table share.

    Args:
        low: The lowest value.
        high: The highest value.
    """

    low: float
    high: float

    def place(self, value: float) -> float:
        """Return where a value stands, from 0 to 100."""
        if self.high <= self.low or not math.isfinite(value):
            return 50.0
        return round(100 * min(1.0, max(0.0, (value - self.low) / (self.high - self.low))), 1)


def scale_of(estimates: Iterable[Estimate], *, around_zero: bool = False) -> Scale:
    """Return the range that holds the intervals of all estimates."""
    ends = [end for one in estimates for end in (one.low, one.mean, one.high) if math.isfinite(end)]
    if not ends:
        return Scale(0.0, 1.0)
    if around_zero:
        reach = max(map(abs, ends)) or 1.0
        return Scale(-reach, reach)
    return Scale(min(ends), max(ends))


@dataclass(frozen=True, slots=True)
class VerdictRow:
    """A method's means over tasks.

    Args:
        method: The method.
        cells: One for each budget; a single one for a method that has no budget.
        best: For each cell, whether it is the best of the method's side.
    """

    method: Method
    cells: tuple[Cell | None, ...]
    best: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """The means over tasks of the first metric.

    Args:
        metric: The metric.
        keeps: The budgets, from generous to tight.
        groups: Rows by the heading of their group.
        scale: The range of the bars.
    """

    metric: str
    keeps: tuple[float, ...]
    groups: tuple[tuple[Role, str, tuple[VerdictRow, ...]], ...]
    scale: Scale


def verdict(summary: Summary) -> Verdict | None:
    """Return the first table of the report, or None if the summary has no means over tasks."""
    metrics = metric_names(summary)
    cells = [cell for cell in summary.cells if not cell.task]
    if not cells or not metrics:
        return None
    metric = metrics[0]
    roles = {method.name: method.role for method in summary.methods}
    compressed = [cell for cell in cells if roles.get(cell.method) != "reference"]
    keeps = tuple(sorted({cell.keep for cell in compressed}, reverse=True))
    best = _best(compressed, metric, roles)
    by_key = {(cell.method, cell.keep): cell for cell in compressed}
    groups = []
    for role, title in ROLES.items():
        rows = []
        for method in summary.methods:
            if method.role != role:
                continue
            own: tuple[Cell | None, ...] = tuple(by_key.get((method.name, keep)) for keep in keeps)
            if role == "reference":
                own = tuple(cell for cell in cells if cell.method == method.name)[:1]
            rows.append(VerdictRow(method, own, tuple(cell is not None and id(cell) in best for cell in own)))
        if rows:
            groups.append((role, title, tuple(rows)))
    scale = scale_of(cell.estimates[metric] for cell in cells if metric in cell.estimates)
    return Verdict(metric, keeps, tuple(groups), scale)


def _best(cells: Sequence[Cell], metric: str, roles: Mapping[str, Role]) -> set[int]:
    """Return the identities of the best cell of kompakt and of the peers at each budget."""
    best: dict[tuple[float, Role], Cell] = {}
    for cell in cells:
        role = roles.get(cell.method)
        estimate = cell.estimates.get(metric)
        if role not in ("kompakt", "peer") or estimate is None or not math.isfinite(estimate.mean):
            continue
        rival = best.setdefault((cell.keep, role), cell)
        if estimate.mean > rival.estimates[metric].mean:
            best[cell.keep, role] = cell
    return {id(cell) for cell in best.values()}


@dataclass(frozen=True, slots=True)
class TaskTable:
    """All numbers of one task.

    Args:
        task: The task.
        metrics: The metrics that it has numbers for.
        groups: Cells by budget; those of references stand first, under None.
        failures: Cells in which examples ended in an error.
    """

    task: TaskInfo
    metrics: tuple[str, ...]
    groups: tuple[tuple[float | None, tuple[Cell, ...]], ...]
    failures: tuple[Cell, ...]


def task_tables(summary: Summary) -> list[TaskTable]:
    """Return one table for each task, and one for the mean over tasks if there is one."""
    order = {method.name: index for index, method in enumerate(summary.methods)}
    references = {method.name for method in summary.methods if method.role == "reference"}
    tasks = list(summary.tasks)
    if any(not cell.task for cell in summary.cells):
        tasks.insert(0, TaskInfo("", "Mean over tasks", "Every task counts the same.", 0))
    result = []
    for task in tasks:
        cells = sorted(
            (cell for cell in summary.cells if cell.task == task.name),
            key=lambda cell: order.get(cell.method, len(order)),
        )
        groups: dict[float | None, list[Cell]] = {None: []}
        for cell in sorted(cells, key=lambda cell: -cell.keep):
            groups.setdefault(None if cell.method in references else cell.keep, []).append(cell)
        metrics = tuple(name for name in metric_names(summary) if any(name in cell.estimates for cell in cells))
        failures = tuple(cell for cell in cells if cell.n_failed or cell.failure)
        shown = tuple((keep, tuple(own)) for keep, own in groups.items() if own)
        result.append(TaskTable(task, metrics, shown, failures))
    return result


@dataclass(frozen=True, slots=True)
class HeatMap:
    """Quality of one method at one budget over a task's grid.

    Args:
        method: The method's name.
        rows: For each position on the second axis, the estimates along the first.
    """

    method: str
    rows: tuple[tuple[float, tuple[Estimate | None, ...]], ...]


@dataclass(frozen=True, slots=True)
class Grid:
    """The heat maps of one task and metric.

    Args:
        task: The task.
        metric: The metric.
        xs: Positions on the first axis.
        scale: The range of the colours.
        groups: Heat maps by budget.
    """

    task: TaskInfo
    metric: str
    xs: tuple[float, ...]
    scale: Scale
    groups: tuple[tuple[float, tuple[HeatMap, ...]], ...]


def grids(summary: Summary) -> list[Grid]:
    """Return the heat maps of the tasks that have axes, by task and metric."""
    found: dict[tuple[str, str], list[GridCell]] = {}
    for cell in summary.grid:
        found.setdefault((cell.task, cell.metric), []).append(cell)
    tasks = {task.name: task for task in summary.tasks}
    return [
        _grid(summary, tasks.get(task, TaskInfo(task, task, "", 0)), metric, cells)
        for (task, metric), cells in found.items()
    ]


def _grid(summary: Summary, task: TaskInfo, metric: str, cells: Sequence[GridCell]) -> Grid:
    xs = tuple(sorted({cell.x for cell in cells}))
    ys = sorted({cell.y for cell in cells})
    by_place = {(cell.method, cell.keep, cell.x, cell.y): cell.estimate for cell in cells}
    present = {(cell.method, cell.keep) for cell in cells}
    groups = []
    for keep in sorted({cell.keep for cell in cells}, reverse=True):
        maps = tuple(
            HeatMap(method.name, tuple((y, tuple(by_place.get((method.name, keep, x, y)) for x in xs)) for y in ys))
            for method in summary.methods
            if (method.name, keep) in present
        )
        groups.append((keep, maps))
    means = [cell.estimate.mean for cell in cells if math.isfinite(cell.estimate.mean)]
    is_share = all(0 <= mean <= 1 for mean in means)
    scale = Scale(0.0, 1.0) if is_share or not means else Scale(min(means), max(means))
    return Grid(task, metric, xs, scale, tuple(groups))


def sign(difference: Difference) -> int:
    """Return 1 or -1 if the interval of a difference lies above or below zero, and 0 otherwise."""
    estimate = difference.estimate
    if estimate.low > 0:
        return 1
    return -1 if estimate.high < 0 else 0
