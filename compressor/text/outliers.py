"""Rows and lines that stand out from their neighbours: the one FATAL among sixty OK must never go unseen."""

from __future__ import annotations

import contextlib
import csv
import json
import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Mapping
from typing import Final, TypeGuard

import regex

from kompakt.compressor.types import Kind
from kompakt.compressor.units.unit import Layout, Units

_MIN_ROWS: Final = 8
"""Among fewer rows nothing can be called rare."""
_RARE_SHARE: Final = 0.05
_FAR: Final = 6.0
"""Distance from the median, in median absolute deviations, from which a number stands out."""

_HUGE: Final = 1e300
_MAX_DEPTH: Final = 3
_ROW_LAYOUTS: Final = (Layout.JSON_ARRAY, Layout.JSON_LINES, Layout.JSON_OBJECT)

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
    """Return the indices of the rows of JSON, JSON Lines and tables that differ from their siblings.

    A row stands out by a value or a set of keys that nearly no other row has, where values otherwise repeat, or by a
    number far from the median. Values nested in a row count by their path.
    """
    found: set[int] = set()
    for members in _sibling_rows(units).values():
        if len(members) >= _MIN_ROWS:
            records = {index: _record(units, index) for index in members}
            found |= _unlike_the_others({index: record for index, record in records.items() if record})
    return frozenset(found)


def _sibling_rows(units: Units) -> dict[Hashable, list[int]]:
    rows: dict[Hashable, list[int]] = defaultdict(list)
    for index, unit in enumerate(units):
        if unit.kind is Kind.TABLE and unit.requires:
            rows[unit.document, unit.requires].append(index)
        elif unit.kind is Kind.JSON and unit.parent is not None and units[unit.parent].layout in _ROW_LAYOUTS:
            rows[unit.document, unit.parent].append(index)
    return rows


def _record(units: Units, index: int) -> dict[str, object]:
    """Return a row as its values by column; empty if it is no record."""
    unit = units[index]
    source = units.source(unit)
    if unit.kind is Kind.TABLE:
        cells = max((_cells(source, delimiter) for delimiter in "|\t,;"), key=len)
        return {str(column): _as_number(cell.strip()) for column, cell in enumerate(cells)}
    is_member = unit.parent is not None and units[unit.parent].layout is Layout.JSON_OBJECT
    try:
        value = json.loads(f"{{{source}}}" if is_member else source)
    except (ValueError, RecursionError):
        return {}
    if is_member:
        value = next(iter(value.values()), None)
    return dict(_columns(value)) if isinstance(value, dict) else {}


def _cells(source: str, delimiter: str) -> list[str]:
    # read with another delimiter than the table's, a quoted cell of several lines is an error
    with contextlib.suppress(csv.Error):
        return next(csv.reader([source.strip().strip("|")], delimiter=delimiter), [])
    return []


def _columns(record: Mapping[str, object], path: str = "", depth: int = 0) -> Iterator[tuple[str, object]]:
    for key, value in record.items():
        if isinstance(value, dict) and depth < _MAX_DEPTH:
            yield from _columns(value, f"{path}{key}.", depth + 1)
        else:
            yield f"{path}{key}", value


def _as_number(cell: str) -> object:
    try:
        return float(cell)
    except ValueError:
        return cell


def _unlike_the_others(records: Mapping[int, Mapping[str, object]]) -> set[int]:
    columns: dict[str, dict[int, object]] = defaultdict(dict)
    for index, record in records.items():
        for key, value in record.items():
            columns[key][index] = value
    found = _rare({index: tuple(sorted(record)) for index, record in records.items()})
    for column in columns.values():
        if len(column) >= _MIN_ROWS:
            found |= _far(column) | _rare({index: value for index, value in column.items() if _is_category(value)})
    return found


def _is_category(value: object) -> TypeGuard[Hashable]:
    return isinstance(value, (bool, type(None), int, float)) or (isinstance(value, str) and len(value) <= 40)


def _rare(values: Mapping[int, Hashable]) -> set[int]:
    """Return the rows whose value nearly no other row has; none where that holds for many, as in a column of ids."""
    if len(values) < _MIN_ROWS:
        return set()
    counts = Counter(values.values())
    limit = max(1, math.floor(_RARE_SHARE * len(values)))
    rare = {index for index, value in values.items() if counts[value] <= limit}
    return rare if len(rare) <= max(2, 2 * _RARE_SHARE * len(values)) else set()


def _far(column: Mapping[int, object]) -> set[int]:
    numbers = {
        index: float(value)
        for index, value in column.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < _HUGE
    }
    if len(numbers) < _MIN_ROWS:
        return set()
    median = statistics.median(numbers.values())
    spread = statistics.median(abs(number - median) for number in numbers.values())
    if spread == 0:
        return set()
    return {index for index, number in numbers.items() if abs(number - median) > _FAR * spread}
