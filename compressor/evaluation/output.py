"""The files of a finished evaluation: JSON, CSV and the page."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from kompakt.compressor.errors import InputError
from kompakt.compressor.evaluation.summary import Cell, Estimate, Summary

SUMMARY_FILE: Final = "summary.json"
TABLE_FILE: Final = "summary.csv"
REPORT_FILE: Final = "report.html"

_MEASURED: Final = ("seconds", "tokens", "n_bytes", "seconds_to_first", "tokens_per_second")
_COLUMNS: Final = (
    "task", "method", "role", "keep", "kept", "metric", "mean", "low", "high", "n",
    "n_over_budget", "n_invalid", "n_checked", "n_passed_through", "n_failed", *_MEASURED,
)  # fmt: skip

_NOTHING: Final = Estimate(math.nan, math.nan, math.nan, 0)


def write_outputs(summary: Summary, folder: Path) -> list[Path]:
    """Write ``summary.json``, ``summary.csv`` and ``report.html`` into the folder of a run.

    Args:
        summary: What to write.
        folder: Where to.

    Returns:
        The files.

    Raises:
        MissingExtraError: If the extra ``report`` is not installed.
        InputError: If a file cannot be written.
    """
    from kompakt.compressor.evaluation.report.page import render_report

    files = [folder / name for name in (SUMMARY_FILE, TABLE_FILE, REPORT_FILE)]
    try:
        files[0].write_text(_json(summary), encoding="utf-8", errors="backslashreplace")
        with files[1].open("w", encoding="utf-8", errors="backslashreplace", newline="") as table:
            writer = csv.DictWriter(table, [*_COLUMNS, *summary.stamp])
            writer.writeheader()
            writer.writerows(_table(summary))
        files[2].write_text(render_report(summary), encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise InputError(f"cannot write into {folder}: {error.strerror or error}") from error
    return files


def _json(summary: Summary) -> str:
    content = asdict(summary)
    # each can be thousands, and the rows have them
    for name in ("examples", "latencies"):
        del content[name]
    return json.dumps(_finite(content), indent=1, ensure_ascii=False, default=str) + "\n"


def _finite(value: Any) -> Any:  # noqa: ANN401 (any JSON)
    """Replace what JSON cannot say by null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _table(summary: Summary) -> Iterator[dict[str, object]]:
    roles = {method.name: method.role for method in summary.methods}
    for cell in summary.cells:
        # where every example failed there is no metric, and that must be seen too
        for metric, found in cell.estimates.items() or [("", _NOTHING)]:
            yield _line(cell, roles[cell.method], metric, found) | dict(summary.stamp)


def _line(cell: Cell, role: str, metric: str, found: Estimate) -> dict[str, object]:
    return {
        "task": cell.task or "mean over tasks",
        "method": cell.method,
        "role": role,
        "keep": cell.keep,
        "kept": round(cell.kept, 4),
        "metric": metric,
        **{
            name: _measured(value) for name, value in (("mean", found.mean), ("low", found.low), ("high", found.high))
        },
        "n": found.n,
        "n_over_budget": cell.n_over_budget,
        "n_invalid": cell.n_invalid,
        "n_checked": cell.n_checked,
        "n_passed_through": cell.n_passed_through,
        "n_failed": cell.n_failed,
        **{name: _measured(getattr(cell, name)) for name in _MEASURED},
    }


def _measured(value: float) -> float | str:
    return "" if math.isnan(value) else round(value, 4)
