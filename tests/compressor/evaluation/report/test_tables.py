import math
from dataclasses import replace

from kompakt.compressor.evaluation.report import tables
from kompakt.compressor.evaluation.summary import Cell, Difference, Estimate, Method, Summary


def cell(method, keep, mean, metric="f1", task=""):
    return Cell(task, method, keep, 10, keep, {metric: Estimate(mean, mean - 0.1, mean + 0.1, 10)})


METHODS = (
    Method("full", "reference"),
    Method("mine", "kompakt"),
    Method("ours", "kompakt"),
    Method("theirs", "peer"),
)
CELLS = (
    cell("full", 1.0, 0.9),
    cell("mine", 0.5, 0.7),
    cell("ours", 0.5, 0.6),
    cell("theirs", 0.5, 0.8),
    cell("mine", 0.1, 0.2),
    cell("ours", 0.1, math.nan),
)
SMALL = Summary("", {}, (), METHODS, {"f1": ""}, CELLS)


def best(verdict):
    return {
        (row.method.name, keep)
        for _, _, rows in verdict.groups
        for row in rows
        for keep, is_best in zip(verdict.keeps, row.best, strict=False)
        if is_best
    }


def test_the_best_of_each_side_is_marked_at_each_budget():
    verdict = tables.verdict(SMALL)
    assert verdict.keeps == (0.5, 0.1)
    assert best(verdict) == {("mine", 0.5), ("theirs", 0.5), ("mine", 0.1)}
    assert [role for role, _, _ in verdict.groups] == ["kompakt", "peer", "reference"]


def test_there_is_no_verdict_without_means_or_metrics():
    assert tables.verdict(replace(SMALL, cells=(cell("mine", 0.5, 0.7, task="t"),))) is None
    assert tables.verdict(replace(SMALL, cells=(), metrics={})) is None


def test_metrics_that_the_summary_does_not_describe_still_count():
    assert tables.metric_names(replace(SMALL, cells=(cell("mine", 0.5, 0.7, metric="new"),))) == ["f1", "new"]


def test_a_sign_needs_an_interval_on_one_side():
    def sign(low, high):
        return tables.sign(Difference("", "a", "b", 0.5, "f1", Estimate((low + high) / 2, low, high, 5)))

    assert [sign(0.1, 0.2), sign(-0.2, -0.1), sign(-0.1, 0.1), sign(0.0, 0.2), sign(math.nan, math.nan)] == [
        1,
        -1,
        0,
        0,
        0,
    ]


def test_scales_hold_what_they_are_of():
    scale = tables.scale_of([Estimate(-1.0, -2.0, 0.5, 3), Estimate(math.nan, math.nan, math.nan, 3)])
    assert [scale.place(value) for value in (-2, 0.5, -0.75, 9, math.nan)] == [0, 100, 50, 100, 50]
    assert tables.scale_of([Estimate(-1.0, -2.0, 0.5, 3)], around_zero=True).place(0) == 50
    assert tables.scale_of([]).place(0.5) == 50


def test_a_grid_of_all_tasks_keeps_its_places(summary):
    (grid,) = tables.grids(summary)
    assert grid.xs == (1000, 4000, 16000, 64000)
    assert [keep for keep, _ in grid.groups] == [0.5, 0.25, 0.1]
    by_place = {(one.method, one.keep, one.x, one.y): one.estimate for one in summary.grid}
    for keep, maps in grid.groups:
        for heat in maps:
            for y, row in heat.rows:
                assert row == tuple(by_place[heat.method, keep, x, y] for x in grid.xs)
