"""``kompakt eval``: the run with its progress, the table at its end, and where the files are."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from kompakt.compressor import cli_progress, cli_render
from kompakt.compressor.cli_options import Debug
from kompakt.compressor.errors import InputError, MissingExtraError, ModelNotFoundError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from kompakt.compressor.evaluation.runner import Progress
    from kompakt.compressor.evaluation.summary import Cell, Estimate, Summary

_PLAIN_EVERY: Final = 5.0
"""Seconds between two lines of progress where nobody watches a bar."""

_QUICK: Final[Mapping[str, Any]] = {
    "limit": 3,
    "reader_limit": 1,
    "reader_answers": False,
    "max_context": 300,
}
"""What fits into a minute on two cores."""

_NO_READER: Final = "none"

_List = list[str] | None


def evaluate_command(
    data: Annotated[
        str | None,
        typer.Argument(metavar="DATA", help="A folder of task files or a file of questions; see docs/evaluation.md."),
    ] = None,
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="DIR", help="The folder of the run.")
    ] = "evaluation",
    quick: Annotated[
        bool, typer.Option("--quick", help="The samples of the package, few of them: a minute.")
    ] = False,
    task: Annotated[_List, typer.Option("--task", "-t", metavar="NAME", help="Only this task; repeatable.")] = None,
    compressor: Annotated[
        _List, typer.Option("--compressor", "-c", metavar="NAME", help="Only this compressor; repeatable.")
    ] = None,
    pipeline: Annotated[_List, typer.Option(metavar="FILE.toml", help="A pipeline to compare; repeatable.")] = None,
    keep: Annotated[
        list[float] | None, typer.Option("--keep", metavar="F", help="A budget; repeatable. Default: 0.5 0.25 0.1.")
    ] = None,
    reader: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="A model that answers: a name, a folder, URL#MODEL, or none."),
    ] = None,
    tokenizer: Annotated[str | None, typer.Option(metavar="NAME", help="Whose tokens count.")] = None,
    limit: Annotated[int, typer.Option(min=0, metavar="N", help="The most examples of a task; 0 for all.")] = 40,
    reader_limit: Annotated[
        int, typer.Option(min=0, metavar="N", help="The most examples of a task that are read; 0 for all.")
    ] = 0,
    reader_positions: Annotated[
        int, typer.Option(min=1, metavar="N", help="Contexts with more tokens are not read.")
    ] = 8192,
    max_context: Annotated[
        int, typer.Option(min=0, metavar="N", help="The most tokens of a context before compression; 0 for no limit.")
    ] = 0,
    seed: Annotated[int, typer.Option(metavar="N", help="Decides what is left to chance.")] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress on the standard error.")] = False,
    debug: Debug = False,
) -> None:
    """Measure what each compressor keeps of your data or of standard tasks, how well and how fast.

    Writes rows.jsonl, summary.json, summary.csv and report.html into the output folder. Finished rows are kept: a run
    that was interrupted goes on where it stopped if it is started again with the same options.
    """
    del debug
    if quick and data is not None:
        raise InputError("--quick runs on the samples of the package; leave out --quick to use your data")
    from kompakt.compressor.evaluation.evaluate import Settings, evaluate
    from kompakt.compressor.evaluation.output import REPORT_FILE, write_outputs
    from kompakt.compressor.models.tokenizers import DEFAULT_TOKENIZER

    chosen_reader, remark = _reader(reader)
    settings = Settings(
        output=Path(output),
        data=None if data is None else _existing(data),
        tasks=tuple(task or ()),
        compressors=tuple(compressor or ()),
        pipelines=tuple(Path(name) for name in pipeline or ()),
        keeps=tuple(keep or (0.5, 0.25, 0.1)),
        tokenizer=tokenizer or chosen_reader_tokenizer(chosen_reader) or DEFAULT_TOKENIZER,
        reader=chosen_reader,
        limit=limit or None,
        reader_limit=reader_limit or None,
        reader_positions=reader_positions,
        max_context=max_context or None,
        seed=seed,
    )
    if quick:
        settings = replace(settings, **_QUICK)
    began = time.perf_counter()
    with progress(quiet=quiet) as show:
        done = evaluate(settings, on_progress=show)
    files = write_outputs(done.summary, done.folder)
    cli_render.show(table(done.summary))
    if quiet:
        return
    for note in (remark, *(f"not compared: {name}: {why}" for name, why in done.left_out.items())):
        if note:
            cli_render.say(cli_render.one_line(note))
    cli_render.say(f"{time.perf_counter() - began:.0f} s; {', '.join(file.name for file in files)} in {done.folder}")
    cli_render.say(f"open {(done.folder / REPORT_FILE).resolve().as_uri()}")


def _existing(data: str) -> Path:
    path = Path(data)
    if not path.exists():
        raise InputError(f"cannot read {data}: there is no such file or folder")
    return path


def _reader(name: str | None) -> tuple[str | None, str]:
    """Return who reads, and why nobody does although nobody said so."""
    from kompakt.compressor.evaluation.evaluate import DEFAULT_READER, load_reader

    if name is not None:
        return (None if name == _NO_READER else name), ""
    try:
        load_reader(DEFAULT_READER)
    except (ModelNotFoundError, MissingExtraError) as error:
        return None, f"no reader: {error}"
    return DEFAULT_READER, ""


def chosen_reader_tokenizer(reader: str | None) -> str | None:
    """Return the tokenizer that goes with a reader; None if it has none on this machine."""
    return None if reader is None or "://" in reader else reader


def progress(*, quiet: bool) -> AbstractContextManager[Progress | None]:
    """Show a bar with the time that is left on a terminal, and a line every few seconds elsewhere."""
    return cli_progress.progress(_bar, _plain, quiet=quiet)


@contextmanager
def _bar(console: Console) -> Iterator[Progress]:
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, console=console, transient=True) as bar:
        shown = bar.add_task("", total=None)
        yield lambda done, total, label: bar.update(shown, completed=done, total=total, description=label)


def _plain() -> Progress:
    began = last = time.perf_counter()
    first: int | None = None

    def show(done: int, total: int, label: str) -> None:
        nonlocal began, last, first
        now = time.perf_counter()
        if now - last < _PLAIN_EVERY:
            return
        last = now
        if first is None or done <= first:
            # what came before tells nothing: rows of an earlier run took no time, and models had to be loaded
            first, began, left = done, now, ""
        else:
            left = f" seconds_left={(now - began) / (done - first) * (total - done):.0f}"
        cli_render.say(f"progress done={done} total={total}{left} at={label!r}")

    return show


def table(summary: Summary) -> Table:
    """Return the means over tasks as a table for a terminal."""
    from rich.table import Table

    made = Table(box=None, pad_edge=False)
    made.add_column("method")
    for heading in ("keep", "kept", *summary.metrics, "over", "broken", "failed", "seconds"):
        made.add_column(heading.replace("_kept", "").replace("_", "\n"), justify="right")
    means = [cell for cell in summary.cells if not cell.task]
    roles = {method.name: method.role for method in summary.methods}
    for method in roles:
        for cell in (cell for cell in means if cell.method == method):
            made.add_row(cell.method, *_cells(cell, list(summary.metrics)))
    return made


def _cells(cell: Cell, metrics: Sequence[str]) -> list[str]:
    return [
        f"{cell.keep:g}",
        f"{cell.kept:.0%}",
        *(_estimate(cell.estimates.get(metric), is_first=index == 0) for index, metric in enumerate(metrics)),
        str(cell.n_over_budget),
        f"{cell.n_invalid} of {cell.n_checked}" if cell.n_checked else "",
        str(cell.n_failed),
        "" if math.isnan(cell.seconds) else f"{cell.seconds:.3f}",
    ]


def _estimate(found: Estimate | None, *, is_first: bool) -> str:
    if found is None:
        return ""
    interval = f" [{found.low:.2f}, {found.high:.2f}]" if is_first else ""
    return f"{found.mean:.3f}{interval}"
