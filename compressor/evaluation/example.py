"""One question about one context: the atom of every task."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from kompakt.compressor.models.tokenizers import Tokenizer
from kompakt.compressor.types import Document

Target: TypeAlias = Literal["answer", "continuation", "reconstruction"]
"""What the reader is asked for: a short answer, the text that goes on, or the context itself."""


@dataclass(frozen=True, slots=True)
class Example:
    """A context, what is asked of it, and what would be right.

    Args:
        id: Distinct within its task.
        task: The task's name.
        documents: The context.
        question: What compressors get as the query and the reader is asked; empty for tasks without one.
        answers: Acceptable answers. Of a continuation, the text that follows; of a reconstruction, the context.
        dataset: Where it comes from, for strata.
        group: Examples of one group share their context and are resampled together; the id if empty.
        instruction: What the reader is told before the context.
        asked: How the reader is asked after it; ``{}`` stands for the question.
        target: What the reader is asked for.
        axes: Positions on the axes of a grid, such as ``length`` and ``depth``.
    """

    id: str
    task: str
    documents: tuple[Document, ...]
    question: str = ""
    answers: tuple[str, ...] = ()
    dataset: str = ""
    group: str = ""
    instruction: str = ""
    asked: str = "Question: {}\nAnswer:"
    target: Target = "answer"
    axes: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TaskSettings:
    """What decides which examples a task makes of its rows.

    Args:
        tokenizer: Counts the tokens of contexts.
        max_context: The most tokens that a context may have; None for no limit. Tasks with distractors use fewer
            of them, tasks with documents of their own leave out those that are longer.
        seed: Decides every choice that is left to chance.
    """

    tokenizer: Tokenizer
    max_context: int | None = None
    seed: int = 0


Row: TypeAlias = Mapping[str, Any]
"""An object of a JSON Lines file."""

Rows: TypeAlias = Mapping[str, Sequence[Row]]
"""The rows of a task's files by the file's name without suffixes, in the order of the names."""


@dataclass(frozen=True, slots=True)
class Task:
    """A kind of question, and how its examples are made.

    Args:
        name: What users write.
        title: A heading for people.
        summary: One line on what it measures.
        files: Patterns of the file names in a data folder, without suffixes.
        examples: Makes examples of rows. Those whose answer does not stand in the context are for the caller to
            leave out.
        has_query: Whether compressors get the question.
        axes: Names of the axes of its grid, if it has one.
    """

    name: str
    title: str
    summary: str
    files: tuple[str, ...]
    examples: Callable[[Rows, TaskSettings], Iterable[Example]]
    has_query: bool = True
    axes: tuple[str, ...] = ()
