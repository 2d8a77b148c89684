"""The rows of a run: appended as they are finished, read back to go on after an interruption."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias

from kompakt.compressor.errors import ConfigError, InputError
from kompakt.compressor.inspection import InspectedDocument, Piece, View
from kompakt.compressor.types import Kind

ROWS_FILE: Final = "rows.jsonl"
VIEWS_FILE: Final = "views.jsonl"
RUN_FILE: Final = "run.json"

Key: TypeAlias = tuple[str, str, str, float]
"""Task, example, method and budget of a row."""


@dataclass(frozen=True, slots=True)
class ResultRow:
    """One example, compressed by one method to one budget, and what that was worth.

    Args:
        task: The task's name.
        example: The example's id.
        digest: Hash of the example's content.
        dataset: Where the example comes from.
        group: Examples of one group share their context.
        axes: The example's position on the task's grid.
        method: The method's name.
        keep: The fraction asked for.
        max_tokens: The ceiling.
        tokens_before: Tokens of the context, without the question.
        tokens_after: Tokens, or positions, that remain.
        n_bytes: Size of the payload.
        status: How compression ended; ``failed`` if it raised.
        reason: Why, where that is a question.
        seconds: Time of compression with nothing remembered from earlier calls; None if it was not measured so.
        metrics: Scores by name; what could not be judged is not there.
        is_valid: Whether JSON and code still parse; None if there was none.
        answer: What the reader answered.
        n_positions: Positions of the whole prompt at the reader.
        seconds_to_first: The reader's time to its first token.
        tokens_per_second: The reader's rate of decoding.
        not_read: Why the reader did not read; empty if it did.
        stamp: Which of the run's stamps says where the row was computed.
    """

    task: str
    example: str
    digest: str
    dataset: str
    group: str
    axes: Mapping[str, float]
    method: str
    keep: float
    max_tokens: int
    tokens_before: int
    tokens_after: int
    n_bytes: int
    status: str
    reason: str = ""
    seconds: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    is_valid: bool | None = None
    answer: str = ""
    n_positions: int = 0
    seconds_to_first: float = 0.0
    tokens_per_second: float = 0.0
    not_read: str = ""
    stamp: int = 0

    @property
    def key(self) -> Key:
        """What tells it from all other rows."""
        return self.task, self.example, self.method, self.keep


class RunFolder:
    """The folder of a run.

    Args:
        path: Where it is, made if it does not exist.

    Raises:
        InputError: If it cannot be made or holds rows that cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stamp = 0
        try:
            path.mkdir(parents=True, exist_ok=True)
            for name in (ROWS_FILE, VIEWS_FILE):
                _drop_torn_line(path / name)
        except OSError as error:
            raise InputError(f"cannot use {path}: {error.strerror or error}") from error

    def settle(self, settings: Mapping[str, Any], stamp: Mapping[str, str]) -> None:
        """Write what decides the rows, or check that it is what an earlier run wrote.

        Args:
            settings: What decides the rows.
            stamp: Where the rows to come are computed.

        Raises:
            ConfigError: If the folder holds a run with other settings; the message names the first that differs.
        """
        known = self._read_run()
        before = json.dumps(known)
        # through JSON, so that what is compared is what would be read back
        wanted = json.loads(json.dumps(settings))
        for name, value in wanted.items():
            if known["settings"].get(name, value) != value:
                raise ConfigError(
                    f"{self.path} holds a run with {name} = {known['settings'][name]!r}, not {value!r}; "
                    "give another folder, or delete that one to start again"
                )
        stamps = known["stamps"]
        if not stamps or _without_time(stamps[-1]) != _without_time(stamp):
            stamps.append(dict(stamp))
        self.stamp = len(stamps) - 1
        content = {"settings": known["settings"] | wanted, "stamps": stamps}
        if json.dumps(content) != before:
            new = self.path / f"{RUN_FILE}.new"
            new.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            # in one step, so that a kill leaves the old record or the new one
            new.replace(self.path / RUN_FILE)

    def _read_run(self) -> dict[str, Any]:
        file = self.path / RUN_FILE
        if not file.exists():
            if (self.path / ROWS_FILE).exists():
                raise InputError(f"{self.path} has rows, but no {RUN_FILE} that says of what; give another folder")
            return {"settings": {}, "stamps": []}
        try:
            known = json.loads(file.read_text(encoding="utf-8"))
            return {"settings": dict(known["settings"]), "stamps": list(known["stamps"])}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{file} is not the record of a run: {error}; give another folder") from error

    def rows(self) -> Iterator[ResultRow]:
        """Read the rows in the order in which they were finished, each once."""
        seen: set[Key] = set()
        for line in _lines(self.path / ROWS_FILE):
            try:
                row = ResultRow(**line)
            except TypeError as error:
                raise InputError(f"{self.path / ROWS_FILE} is of another version: {error}") from error
            # two runs into one folder at the same time may both have computed a row
            if row.key not in seen:
                seen.add(row.key)
                yield row

    def append(self, row: ResultRow, view: View | None = None) -> None:
        """Write a row, and what is to be looked at, so that a later run need not compute it again."""
        if view is not None:
            line = {"task": row.task, "example": row.example, "method": row.method, "keep": row.keep}
            _append(self.path / VIEWS_FILE, line | {"view": _packed(view)})
        _append(self.path / ROWS_FILE, asdict(row))

    def views(self) -> Iterator[tuple[Key, View]]:
        """Read what is to be looked at."""
        for line in _lines(self.path / VIEWS_FILE):
            yield (line["task"], line["example"], line["method"], line["keep"]), _unpacked(line["view"])


def _without_time(stamp: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in stamp.items() if name != "time"}


def _append(file: Path, line: Mapping[str, Any]) -> None:
    with file.open("ab") as out:
        out.write(json.dumps(line, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")
        out.flush()
        os.fsync(out.fileno())


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    if not file.exists():
        return
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                yield json.loads(line)
            except ValueError as error:
                raise InputError(f"{file}, line {number} is damaged: {error}; delete the line to go on") from error


def _drop_torn_line(file: Path) -> None:
    """Remove what a killed process left of its last line."""
    if not file.exists():
        return
    with file.open("rb+") as content:
        data = content.read()
        if data and not data.endswith(b"\n"):
            content.truncate(data.rfind(b"\n") + 1)


def _packed(view: View) -> dict[str, Any]:
    packed = asdict(view)
    for document, source in zip(packed["documents"], view.documents, strict=True):
        document["pieces"] = [
            (piece.start, piece.end, piece.is_kept, piece.stage, piece.score, piece.kind) for piece in source.pieces
        ]
    return packed


def _unpacked(packed: Mapping[str, Any]) -> View:
    documents = tuple(
        InspectedDocument(
            item["id"],
            item["title"],
            item["text"],
            tuple(_piece(*piece) for piece in item["pieces"]),
        )
        for item in packed["documents"]
    )
    return View(**{**packed, "documents": documents})


def _piece(start: int, end: int, is_kept: bool, stage: str, score: float | None, kind: str) -> Piece:
    return Piece(start, end, is_kept, stage, score, Kind(kind))
