"""The smallest budget that is safe on the user's own data, by kind of content."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from kompakt.compressor.base import Compressor, Request
from kompakt.compressor.by_kind import join_kinds, split_by_kind
from kompakt.compressor.errors import BudgetError, CompressionError, ConfigError, InputError
from kompakt.compressor.evaluation.example import Example
from kompakt.compressor.evaluation.metrics import answer_recall
from kompakt.compressor.evaluation.reading import read
from kompakt.compressor.evaluation.runner import Reader
from kompakt.compressor.evaluation.statistics import loss_bound
from kompakt.compressor.models.tokenizers import Tokenizer
from kompakt.compressor.results import joined_text
from kompakt.compressor.types import Budget, Compressed, Kind, Status
from kompakt.compressor.units.segment import recognise

Quality: TypeAlias = Literal["answer_recall", "f1", "exact_match", "log_likelihood"]

KEEPS: Final = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""The budgets that are tried."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One budget on one kind of content.

    Args:
        keep: The fraction of tokens that may remain.
        loss: Mean quality with the full context less mean quality with the compressed one.
        bound: What the true loss stays under, with the confidence that was asked for.
        n: Number of examples.
    """

    keep: float
    loss: float
    bound: float
    n: int


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was found for one kind of content.

    Args:
        kind: The kind.
        keep: The smallest budget whose loss stays under the bound; None if none does.
        trials: Every budget that was tried, the largest first.
        n: Number of examples.
        n_groups: Number of their groups, which alone count as independent.
    """

    kind: Kind
    keep: float | None
    trials: tuple[Trial, ...]
    n: int
    n_groups: int


Progress: TypeAlias = Callable[[int, int, str], None]


def kind_of(example: Example) -> Kind:
    """Return the kind of content that most characters of a context belong to."""
    sizes: dict[Kind, int] = {}
    for document in example.documents:
        kind = recognise(document).kind
        sizes[kind] = sizes.get(kind, 0) + len(document.text)
    return max(sizes, key=lambda kind: sizes[kind])


def calibrate(
    examples: Sequence[Example],
    compressor: Compressor,
    *,
    tokenizer: Tokenizer,
    max_loss: float,
    confidence: float = 0.95,
    quality: Quality = "answer_recall",
    reader: Reader | None = None,
    keeps: Sequence[float] = KEEPS,
    seed: int = 0,
    on_progress: Progress | None = None,
) -> tuple[Calibration, ...]:
    """Find, for each kind of content, the smallest budget whose loss is non-inferior to the full context.

    A context belongs to the kind that most of it is of; only its documents of this kind are compressed. Budgets are
    tried from the largest down, and the search stops at the first whose bound is too high, or that is too small to
    hold anything of some context. Each is tested only if all larger ones passed, so that the confidence holds for the
    one that is chosen, however many were tried (fixed-sequence testing).

    Args:
        examples: Questions with their contexts and answers.
        compressor: What is to be calibrated.
        tokenizer: Whose tokens the budgets count.
        max_loss: The loss of mean quality that is still acceptable, such as 0.05.
        confidence: How sure the bound is to hold.
        quality: What is measured; all but ``answer_recall`` need a reader.
        reader: Who reads the contexts.
        keeps: The budgets to try.
        seed: Decides the resamples.
        on_progress: Told of each finished example.

    Returns:
        A calibration for each kind that occurs.

    Raises:
        ConfigError: If an option makes no sense.
        InputError: If there is no example.
        KompaktError: If compression fails: a calibration that left out what fails would not be one.
    """
    _check(max_loss, confidence, keeps, quality, reader)
    by_kind: dict[Kind, list[Example]] = {}
    for example in examples:
        by_kind.setdefault(kind_of(example), []).append(example)
    if not by_kind:
        raise InputError("there is no question to calibrate on")
    judge = _Judge(compressor, tokenizer, quality, reader)
    found = []
    for kind, items in sorted(by_kind.items()):
        full = [judge.full(example) for example in items]
        groups = [example.group or example.id for example in items]
        trials: list[Trial] = []
        for keep in sorted(keeps, reverse=True):
            losses = []
            try:
                for index, (example, whole) in enumerate(zip(items, full, strict=True)):
                    losses.append(whole - judge.at(example, kind, keep))
                    if on_progress is not None:
                        on_progress(index + 1, len(items), f"{kind} at {keep:g}")
            except BudgetError:
                if not trials:
                    raise
                break
            is_share = quality != "log_likelihood"
            bound = loss_bound(losses, groups, confidence=confidence, seed=seed, is_share=is_share)
            trials.append(Trial(keep, sum(losses) / len(losses), bound, len(losses)))
            if bound >= max_loss:
                break
        passed = [trial.keep for trial in trials if trial.bound < max_loss]
        found.append(Calibration(kind, min(passed, default=None), tuple(trials), len(items), len(set(groups))))
    return tuple(found)


def _check(
    max_loss: float, confidence: float, keeps: Sequence[float], quality: Quality, reader: Reader | None
) -> None:
    if not max_loss > 0:
        raise ConfigError(f"max_loss must be above 0, got {max_loss}: no sample shows that nothing is ever lost")
    if not 0.5 <= confidence < 1:
        raise ConfigError(f"confidence must be at least 0.5 and below 1, got {confidence}")
    if not keeps or any(not 0 < keep < 1 for keep in keeps):
        raise ConfigError(f"keeps must be fractions above 0 and below 1, got {list(keeps)}")
    if quality != "answer_recall" and reader is None:
        raise ConfigError(f"quality {quality!r} needs a reader; only answer_recall does without")


@dataclass(frozen=True)
class _Judge:
    compressor: Compressor
    tokenizer: Tokenizer
    quality: Quality
    reader: Reader | None

    def full(self, example: Example) -> float:
        from kompakt.compressor.evaluation.controls import Full

        return self._quality(example, Full().compress_batch([self._request(example, Budget(keep=1.0))])[0])

    def at(self, example: Example, kind: Kind, keep: float) -> float:
        """Return the quality with the documents of one kind compressed and the others whole, as pipelines do it."""
        request = self._request(example, Budget(by_kind={kind: keep}))
        results = {one: self.compressor.compress_batch([part])[0] for one, part in split_by_kind(request).items()}
        for result in results.values():
            if result.outcome.status is Status.PASSED_THROUGH:
                # a pipeline hides failures so, and what it left whole lost nothing
                raise CompressionError(f"{example.id!r} passed through at keep={keep:g}: {result.outcome.reason}")
        return self._quality(example, join_kinds(request, results, self.compressor.name))

    def _request(self, example: Example, budget: Budget) -> Request:
        return Request(example.documents, budget, self.tokenizer, example.question or None)

    def _quality(self, example: Example, result: Compressed) -> float:
        if self.reader is None or self.quality == "answer_recall":
            return answer_recall(result.text, example.answers)
        made = read(
            self.reader.backend,
            example,
            result,
            is_chat=self.reader.is_chat,
            max_positions=self.reader.max_positions,
        )
        if made.metrics is None or self.quality not in made.metrics:
            raise InputError(
                f"the reader gave no {self.quality} for {example.id!r}: {made.not_read or 'it cannot tell'}"
            )
        return made.metrics[self.quality]


def needed(max_loss: float, confidence: float) -> int:
    """Return how many questions on different contexts it takes to pass if none of them loses its answer."""
    if max_loss >= 1:
        return 1
    # where n of n are kept, the bound of Clopper and Pearson is 1 - (1 - confidence) ** (1 / n)
    return math.floor(math.log1p(-confidence) / math.log1p(-max_loss)) + 1


def with_answer_in_context(examples: Sequence[Example]) -> list[Example]:
    """Return the examples whose answer stands in their context: only those can lose it."""
    return [example for example in examples if answer_recall(joined_text(example.documents), example.answers)]
