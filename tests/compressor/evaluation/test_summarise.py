import dataclasses
import math

import pytest

from kompakt.compressor.evaluation.example import Task
from kompakt.compressor.evaluation.rows import ResultRow
from kompakt.compressor.evaluation.summarise import METRICS, Shown, summarise
from kompakt.compressor.evaluation.summary import Method
from kompakt.compressor.inspection import View

TASKS = [Task("a", "A", "first", (), list), Task("b", "B", "second", (), list), Task("c", "C", "none", (), list)]
METHODS = [
    Method("full", "reference"),
    Method("random", "control"),
    Method("default", "kompakt"),
    Method("rival", "peer"),
]


def row(method="default", example="1", value=None, *, task="a", keep=0.5, metric="answer_recall", **changes):
    metrics = changes.pop("metrics", {} if value is None else {metric: value})
    made = ResultRow(
        task, example, "", "", changes.pop("group", example), {}, method, keep, 50, 100, 40, 99, "compressed",
        metrics=metrics,
    )  # fmt: skip
    return dataclasses.replace(made, **changes)


def made(rows, tasks=TASKS, methods=METHODS, **options):
    return summarise(rows, title="T", stamp={"seed": "0"}, tasks=tasks, methods=methods, seed=0, **options)


def cell(summary, task="a", method="default", keep=0.5):
    [found] = [one for one in summary.cells if (one.task, one.method, one.keep) == (task, method, keep)]
    return found


def difference(summary, method="default", against="random", task="", metric="answer_recall"):
    wanted = (task, method, against, metric)
    [found] = [one for one in summary.differences if (one.task, one.method, one.against, one.metric) == wanted]
    return found.estimate


def test_nothing_gives_an_empty_summary():
    summary = made([])
    assert (summary.tasks, summary.methods, summary.metrics, summary.cells) == ((), (), {}, ())


def test_only_what_has_rows_is_told_in_the_order_given():
    summary = made([row("rival", value=1), row("full", keep=1.0, task="b", value=1)])
    assert [(task.name, task.title, task.n) for task in summary.tasks] == [("a", "A", 1), ("b", "B", 1)]
    assert [method.name for method in summary.methods] == ["full", "rival"]
    assert summary.metrics == {"answer_recall": METRICS["answer_recall"]}
    assert (summary.title, summary.stamp) == ("T", {"seed": "0"})


def test_a_cell_counts_everything():
    rows = [
        row(example="1", value=1, tokens_after=50, seconds=0.1, is_valid=True, n_bytes=10),
        row(example="2", value=0, tokens_after=51, seconds=0.5, is_valid=False, n_bytes=20, seconds_to_first=2.0),
        row(example="3", value=1, tokens_after=100, status="passed_through", seconds=0.2, tokens_per_second=7.0),
        row(example="4", status="failed", reason="E: x", tokens_after=0, seconds=None, n_bytes=0),
        row(example="5", status="failed", reason="E: y", tokens_after=0, n_bytes=0),
        row(example="6", status="failed", reason="E: y", tokens_after=0, n_bytes=0),
    ]
    found = cell(made(rows))
    assert (found.n, found.n_over_budget, found.n_invalid, found.n_checked) == (6, 2, 1, 2)
    assert (found.n_passed_through, found.n_failed, found.failure) == (1, 3, "E: y")
    assert found.kept == pytest.approx(201 / 300)
    assert (found.seconds, found.tokens, found.n_bytes) == (0.2, 67, 43)
    assert (found.seconds_to_first, found.tokens_per_second) == (2.0, 7.0)
    assert (found.estimates["answer_recall"].mean, found.estimates["answer_recall"].n) == (pytest.approx(2 / 3), 3)


def test_a_cell_of_failures_alone_has_no_numbers():
    found = cell(made([row(status="failed", reason="E", tokens_after=0)]))
    assert (found.n, found.n_failed, found.failure, found.kept, found.estimates) == (1, 1, "E", 0, {})
    assert math.isnan(found.seconds)
    assert math.isnan(found.tokens)


def test_seconds_come_from_the_rows_that_measured_them():
    rows = [row(example=str(number), seconds=0.25 if number == 3 else None) for number in range(5)]
    assert cell(made(rows)).seconds == 0.25
    assert math.isnan(cell(made(rows[:3])).seconds)


def test_means_weigh_tasks_alike():
    rows = [row(example=str(number), value=1) for number in range(9)] + [row(task="b", value=0)]
    mean = cell(made(rows), task="")
    assert (mean.n, mean.estimates["answer_recall"].mean, mean.estimates["answer_recall"].n) == (10, 0.5, 10)


def test_a_mean_needs_every_task_that_has_the_metric():
    rows = [row(value=1), row("rival", value=1), row("rival", value=0, task="b")]
    summary = made([*rows, row(task="b", status="failed", reason="E")])
    assert "answer_recall" not in cell(summary, task="").estimates
    assert cell(summary, task="", method="rival").estimates["answer_recall"].mean == 0.5
    # a task that nobody has the metric on is not missed
    other = [
        row(task="b", value=-1, metric="log_likelihood"),
        row("rival", value=-1, metric="log_likelihood", task="b"),
    ]
    assert cell(made([*rows[:2], *other]), task="").estimates["answer_recall"].mean == 1


def test_values_that_are_not_finite_are_left_out():
    rows = [row(value=1), row(example="2", value=math.nan), row(example="3", value=-math.inf), row("random", value=0)]
    summary = made([*rows, row("random", "2", 1), row("random", "3", 1)])
    assert (cell(summary).estimates["answer_recall"].mean, cell(summary).estimates["answer_recall"].n) == (1, 1)
    assert (difference(summary).mean, difference(summary).n) == (1, 1)


def test_differences_pair_the_same_example():
    # unpaired, the means would differ by 0.5 - 1/3
    rows = [row(example="1", value=1), row(example="2", value=0), row("random", "2", 0), row("random", "1", 0)]
    summary = made([*rows, row("random", "3", 1)])
    for task in ("a", ""):
        found = difference(summary, task=task)
        assert (found.mean, found.n) == (0.5, 2)


def test_differences_keep_budgets_and_tasks_apart():
    rows = [row(value=1), row("random", value=0, keep=0.25), row("random", value=0, task="b")]
    assert made(rows).differences == ()


def test_differences_weigh_tasks_alike():
    rows = []
    for number in range(4):
        rows += [row(example=str(number), value=1), row("random", str(number), 0)]
    rows += [row(task="b", value=0), row("random", value=1, task="b")]
    assert difference(made(rows)).mean == 0
    assert [difference(made(rows), task=task).mean for task in "ab"] == [1, -1]


def test_who_is_compared_with_whom():
    names = ("full", "random", "default", "rival")
    rows = [row(name, value=1) for name in names] + [
        row(name, value=1, metric="unaltered", task="b") for name in names
    ]
    assert {(one.method, one.against, one.metric) for one in made(rows).differences} == {
        ("default", "random", "answer_recall"),
        ("rival", "random", "answer_recall"),
        ("default", "rival", "answer_recall"),
    }


def test_latencies_are_measured_compressions():
    rows = [
        row(seconds=0.5, tokens_before=70),
        row(example="2", seconds=None),
        row(example="3", seconds=0.1, status="fits"),
        row("random", "4", seconds=0.0),
    ]
    assert [(one.method, one.tokens_before, one.seconds) for one in made(rows).latencies] == [("default", 70, 0.5)]


def test_a_grid_holds_each_point_once():
    task = Task("a", "A", "", (), list, axes=("length", "depth"))
    points = [(10, 0.0, 1), (10, 0.0, 0), (10, 1.0, 1), (20, 0.0, math.nan)]
    rows = [
        row(example=str(number), value=value, axes={"length": x, "depth": y})
        for number, (x, y, value) in enumerate(points)
    ]
    found = made(rows, tasks=[task]).grid
    assert [(one.x, one.y, one.estimate.mean, one.estimate.n) for one in found] == [
        (10, 0.0, 0.5, 2),
        (10, 1.0, 1, 1),
    ]
    assert made(rows).grid == ()


def view(method="default", keep=0.5):
    return View(method, "q", "compressed", 9, 4, (), "text", keep=keep)


def test_examples_show_each_method_and_budget_once_in_order():
    keys = [("rival", 0.5), ("default", 0.25), ("default", 0.5), ("full", 1.0), ("default", 0.5), ("unknown", 0.5)]
    views = [(("a", "1", method, keep), view(method, keep)) for method, keep in keys]
    views += [(("b", "9", "rival", 0.5), view("rival")), (("zzz", "1", "rival", 0.5), view("rival"))]
    rows = [row(task="b", value=1), row(value=1), row("full", keep=1.0)]
    summary = made(rows, views=reversed(views), shown={("a", "1"): Shown("Who?", ("Petr",))})
    assert [(one.task, one.id, one.question, one.answers) for one in summary.examples] == [
        ("a", "1", "Who?", ("Petr",)), ("b", "9", "", ()),
    ]  # fmt: skip
    assert [(one.method, one.keep) for one in summary.examples[0].views] == [
        ("full", 1.0), ("default", 0.5), ("default", 0.25), ("rival", 0.5),
    ]  # fmt: skip


def test_the_seed_decides_the_intervals():
    rows = [row(example=str(number), value=math.sin(number)) for number in range(30)]
    one, same = made(rows), made(rows)
    other = summarise(rows, title="T", stamp={}, tasks=TASKS, methods=METHODS, seed=1)
    assert one == same
    assert cell(one).estimates != cell(other).estimates
    assert cell(one).estimates["answer_recall"].mean == cell(other).estimates["answer_recall"].mean


def test_groups_are_drawn_together():
    values = [1] * 10 + [0] * 10
    apart = [row(example=str(number), value=value) for number, value in enumerate(values)]
    together = [dataclasses.replace(one, group=str(one.metrics["answer_recall"])) for one in apart]
    widths = [
        found.high - found.low
        for found in (cell(made(rows)).estimates["answer_recall"] for rows in (apart, together))
    ]
    assert widths[1] == 1 > widths[0]
