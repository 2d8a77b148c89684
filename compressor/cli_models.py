"""``kompakt models``: the list of named models, and pulling with progress."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import cast

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from kompakt.compressor import cli_render
from kompakt.compressor.errors import ConfigError
from kompakt.compressor.models.catalog import Carrier
from kompakt.compressor.models.locate import InstalledModel, cached_path, get_spec, is_complete
from kompakt.compressor.models.pull import ProgressCallback, Source, pull


def model_table(rows: tuple[InstalledModel, ...]) -> Table:
    """Return the named models as a table."""
    table = Table("name", "kind", "licence", "installed", "size", "what for", box=None, pad_edge=False)
    for row in rows:
        size = f"{row.n_bytes / 1e6:.0f} MB" if row.path else ""
        spec = row.spec
        table.add_row(spec.name, spec.kind, spec.licence, "yes" if row.path else "no", size, spec.description)
    return table


def pull_all(names: Sequence[str], source: str, *, force: bool) -> None:
    """Pull models one after another, and print the folder of each.

    Args:
        names: Names of the catalogue; all are checked before the first is pulled.
        source: ``carrier`` or ``hub``.
        force: Fetch again what is there.

    Raises:
        KompaktError: If a name or the source is wrong, or a download fails.
    """
    if source not in ("carrier", "hub"):
        raise ConfigError(f"--source must be carrier or hub, got {source!r}")
    specs = [get_spec(name) for name in dict.fromkeys(names)]
    console = cli_render.console(stderr=True)
    for spec in specs:
        if is_complete(cached_path(spec)) and not force and isinstance(spec.carrier, Carrier):
            typer.echo(f"{spec.name}: already there, {cached_path(spec)}")
            continue
        began = time.perf_counter()
        path = _pull(spec.name, cast("Source", source), console, force=force)
        typer.echo(f"{spec.name}: pulled in {time.perf_counter() - began:.0f} s, {path}")


def _pull(name: str, source: Source, console: Console, *, force: bool) -> str:
    if not console.is_terminal:
        return str(pull(name, source=source, force=force, progress=_plain(name)))
    columns = (TextColumn("{task.description}"), BarColumn(pulse_style="cyan"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(name, total=None)

        def show(stage: str, fraction: float) -> None:
            # a download reports its end only: a bar at 0 would look stuck, so it pulses
            bar.update(task, description=f"{name}: {stage}", total=1.0 if fraction else None, completed=fraction)

        return str(pull(name, source=source, force=force, progress=show))


def _plain(name: str) -> ProgressCallback:
    seen: set[str] = set()

    def show(stage: str, fraction: float) -> None:
        del fraction
        if stage not in seen and stage != "done":
            seen.add(stage)
            typer.echo(f"{name}: {stage}", err=True)

    return show
