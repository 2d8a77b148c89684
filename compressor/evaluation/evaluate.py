"""The evaluation as one call: data in, rows and summary out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from kompakt.compressor.backend import Backend, load_backend
from kompakt.compressor.base import require_text
from kompakt.compressor.errors import ConfigError, InputError, MissingExtraError, ModelNotFoundError
from kompakt.compressor.evaluation.data import samples_folder
from kompakt.compressor.evaluation.example import Example, TaskSettings
from kompakt.compressor.evaluation.reading import MAX_NEW_TOKENS
from kompakt.compressor.evaluation.rows import RUN_FILE, Key, ResultRow, RunFolder
from kompakt.compressor.evaluation.runner import Contender, Plan, Progress, Reader, run
from kompakt.compressor.evaluation.summarise import Shown, summarise
from kompakt.compressor.evaluation.summary import Summary
from kompakt.compressor.evaluation.task_registry import (
    get_task,
    load_examples,
    sample_examples,
    task_names,
    tasks_of,
)
from kompakt.compressor.evaluation.tasks.contexts import fits
from kompakt.compressor.evaluation.tasks.questions import read_questions
from kompakt.compressor.models.tokenizers import Tokenizer, load_tokenizer
from kompakt.compressor.pipeline import Pipeline
from kompakt.compressor.registry import compressor_class, compressor_names, load

OWN_QUESTIONS: Final = "questions"
_FOR_SOFT_METHODS: Final = "reconstruction"
DEFAULT_READER: Final = "smollm2-135m"


@dataclass(frozen=True)
class Settings:
    """What to evaluate.

    Args:
        output: The folder of the run; a run that was interrupted there goes on.
        data: A folder with the files of tasks, or a JSON Lines file with questions of one's own; None for the
            samples that come with the package.
        tasks: Names of tasks; all that the data has files for if empty, without ``reconstruction``, which is for
            methods that rewrite the context.
        compressors: Registry names; all whose models are on this machine if there are no pipelines either.
        pipelines: TOML files of pipelines, which are called by their file's name without suffix.
        keeps: The fractions of tokens that may remain.
        tokenizer: Whose tokens the budgets count.
        reader: Who reads the compressed contexts: a named model, the folder of one, or ``URL#MODEL`` of an endpoint
            that speaks OpenAI's chat completions; None for nobody.
        limit: The most examples of each task; None for all.
        reader_limit: The most examples of each task that are read; None for all.
        reader_positions: Contexts with more tokens than this are not read.
        reader_answers: Whether the reader writes answers, or only tells how likely the right one is.
        max_context: The most tokens of an example's context; None for no limit.
        max_context_of: The same for single tasks, by name; for those it counts instead.
        seed: Decides choices of examples, random units and resamples.
        n_shown: How many examples of each task can be looked at in the report.
    """

    output: Path
    data: Path | None = None
    tasks: tuple[str, ...] = ()
    compressors: tuple[str, ...] = ()
    pipelines: tuple[Path, ...] = ()
    keeps: tuple[float, ...] = (0.5, 0.25, 0.1)
    tokenizer: str = DEFAULT_READER
    reader: str | None = DEFAULT_READER
    limit: int | None = 40
    reader_limit: int | None = None
    reader_positions: int = 8192
    reader_answers: bool = True
    max_context: int | None = None
    max_context_of: Mapping[str, int] = field(default_factory=dict)
    seed: int = 0
    n_shown: int = 2


@dataclass(frozen=True)
class Evaluation:
    """A finished run.

    Args:
        summary: What it amounts to.
        left_out: What was not compared, and why, by name.
        folder: Where its rows are.
    """

    summary: Summary
    folder: Path
    left_out: Mapping[str, str] = field(default_factory=dict)


def evaluate(
    settings: Settings, *, contenders: Sequence[Contender] = (), on_progress: Progress | None = None
) -> Evaluation:
    """Compress every example with every method to every budget, and tell what was kept, how well and how fast.

    Args:
        settings: What to evaluate.
        contenders: Further methods to compare, such as other tools.
        on_progress: Told of each finished row.

    Raises:
        ConfigError: If a name or an option is wrong, or the output folder holds another run.
        InputError: If the data cannot be used.
        ModelNotFoundError: If a compressor or reader that was asked for is not on this machine.
    """
    tokenizer = load_tokenizer(settings.tokenizer)
    examples, empty = _examples(settings, tokenizer)
    ours, left_out = _contenders(settings)
    plan = Plan(
        examples=examples,
        contenders=(*ours, *contenders),
        keeps=tuple(dict.fromkeys(settings.keeps)),
        tokenizer=tokenizer,
        reader=_reader(settings),
        seed=settings.seed,
        n_shown=settings.n_shown,
        settings={f"max_context of {name}": _settings_of(name, settings, tokenizer).max_context for name in examples},
    )
    folder = RunFolder(settings.output)
    run(plan, folder, on_progress=on_progress)
    return Evaluation(_summary(plan, folder, settings), settings.output, empty | left_out)


def _settings_of(task: str, settings: Settings, tokenizer: Tokenizer) -> TaskSettings:
    return TaskSettings(tokenizer, settings.max_context_of.get(task, settings.max_context), settings.seed)


def _examples(settings: Settings, tokenizer: Tokenizer) -> tuple[dict[str, list[Example]], dict[str, str]]:
    """Return the chosen examples of each task, and why tasks that nobody asked for by name have none."""
    if settings.data is not None and settings.data.is_file():
        if settings.tasks not in ((), (OWN_QUESTIONS,)):
            raise ConfigError(f"a file holds questions of one's own, not {', '.join(settings.tasks)}; give a folder")
        found = {OWN_QUESTIONS: _own_questions(settings.data, _settings_of(OWN_QUESTIONS, settings, tokenizer))}
    else:
        folder = settings.data or samples_folder()
        names = settings.tasks or tuple(name for name in tasks_of(folder) if name != _FOR_SOFT_METHODS)
        if not names:
            raise InputError(f"{folder} has no file of any task: {', '.join(task_names())}")
        found = {name: load_examples(name, folder, _settings_of(name, settings, tokenizer)) for name in names}
    chosen = {name: sample_examples(items, settings.limit, settings.seed) for name, items in found.items()}
    why = "no example can be used: none has its answer in the context, or none fits max_context"
    empty = {name: why for name, items in chosen.items() if not items}
    for name in empty:
        if len(empty) == len(chosen) or name in settings.tasks:
            raise InputError(f"{name}: {why}")
        del chosen[name]
    return chosen, empty


def _own_questions(file: Path, settings: TaskSettings) -> list[Example]:
    found = read_questions(file)
    for example in found:
        if not example.answers:
            raise InputError(f"{file}: the question {example.id!r} has no answer")
    return [example for example in found if fits(example.documents, settings)]


def _contenders(settings: Settings) -> tuple[list[Contender], dict[str, str]]:
    """Return the compressors and pipelines by name, or all that can be used here, and why others cannot."""
    contenders = [Contender(load(name)) for name in dict.fromkeys(settings.compressors)]
    contenders += [Contender(Pipeline.from_toml(path), label=path.stem) for path in settings.pipelines]
    for contender in contenders:
        require_text(contender.compressor, "evaluation")
    left_out: dict[str, str] = {}
    if contenders:
        return contenders, left_out
    for name in compressor_names():
        if compressor_class(name).emits != "text":
            left_out[name] = "it does not give text"
            continue
        try:
            compressor = load(name)
            contenders.append(Contender(compressor, fingerprint=compressor.fingerprint))
        except (ModelNotFoundError, MissingExtraError) as error:
            left_out[name] = str(error)
    return contenders, left_out


def _reader(settings: Settings) -> Reader | None:
    if settings.reader is None:
        return None
    backend = load_reader(settings.reader)
    # an endpoint speaks chat alone; of a local model the plain form tells more, since short answers are likely in it
    is_chat = backend.tokenizer is None
    most = min(settings.reader_positions, backend.max_positions or settings.reader_positions)
    max_new_tokens = MAX_NEW_TOKENS if settings.reader_answers else 0
    return Reader(backend, settings.reader_limit, most, is_chat, max_new_tokens)


def load_reader(name: str) -> Backend:
    """Make the backend that a name stands for: an endpoint if it is a URL, else a local model.

    Raises:
        KompaktError: If it cannot be loaded.
    """
    return load_backend("http" if name.startswith(("http://", "https://")) else "transformers", name)


def _summary(plan: Plan, folder: RunFolder, settings: Settings) -> Summary:
    shown = {
        (name, example.id): Shown(example.question, example.answers)
        for name, items in plan.examples.items()
        for example in items[: plan.n_shown]
    }
    # an earlier call may have had more examples, budgets or methods, over which nothing could be compared
    keys = _keys(plan)
    rows = [row for row in folder.rows() if row.key in keys]
    described = {
        "seed": str(settings.seed),
        "budgets": ", ".join(f"{keep:g}" for keep in settings.keeps),
        "examples a task": "all" if settings.limit is None else f"at most {settings.limit}",
        "tokens counted by": settings.tokenizer,
        "contexts": _told_contexts(settings),
        "reader": _told_reader(settings),
    }
    return summarise(
        rows,
        title="What each compressor keeps",
        stamp=_stamp_of(rows, folder) | described,
        tasks=[get_task(name) for name in plan.examples],
        methods=[contender.method for contender in plan.all_contenders],
        seed=plan.seed,
        views=((key, view) for key, view in folder.views() if key in keys and key[:2] in shown),
        shown=shown,
    )


def _keys(plan: Plan) -> set[Key]:
    return {
        (example.task, example.id, contender.name, keep)
        for items in plan.examples.values()
        for contender in plan.all_contenders
        for example in items[: plan.n_examples(contender, items)]
        for keep in plan.keeps_of(contender)
    }


def _stamp_of(rows: Sequence[ResultRow], folder: RunFolder) -> dict[str, str]:
    """Return where the rows were computed, which need not be here and now; what differs is told after each other."""
    stamps = json.loads((folder.path / RUN_FILE).read_text(encoding="utf-8"))["stamps"]
    used = [stamps[index] for index in sorted({row.stamp for row in rows})]
    labels = dict.fromkeys(label for one in used for label in one)
    return {label: "; ".join(dict.fromkeys(one[label] for one in used if label in one)) for label in labels}


def _told_contexts(settings: Settings) -> str:
    told = "as they are" if settings.max_context is None else f"at most {settings.max_context} tokens"
    return told + "".join(f", {name} {n}" for name, n in settings.max_context_of.items())


def _told_reader(settings: Settings) -> str:
    if settings.reader is None:
        return "none"
    n = "all examples" if settings.reader_limit is None else f"the first {settings.reader_limit} examples of a task"
    return f"{settings.reader}, {n}, contexts of at most {settings.reader_positions} tokens"
