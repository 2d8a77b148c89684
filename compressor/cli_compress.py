"""``kompakt compress``: files and JSON Lines in, results out."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, BinaryIO, Literal, TypedDict

from kompakt.compressor import cli_input, cli_render
from kompakt.compressor.errors import ConfigError, InputError, KompaktError, MissingExtraError, ModelNotFoundError

if TYPE_CHECKING:
    from kompakt.compressor.base import Compressor
    from kompakt.compressor.models.tokenizers import Tokenizer
    from kompakt.compressor.types import Compressed

_SHOWN_BAD_LINES = 10


class How(TypedDict):
    """The keywords of ``compress`` that the command line sets."""

    max_tokens: int | None
    keep: float | None
    tokenizer: str | Tokenizer | None
    compressor: Compressor
    protect: Sequence[str]
    mark_omissions: bool
    strict: bool


@dataclass(frozen=True, slots=True)
class Show:
    """What is written where.

    Args:
        form: The form of the result.
        output: The file to write to; None for the standard output.
        quiet: Whether the standard error stays empty.
    """

    form: Literal["text", "explain", "json"]
    output: str | None
    quiet: bool


def check(how: How) -> None:
    """Find a wrong budget or tokenizer before anything is read.

    Raises:
        KompaktError: If one is wrong.
    """
    from kompakt.compressor.models.tokenizers import load_tokenizer
    from kompakt.compressor.types import Budget

    if how["max_tokens"] is not None or how["keep"] is not None:
        Budget(how["max_tokens"], how["keep"])
    if how["tokenizer"] is not None:
        how["tokenizer"] = load_tokenizer(how["tokenizer"])


def compress_files(names: Sequence[str], query: str | None, encoding: str, how: How, show: Show) -> None:
    """Compress files as the documents of one context.

    Args:
        names: Their paths.
        query: The question.
        encoding: The encoding of the files.
        how: How to compress.
        show: What to write where.

    Raises:
        KompaktError: If a file or an option cannot be used.
    """
    from kompakt.compressor.api import compress as compress_documents

    if cli_input.STDIN in names and sys.stdin is not None and sys.stdin.isatty() and not show.quiet:
        cli_render.say("reading the standard input; end it with Ctrl-D")
    documents = cli_input.read_documents(names, encoding)
    for document in documents:
        if not document.text and not show.quiet:
            cli_render.say(f"warning: {'standard input' if document.id == cli_input.STDIN else document.id} is empty")
    began = time.perf_counter()
    result = compress_documents(documents, query=query, **how)
    seconds = time.perf_counter() - began
    _write(result, show)
    if not show.quiet:
        cli_render.say(cli_render.summary(result, seconds))


def _write(result: Compressed, show: Show) -> None:
    if show.form == "explain":
        if show.output is not None:
            with cli_render.open_output(show.output) as file:
                cli_render.write_all(file, result.text.encode())
        cli_render.show(cli_render.explanation(result))
        return
    with cli_render.open_output(show.output) as file:
        if show.form == "json":
            cli_render.write_all(file, cli_render.dump_json(cli_render.to_json(result), indent=2))
            return
        cli_render.write_all(file, result.text.encode())
        # files and pipes get the text and not a byte more
        if file.isatty() and not result.text.endswith("\n"):
            cli_render.write_all(file, b"\n")


@dataclass(slots=True)
class _Tally:
    """What became of the lines of a JSON Lines input."""

    n_lines: int = 0
    tokens_before: int = 0
    tokens_after: int = 0
    bad: list[int] = field(default_factory=list)

    def fail(self, number: int, reason: object) -> None:
        self.bad.append(number)
        if len(self.bad) <= _SHOWN_BAD_LINES:
            cli_render.say_error(f"line {number}: {reason}")


def compress_lines(names: Sequence[str], query: str | None, encoding: str, how: How, show: Show) -> None:
    """Compress each line of a JSON Lines file as a context of its own.

    Args:
        names: Its path, alone.
        query: The question of lines that have none.
        encoding: The encoding of the file.
        how: How to compress.
        show: What to write where.

    Raises:
        KompaktError: If an option cannot be used, or in the end if lines could not be used.
    """
    if len(names) > 1:
        raise InputError(f"--jsonl reads one file, got {len(names)}")
    if show.output not in (None, "-") and os.path.realpath(show.output or "") == os.path.realpath(names[0]):
        raise InputError("--output would overwrite the input while it is read; name another file")
    began = time.perf_counter()
    tally = _Tally()
    with cli_input.open_binary(names[0]) as source, cli_render.open_output(show.output) as sink:
        for batch in cli_input.read_batches(source, encoding):
            _compress_records(batch, query, how, sink, tally)
            sink.flush()
    if not show.quiet:
        tokens = cli_render.counts(tally.tokens_before, tally.tokens_after)
        done = f"{tally.n_lines - len(tally.bad)} of {tally.n_lines} lines"
        cli_render.say(f"compressed: {tokens} in {time.perf_counter() - began:.2f} s, {done}")
    if tally.bad:
        more = "" if len(tally.bad) <= _SHOWN_BAD_LINES else f", the first {_SHOWN_BAD_LINES} are shown"
        raise InputError(f"{len(tally.bad)} of {tally.n_lines} lines could not be used{more}")


def _compress_records(
    batch: Sequence[cli_input.Record], query: str | None, how: How, sink: BinaryIO, tally: _Tally
) -> None:
    tally.n_lines += len(batch)
    usable = [record for record in batch if not record.error]
    results = dict(zip((record.number for record in usable), _results(usable, query, how), strict=True))
    for record in batch:
        result = results.get(record.number, record.error)
        if isinstance(result, (str, KompaktError)):
            tally.fail(record.number, result)
            continue
        tally.tokens_before += result.tokens_before
        tally.tokens_after += result.tokens_after
        cli_render.write_all(sink, cli_render.line_json(record.id, result))


def _results(records: Sequence[cli_input.Record], query: str | None, how: How) -> Sequence[Compressed | KompaktError]:
    from kompakt.compressor.api import compress_batch

    queries = [record.query if record.query is not None else query for record in records]
    try:
        return compress_batch([record.documents for record in records], queries=queries, **how)
    except (ConfigError, MissingExtraError, ModelNotFoundError):  # every line would fail alike
        raise
    except KompaktError as error:
        if len(records) == 1:
            return [error]
    return [result for record in records for result in _results([record], query, how)]
