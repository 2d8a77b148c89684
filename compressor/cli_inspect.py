"""``kompakt inspect``: one compression in place, kept and dropped text told apart."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

import typer

from kompakt.compressor import cli_input, cli_render
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

if TYPE_CHECKING:
    from rich.text import Text

    from kompakt.compressor.inspection import Piece, View

_KEPT: Final = ("green", "+")
_DROPPED: Final = ("dim strike", "-")


def inspect_command(
    files: Files = None,
    query: Query = None,
    max_tokens: MaxTokens = None,
    keep: Keep = None,
    compressor: CompressorName = None,
    pipeline: PipelineFile = None,
    tokenizer: TokenizerName = None,
    html: Annotated[str | None, typer.Option(metavar="FILE", help="Write a page to look at instead.")] = None,
    scores: Annotated[bool, typer.Option("--scores", help="One line a piece, with stage and score.")] = False,
    encoding: Annotated[str, typer.Option(help="Encoding of the input.")] = "utf-8",
    debug: Debug = False,
) -> None:
    """Show in place what a compression keeps and what it drops: coloured in the terminal, or as a page with --html.

    Where colours cannot be seen, each piece stands on a line of its own after + (kept) or - (dropped), as with
    --scores.
    """
    del debug
    from kompakt.compressor.api import compress
    from kompakt.compressor.inspection import inspect_result

    chosen = named_compressor(compressor, pipeline, strict=False)
    check_budget(max_tokens, keep, chosen)
    cli_input.check_encoding(encoding)
    cli_render.check_output(html)
    documents = cli_input.read_documents(files or [cli_input.STDIN], encoding)
    result = compress(
        documents,
        query=query,
        max_tokens=max_tokens,
        keep=keep,
        tokenizer=tokenizer,
        compressor=chosen,
        record=True,
    )
    name = pipeline or compressor or "default"
    view = inspect_result(result, method=name, query=query, keep=keep, max_tokens=max_tokens)
    if html is None:
        cli_render.show(painted(view, by_piece=scores or not cli_render.console().is_terminal))
    else:
        from kompakt.compressor.evaluation.report.page import render_view

        with cli_render.open_output(html) as file:
            cli_render.write_all(file, render_view(view).encode("utf-8", "backslashreplace"))
    cli_render.say(cli_render.summary(result, view.seconds or 0.0))


def painted(view: View, *, by_piece: bool) -> Text:
    """Return the sources with kept and dropped text told apart.

    Args:
        view: What to show.
        by_piece: One line a piece, with its stage and score, instead of running text in colours.
    """
    from rich.text import Text

    told = Text()
    for document in view.documents:
        kept = sum(piece.end - piece.start for piece in document.pieces if piece.is_kept)
        share = f"{kept / len(document.text):.0%} of the characters kept" if document.text else "empty"
        told.append(cli_render.printable(document.id), style="bold cyan")
        told.append(f"  {share}\n", style="dim")
        for piece in document.pieces:
            text = cli_render.printable(document.text[piece.start : piece.end])
            if by_piece:
                told.append_text(_line(piece, text))
            else:
                told.append(text, style=(_KEPT if piece.is_kept else _DROPPED)[0])
        told.append("\n")
    told.rstrip()
    return told


def _line(piece: Piece, text: str) -> Text:
    from rich.text import Text

    style, sign = _KEPT if piece.is_kept else _DROPPED
    score = "" if piece.score is None else f"{piece.score:.3f}"
    line = Text()
    line.append(f"{sign} {piece.stage:<18} {score:>8}  ", style="dim")
    return line.append(" ".join(text.split()) + "\n", style=style)
