"""Rows and lines that stand out from their neighbours: the one FATAL among sixty OK must never go unseen."""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, Final

import regex

from kompakt.compressor.types import Kind
from kompakt.compressor.units.unit import Layout, Units

_MIN_ROWS: Final = 8
"""Among fewer rows nothing can be called rare."""
_RARE_SHARE: Final = 0.05
_FAR: Final = 6.0
"""Distance from the median, in median absolute deviations, from which a number stands out."""

_ALARM = regex.compile(
    r"\b(?:FATAL|CRITICAL|PANIC|ERROR|SEVERE|EMERG|ALERT|Traceback|\w*(?:Error|Exception)|segfault|FAIL(?:ED|URE)?)\b"
    r"|\b(?i:fatal|panic|failed|failure|cannot|refused|denied|timed out|out of memory)\b"
)
_VARIABLE = regex.compile(
    r"0x[0-9a-fA-F]+|[0-9a-fA-F]{8,}(?:-[0-9a-fA-F]{4,})*|\d+(?:[.,:/_-]\d+)*|(?<==)\S+|\"[^\"]*\""
)


def is_alarm(text: str) -> bool:
    """Tell whether a line reports a failure."""
    return _ALARM.search(text) is not None


def template(line: str) -> str:
    """Return a log line with its numbers, hashes, addresses and quoted values taken out."""
    return _VARIABLE.sub("*", line).strip()


def repeated_lines(units: Units) -> dict[int, int]:
    """Return, for each log line that has the template of an earlier one, how many came before it."""
    seen: Counter[str] = Counter()
    found = {}
    for index, unit in enumerate(units):
        if unit.kind is Kind.LOG:
            key = template(unit.text)
            if seen[key]:
                found[index] = seen[key]
            seen[key] += 1
    return found


def outlying_rows(units: Units) -> frozenset[int]:
    """Return the indices of the rows of JSON arrays, JSON Lines and tables that differ from their siblings.

    A row stands out by a value or a set of keys that nearly no other row has, where values otherwise repeat, or by a
    number far from the median.
    """
    found: set[int] = set()
    for members in _sibling_rows(units).values():
        if len(members) >= _MIN_ROWS:
            records = {index: _record(units.source(units[index])) for index in members}
            found |= _unlike_the_others({index: record for index, record in records.items() if record is not None})
    return frozenset(found)


def _sibling_rows(units: Units) -> dict[Hashable, list[int]]:
    rows: dict[Hashable, list[int]] = defaultdict(list)
    for index, unit in enumerate(units):
        parent = unit.parent
        if unit.kind is not Kind.JSON:
            continue
        if parent is None or units[parent].layout in (Layout.JSON_ARRAY, Layout.JSON_LINES):
            rows[unit.document, parent].append(index)
    return rows


def _record(source: str) -> Mapping[str, Any] | None:
    try:
        value = json.loads(source)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _unlike_the_others(records: Mapping[int, Mapping[str, Any]]) -> set[int]:
    columns: dict[str, dict[int, Any]] = defaultdict(dict)
    for index, record in records.items():
        for key, value in record.items():
            columns[key][index] = value
    found = _rare({index: tuple(sorted(record)) for index, record in records.items()})
    for column in columns.values():
        if len(column) >= _MIN_ROWS:
            found |= _far(column) | _rare({index: value for index, value in column.items() if _is_category(value)})
    return found


def _is_category(value: object) -> bool:
    return isinstance(value, (bool, type(None))) or (isinstance(value, str) and len(value) <= 40)


def _rare(values: Mapping[int, Hashable]) -> set[int]:
    """Return the rows whose value nearly no other row has, if the column is one of few values."""
    counts = Counter(values.values())
    if len(values) < _MIN_ROWS or len(counts) > max(4, 0.2 * len(values)):
        return set()
    limit = max(1, math.floor(_RARE_SHARE * len(values)))
    return {index for index, value in values.items() if counts[value] <= limit}


def _far(column: Mapping[int, object]) -> set[int]:
    numbers = {
        index: float(value)
        for index, value in column.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    }
    if len(numbers) < _MIN_ROWS:
        return set()
    median = statistics.median(numbers.values())
    spread = statistics.median(_distances(numbers.values(), median))
    if spread == 0:
        return set()
    return {index for index, number in numbers.items() if abs(number - median) > _FAR * spread}


def _distances(numbers: Iterable[float], median: float) -> Sequence[float]:
    return [abs(number - median) for number in numbers]
