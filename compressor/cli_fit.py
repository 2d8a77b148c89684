"""``kompakt fit``: a cache fitted to a corpus, in a file that a local reader reads in its place."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, cast

import typer

from kompakt.compressor import cli_input, cli_render
from kompakt.compressor.cli_eval import progress
from kompakt.compressor.cli_options import Debug
from kompakt.compressor.errors import ConfigError, InputError, MissingExtraError

if TYPE_CHECKING:
    from kompakt.compressor.cache.cartridge_fitting import Fit
    from kompakt.compressor.cache.self_study import Targets
    from kompakt.compressor.models.causal_lm import Dtype

CACHE_FILE: Final = "cartridge.safetensors"
"""The cache's name where only a folder is given."""


def fit_command(
    files: Annotated[list[str], typer.Argument(metavar="FILES...", help="The corpus; - is the standard input.")],
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            metavar="PATH",
            help=f"NAME.safetensors, with the run in NAME.run beside it; or a folder for the run and {CACHE_FILE}.",
        ),
    ],
    decoder: Annotated[
        str, typer.Option(metavar="NAME", help="Who will read the cache: a model's name or folder.")
    ] = "smollm2-135m",
    positions: Annotated[int, typer.Option(metavar="N", help="Positions of the cache.")] = 128,
    steps: Annotated[int, typer.Option(metavar="N", help="Steps, those of earlier runs included.")] = 200,
    minutes: Annotated[
        float | None, typer.Option(metavar="M", help="Stop after so long, with what is reached by then.")
    ] = None,
    targets: Annotated[
        str, typer.Option(metavar="NAME", help="chat: questions and answers; text: passages of the corpus.")
    ] = "chat",
    conversations: Annotated[int, typer.Option(metavar="N", help="Conversations to make.")] = 128,
    held_out: Annotated[int, typer.Option(metavar="N", help="How many of them only judge the result.")] = 8,
    batch: Annotated[int, typer.Option(metavar="N", help="Conversations in a step.")] = 4,
    max_window: Annotated[
        int, typer.Option(metavar="N", help="The most tokens of the corpus before a conversation.")
    ] = 512,
    max_conversation: Annotated[int, typer.Option(metavar="N", help="The most tokens of a conversation.")] = 256,
    description: Annotated[str, typer.Option(metavar="TEXT", help="A line that says what the corpus is.")] = "",
    before: Annotated[str, typer.Option(metavar="TEXT", help="What will stand before the cache in a prompt.")] = "",
    no_chat: Annotated[
        bool, typer.Option("--no-chat", help="The cache will stand in a text, not in a user's message.")
    ] = False,
    learning_rate: Annotated[float, typer.Option(metavar="F", help="Adam's.")] = 2e-2,
    checkpoint_every: Annotated[int, typer.Option(metavar="N", help="Steps between two saved states.")] = 20,
    dtype: Annotated[
        str, typer.Option(metavar="NAME", help="Number format of the decoder: auto, float32 or bfloat16.")
    ] = "auto",
    device: Annotated[str | None, typer.Option(metavar="NAME", help="Where to compute, such as cpu or cuda.")] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Decides what is left to chance.")] = 0,
    encoding: Annotated[str, typer.Option(help="Encoding of the files.")] = "utf-8",
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress on the standard error.")] = False,
    debug: Debug = False,
) -> None:
    """Fit a key-value cache to a corpus: what its decoder says of the corpus, from few positions.

    The decoder writes conversations on windows of the corpus, and the cache learns to answer as the decoder does with
    the window before it. A small decoder asks poor questions: with --targets text it writes nothing, and the answers
    are passages of the corpus.

    A run that was interrupted goes on where it stopped if it is started again with the same options; more --steps
    may be asked for later. Read the file with load_cache, and place it where the corpus would begin the message.
    """
    del debug
    cli_input.check_encoding(encoding)
    file, folder = _places(output)
    documents = cli_input.read_documents(files, encoding)
    try:
        from kompakt.compressor.cache.cartridge_fitting import FitSettings, fit_cartridge
        from kompakt.compressor.cache.part_files import save_cache
        from kompakt.compressor.cache.self_study import StudySettings
    except ModuleNotFoundError as error:
        raise MissingExtraError("kompakt fit", "local") from error
    settings = FitSettings(
        batch_size=batch,
        learning_rate=learning_rate,
        n_held_out=held_out,
        checkpoint_every=checkpoint_every,
        is_chat=not no_chat,
        before=before,
        seed=seed,
        study=StudySettings(
            targets=cast("Targets", targets),
            n_conversations=conversations,
            min_window=min(StudySettings.min_window, max_window),
            max_window=max_window,
            max_conversation=max_conversation,
            description=description,
        ),
    )
    began = time.perf_counter()
    with progress(quiet=quiet) as show:
        done = fit_cartridge(
            documents,
            decoder=decoder,
            n_positions=positions,
            n_steps=steps,
            settings=settings,
            folder=folder,
            minutes=minutes,
            dtype=cast("Dtype", dtype),
            device=device,
            on_progress=show,
        )
    if steps and not done.losses:
        # a cache that was not fitted must not replace one that was
        raise ConfigError(f"no step was done within {minutes} minutes; the run is in {folder}: run it again to go on")
    save_cache(done.part, file)
    typer.echo(f"{file}: {summary(done)}")
    if quiet:
        return
    cli_render.say(f"{time.perf_counter() - began:.0f} s; the run is in {folder}")
    if len(done.losses) < steps:
        cli_render.say(f"stopped after {len(done.losses)} of {steps} steps: run it again to go on")


def _places(output: str) -> tuple[Path, Path]:
    """Return the file of the cache and the folder of the run, and make what they need.

    Raises:
        InputError: If there is no place for them.
    """
    path = Path(output).expanduser()
    is_file = path.suffix == ".safetensors" and not path.is_dir()
    if path.is_file() and not is_file:
        raise InputError(f"cannot write {output}: it is a file, and not one of caches, which end in .safetensors")
    folder = path.with_suffix(".run") if is_file else path
    if not folder.absolute().parent.is_dir():
        raise InputError(f"cannot write {output}: its folder does not exist")
    return (path if is_file else folder / CACHE_FILE), folder


def summary(done: Fit) -> str:
    """Return in a line how large the cache is, and how good."""
    line = f"{done.part.n_positions} positions, {done.part.n_bytes / 1e6:.1f} MB, {len(done.losses)} steps"
    if done.held_out_before is None or done.held_out_after is None:
        return line
    return (
        f"{line}, held-out loss {done.held_out_before:.3f} -> {done.held_out_after:.3f} "
        f"(with the text before it instead: {done.held_out_teacher:.3f})"
    )
