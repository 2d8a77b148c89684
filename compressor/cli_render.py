"""What the command line writes: results as text, JSON and tables, and the one-line summary."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import typer
from rich.console import Console
from rich.text import Text

from kompakt.compressor.errors import ConfigError, InputError
from kompakt.compressor.explain import merged_spans
from kompakt.compressor.types import Compressed, Status

if TYPE_CHECKING:
    from rich.table import Table

_WIDE = 400


def console(*, stderr: bool = False) -> Console:
    """Return a console that breaks no line where nobody watches."""
    made = Console(stderr=stderr, highlight=False, markup=False, emoji=False)
    if not made.is_terminal:
        made.width = _WIDE
    return made


def show(content: Text | Table) -> None:
    """Print text or a table to the standard output."""
    screen = console()
    with screen.capture() as captured:
        # running text is for the terminal to wrap, so that copies of it are whole
        screen.print(content, soft_wrap=isinstance(content, Text))
    with open_output(None) as file:
        write_all(file, captured.get().encode(sys.stdout.encoding or "utf-8", "backslashreplace"))


def write_all(file: BinaryIO, data: bytes) -> None:
    """Write all of ``data``, also where PYTHONUNBUFFERED makes the standard output write as much as it likes."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) or 0 :]


def say(message: str) -> None:
    """Write a line to the standard error."""
    typer.echo(message, err=True)


def say_error(message: object) -> None:
    """Write an error to the standard error, on one line."""
    say(f"error: {one_line(message)}")


def one_line(message: object) -> str:
    """Return a message on a single line, without control characters."""
    return printable(" ".join(str(message).split()))


def printable(text: str) -> str:
    """Return text that cannot steer a terminal: control characters but tabs and line ends become visible."""
    steering = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\t\n\r"}
    return text.translate(steering).encode("utf-8", "backslashreplace").decode()


@contextlib.contextmanager
def open_output(path: str | None) -> Iterator[BinaryIO]:
    """Open the file to write to, or the standard output for None and ``-``.

    Raises:
        InputError: If it cannot be written.
    """
    if path is None or path == "-":
        if sys.stdout is None:
            raise InputError("standard output is closed; give --output")
        sys.stdout.flush()
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    try:
        file = Path(path).open("wb")  # noqa: SIM115 (errors while writing are not errors of opening)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from error
    with file:
        yield file


def check_output(path: str | None) -> None:
    """Check before any work that the output has a place.

    Raises:
        InputError: If it is a folder, or its folder does not exist.
    """
    if path is None or path == "-":
        return
    if Path(path).is_dir():
        raise InputError(f"cannot write {path}: it is a folder")
    if not Path(path).absolute().parent.is_dir():
        raise InputError(f"cannot write {path}: its folder does not exist")


def counts(before: int, after: int) -> str:
    """Return token counts in words."""
    return f"{before} -> {after} tokens ({after / before if before else 1.0:.1%} kept)"


def summary(result: Compressed, seconds: float) -> str:
    """Return one line on what happened."""
    status = result.outcome.status.replace("_", " ")
    if result.outcome.status is Status.FITS:
        return f"{status}: {result.tokens_before} tokens are within the budget, nothing was removed"
    if result.outcome.status is Status.PASSED_THROUGH:
        return one_line(f"{status}: {result.tokens_before} tokens unchanged, because {result.outcome.reason}")
    documents = f"{len(result.documents)} of {len(result.sources)} documents"
    notes = "".join(f"; {trace.note}" for trace in result.trace if trace.note)
    line = f"{status}: {counts(result.tokens_before, result.tokens_after)} in {seconds:.2f} s, {documents}{notes}"
    return one_line(line)


def to_json(result: Compressed) -> dict[str, object]:
    """Return everything about a result as JSON values."""
    spans = []
    position = 0
    for part in (part.source for part in result.parts):
        bounds = [*part.starts, len(part.text)]
        for span, start, end in zip(part.spans, bounds, bounds[1:], strict=False):
            spans.append(
                {
                    "document_id": span.document_id,
                    "start": span.start,
                    "end": span.end,
                    "kind": span.kind,
                    "protected": span.protected,
                    "text_start": position + start,
                    "text_end": position + end,
                }
            )
        position += len(part.text)
    return {
        "text": result.text,
        "documents": documents_json(result),
        "spans": spans,
        "outcome": outcome_json(result),
        "tokens_before": result.tokens_before,
        "tokens_after": result.tokens_after,
        "n_bytes": result.n_bytes,
        "trace": [
            {
                "stage": trace.stage,
                "seconds": round(trace.seconds, 6),
                "tokens_before": trace.tokens_before,
                "tokens_after": trace.tokens_after,
                "cache_hits": trace.cache_hits,
                "cache_misses": trace.cache_misses,
                "note": trace.note,
            }
            for trace in result.trace
        ],
    }


def documents_json(result: Compressed) -> list[dict[str, object]]:
    """Return the documents that kept something."""
    return [{"id": doc.id, "text": doc.text, "metadata": dict(doc.metadata)} for doc in result.documents]


def outcome_json(result: Compressed) -> dict[str, str]:
    """Return how the call ended."""
    return {"status": result.outcome.status, "reason": result.outcome.reason}


def line_json(name: str | int, result: Compressed) -> bytes:
    """Return the output line of a JSON Lines record."""
    line = {
        "id": name,
        "text": result.text,
        "documents": documents_json(result),
        "outcome": outcome_json(result),
        "tokens_before": result.tokens_before,
        "tokens_after": result.tokens_after,
    }
    return dump_json(line)


def dump_json(value: object, *, indent: int | None = None) -> bytes:
    """Return a value as a line of JSON."""
    try:
        return json.dumps(value, ensure_ascii=False, indent=indent).encode() + b"\n"
    except UnicodeEncodeError:  # a file name or an id that has no UTF-8 form
        return json.dumps(value, indent=indent).encode() + b"\n"


def explanation(result: Compressed) -> Text:
    """Return a readable account of a result with the text of each kept range."""
    told = Text()
    reason = f": {one_line(result.outcome.reason)}" if result.outcome.reason else ""
    told.append(f"{result.outcome.status.replace('_', ' ')}{reason}\n", style="bold")
    told.append(counts(result.tokens_before, result.tokens_after) + "\n")
    for trace in result.trace:
        told.append(f"stage {trace.stage}: {trace.tokens_before} -> {trace.tokens_after} tokens")
        told.append(f" in {trace.seconds:.3f} s{f' ({one_line(trace.note)})' if trace.note else ''}\n")
    kept = {document.id for document in result.documents}
    dropped = [source.id or "" for source in result.sources if source.id not in kept]
    if dropped:
        told.append(
            f"nothing kept of {len(dropped)} of {len(result.sources)} documents: {printable(', '.join(dropped))}\n"
        )
    texts = {source.id or "": source.text for source in result.sources}
    for span in merged_spans(result):
        told.append(f"\n{printable(span.document_id)}[{span.start}:{span.end}]", style="cyan")
        told.append(f" {span.kind}{' protected' if span.protected else ''}\n", style="dim")
        body = printable(texts[span.document_id][span.start : span.end]).strip("\r\n")
        told.append("".join(f"  {line}\n" for line in body.splitlines()))
    told.rstrip()
    return told


def compressor_table(names: list[str]) -> Table:
    """Return the compressors with the first line of their docstrings as a table."""
    from rich.table import Table

    from kompakt.compressor.registry import compressor_summary

    table = Table("name", "what it does", box=None, pad_edge=False)
    for name in names:
        try:
            described = compressor_summary(name)
        except (ImportError, AttributeError, ConfigError) as error:
            described = f"cannot be loaded: {one_line(error)}"
        table.add_row(name, described)
    return table
