"""The run: every example, by every method, to every budget; finished rows are never computed again."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

from cachetools import LRUCache

from kompakt.compressor.backend import Backend
from kompakt.compressor.base import Compressor, Request
from kompakt.compressor.errors import ConfigError, MissingExtraError, ModelNotFoundError
from kompakt.compressor.evaluation.controls import Full, Nothing, RandomUnits, Truncation
from kompakt.compressor.evaluation.example import Example
from kompakt.compressor.evaluation.fidelity import fidelity
from kompakt.compressor.evaluation.metrics import answer_recall, is_valid, verbatim_text
from kompakt.compressor.evaluation.reading import MAX_NEW_TOKENS, Reading, read
from kompakt.compressor.evaluation.rows import Key, ResultRow, RunFolder
from kompakt.compressor.evaluation.stamp import stamp
from kompakt.compressor.evaluation.summary import Method, Role
from kompakt.compressor.inspection import View, inspect_result
from kompakt.compressor.models.tokenizers import Tokenizer
from kompakt.compressor.results import joined_text
from kompakt.compressor.types import Budget, Compressed, Document

_LOG = logging.getLogger(__name__)

_OF_THE_SETUP = (ConfigError, MissingExtraError, ModelNotFoundError)
"""What every example would fail of alike."""

FULL_KEEP: Final = 1.0
NO_KEEP: Final = 0.0
_REMEMBERED: Final = 256
_WARM_UP: Final = "The first sentence is short. The second one is here to be left out."

Progress = Callable[[int, int, str], None]
"""Called with the rows done, the rows in all, and what is being done."""


@dataclass(frozen=True)
class Contender:
    """Something to be compared.

    Args:
        compressor: What it does.
        role: What it is in the comparison.
        note: What a reader of the report must know of it.
        fingerprint: What identifies it; the compressor's own if empty.
        limit: The most examples of each task that it compresses; None for all of the run's.
        label: Its name in rows and reports; the compressor's own if empty.
    """

    compressor: Compressor
    role: Role = "kompakt"
    note: str = ""
    fingerprint: str = ""
    limit: int | None = None
    label: str = ""

    @property
    def name(self) -> str:
        """Its name in rows and reports."""
        return self.label or self.compressor.name

    @property
    def method(self) -> Method:
        """It, as a summary tells of it."""
        return Method(self.name, self.role, self.note)


@dataclass(frozen=True)
class Reader:
    """Who reads the compressed contexts, and how many of them.

    Args:
        backend: The model.
        n_examples: How many examples of each task it reads; None for all.
        max_positions: Contexts with more tokens than this are not read.
        is_chat: Whether it is asked in its chat format.
        max_new_tokens: The most tokens of an answer; 0 if it only tells how likely the right one is.
    """

    backend: Backend
    n_examples: int | None = None
    max_positions: int = 8192
    is_chat: bool = False
    max_new_tokens: int = MAX_NEW_TOKENS


@dataclass(frozen=True)
class Plan:
    """What is to be run.

    Args:
        examples: The examples of each task, by the task's name.
        contenders: What is compared, controls and references not included: those always run.
        keeps: The fractions of tokens that may remain.
        tokenizer: Whose tokens the budgets count.
        reader: Who reads; None for nobody.
        seed: Decides what is left to chance.
        n_shown: How many examples of each task can be looked at in the report.
        settings: Anything else that decides which rows come out, to be recorded with them.
    """

    examples: Mapping[str, Sequence[Example]]
    contenders: Sequence[Contender]
    keeps: Sequence[float]
    tokenizer: Tokenizer
    reader: Reader | None = None
    seed: int = 0
    n_shown: int = 2
    settings: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.keeps or any(not 0 < keep < 1 for keep in self.keeps):
            raise ConfigError(f"keeps must be fractions above 0 and below 1, got {list(self.keeps)}")
        names = [contender.name for contender in self.all_contenders]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f"two methods are called {name!r}")

    @property
    def all_contenders(self) -> tuple[Contender, ...]:
        """References, controls, then what is compared."""
        return (
            Contender(Full(), "reference", "the whole context"),
            Contender(Nothing(), "reference", "no context"),
            Contender(Truncation(), "control", "first and last words"),
            Contender(RandomUnits(seed=self.seed), "control", "units by lot"),
            *self.contenders,
        )

    def keeps_of(self, contender: Contender) -> tuple[float, ...]:
        """Return the budgets at which a contender runs, the largest first."""
        if contender.role == "reference":
            return (FULL_KEEP if isinstance(contender.compressor, Full) else NO_KEEP,)
        return tuple(sorted(self.keeps, reverse=True))

    @staticmethod
    def n_examples(contender: Contender, items: Sequence[Example]) -> int:
        """Return how many examples of a task a contender compresses."""
        return len(items) if contender.limit is None else min(contender.limit, len(items))


def digest_of(example: Example) -> str:
    """Return a hash of everything in an example that decides its rows."""
    return _digest(example)


def _digest(values: Example | Sequence[Document]) -> str:
    plain = asdict(values) if isinstance(values, Example) else [asdict(document) for document in values]
    content = json.dumps(plain, sort_keys=True, default=str, ensure_ascii=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def run(plan: Plan, folder: RunFolder, *, on_progress: Progress | None = None) -> None:
    """Compute the rows that a folder has not yet.

    Args:
        plan: What is to be run.
        folder: Where finished rows are, and go.
        on_progress: Told of each finished row.

    Raises:
        ConfigError: If the folder holds rows of other settings or other data.
        KompaktError: If a model, an extra or a reader is missing. What one example does to one method is a row.
    """
    folder.settle(_identity(plan), stamp())
    digests = {row.key: row.digest for row in folder.rows()}
    total = sum(
        plan.n_examples(contender, items) * len(plan.keeps_of(contender))
        for items in plan.examples.values()
        for contender in plan.all_contenders
    )
    tally = _Tally(total, on_progress)
    bench = _Bench(plan, folder, digests, tally)
    for name, items in plan.examples.items():
        for index, example in enumerate(items):
            tally.tell(f"{name} {index + 1} of {len(items)}")
            for contender in plan.all_contenders:
                if index < plan.n_examples(contender, items):
                    bench.run(example, index, contender)


def _identity(plan: Plan) -> dict[str, object]:
    identity: dict[str, object] = {"schema_version": 1, "seed": plan.seed, "reader": None}
    identity["tokenizer"] = plan.tokenizer.fingerprint
    if plan.reader is not None:
        identity["reader"] = {
            "fingerprint": plan.reader.backend.fingerprint,
            "n_examples": plan.reader.n_examples,
            "max_positions": plan.reader.max_positions,
            "is_chat": plan.reader.is_chat,
            "max_new_tokens": plan.reader.max_new_tokens,
        }
    for contender in plan.all_contenders:
        identity[f"method {contender.name}"] = contender.fingerprint or contender.compressor.fingerprint
    return identity | dict(plan.settings)


@dataclass
class _Tally:
    total: int
    on_progress: Progress | None
    done: int = 0
    label: str = ""

    def tell(self, label: str) -> None:
        self.label = label
        if self.on_progress is not None:
            self.on_progress(self.done, self.total, label)

    def count(self, n: int) -> None:
        self.done += n
        self.tell(self.label)


class _Bench:
    """Compresses and judges examples."""

    def __init__(self, plan: Plan, folder: RunFolder, digests: Mapping[Key, str], tally: _Tally) -> None:
        self._plan = plan
        self._folder = folder
        self._digests = digests
        self._tally = tally
        # what does not depend on the question is the same for all questions on one context
        self._results: LRUCache[tuple[str, float, str], Compressed] = LRUCache(_REMEMBERED)
        self._loaded: set[str] = set()
        self._readings: LRUCache[tuple[str, str, str], Reading] = LRUCache(_REMEMBERED)

    def run(self, example: Example, index: int, contender: Contender) -> None:
        """Write the rows of an example and a contender that are missing."""
        digest = digest_of(example)
        keeps = self._plan.keeps_of(contender)
        missing = [keep for keep in keeps if not self._is_done(example, contender, keep, digest)]
        if missing:
            self._prepare(contender)
        is_cold = True
        for keep in missing:
            try:
                result, is_new = self._compress(example, contender, keep)
            except _OF_THE_SETUP:
                raise
            except Exception as error:  # a method's fault must cost neither the run nor the other methods
                self._folder.append(self._failed(example, digest, contender, keep, error))
            else:
                row, view = self._judge(example, index, contender, keep, result)
                seconds = sum(trace.seconds for trace in result.trace) if is_new and is_cold else None
                self._folder.append(replace(row, digest=digest, seconds=seconds, stamp=self._folder.stamp), view)
            is_cold = False
            self._tally.count(1)
        self._tally.count(len(keeps) - len(missing))

    def _prepare(self, contender: Contender) -> None:
        """Empty a contender's memory, and have it load its models before the first time that is taken."""
        if contender.name not in self._loaded:
            self._loaded.add(contender.name)
            try:
                contender.compressor.compress(_WARM_UP, query=_WARM_UP, keep=0.5, tokenizer=self._plan.tokenizer)
            except _OF_THE_SETUP:
                raise
            except Exception:
                _LOG.debug("%s failed on the text that warms it up", contender.name, exc_info=True)
        contender.compressor.forget()

    def _is_done(self, example: Example, contender: Contender, keep: float, digest: str) -> bool:
        known = self._digests.get((example.task, example.id, contender.name, keep))
        if known is not None and known != digest:
            raise ConfigError(
                f"{self._folder.path} holds rows of another example with the id {example.id!r} of {example.task}; "
                "the data or the settings have changed: give another folder"
            )
        return known is not None

    def _compress(self, example: Example, contender: Contender, keep: float) -> tuple[Compressed, bool]:
        key = (contender.name, keep, _digest(example.documents))
        if not contender.compressor.uses_query and key in self._results:
            return self._results[key], False
        # the references take no budget
        budget = Budget(keep=keep if 0 < keep < 1 else 1.0)
        request = Request(example.documents, budget, self._plan.tokenizer, example.question or None, record=True)
        result = contender.compressor.compress_batch([request])[0]
        if not contender.compressor.uses_query:
            self._results[key] = result
        return result, True

    def _judge(
        self, example: Example, index: int, contender: Contender, keep: float, result: Compressed
    ) -> tuple[ResultRow, View | None]:
        metrics = _metrics(example, result)
        reader = self._plan.reader
        row = ResultRow(
            **_labels(example),
            digest="",
            method=contender.name,
            keep=keep,
            max_tokens=Budget(keep=keep).resolve(result.tokens_before) if 0 < keep < 1 else result.tokens_after,
            tokens_before=result.tokens_before,
            tokens_after=result.tokens_after,
            n_bytes=result.n_bytes,
            status=result.outcome.status.value,
            reason=result.outcome.reason,
            metrics=metrics,
            is_valid=is_valid(result),
        )
        if reader is not None and (reader.n_examples is None or index < reader.n_examples):
            made = self._read(reader, example, result)
            row = replace(
                row,
                metrics=metrics | (made.metrics or {}),
                answer=made.text,
                n_positions=made.n_positions,
                seconds_to_first=made.seconds_to_first,
                tokens_per_second=made.tokens_per_second,
                not_read=made.not_read,
            )
        if index >= self._plan.n_shown:
            return row, None
        shown = inspect_result(result, method=contender.name, query=example.question, keep=keep)
        recall = metrics.get("answer_recall")
        return row, replace(
            shown, has_answer=None if recall is None else bool(recall), reader_answer=row.answer or None
        )

    def _read(self, reader: Reader, example: Example, result: Compressed) -> Reading:
        """Let the reader read a context, once where several methods leave the same."""
        # a result is text: forms that are not must be told apart by their content here
        key = (example.task, example.id, result.text)
        made = self._readings.get(key)
        if made is None:
            made = read(
                reader.backend,
                example,
                result,
                is_chat=reader.is_chat,
                max_positions=reader.max_positions,
                max_new_tokens=reader.max_new_tokens,
            )
            self._readings[key] = made
        return made

    def _failed(
        self, example: Example, digest: str, contender: Contender, keep: float, error: Exception
    ) -> ResultRow:
        tokens_before = self._plan.tokenizer.count(joined_text(example.documents))
        return ResultRow(
            **_labels(example),
            digest=digest,
            method=contender.name,
            keep=keep,
            max_tokens=Budget(keep=keep).resolve(tokens_before),
            tokens_before=tokens_before,
            tokens_after=0,
            n_bytes=0,
            status="failed",
            reason=f"{type(error).__name__}: {error}",
            stamp=self._folder.stamp,
        )


def _labels(example: Example) -> dict[str, Any]:
    return {
        "task": example.task,
        "example": example.id,
        "dataset": example.dataset,
        "group": example.group or example.id,
        "axes": dict(example.axes),
    }


def _metrics(example: Example, result: Compressed) -> dict[str, float]:
    """Return the scores that need no reader; what cannot be judged is left out."""
    metrics: dict[str, float] = {}
    context = joined_text(example.documents)
    # an answer in other words than the context's can be judged by a reader alone
    if example.target == "answer" and answer_recall(context, example.answers):
        metrics["answer_recall"] = answer_recall(result.text, example.answers)
    facts = fidelity(context, verbatim_text(result))
    metrics |= {f"{name}_kept": fact.kept for name, fact in facts.items() if fact.kept is not None}
    # quotation marks pair up anew wherever text is cut, which alters nothing
    metrics["unaltered"] = float(not any(fact.n_altered for name, fact in facts.items() if name != "quotations"))
    return metrics
