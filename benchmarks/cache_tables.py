"""The rows of the comparison of cache methods in a CSV file, and the tables made of them."""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import fmean, median
from typing import Protocol, TypeAlias

from kompakt.compressor.evaluation.statistics import estimate, mean_of_means
from kompakt.compressor.evaluation.summary import Estimate

Values: TypeAlias = list[float]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One run of one example; see ``cache_runs`` for what the numbers mean."""

    date: str
    device: str
    versions: str
    settings: str
    task: str
    example: str
    group: str
    tool: str
    method: str
    mode: str
    keep: float
    n_context: int
    n_kept: int
    n_held: int
    log_likelihood: float
    recall: float
    answer: str
    n_steps: int
    compress_seconds: float
    answer_seconds: float
    base_mib: float
    peak_mib: float

    @property
    def key(self) -> tuple[str, str, str, str, str, float]:
        """What tells it from other rows of the same settings."""
        return self.task, self.example, self.tool, self.method, self.mode, self.keep

    @property
    def step_seconds(self) -> float:
        """Seconds of the answer by the tokens that were chosen: answers differ in length."""
        return self.answer_seconds / self.n_steps

    @property
    def more_mib(self) -> float:
        """What the process grew by."""
        return self.peak_mib - self.base_mib


class _Run(Protocol):
    tool: str
    method: str
    mode: str
    keep: float


class Rows:
    """A CSV file of rows, to which each new one is added at once.

    Args:
        path: The file.
        settings: Those of the rows that are looked at; others stay as they are.
    """

    def __init__(self, path: Path, settings: str) -> None:
        self.path = path
        self.settings = settings
        self._rows = list(_read(path)) if path.exists() else []
        self._keys = {row.key for row in self.mine()}

    def mine(self) -> list[Row]:
        """Return the rows of these settings."""
        return [row for row in self._rows if row.settings == self.settings]

    def has(self, task: str, example: str, run: _Run) -> bool:
        """Return whether a run's row is there."""
        return (task, example, run.tool, run.method, run.mode, run.keep) in self._keys

    def add(self, row: Row) -> None:
        """Add a row to the file."""
        is_new = not self.path.exists()
        with self.path.open("a", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, [field.name for field in fields(Row)])
            if is_new:
                writer.writeheader()
            writer.writerow(asdict(row))
        self._rows.append(row)
        self._keys.add(row.key)


def _read(path: Path) -> Iterator[Row]:
    of_type = {"float": float, "int": int, "str": str}
    with path.open(encoding="utf-8", newline="") as file:
        for found in csv.DictReader(file):
            yield Row(**{field.name: of_type[str(field.type)](found[field.name]) for field in fields(Row)})


Method: TypeAlias = tuple[str, str, str]
"""Tool, method, mode."""

Cell: TypeAlias = dict[str, Row]
"""Rows by example."""


class _Cells:
    """Rows by task, budget and method."""

    def __init__(self, rows: Sequence[Row], seed: int) -> None:
        self.seed = seed
        self.tasks = list(dict.fromkeys(row.task for row in rows))
        self.keeps = sorted({row.keep for row in rows if 0 < row.keep < 1}, reverse=True)
        self._cells: defaultdict[tuple[str, float], defaultdict[Method, Cell]] = defaultdict(
            lambda: defaultdict(dict)
        )
        for row in rows:
            self._cells[row.task, row.keep][row.tool, row.method, row.mode][row.example] = row

    def methods(self, task: str, keep: float) -> dict[Method, Cell]:
        return self._cells.get((task, keep), {})

    def rival(self, task: str, keep: float, method: str) -> Method | None:
        """Return the version of kvpress that gives the right answers the highest likelihood."""
        found = {
            name: fmean(row.log_likelihood for row in cell.values())
            for name, cell in self.methods(task, keep).items()
            if name[:2] == ("kvpress", method)
        }
        return max(found, key=lambda name: found[name]) if found else None

    def pairs(self, task: str, keep: float, method: str) -> list[tuple[Row, Row]]:
        """Return the rows of kompakt and of its rival on the same examples."""
        rival = self.rival(task, keep, method)
        cells = self.methods(task, keep)
        ours = cells.get(("kompakt", method, ""), {})
        if rival is None:
            return []
        return [(row, cells[rival][name]) for name, row in ours.items() if name in cells[rival]]


def tables(rows: Sequence[Row], *, seed: int) -> str:
    """Return everything that the rows say, as Markdown."""
    if not rows:
        return "no rows"
    cells = _Cells(rows, seed)
    lines = [f"{one}: {'; '.join(sorted({getattr(row, one) for row in rows}))}" for one in ("settings", "device")]
    lines += [f"versions: {one}" for one in sorted({row.versions for row in rows})]
    return "\n".join(
        [
            *lines,
            f"dates: {min(row.date for row in rows)} to {max(row.date for row in rows)}",
            "\nEach method (seconds: medians; step: one token of the answer, the question's reading included; "
            "more MiB: median growth of the process)\n",
            _each(cells),
            "\nkompakt less the better mode of kvpress, on the same examples (seconds: geometric mean of the ratio, "
            "kompakt / kvpress)\n",
            _differences(cells),
        ]
    )


def _each(cells: _Cells) -> str:
    heading = ["task", "keep", "method", "n", "kept", "held", "log-likelihood", "recall"]
    heading += ["compress s", "answer s", "step s", "more MiB"]
    rows = []
    for task in cells.tasks:
        for keep in (1.0, 0.0, *cells.keeps):
            for name, cell in cells.methods(task, keep).items():
                of = list(cell.values())
                rows.append(
                    [
                        task,
                        f"{keep:g}",
                        " ".join(filter(None, name)),
                        str(len(of)),
                        f"{fmean(row.n_kept for row in of):.1f}",
                        f"{fmean(row.n_held for row in of):.1f}",
                        _with_interval(_estimate(of, lambda row: row.log_likelihood, cells.seed)),
                        _with_interval(_estimate(of, lambda row: row.recall, cells.seed)),
                        f"{median(row.compress_seconds for row in of):.3f}",
                        f"{median(row.answer_seconds for row in of):.3f}",
                        f"{median(row.step_seconds for row in of):.4f}",
                        f"{median(row.more_mib for row in of):.0f}",
                    ]
                )
    return _markdown(heading, rows)


def _differences(cells: _Cells) -> str:
    heading = ["task", "keep", "method", "against", "n", "log-likelihood", "verdict", "recall"]
    heading += ["compress ratio", "step ratio", "total ratio", "more MiB ratio"]
    rows = []
    methods = dict.fromkeys(
        name[1] for task in cells.tasks for keep in cells.keeps for name in cells.methods(task, keep)
    )
    for method in ("full", *methods):
        for keep in (1.0,) if method == "full" else cells.keeps:
            found = {task: pairs for task in cells.tasks if (pairs := cells.pairs(task, keep, method))}
            for task, pairs in found.items():
                rival = cells.rival(task, keep, method)
                rows.append([task, f"{keep:g}", method, " ".join(rival or ()), *_compared([pairs], cells.seed)])
            if len(found) > 1:
                rows.append(["mean", f"{keep:g}", method, "kvpress", *_compared(list(found.values()), cells.seed)])
    return _markdown(heading, rows)


def _compared(samples: Sequence[Sequence[tuple[Row, Row]]], seed: int) -> list[str]:
    """Return the cells of one comparison; several samples are tasks that count alike."""

    def mean(of: Callable[[Row, Row], float]) -> Estimate:
        values = [
            ([of(ours, theirs) for ours, theirs in pairs], [ours.group for ours, _ in pairs]) for pairs in samples
        ]
        return mean_of_means(values, seed=seed)

    def ratio(of: Callable[[Row], float]) -> str:
        # a process that did not grow has no ratio
        if any(not of(row) > 0 for pairs in samples for pair in pairs for row in pair):
            return ""
        logs = mean(lambda ours, theirs: math.log(of(ours) / of(theirs)))
        return _with_interval(Estimate(*map(math.exp, (logs.mean, logs.low, logs.high)), logs.n), "{:.2f}")

    likelihood = mean(lambda ours, theirs: ours.log_likelihood - theirs.log_likelihood)
    verdict = "better" if likelihood.low > 0 else "worse" if likelihood.high < 0 else "equal"
    # kompakt reads a full context as it answers, kvpress as it compresses
    are_alike = samples[0][0][0].method != "full"
    return [
        str(sum(map(len, samples))),
        _with_interval(likelihood, "{:+.3f}"),
        verdict,
        _with_interval(mean(lambda ours, theirs: ours.recall - theirs.recall), "{:+.3f}"),
        ratio(lambda row: row.compress_seconds) if are_alike else "",
        ratio(lambda row: row.step_seconds) if are_alike else "",
        ratio(lambda row: row.compress_seconds + row.answer_seconds),
        ratio(lambda row: row.more_mib),
    ]


def _estimate(rows: Sequence[Row], of: Callable[[Row], float], seed: int) -> Estimate:
    return estimate([of(row) for row in rows], [row.group for row in rows], seed=seed)


def _with_interval(found: Estimate, form: str = "{:.3f}") -> str:
    return f"{form.format(found.mean)} [{form.format(found.low)}, {form.format(found.high)}]"


def _markdown(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in [heading, ["---"] * len(heading), *rows])
