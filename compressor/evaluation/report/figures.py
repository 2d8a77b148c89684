"""The charts of a report: which points of the summary go where."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median, quantiles

from kompakt.compressor.evaluation.report import charts, formats
from kompakt.compressor.evaluation.report.looks import Look
from kompakt.compressor.evaluation.report.tables import metric_names
from kompakt.compressor.evaluation.summary import Cell, Latency, Summary


@dataclass(frozen=True, slots=True)
class Chart:
    """One metric on one task.

    Args:
        metric: The metric's position, as the page names it.
        small: SVG for a narrow column; empty if there are no numbers.
        large: SVG for the width of the page; empty if there is only the small one.
    """

    metric: int
    small: str
    large: str = ""


@dataclass(frozen=True, slots=True)
class Panel:
    """The charts of one task, of which one is shown at a time.

    Args:
        title: A heading.
        summary: What the task measures.
        charts: One for each metric.
        is_mean: Whether it is the mean over tasks.
    """

    title: str
    summary: str
    charts: tuple[Chart, ...]
    is_mean: bool = False


def panels(summary: Summary, looks: Mapping[str, Look]) -> list[Panel]:
    """Return the rate-quality curves: the mean over tasks first, then each task."""
    by_task: dict[str, list[Cell]] = {}
    for cell in summary.cells:
        by_task.setdefault(cell.task, []).append(cell)
    metrics = metric_names(summary)
    result = []
    if "" in by_task:
        charts_ = _charts(summary, by_task[""], metrics, looks, is_large=True)
        result.append(Panel("Mean over tasks", "Every task counts the same.", charts_, is_mean=True))
    for task in summary.tasks:
        charts_ = _charts(summary, by_task.get(task.name, []), metrics, looks)
        result.append(Panel(task.title or task.name, task.summary, charts_))
    return result


def _charts(
    summary: Summary,
    cells: Sequence[Cell],
    metrics: Sequence[str],
    looks: Mapping[str, Look],
    *,
    is_large: bool = False,
) -> tuple[Chart, ...]:
    result = []
    for index, metric in enumerate(metrics):
        series = _series(summary, cells, metric, looks)
        large = charts.curves(series, is_large=True) if is_large else ""
        result.append(Chart(index, charts.curves(series), large))
    return tuple(result)


def _series(summary: Summary, cells: Sequence[Cell], metric: str, looks: Mapping[str, Look]) -> list[charts.Series]:
    result = []
    for method in summary.methods:
        own = [cell for cell in cells if cell.method == method.name and metric in cell.estimates]
        points = [_point(cell, metric) for cell in sorted(own, key=lambda cell: cell.keep)]
        if points:
            result.append(charts.Series(looks[method.name], tuple(points), is_level=method.role == "reference"))
    # what is drawn last lies on top: the first methods are the reader's own
    return result[::-1]


def _point(cell: Cell, metric: str) -> charts.Point:
    estimate = cell.estimates[metric]
    mean, low, high = map(formats.quality, (estimate.mean, estimate.low, estimate.high))
    asked, kept = formats.asked(cell.keep), formats.percent(cell.kept)
    title = f"{cell.method}\nasked {asked}, kept {kept}\n{metric} {mean} [{low}, {high}]"
    return charts.Point(cell.kept, estimate.mean, estimate.low, estimate.high, title)


@dataclass(frozen=True, slots=True)
class Speed:
    """How fast a method was.

    Args:
        method: The method's name.
        n: Number of compressions.
        tokens: Median tokens that went in.
        seconds: Median seconds.
        slow: Seconds that nine of ten compressions stayed under.
        rate: Median tokens a second.
    """

    method: str
    n: int
    tokens: float
    seconds: float
    slow: float
    rate: float


def speeds(summary: Summary) -> list[Speed]:
    """Return how fast each method was, in the order of the methods."""
    by_method = _by_method(summary.latencies)
    return [_speed(method.name, by_method[method.name]) for method in summary.methods if method.name in by_method]


def latency_chart(summary: Summary, looks: Mapping[str, Look]) -> Chart:
    """Return the chart of seconds over the length of the input: medians of lengths that are close together."""
    by_method = _by_method(summary.latencies)
    series = [
        charts.Series(looks[method.name], _binned(method.name, by_method[method.name]))
        for method in reversed(summary.methods)
        if method.name in by_method
    ]
    return Chart(0, charts.scatter(series), charts.scatter(series, is_large=True))


def _by_method(latencies: Iterable[Latency]) -> dict[str, list[Latency]]:
    result: dict[str, list[Latency]] = {}
    for latency in latencies:
        if math.isfinite(latency.seconds):
            result.setdefault(latency.method, []).append(latency)
    return result


def _speed(method: str, latencies: Sequence[Latency]) -> Speed:
    times = [latency.seconds for latency in latencies]
    rates = [latency.tokens_before / latency.seconds for latency in latencies if latency.seconds > 0]
    return Speed(
        method,
        len(times),
        median(latency.tokens_before for latency in latencies),
        median(times),
        _quantile(times, 9),
        median(rates) if rates else math.nan,
    )


def _quantile(values: Sequence[float], tenth: int) -> float:
    return quantiles(values, n=10, method="inclusive")[tenth - 1] if len(values) > 1 else values[0]


def _binned(method: str, latencies: Sequence[Latency]) -> tuple[charts.Point, ...]:
    bins: dict[int, list[Latency]] = {}
    for latency in latencies:
        if latency.tokens_before > 0:
            # two bins for each doubling
            bins.setdefault(math.floor(math.log2(latency.tokens_before) * 2), []).append(latency)
    return tuple(_bin(method, bins[index]) for index in sorted(bins))


def _bin(method: str, latencies: Sequence[Latency]) -> charts.Point:
    times = [latency.seconds for latency in latencies]
    tokens, middle = median(latency.tokens_before for latency in latencies), median(times)
    low, _, high = quantiles(times, n=4, method="inclusive") if len(times) > 1 else (middle,) * 3
    title = (
        f"{method}\nabout {formats.count(tokens)} tokens: median {formats.seconds(middle)}\n"
        f"middle half {formats.seconds(low)} to {formats.seconds(high)}, n = {len(times)}"
    )
    return charts.Point(tokens, middle, low, high, title)
