"""Options that several commands share, and what they mean."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from kompakt.compressor.errors import ConfigError, InputError

if TYPE_CHECKING:
    from kompakt.compressor.base import Compressor

Files: TypeAlias = Annotated[
    list[str] | None, typer.Argument(metavar="FILES", help="Texts; none or - is the standard input.")
]
Query: TypeAlias = Annotated[str | None, typer.Option("--query", "-q", help="The question that the context is for.")]
MaxTokens: TypeAlias = Annotated[int | None, typer.Option(metavar="N", help="The most tokens that may remain.")]
Keep: TypeAlias = Annotated[
    float | None, typer.Option(metavar="F", help="The fraction of tokens that may remain, such as 0.25.")
]
CompressorName: TypeAlias = Annotated[
    str | None, typer.Option("--compressor", "-c", metavar="NAME", help="See kompakt compressors.")
]
PipelineFile: TypeAlias = Annotated[
    str | None, typer.Option(metavar="FILE.toml", help="A pipeline instead of a compressor.")
]
TokenizerName: TypeAlias = Annotated[
    str | None, typer.Option(metavar="NAME", help="Whose tokens count: an encoding, a model or a folder.")
]
Debug: TypeAlias = Annotated[bool, typer.Option("--debug", help="Show the traceback of an unexpected error.")]


def check_budget(max_tokens: int | None, keep: float | None, compressor: Compressor) -> None:
    """Check that there is one budget: from the command line, or of a calibrated pipeline.

    Raises:
        InputError: If there is none, or two.
    """
    has_own = max_tokens is None and keep is None and getattr(compressor, "budget", None) is not None
    if not has_own and (max_tokens is None) == (keep is None):
        raise InputError("give exactly one of --max-tokens N and --keep F")


def named_compressor(name: str | None, pipeline: str | None, *, strict: bool) -> Compressor:
    """Return the compressor of that name, or the pipeline of that file, or the default.

    Raises:
        ConfigError: If both are given, or what is given cannot be used.
    """
    from kompakt.compressor.base import require_text
    from kompakt.compressor.pipeline import Pipeline
    from kompakt.compressor.registry import load

    if pipeline is None:
        loaded = load(name or "default")
    elif name is not None:
        raise ConfigError("give --compressor or --pipeline, not both")
    else:
        read = Pipeline.from_toml(pipeline)
        read.strict = read.strict or strict
        loaded = read
    require_text(loaded, "this command")
    return loaded
