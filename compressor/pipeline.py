"""Several compressors in a row, with one budget over all of them and one rule for failures."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

from kompakt.compressor.base import Compressor, Request, make_request
from kompakt.compressor.by_kind import join_kinds, split_by_kind
from kompakt.compressor.errors import (
    BudgetError,
    CompressionError,
    ConfigError,
    InputError,
    MissingExtraError,
    ModelNotFoundError,
)
from kompakt.compressor.models.tokenizers import DEFAULT_TOKENIZER, Tokenizer
from kompakt.compressor.registry import load
from kompakt.compressor.results import fits, joined_text, traced_back, unchanged
from kompakt.compressor.store.artefacts import Artefacts
from kompakt.compressor.store.base import Store
from kompakt.compressor.store.places import open_store
from kompakt.compressor.store.segments import DecodedSegments, compress_each
from kompakt.compressor.types import WHOLE_KINDS, Budget, Compressed, DocumentLike, Kind, Outcome, State, Status
from kompakt.compressor.validity import check

_LOG = logging.getLogger(__name__)

OnError = Literal["pass_through", "raise"]

# the caller's to mend: passing the input through would hide it
_OF_THE_SETUP = (ConfigError, MissingExtraError, ModelNotFoundError)
_OF_THE_REQUEST = (BudgetError, InputError)


@dataclass(frozen=True, slots=True)
class Stage:
    """One compressor of a pipeline.

    Args:
        compressor: What it does.
        share: Its part of the way from the input's size to the budget, relative to the other stages that
            remove content. Stages that remove redundancy take none: they drop repeats and nothing else.
    """

    compressor: Compressor
    share: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.compressor, Compressor):
            raise ConfigError(f"a stage must be a compressor or a registry name, got {self.compressor!r}")
        if not 0 < self.share < float("inf"):
            raise ConfigError(f"a stage's share must be above 0, got {self.share}")


class Pipeline(Compressor):
    """Compressors applied one after another; itself a compressor.

    The budget is split geometrically over the stages that remove content: two equal stages that are to leave a
    quarter leave a half each. The last one meets the budget exactly.

    Args:
        stages: Compressors, registry names, or ``Stage`` objects.
        tokenizer: Whose tokens the budgets count: a name, a folder or a tokenizer.
        strict: Raise ``CompressionError`` where the input would be passed through.
        on_error: ``"pass_through"`` returns the input with the reason if a stage fails; ``"raise"`` raises.
        mark_omissions: Write a mark wherever prose, log lines or table rows are left out.
        keep: The fraction of tokens that may remain of each kind of document, for calls that give no budget;
            documents of other kinds then stay whole.
        store: Where what models say of texts, and compressed segments, are kept for later calls and other processes:
            ``"default"``, a path, a Redis URL or a store; see ``open_store``. Without one, this process's memory.
        tenant: Whose texts are compressed; tenants of one store never find each other's artefacts.

    Raises:
        ConfigError: If a stage or an option is wrong.
        BudgetError: If a fraction or a kind is.
    """

    name: ClassVar[str] = "pipeline"

    def __init__(
        self,
        stages: Sequence[Compressor | Stage | str],
        *,
        tokenizer: str | Tokenizer | None = None,
        strict: bool = False,
        on_error: OnError = "pass_through",
        mark_omissions: bool = False,
        keep: Mapping[Kind, float] | Mapping[str, float] | None = None,
        store: str | os.PathLike[str] | Store | None = None,
        tenant: str = "",
    ) -> None:
        if isinstance(stages, (str, Compressor, Stage)) or not stages:
            raise ConfigError(f"stages must be a list of at least one compressor, got {stages!r}")
        if on_error not in ("pass_through", "raise"):
            raise ConfigError(f"on_error must be 'pass_through' or 'raise', got {on_error!r}")
        for option, value in (("strict", strict), ("mark_omissions", mark_omissions)):
            if not isinstance(value, bool):
                raise ConfigError(f"{option} must be True or False, got {value!r}")
        self.stages = tuple(_as_stage(stage) for stage in stages)
        _check_forms(self.stages)
        self.tokenizer = tokenizer
        self.strict = strict
        self.on_error = on_error
        self.mark_omissions = mark_omissions
        self.budget = None if keep is None else _budget_by_kind(keep)
        self.store = store
        self.tenant = tenant
        self._store = None if store is None else open_store(store)
        self.decoded = DecodedSegments()
        self.emits = self.stages[-1].compressor.emits
        self.uses_query = any(stage.compressor.uses_query for stage in self.stages)

    @property
    def options(self) -> dict[str, object]:
        """Everything that decides what it does, stages included."""
        return {
            "stages": [(stage.compressor.fingerprint, stage.share) for stage in self.stages],
            "mark_omissions": self.mark_omissions,
            "keep": dict(self.budget.by_kind) if self.budget and self.budget.by_kind else None,
        }

    def forget(self) -> None:
        """Empty what the stages remember of earlier calls; what is in the store stays there."""
        for stage in self.stages:
            stage.compressor.forget()

    def close(self) -> None:
        """Give back the store's file or connections; the next call opens them again."""
        if self._store is not None:
            self._store.close()

    @property
    def opened_store(self) -> Store | None:
        """The store that ``store`` names, or None for the memory of this process."""
        return self._store

    def artefacts(self) -> Artefacts:
        """Return where this pipeline keeps what models say of texts, with counts at zero."""
        return Artefacts(self._store, tenant=self.tenant)

    @classmethod
    def from_toml(cls, path: str | Path) -> Pipeline:
        """Read a pipeline from a file that ``to_toml`` or a person wrote.

        Raises:
            ConfigError: If the file cannot be read or says something unknown.
        """
        from kompakt.compressor.config import read_pipeline

        return read_pipeline(Path(path))

    def to_toml(self) -> str:
        """Return this pipeline as TOML.

        Raises:
            ConfigError: If a stage or the tokenizer has no name by which it could be found again.
        """
        from kompakt.compressor.config import write_pipeline

        return write_pipeline(self)

    def compress(
        self,
        documents: DocumentLike | Sequence[DocumentLike],
        *,
        query: str | None = None,
        max_tokens: int | None = None,
        keep: float | None = None,
        tokenizer: str | Tokenizer | None = None,
        state: State | None = None,
    ) -> Compressed:
        """Compress one context; see ``Compressor.compress``. Without ``tokenizer`` the pipeline's own counts."""
        return self.compress_batch([self._request(documents, query, max_tokens, keep, tokenizer, state)])[0]

    def compress_each(
        self,
        documents: DocumentLike | Sequence[DocumentLike],
        *,
        query: str | None = None,
        max_tokens: int | None = None,
        keep: float | None = None,
        tokenizer: str | Tokenizer | None = None,
    ) -> list[Compressed]:
        """Compress each document on its own, under a budget of its own, and keep the results in the store.

        A document that was compressed before is looked up, whatever its id and wherever it stands now. Without a
        query the results serve any later question. A document that is too small for its budget passes through.

        Args:
            documents: The documents; texts stand for documents.
            query: The question that the results are for; it limits their reuse to that question.
            max_tokens: The most tokens that may remain of each document.
            keep: The fraction of tokens that may remain of each; give this or ``max_tokens``.
            tokenizer: Whose tokens are counted; the pipeline's own without one.

        Returns:
            One result a document, in order; its last trace entry says whether it was found.

        Raises:
            KompaktError: If documents, budget or configuration are at fault.
        """
        like = self._request(documents, query, max_tokens, keep, tokenizer, None)
        return compress_each(self, replace(like, artefacts=self.artefacts()), decoded=self.decoded)

    def _request(
        self,
        documents: DocumentLike | Sequence[DocumentLike],
        query: str | None,
        max_tokens: int | None,
        keep: float | None,
        tokenizer: str | Tokenizer | None,
        state: State | None,
    ) -> Request:
        return make_request(
            documents,
            query=query,
            budget=self.budget_for(max_tokens, keep),
            tokenizer=tokenizer or self.tokenizer or DEFAULT_TOKENIZER,
            state=state,
            mark_omissions=self.mark_omissions,
        )

    def budget_for(self, max_tokens: int | None, keep: float | None) -> Budget:
        """Return the budget that a call gave, or the pipeline's own if it gave none.

        Raises:
            BudgetError: If what was given makes no sense, or nothing was given and there is none.
        """
        if max_tokens is None and keep is None and self.budget is not None:
            return self.budget
        return Budget(max_tokens, keep)

    def compress_batch(self, requests: Sequence[Request]) -> list[Compressed]:
        """Compress several requests, each stage over all of them at once.

        A request with a budget by kind is compressed as one request a kind.

        Raises:
            BudgetError: If a budget cannot hold what it must.
            CompressionError: If ``strict`` and a stage failed.
            KompaktError: If the configuration is at fault: a missing model, extra or option.
        """
        if self._store is not None:
            requests = [replace(request, artefacts=self.artefacts()) for request in requests]
        plain = iter(self._compress_batch([request for request in requests if not request.budget.by_kind]))
        return [self._by_kind(request) if request.budget.by_kind else next(plain) for request in requests]

    def _by_kind(self, request: Request) -> Compressed:
        """Compress the documents of each kind on their own; those of a kind too small for its budget stay whole."""
        results = {}
        for kind, part in split_by_kind(request).items():
            try:
                results[kind] = self._compress_batch([part])[0]
            except BudgetError as error:
                if self.strict:
                    raise
                n_tokens = part.tokenizer.count(joined_text(part.documents))
                results[kind] = unchanged(part.documents, n_tokens, Outcome(Status.PASSED_THROUGH, str(error)))
        return join_kinds(request, results, self.name)

    def _compress_batch(self, requests: Sequence[Request]) -> list[Compressed]:
        total = len(requests)
        labels = [f"context {n} of {total}: " if total > 1 else "" for n in range(1, total + 1)]
        runs = [_Run(request, label) for request, label in zip(requests, labels, strict=True)]
        for position, stage in enumerate(self.stages):
            active = [run for run in runs if run.done is None]
            if active:
                self._run_stage(stage.compressor, [(run, run.next_request(self.stages, position)) for run in active])
        return [run.result() for run in runs]

    def _run_stage(self, compressor: Compressor, jobs: Sequence[tuple[_Run, Request]]) -> None:
        try:
            for (run, _), result in zip(jobs, compressor.compress_batch([job for _, job in jobs]), strict=True):
                run.advance(result)
        except _OF_THE_SETUP:
            raise
        except Exception as error:
            if len(jobs) > 1:  # find the request at fault, and let the others have their results
                for job in jobs:
                    self._run_stage(compressor, [job])
                return
            run = jobs[0][0]
            if isinstance(error, _OF_THE_REQUEST):
                raise run.named(error) from error
            run.fail(self._reason(compressor, error))

    def _reason(self, compressor: Compressor, error: Exception) -> str:
        reason = f"{compressor.name} failed: {type(error).__name__}: {error}"
        if self.strict:
            raise CompressionError(reason) from error
        if self.on_error == "raise":
            raise error
        _LOG.warning("input passed through unchanged: %s", reason)
        return reason


class _Run:
    """The way of one request through the stages."""

    def __init__(self, request: Request, label: str) -> None:
        self._label = label
        began = time.perf_counter()
        self.request = request
        self.tokens_before = request.tokenizer.count(joined_text(request.documents))
        self.max_tokens = request.budget.resolve(self.tokens_before)
        self.current: Compressed | None = None
        self.done: Compressed | None = None
        if self.tokens_before <= self.max_tokens:
            whole = fits(request.documents, self.tokens_before, Pipeline.name, time.perf_counter() - began)
            self.done = replace(whole, state=request.state)
        elif self.max_tokens < 1:
            raise BudgetError(
                f"{label}keep={request.budget.keep} of {self.tokens_before} tokens leaves no token; "
                "raise keep or give max_tokens"
            )

    def next_request(self, stages: Sequence[Stage], position: int) -> Request:
        documents = self.current.documents if self.current else self.request.documents
        n_tokens = self.current.tokens_after if self.current else self.tokens_before
        if len(stages) == 1:  # a fraction says more than the number of tokens that it comes to
            return self.request
        is_last = position == len(stages) - 1
        is_soft = stages[position].compressor.removes == "redundancy" and not is_last
        budget = Budget(self.max_tokens if is_soft or is_last else self._stage_budget(stages[position:], n_tokens))
        return replace(self.request, documents=documents, budget=budget, is_soft=is_soft)

    def _stage_budget(self, remaining: Sequence[Stage], n_tokens: int) -> int:
        shares = [stage.share for stage in remaining if stage.compressor.removes == "content"]
        if n_tokens <= self.max_tokens or not shares:
            return self.max_tokens
        # one formula for every stage: what is left of the way is split over the stages that are left
        fraction: float = (self.max_tokens / n_tokens) ** (shares[0] / sum(shares))
        return max(self.max_tokens, int(n_tokens * fraction))

    def advance(self, result: Compressed) -> None:
        if self.current is not None:
            result = traced_back(result, self.current)
            check(result)
        self.current = result

    def named(self, error: Exception) -> Exception:
        """Return the error with the number of the context, if there are several."""
        return type(error)(f"{self._label}{error}")

    def fail(self, reason: str) -> None:
        passed = unchanged(self.request.documents, self.tokens_before, Outcome(Status.PASSED_THROUGH, reason))
        self.done = replace(passed, trace=self.current.trace if self.current else ())

    def result(self) -> Compressed:
        if self.done is not None:
            return self.done
        if self.current is None:
            raise CompressionError("no stage ran")
        if self.current.tokens_after < self.tokens_before:
            return replace(self.current, outcome=Outcome(Status.COMPRESSED))
        return self.current


def _check_forms(stages: Sequence[Stage]) -> None:
    for stage in stages[:-1]:
        if stage.compressor.emits != "text":
            raise ConfigError(
                f"{stage.compressor.name} gives {stage.compressor.emits}, which no later stage can read: put it last"
            )


def _budget_by_kind(keep: Mapping[Kind, float] | Mapping[str, float]) -> Budget:
    if not isinstance(keep, Mapping):
        raise ConfigError(f"keep must be a table of fractions by kind of document, got {keep!r}")
    unknown = [name for name in keep if name not in WHOLE_KINDS]
    if unknown:
        raise ConfigError(f"keep has no kind of document {unknown[0]!r}. Kinds: {', '.join(WHOLE_KINDS)}")
    return Budget(by_kind={Kind(name): value for name, value in keep.items()})


def _as_stage(stage: Compressor | Stage | str) -> Stage:
    if isinstance(stage, Stage):
        return stage
    return Stage(load(stage) if isinstance(stage, str) else stage)
