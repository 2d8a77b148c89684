"""``kompakt corpus``: the batch job with its progress, its summary, and how far it is."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from kompakt.compressor import cli_progress, cli_render
from kompakt.compressor.cli_options import Debug, Keep, MaxTokens, TokenizerName, check_budget
from kompakt.compressor.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from kompakt.compressor.models.tokenizers import Tokenizer
    from kompakt.compressor.store.base import Store
    from kompakt.retrieval.compressed import SegmentCompressor
    from kompakt.retrieval.corpus.estimate import Estimate
    from kompakt.retrieval.corpus.formats import ReadOptions
    from kompakt.retrieval.corpus.job import OnProgress, Progress
    from kompakt.retrieval.corpus.ray_cluster import RayOptions
    from kompakt.retrieval.corpus.runner import Runner
    from kompakt.retrieval.corpus.sink import Sink

app = typer.Typer(
    name="corpus",
    help="Compress a corpus once, so that every later question finds its segments.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

_STATE_FOLDER: Final = "kompakt-corpus"
_BESIDE_INDEX: Final = "corpus"
"""The state's folder in that of an index, which has a manifest of its own."""
_PLAIN_EVERY: Final = 10.0
"""Seconds between two lines of progress where nobody watches a bar."""
_QUARANTINED: Final = 2
"""Exit status."""
_MAX_NAMED: Final = 5
_FULL: Final = 0.8
"""Share of its bound from which on a store is called full: one that is gets emptied to nine tenths."""

_BUILD: Final = """Compress all documents of files and folders into a store.

Reads .jsonl, .jsonl.gz, .ndjson, .parquet, .txt, .txt.gz, .md, .html and .pdf files. A job that was interrupted goes
on where it stopped if it is started again with the same options. Documents that cannot be used are quarantined: they
are listed in failures.jsonl, beside manifest.json, and the others go on.
"""
_UPDATE: Final = """Bring store and state up to date with files that were added, changed or deleted since.

Files of the same size and time are not read again, documents of the same text and metadata not compressed again, and
documents that are gone are deleted. Takes the options of build.
"""


# decorators apply from below, and help lists in that order
@app.command("update", help=_UPDATE)
@app.command("build", help=_BUILD)
def build_command(
    context: typer.Context,
    inputs: Annotated[list[str], typer.Argument(metavar="IN", help="Files and folders.")],
    to: Annotated[str, typer.Option("--to", metavar="STORE", help="A path, a Redis URL, or default.")],
    pipeline: Annotated[str, typer.Option(metavar="FILE.toml", help="The pipeline that compresses.")],
    index: Annotated[str | None, typer.Option(metavar="DIR", help="The index to fill as well.")] = None,
    state: Annotated[
        str | None, typer.Option(metavar="DIR", help=f"Folder of the job's state. Default: ./{_STATE_FOLDER}.")
    ] = None,
    keep: Keep = None,
    max_tokens: MaxTokens = None,
    chunk_tokens: Annotated[int, typer.Option(metavar="N", help="The most tokens of a segment.")] = 256,
    tokenizer: TokenizerName = None,
    text_field: Annotated[str, typer.Option(metavar="NAME", help="Field or column with the text.")] = "text",
    id_field: Annotated[str, typer.Option(metavar="NAME", help="Field or column with the id.")] = "id",
    encoding: Annotated[str, typer.Option(help="Encoding of files that do not name theirs.")] = "utf-8",
    max_document_mb: Annotated[
        float, typer.Option(metavar="N", help="Documents with more MiB are quarantined.")
    ] = 64.0,
    ray: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Compress with Ray: local starts it here, auto finds it, or host:port."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(metavar="N", help="Processes that compress with Ray. Default with local: one a CPU.")
    ] = None,
    worker_gpus: Annotated[float, typer.Option(metavar="N", help="GPUs of each of them, such as 0.5.")] = 0.0,
    retry: Annotated[bool, typer.Option("--retry", help="Try again what was quarantined before.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Estimate time and size from a sample, and write nothing.")
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 2 if a document was quarantined.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest, or the estimate, as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress on the standard error.")] = False,
    debug: Debug = False,
) -> None:
    """Run ``build`` or ``update``, whichever was called; their help is above."""
    del debug
    if index is not None and state is not None:
        raise ConfigError("give --index or --state, not both: the state is kept beside the index")
    folder = Path(state or _STATE_FOLDER) if index is None else Path(index) / _BESIDE_INDEX
    job = _loaded(inputs, to, pipeline, keep=keep, max_tokens=max_tokens, tokenizer=tokenizer)
    read = _read_options(text_field, id_field, encoding, max_document_mb)
    on_ray = _ray_options(ray, workers, worker_gpus)
    if dry_run:
        _estimate(job, read, chunk_tokens, as_json=as_json)
        return
    from kompakt.retrieval.corpus.job import JobSettings, run_job
    from kompakt.retrieval.corpus.manifest import FAILURES_FILE
    from kompakt.retrieval.corpus.runner import InProcess
    from kompakt.retrieval.corpus.sink import open_sink

    settings = JobSettings.of(
        inputs, job.compressor, tokenizer=job.tokenizer, chunk_tokens=chunk_tokens, read=read, index=index
    )
    runner: Callable[[Sink], Runner] = InProcess
    if on_ray is not None:
        from kompakt.retrieval.corpus.ray_job import ray_runner

        runner = ray_runner(settings, to, on_ray)
    # Ray tells of its troubles on the standard output, which is for the manifest
    told = nullcontext() if on_ray is None else redirect_stdout(sys.stderr)
    with cli_progress.progress(_bar, _plain, quiet=quiet) as show, told:
        manifest = run_job(
            settings,
            folder,
            lambda: open_sink(job.compressor, tokenizer=job.tokenizer, chunk_tokens=chunk_tokens, index=index),
            is_update=context.info_name == "update",
            retry=retry,
            limits=None if on_ray is None else on_ray.limits,
            on_progress=show,
            open_runner=runner,
        )
    _print_manifest(manifest, as_json=as_json)
    _warn_if_full(job.store)
    _tell_of_failures(manifest, folder / FAILURES_FILE, strict=strict)


@app.command("status")
def status_command(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="Folder of the index, or of the job's state.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest as JSON.")] = False,
    debug: Debug = False,
) -> None:
    """Say how far a job is, and what came of it."""
    del debug
    from kompakt.retrieval.corpus.job import job_status
    from kompakt.retrieval.corpus.manifest import FAILURES_FILE
    from kompakt.retrieval.corpus.state import STATE_FILE

    path = Path(folder)
    if not (path / STATE_FILE).is_file() and (path / _BESIDE_INDEX / STATE_FILE).is_file():
        path /= _BESIDE_INDEX
    manifest = job_status(path)
    _print_manifest(manifest, as_json=as_json)
    _tell_of_failures(manifest, path / FAILURES_FILE, strict=False)


@dataclass(frozen=True, slots=True)
class _Loaded:
    """What a command works with."""

    inputs: list[str]
    compressor: SegmentCompressor
    tokenizer: Tokenizer
    store: Store


def _loaded(
    inputs: list[str],
    to: str,
    pipeline: str,
    *,
    keep: float | None,
    max_tokens: int | None,
    tokenizer: str | None,
) -> _Loaded:
    from kompakt.compressor.base import require_text
    from kompakt.compressor.models.tokenizers import DEFAULT_TOKENIZER, load_tokenizer
    from kompakt.compressor.pipeline import Pipeline
    from kompakt.compressor.store.places import MEMORY, open_store
    from kompakt.retrieval.compressed import SegmentCompressor
    from kompakt.retrieval.corpus.sink import FRONT_BYTES, with_store

    if to == MEMORY:
        raise ConfigError("--to memory would keep nothing beyond this command; give a path, a URL or default")
    written = Pipeline.from_toml(pipeline)
    require_text(written, "a corpus")
    check_budget(max_tokens, keep, written)
    name = tokenizer or written.tokenizer or DEFAULT_TOKENIZER
    store = open_store(to, memory_bytes=FRONT_BYTES)
    compressor = SegmentCompressor(with_store(written, store, tokenizer=name), keep=keep, max_tokens=max_tokens)
    return _Loaded(inputs, compressor, load_tokenizer(name), store)


def _read_options(text_field: str, id_field: str, encoding: str, max_document_mb: float) -> ReadOptions:
    from kompakt.retrieval.corpus.formats import ReadOptions

    n_bytes = max_document_mb * 2**20
    if not 1 <= n_bytes < 2**62:
        raise ConfigError(f"--max-document-mb must be above 0, got {max_document_mb}")
    return ReadOptions(text_field, id_field, encoding, int(n_bytes))


def _ray_options(address: str | None, workers: int | None, gpus: float) -> RayOptions | None:
    if address is None:
        if workers is not None or gpus:
            raise ConfigError("--workers and --worker-gpus are for --ray")
        return None
    from kompakt.retrieval.corpus.ray_cluster import RayOptions

    return RayOptions(address, workers, gpus)


def _estimate(job: _Loaded, read: ReadOptions, chunk_tokens: int, *, as_json: bool) -> None:
    from kompakt.retrieval.corpus.estimate import estimate

    found = estimate(job.inputs, job.compressor, tokenizer=job.tokenizer, chunk_tokens=chunk_tokens, read=read)
    if as_json:
        _print_json(found.as_json())
        return
    cli_render.show(estimate_table(found))
    n_failed = found.total.n_failed
    failed = f", {n_failed} of which cannot be used" if n_failed else ""
    cli_render.say(f"estimated from a sample of {found.n_sampled} documents{failed}; nothing was written")


def estimate_table(found: Estimate) -> Table:
    """Return an estimate as a table for a terminal."""
    from rich.table import Table

    made = Table(box=None, pad_edge=False)
    made.add_column("format")
    for heading in ("files", "size", "documents", "segments", "tokens\nbefore", "tokens\nafter", "time", "store"):
        made.add_column(heading, justify="right")
    for one in (*found.formats, found.total) if len(found.formats) > 1 else found.formats:
        numbers = (one.documents, one.segments, one.tokens_before, one.tokens_after)
        made.add_row(
            one.format,
            f"{one.n_files:,}",
            _size(one.n_bytes),
            *(f"{number:,}" for number in numbers),
            _time(one.seconds),
            _size(one.store_bytes),
        )
    return made


def manifest_table(manifest: dict[str, Any]) -> Table:
    """Return what came of a job as a table for a terminal."""
    from rich.table import Table

    counts, run = manifest["counts"], manifest["run"]
    before, after = counts["tokens_before"], counts["tokens_after"]
    rows = {
        "state": manifest["state"],
        "files": f"{counts['files']:,} ({_size(counts['bytes_in'])})",
        "documents": f"{counts['documents']:,}",
        **{name: f"{run[name]:,}" for name in ("added", "changed", "unchanged", "deleted") if run[name] is not None},
        "quarantined": f"{counts['quarantined']:,}",
        "duplicates": f"{counts['duplicates']:,}",
        "files skipped": _skipped(manifest["skipped"]),
        "segments": f"{counts['segments']:,}",
        "tokens": cli_render.counts(before, after),
        "time": _time(manifest["seconds"]),
    }
    made = Table(box=None, pad_edge=False, show_header=False)
    for name, value in rows.items():
        made.add_row(name, value)
    return made


def _skipped(by_suffix: dict[str, int] | None) -> str:
    """Return how many files were passed over, and the suffixes of most of them."""
    if not by_suffix:
        return "unknown" if by_suffix is None else "0"
    listed = ", ".join(f"{n:,} {suffix}" for suffix, n in list(by_suffix.items())[:_MAX_NAMED])
    more = ", ..." if len(by_suffix) > _MAX_NAMED else ""
    return cli_render.one_line(f"{sum(by_suffix.values()):,} ({listed}{more})")


def _print_manifest(manifest: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        _print_json(manifest)
    else:
        cli_render.show(manifest_table(manifest))


def _print_json(value: object) -> None:
    with cli_render.open_output(None) as file:
        cli_render.write_all(file, cli_render.dump_json(value, indent=2))


def _tell_of_failures(manifest: dict[str, Any], path: Path, *, strict: bool) -> None:
    n_failed = manifest["counts"]["quarantined"]
    if not n_failed:
        return
    cli_render.say(cli_render.one_line(f"quarantined documents: {n_failed}; the reasons are in {path}"))
    if strict:
        raise typer.Exit(_QUARANTINED)


def _warn_if_full(store: Store) -> None:
    stats = store.stats()
    if stats.max_bytes is not None and stats.n_bytes >= _FULL * stats.max_bytes:
        cli_render.say(
            f"warning: the store {stats.location} is full, with {_size(stats.n_bytes)} of {_size(stats.max_bytes)}: "
            "segments that were not used for long may be gone"
        )


@contextmanager
def _bar(console: Console) -> Iterator[OnProgress]:
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = (BarColumn(), TaskProgressColumn(), TextColumn("{task.description}"))
    with Bar(*columns, console=console, transient=True) as bar:
        shown = bar.add_task("", total=None)

        def show(at: Progress) -> None:
            bar.update(shown, completed=at.done_bytes, total=at.total_bytes, description=_described(at))

        yield show


def _described(at: Progress) -> str:
    failed = f", {at.quarantined:,} quarantined" if at.quarantined else ""
    left = "" if at.eta_seconds is None else f", {_time(at.eta_seconds)} left"
    return f"{at.documents:,} documents{failed}, {at.tokens_per_second:,.0f} tokens/s{left}"


def _plain() -> OnProgress:
    last = time.monotonic()

    def show(at: Progress) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < _PLAIN_EVERY:
            return
        last = now
        left = "" if at.eta_seconds is None else f" seconds_left={at.eta_seconds:.0f}"
        cli_render.say(
            f"progress done_bytes={at.done_bytes} total_bytes={at.total_bytes} documents={at.documents} "
            f"quarantined={at.quarantined} tokens_per_second={at.tokens_per_second:.0f}{left}"
        )

    return show


def _size(n_bytes: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n_bytes < 1024:
            return f"{n_bytes:.0f} B" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1024
    return f"{n_bytes:.1f} TiB"


def _time(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
