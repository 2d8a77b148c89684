"""Logs, tables and other text whose unit is the line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Final

from kompakt.compressor.types import Kind
from kompakt.compressor.units.sentences import filled_lines
from kompakt.compressor.units.unit import Unit

_DATE: Final = r"\d{4}[-/]\d\d[-/]\d\d|\d\d?/[A-Z][a-z]{2}/\d{4}|[A-Z][a-z]{2} +\d{1,2} \d\d:\d\d"
_TIME: Final = re.compile(rf"\W{{0,2}}(?:{_DATE}|\d\d:\d\d:\d\d|\d{{10,13}}\b)|[\w.:-]+ \S+ \S+ \[(?:{_DATE})")
_LEVEL: Final = re.compile(r"\b(?:TRACE|DEBUG|INFO|NOTICE|WARN|WARNING|ERROR|CRITICAL|FATAL)\b")
_DELIMITERS: Final = ("|", "\t", ",", ";")
_QUOTED: Final = re.compile(r'"[^"]*"')
_RULE: Final = re.compile(r"[\s|:+-]*-[\s|:+-]*")
_NUMBER: Final = re.compile(r"[-+$€£]?\d[\d.,:/ -]*[%a-zA-Z]?")
_MAX_CELL: Final = 40


def is_log(text: str) -> bool:
    """Tell whether most lines start with a time or name a log level."""
    lines = _filled(text)
    marked = sum(1 for line in lines if _is_log_line(line))
    return len(lines) >= 3 and marked >= 0.5 * len(lines)


def _is_log_line(line: str) -> bool:
    return bool(_TIME.match(line) or _LEVEL.search(line, 0, 80))


def table_delimiter(text: str) -> str | None:
    """Return the character that parts the columns, if nearly all lines have the same number of them; else None.

    A table whose first line looks like one of a log is none: it has no header, and its rows stand alone.
    """
    lines = [_QUOTED.sub('""', line) if '"' in line else line for line in _join_quoted(_filled(text))]
    if len(lines) < 3 or _is_log_line(lines[0]):
        return None
    for delimiter in _DELIMITERS:
        counts = [line.count(delimiter) for line in lines]
        if counts[0] >= 1 and counts.count(counts[0]) >= 0.9 * len(counts) and _is_tabular(lines, delimiter):
            return delimiter
    return None


def _is_tabular(lines: Sequence[str], delimiter: str) -> bool:
    """Prose has commas too, but with a space or a line's end after them, and long stretches between."""
    n_delimiters = sum(line.count(delimiter) for line in lines)
    n_cells = n_delimiters + len(lines)
    if sum(map(len, lines)) > _MAX_CELL * n_cells or any(line.rstrip().endswith(".") for line in lines[1:3]):
        return False
    if delimiter in "|\t":
        return True
    loose = sum(line.count(f"{delimiter} ") + line.rstrip().endswith(delimiter) for line in lines)
    return loose < 0.5 * n_delimiters


def split_lines(text: str, *, document: int, kind: Kind, context: str = "") -> list[Unit]:
    """Cut text into lines; blank ones stay with the line before them."""
    lines = filled_lines(text)
    bounds = pairwise(accumulate(map(len, lines), initial=0))
    return [Unit(document, start, end, kind, line, context) for line, (start, end) in zip(lines, bounds, strict=True)]


def split_table(text: str, *, document: int, context: str = "") -> list[Unit]:
    """Cut a table into rows; every row requires the header, without which its cells mean nothing."""
    rows = _join_quoted(filled_lines(text))
    header = tuple(range(_header_height(rows)))
    names = f"{context} {rows[0].strip()}".strip() if header else context
    bounds = list(pairwise(accumulate(map(len, rows), initial=0)))
    return [
        Unit(document, start, end, Kind.TABLE, row, context)
        if index in header
        else Unit(document, start, end, Kind.TABLE, row, names, requires=header)
        for index, (row, (start, end)) in enumerate(zip(rows, bounds, strict=True))
    ]


def _header_height(rows: Sequence[str]) -> int:
    """Return how many rows name the columns: two if a rule follows the first, none if that begins with a number."""
    if len(rows) > 1 and _RULE.fullmatch(rows[1]):
        return 2
    if not rows:
        return 0
    cells = (cell.strip(' "\n') for cell in re.split(r"[|\t,;]", rows[0]))
    return 0 if _NUMBER.fullmatch(next(filter(None, cells), "")) else 1


def _join_quoted(lines: list[str]) -> list[str]:
    """Join the lines over which a quoted cell of a CSV file runs, unless a quote has no partner."""
    joined: list[list[str]] = []
    is_open = False
    for line in lines:
        if is_open:
            joined[-1].append(line)
        else:
            joined.append([line])
        is_open ^= line.count('"') % 2 == 1
    return lines if is_open else ["".join(row) for row in joined]


def _filled(text: str) -> list[str]:
    return [line for line in text.split("\n") if line.strip()]
