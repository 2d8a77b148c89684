"""Logs, tables and other text whose unit is the line."""

from __future__ import annotations

import re
from collections.abc import Sequence

from kompakt.compressor.types import Kind
from kompakt.compressor.units.sentences import lines_of
from kompakt.compressor.units.unit import Unit

_TIMESTAMP = re.compile(
    r"^\W{0,2}(?:\d{4}[-/]\d\d[-/]\d\d|\d\d:\d\d:\d\d|[A-Z][a-z]{2} +\d{1,2} \d\d:\d\d|\d{10,13}\b)"
)
_LEVEL = re.compile(r"\b(?:TRACE|DEBUG|INFO|NOTICE|WARN|WARNING|ERROR|CRITICAL|FATAL)\b")
_DELIMITERS = ("|", "\t", ",", ";")


def is_log(text: str) -> bool:
    """Tell whether most lines start with a time or name a log level."""
    lines = _filled(text)
    marked = sum(1 for line in lines if _TIMESTAMP.match(line) or _LEVEL.search(line[:80]))
    return len(lines) >= 3 and marked >= 0.5 * len(lines)


def table_delimiter(text: str) -> str | None:
    """Return the character that parts the columns, if every line has the same number of them; else None."""
    lines = _filled(text)
    if len(lines) < 3:
        return None
    for delimiter in _DELIMITERS:
        counts = [line.count(delimiter) for line in lines]
        if counts[0] >= 1 and counts.count(counts[0]) >= 0.9 * len(counts) and _is_tabular(lines, delimiter):
            return delimiter
    return None


def _is_tabular(lines: Sequence[str], delimiter: str) -> bool:
    """Prose has commas too, but its lines do not consist of short cells."""
    cells = [cell.strip() for line in lines for cell in line.split(delimiter)]
    return sum(len(cell) for cell in cells) <= 40 * len(cells) and not any(
        line.rstrip().endswith(".") for line in lines[1:3]
    )


def split_lines(text: str, *, document: int, kind: Kind, context: str = "") -> list[Unit]:
    """Cut text into lines; blank ones stay with the line before them."""
    units: list[Unit] = []
    start = 0
    for line in lines_of(text):
        end = start + len(line)
        if units and not line.strip():
            units[-1] = Unit(document, units[-1].start, end, kind, units[-1].text, context)
        else:
            units.append(Unit(document, start, end, kind, line, context))
        start = end
    return units


def split_table(text: str, *, document: int, context: str = "") -> list[Unit]:
    """Cut a table into rows; every row requires the header, without which its cells mean nothing."""
    rows = split_lines(text, document=document, kind=Kind.TABLE, context=context)
    n_header = 2 if len(rows) > 1 and re.fullmatch(r"[\s|:+-]*-[\s|:+-]*", rows[1].text) else 1
    header = tuple(range(n_header))
    names = rows[0].text.strip() if rows else ""
    return [
        row if index < n_header else Unit(
            row.document, row.start, row.end, row.kind, row.text, f"{context} {names}".strip(), requires=header
        )
        for index, row in enumerate(rows)
    ]  # fmt: skip


def _filled(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip()]
