"""``kompakt store``: look into a store, verify it, and carry it elsewhere."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from kompakt.compressor import cli_render
from kompakt.compressor.errors import ConfigError, InputError, StoreError
from kompakt.compressor.store.base import Store
from kompakt.compressor.store.maintenance import copy_entries, export, repair, verify
from kompakt.compressor.store.places import DEFAULT, MEMORY, open_backing
from kompakt.compressor.store.sqlite import SQLiteStore

store_app = typer.Typer(
    help="Look into a store of compressed segments, verify it, and carry it elsewhere.", no_args_is_help=True
)

Location = Annotated[
    str,
    typer.Argument(
        metavar="[STORE]", help="A path or the URL of a Redis server; the store in the user's cache folder."
    ),
]


@store_app.command()
def stats(
    store: Location = DEFAULT, as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False
) -> None:
    """Show how much is in it."""
    with _existing(store) as opened:
        found = opened.stats()
    if as_json:
        typer.echo(json.dumps(asdict(found)))
        return
    table = Table("store", "entries", "bytes", "at most", box=None, pad_edge=False)
    limit = "as the server is set" if found.max_bytes is None else f"{found.max_bytes:,}"
    table.add_row(found.location, f"{found.n_entries:,}", f"{found.n_bytes:,}", limit)
    cli_render.show(table)


@store_app.command("verify")
def verify_store(
    store: Location = DEFAULT,
    mend: Annotated[bool, typer.Option("--repair", help="Remove what is damaged.")] = False,
) -> None:
    """Read every entry and compare it with its checksum; exit status 2 if something is damaged and was left."""
    with _existing(store) as opened:
        report = verify(opened)
        typer.echo(f"{report.n_entries:,} entries, {report.n_expired:,} expired, {len(report.damaged):,} damaged")
        for line in report.structure:
            typer.echo(f"the file: {line}")
        if report.is_sound:
            return
        if not mend:
            raise StoreError(f"{opened.location} is damaged; mend it with: kompakt store verify --repair {store}")
        typer.echo(repair(opened, report))


@store_app.command()
def gc(store: Location = DEFAULT) -> None:
    """Remove what has expired or exceeds the bound, and give the space back."""
    with _existing(store) as opened:
        n_removed = opened.collect_garbage()
    typer.echo(f"{n_removed:,} entries removed")


@store_app.command("export")
def export_store(
    output: Annotated[Path, typer.Argument(metavar="FILE", help="A new file, to be read by import.")],
    store: Location = DEFAULT,
) -> None:
    """Write every entry into a file."""
    with _existing(store) as opened:
        n_copied = export(opened, output)
    typer.echo(f"{n_copied:,} entries written to {output}")


@store_app.command("import")
def import_store(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="What export wrote, or any store's file.")],
    store: Location = DEFAULT,
) -> None:
    """Read every entry of a file into a store; what is damaged or expired is left out."""
    if not source.is_file():
        raise InputError(f"there is no file {source}")
    with SQLiteStore(source) as opened, _backing(store) as target:
        n_copied = copy_entries(opened, target)
    typer.echo(f"{n_copied:,} entries read into {target.location if store == DEFAULT else store}")


def _existing(location: str) -> Store:
    store = _backing(location)
    if isinstance(store, SQLiteStore) and not Path(store.location).is_file():
        raise InputError(f"there is no store {store.location}; a pipeline with store= makes it")
    return store


def _backing(location: str) -> Store:
    if location == MEMORY:
        raise ConfigError("a store in memory ends with its process; name a file or a server")
    return open_backing(location)
