"""``kompakt calibrate``: the smallest safe budget on the user's own data, written to a pipeline file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Final, cast, get_args

import typer

from kompakt.compressor import cli_input, cli_render
from kompakt.compressor.cli_eval import chosen_reader_tokenizer, progress
from kompakt.compressor.cli_options import CompressorName, Debug, PipelineFile, TokenizerName, named_compressor
from kompakt.compressor.errors import ConfigError, InputError

if TYPE_CHECKING:
    from rich.table import Table

    from kompakt.compressor.evaluation.calibration import Calibration
    from kompakt.compressor.evaluation.example import Example
    from kompakt.compressor.models.tokenizers import Tokenizer
    from kompakt.compressor.pipeline import Pipeline

_NOTHING_QUALIFIES: Final = 3


def calibrate_command(
    data: Annotated[
        list[str], typer.Argument(metavar="DATA...", help="A JSON Lines file of questions, or documents.")
    ],
    max_loss: Annotated[float, typer.Option(metavar="F", help="The loss of quality that is acceptable.")] = 0.05,
    confidence: Annotated[float, typer.Option(metavar="F", help="How sure to be.")] = 0.95,
    quality: Annotated[
        str, typer.Option(metavar="NAME", help="answer_recall, or with a reader f1, exact_match, log_likelihood.")
    ] = "answer_recall",
    compressor: CompressorName = None,
    pipeline: PipelineFile = None,
    reader: Annotated[
        str | None, typer.Option(metavar="NAME", help="Who reads: a name, a folder or URL#MODEL")
    ] = None,
    tokenizer: TokenizerName = None,
    per_document: Annotated[
        int, typer.Option(metavar="N", help="Questions made of each document, where there are only documents.")
    ] = 10,
    seed: Annotated[int, typer.Option(metavar="N", help="Decides what is left to chance.")] = 0,
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="FILE.toml", help="Write the calibrated pipeline there.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress on the standard error.")] = False,
    debug: Debug = False,
) -> None:
    """Find the smallest budget for each kind of content whose loss of quality stays under a bound.

    A file that ends in .jsonl or .jsonl.gz holds questions: {"query", "documents": [...], "answers": [...]} a line.
    From other files questions are made. Exit status 3 if no budget qualifies for some kind: then nothing is written.
    """
    del debug
    from kompakt.compressor.evaluation.calibration import Quality, calibrate, needed, with_answer_in_context
    from kompakt.compressor.evaluation.evaluate import load_reader
    from kompakt.compressor.evaluation.runner import Reader
    from kompakt.compressor.models.tokenizers import load_tokenizer
    from kompakt.compressor.pipeline import Pipeline

    if quality not in get_args(Quality):
        raise ConfigError(f"--quality must be one of {', '.join(get_args(Quality))}, got {quality!r}")
    cli_render.check_output(output)
    examples = _examples(data, per_document, seed)
    is_recall = quality == "answer_recall"
    asked = with_answer_in_context(examples) if is_recall else [example for example in examples if example.answers]
    what = "no answer of theirs stands in the context" if is_recall else "they have no answer"
    if not asked:
        raise InputError(f"none of {len(examples)} questions can be used: {what}")
    named = named_compressor(compressor, pipeline, strict=False)
    chosen = named if isinstance(named, Pipeline) else Pipeline([named])
    backend = load_reader(reader) if reader else None
    counter = tokenizer or chosen.tokenizer or chosen_reader_tokenizer(reader)
    with progress(quiet=quiet) as show:
        found = calibrate(
            asked,
            chosen,
            tokenizer=load_tokenizer(counter),
            max_loss=max_loss,
            confidence=confidence,
            quality=cast("Quality", quality),
            reader=Reader(backend, is_chat=backend.tokenizer is None) if backend else None,
            seed=seed,
            on_progress=show,
        )
    if output != "-":
        cli_render.show(table(found))
    if len(asked) < len(examples):
        cli_render.say(f"{len(examples) - len(asked)} questions left out: {what}")
    few = 0 if quality == "log_likelihood" else needed(max_loss, confidence)
    _require_all(found, f"no budget keeps the loss under {max_loss:g} with {confidence:.0%} confidence", few)
    if output is not None:
        _write(found, chosen, tokenizer or chosen.tokenizer, output)


def _examples(data: Sequence[str], per_document: int, seed: int) -> list[Example]:
    from kompakt.compressor.evaluation.made_questions import make_questions
    from kompakt.compressor.evaluation.tasks.questions import read_questions

    questions = [name for name in data if name.endswith((".jsonl", ".jsonl.gz"))]
    if questions and len(data) > 1:
        raise InputError(f"give one file of questions, or documents alone, got {', '.join(data)}")
    if per_document < 1:
        raise ConfigError(f"--per-document must be at least 1, got {per_document}")
    if questions:
        return read_questions(questions[0])
    made = make_questions(cli_input.read_documents(data, "utf-8"), per_document=per_document, seed=seed)
    if not made:
        raise InputError("no question could be made: the documents hold no number, date, identifier or quotation")
    return made


def table(found: Sequence[Calibration]) -> Table:
    """Return what was tried as a table for a terminal."""
    from rich.table import Table

    made = Table(box=None, pad_edge=False)
    for heading in ("kind", "keep", "loss", "bound", "questions", ""):
        made.add_column(heading, justify="left" if heading in ("kind", "") else "right")
    for calibration in found:
        for trial in calibration.trials:
            verdict = "chosen" if trial.keep == calibration.keep else ""
            numbers = (f"{trial.keep:g}", f"{trial.loss:.3f}", f"{trial.bound:.3f}", str(trial.n))
            made.add_row(calibration.kind, *numbers, verdict)
    return made


def _require_all(found: Sequence[Calibration], what: str, few: int) -> None:
    failed = [calibration for calibration in found if calibration.keep is None]
    for calibration in failed:
        is_small = calibration.n_groups < few
        hint = f"; it takes at least {few} questions on different contexts" if is_small else ""
        cli_render.say_error(f"{calibration.kind}: {what}{hint}")
    if failed:
        raise typer.Exit(_NOTHING_QUALIFIES)


def _write(found: Sequence[Calibration], pipeline: Pipeline, tokenizer: str | Tokenizer | None, output: str) -> None:
    from kompakt.compressor.pipeline import Pipeline

    calibrated = Pipeline(
        pipeline.stages,
        tokenizer=tokenizer,
        strict=pipeline.strict,
        on_error=pipeline.on_error,
        mark_omissions=pipeline.mark_omissions,
        keep={calibration.kind: calibration.keep for calibration in found if calibration.keep is not None},
    )
    with cli_render.open_output(output) as file:
        cli_render.write_all(file, calibrated.to_toml().encode())
    if output != "-":
        cli_render.say(f"written to {output}; use it with --pipeline {output} and no other budget")
