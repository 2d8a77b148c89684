"""The bases of all compressors."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import time
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Final, Literal, TypeAlias

from kompakt.compressor.budget import Candidates, closures, select
from kompakt.compressor.errors import BudgetError, ConfigError, InputError, ValidityError
from kompakt.compressor.models.tokenizers import Tokenizer, load_tokenizer
from kompakt.compressor.results import fits, from_fragments, joined_text, text_of
from kompakt.compressor.store.artefacts import Artefacts, process_store
from kompakt.compressor.types import (
    Budget,
    Compressed,
    Decision,
    Document,
    DocumentLike,
    Form,
    Span,
    StageTrace,
    State,
    as_documents,
    require_unicode,
)
from kompakt.compressor.units.render import Fragment, longest_mark, render
from kompakt.compressor.units.segment import forget, segment
from kompakt.compressor.units.sentences import ProseSplitter, split_sentences, split_words
from kompakt.compressor.units.unit import Layout, Units
from kompakt.compressor.validity import check

_CHARACTERS_AT_ONCE: Final = 200_000
"""Texts whose units and artefacts exist at one time in a batch of small requests."""


Locality: TypeAlias = Literal["segment", "sequential", "global"]


@dataclass(frozen=True, slots=True)
class Request:
    """One thing to compress.

    Args:
        documents: What to make smaller.
        budget: How much may remain.
        tokenizer: Whose tokens the budget counts.
        query: The question or task that the result is for; None if unknown.
        state: What the previous call of a sequential compressor returned.
        mark_omissions: Whether to write a mark wherever prose, log lines or table rows are left out.
        is_soft: Whether the compressor may stop above the budget once nothing redundant is left; a later stage
            enforces it.
        record: Whether the result says what became of each unit.
        artefacts: Where what models said of texts earlier is found.
    """

    documents: tuple[Document, ...]
    budget: Budget
    tokenizer: Tokenizer
    query: str | None = None
    state: State | None = None
    mark_omissions: bool = False
    is_soft: bool = False
    record: bool = False
    artefacts: Artefacts = field(default_factory=Artefacts, repr=False, compare=False)


class Compressor(ABC):
    """Context in, smaller context out.

    The class attributes describe a compressor to the planner and the store; nothing branches on its name.

    Attributes:
        name: Its registry name.
        emits: The form of its output.
        locality: ``segment`` (each segment alone), ``sequential`` (state is carried) or ``global``.
        uses_query: Whether the result depends on the query.
        removes: ``redundancy`` (repeats, whatever the budget) or ``content`` (down to the budget).
    """

    name: ClassVar[str]
    emits: Form = "text"
    locality: Locality = "global"
    uses_query: bool = True
    removes: ClassVar[Literal["redundancy", "content"]] = "content"

    @property
    def space(self) -> str:
        """Fingerprint of the decoder that can read the output; ``any`` for text."""
        return "any"

    @property
    def options(self) -> dict[str, object]:
        """The options it was made with, as they are written to a configuration file."""
        if not dataclasses.is_dataclass(self):
            return {}
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.init}

    @property
    def fingerprint(self) -> str:
        """SHA-256 over everything that decides what it does: name, options, and the weights of its model."""
        identity = [type(self).__module__, self.name, self.options, self.weights_fingerprint]
        return hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()

    @property
    def weights_fingerprint(self) -> str:
        """SHA-256 of the model's files; empty for a compressor without a model."""
        return ""

    def forget(self) -> None:
        """Empty what this process remembers of earlier calls: for measurements, and to give memory back."""
        forget()
        process_store().clear()

    @abstractmethod
    def compress_batch(self, requests: Sequence[Request]) -> list[Compressed]:
        """Compress several requests; results come in the order of the requests.

        Raises:
            BudgetError: If a budget cannot hold what it must.
            KompaktError: Whatever else stands in the way; no request is silently left as it is.
        """

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
        """Compress one context: the batch of one.

        Args:
            documents: A text, a document, or several.
            query: The question or task that the result is for.
            max_tokens: The most tokens that may remain.
            keep: The fraction of tokens that may remain; give this or ``max_tokens``.
            tokenizer: Whose tokens are counted: a name, a folder or a tokenizer.
            state: What the previous call of a sequential compressor returned.

        Raises:
            KompaktError: If the input, the budget or the model cannot be used.
        """
        request = make_request(
            documents, query=query, budget=Budget(max_tokens, keep), tokenizer=tokenizer, state=state
        )
        return self.compress_batch([request])[0]


def require_text(compressor: Compressor, reader: str) -> None:
    """Raise unless a compressor gives text.

    Args:
        compressor: What is to be used.
        reader: What reads its results, as a message says it.

    Raises:
        ConfigError: If it gives embeddings or caches.
    """
    if compressor.emits != "text":
        last = getattr(compressor, "stages", None)
        name = last[-1].compressor.name if last else compressor.name
        raise ConfigError(
            f"{name} gives {compressor.emits}, and {reader} can carry text alone: use one that gives text"
        )


def make_request(
    documents: DocumentLike | Sequence[DocumentLike],
    *,
    budget: Budget,
    query: str | None = None,
    tokenizer: str | Tokenizer | None = None,
    state: State | None = None,
    mark_omissions: bool = False,
) -> Request:
    """Check what a caller passed and make a request of it.

    Raises:
        InputError: If documents or query cannot be used.
        ModelNotFoundError: If the tokenizer is not on this machine.
    """
    if query is not None:
        if not isinstance(query, str):
            raise InputError(f"query must be str or None, got {type(query).__name__}")
        require_unicode(query, "the query")
    cleaned = query if query and query.strip() else None
    return Request(as_documents(documents), budget, load_tokenizer(tokenizer), cleaned, state, mark_omissions)


class ScoringCompressor(Compressor):
    """A text compressor whose author writes ``score`` alone.

    This class cuts documents into units, ranks them, selects under the budget, writes what was kept in source order
    and checks the result.
    """

    @property
    def note(self) -> str:
        """What the trace should say about a run that the caller did not ask for; empty if nothing."""
        return ""

    @abstractmethod
    def score(self, units: Units, query: str | None) -> Sequence[float]:
        """Return a finite score for each unit; units with higher scores are kept first.

        Scores must not depend on the budget.

        Args:
            units: The units of one request, with their documents.
            query: The question, or None.
        """

    def prose_splitter(self, request: Request) -> ProseSplitter:
        """Return how running text is cut; by default into sentences."""
        return split_sentences

    def read_ahead(self, requests: Sequence[Request], artefacts: Artefacts) -> None:
        """Ask a model about the texts of several requests at once, before they are cut into units.

        What it says is left in ``artefacts``, where ``prose_splitter`` and ``score`` then find it. By default nothing
        is asked.

        Args:
            requests: Requests that exceed their budgets.
            artefacts: Where theirs are kept, to be called with ``is_ahead=True``.
        """

    def read_ahead_units(self, jobs: Sequence[tuple[Units, str | None]], artefacts: Artefacts) -> None:
        """Ask a model about the units of several requests at once; see ``read_ahead``.

        Args:
            jobs: The units and the query of each request.
            artefacts: Where theirs are kept.
        """

    def compress_batch(self, requests: Sequence[Request]) -> list[Compressed]:
        """Compress several requests; see ``Compressor.compress_batch``."""
        results: list[Compressed] = []
        for group in request_groups(requests):
            views = Artefacts.together([request.artefacts for request in group])
            results += self._compress_group(
                [dataclasses.replace(request, artefacts=view) for request, view in zip(group, views, strict=True)]
            )
        return results

    def _compress_group(self, requests: Sequence[Request]) -> list[Compressed]:
        began = time.perf_counter()
        jobs = [open_job(request) for request in requests]
        too_long = [job for job in jobs if job.tokens_before > job.max_tokens]
        if len(too_long) > 1:
            for artefacts, members in _by_store(too_long):
                self.read_ahead([job.request for job in members], artefacts)
        cut = {id(job): self._cut(job.request) for job in too_long}
        if len(too_long) > 1:
            for artefacts, members in _by_store(too_long):
                self.read_ahead_units([(cut[id(job)], job.request.query) for job in members], artefacts)
        # what was done for all is shared out evenly
        seconds = (time.perf_counter() - began) / max(1, len(requests))
        return [
            self._compress(job, cut[id(job)], seconds)
            if id(job) in cut
            else fits(job.request.documents, job.tokens_before, self.name, seconds)
            for job in jobs
        ]

    def _cut(self, request: Request) -> Units:
        return segment(request.documents, prose=self.prose_splitter(request), artefacts=request.artefacts)

    def _compress(self, job: Job, units: Units, seconds: float) -> Compressed:
        began = time.perf_counter()
        request = job.request
        fragments, decisions = self._select(job, units)
        result = from_fragments(request.documents, fragments, request.tokenizer, job.tokens_before)
        check(result)
        trace = StageTrace(
            self.name,
            seconds + time.perf_counter() - began,
            job.tokens_before,
            result.tokens_after,
            request.artefacts.hits,
            request.artefacts.misses,
            self.note,
        )
        return dataclasses.replace(result, trace=(trace,), decisions=decisions)

    def _select(self, job: Job, units: Units) -> tuple[list[list[Fragment]], tuple[Decision, ...]]:
        request = job.request
        scores = [float(score) for score in self.score(units, request.query)]
        if len(scores) != len(units) or not all(map(math.isfinite, scores)):
            raise ValidityError(
                f"{self.name} must give one finite score a unit: {len(units)} units, {len(scores)} scores"
            )
        order = self.rank(units, scores)
        kept = self.choose(units, job, order)
        fragments = job.write(units, kept)
        if not any(fragments):
            # the budget holds no whole unit: as many words of the best ones as it does hold
            words = segment(request.documents, prose=split_words)
            owners = _owners(words, units)
            kept = job.select(words, _by_word(owners, order))
            units, scores = words, [scores[owner] for owner in owners]
            fragments = job.write(words, kept)
        if not any(fragments):
            raise BudgetError(
                f"{job.max_tokens} tokens hold not even the smallest piece of the input that can stand alone; "
                f"the input has {job.tokens_before} tokens"
            )
        return fragments, _decisions(self.name, units, scores, kept) if request.record else ()

    def rank(self, units: Units, scores: Sequence[float]) -> list[int]:
        """Return the units' indices, best first; by default by score, earlier ones first among equals."""
        # the sort is stable: among equals the earlier one stays first
        return sorted(range(len(units)), key=[-score for score in scores].__getitem__)

    def choose(self, units: Units, job: Job, order: Sequence[int]) -> frozenset[int]:
        """Return the indices of the units to keep, at most the budget's tokens of them unless the request is soft."""
        return job.select(units, order)


@dataclass(frozen=True, slots=True)
class Job:
    """A request whose budget has been resolved.

    Args:
        request: What was asked for.
        tokens_before: Tokens of the documents.
        max_tokens: The ceiling.
    """

    request: Request
    tokens_before: int
    max_tokens: int

    def select(self, units: Units, order: Sequence[int]) -> frozenset[int]:
        """Return what the ceiling holds of the units in order of rank, with all that is protected.

        Raises:
            BudgetError: If the protected units alone exceed the ceiling.
        """
        needs = closures(units)
        protected = (needs[index] for index, unit in enumerate(units) if unit.protected)
        candidates = Candidates(
            order=order,
            costs=costs(units, self.request.tokenizer, self.tokens_before),
            needs=needs,
            protected=frozenset().union(*protected),
        )

        def count(kept: frozenset[int]) -> int:
            return self.request.tokenizer.count(text_of(self.write(units, kept)))

        return select(candidates, self.max_tokens, count)

    def write(self, units: Units, kept: frozenset[int]) -> list[list[Fragment]]:
        """Return the kept units of each document as text."""
        return render(units, kept, mark_omissions=self.request.mark_omissions)


def open_job(request: Request) -> Job:
    """Resolve a request's budget.

    Raises:
        BudgetError: If it leaves no token.
    """
    tokens_before = request.tokenizer.count(joined_text(request.documents))
    max_tokens = request.budget.resolve(tokens_before)
    if max_tokens < 1 <= tokens_before:
        raise BudgetError(
            f"keep={request.budget.keep} of {tokens_before} tokens leaves no token; raise keep or give max_tokens"
        )
    return Job(request, tokens_before, max_tokens)


def request_groups(requests: Sequence[Request]) -> Iterator[list[Request]]:
    """Cut requests into groups that are read at once, so that memory stays bounded however many there are."""
    group: list[Request] = []
    n_characters = 0
    for request in requests:
        size = sum(len(document.text) for document in request.documents)
        if group and n_characters + size > _CHARACTERS_AT_ONCE:
            yield group
            group, n_characters = [], 0
        group.append(request)
        n_characters += size
    if group:
        yield group


def _by_store(jobs: Sequence[Job]) -> list[tuple[Artefacts, list[Job]]]:
    groups: list[tuple[Artefacts, list[Job]]] = []
    for job in jobs:
        artefacts = job.request.artefacts
        known = next((members for first, members in groups if first.is_shared_with(artefacts)), None)
        if known is None:
            groups.append((artefacts, [job]))
        else:
            known.append(job)
    return groups


def _owners(words: Units, units: Units) -> list[int]:
    """Return for each word the index of the unit that it stands in."""
    starts = [(unit.document, unit.start) for unit in units]
    return [max(0, bisect_right(starts, (word.document, word.start)) - 1) for word in words]


def _by_word(owners: Sequence[int], order: Sequence[int]) -> list[int]:
    """Return the words in the order of the units that they stand in, and within one as they come."""
    ranks = {index: rank for rank, index in enumerate(order)}
    return sorted(range(len(owners)), key=lambda word: (ranks[owners[word]], word))


def _decisions(stage: str, units: Units, scores: Sequence[float], kept: frozenset[int]) -> tuple[Decision, ...]:
    ids = [document.id or "" for document in units.documents]
    spans = [Span(ids[unit.document], unit.start, unit.head_end, unit.kind, unit.protected) for unit in units]
    return tuple(
        Decision(span, stage, score, index in kept)
        for index, (span, score) in enumerate(zip(spans, scores, strict=True))
    )


def costs(units: Units, tokenizer: Tokenizer, n_tokens: int) -> list[float]:
    """Estimate the tokens that each unit adds, scaled so that all of them together cost what the input costs.

    Args:
        units: The units.
        tokenizer: Whose tokens are counted.
        n_tokens: Tokens of the input as a whole.
    """
    children = units.children()
    heads, tails = zip(*_written(units, children), strict=True)
    counted = _counted(tokenizer, [*heads, *tails])
    plain = [head + tail for head, tail in zip(counted[: len(units)], counted[len(units) :], strict=True)]
    scale = n_tokens / max(1, sum(plain))
    marks = _counted(tokenizer, [longest_mark(unit, len(children.get(i, ()))) for i, unit in enumerate(units)])
    return [scale * cost + mark for cost, mark in zip(plain, marks, strict=True)]


def _counted(tokenizer: Tokenizer, texts: Sequence[str]) -> list[int]:
    """Count the tokens of many texts at once, most of which may be empty."""
    counts = iter(tokenizer.count_batch([text for text in texts if text]))
    return [next(counts) if text else 0 for text in texts]


def _written(units: Units, children: dict[int | None, list[int]]) -> list[tuple[str, str]]:
    """Return each unit's head, with the comma and white space that join it to its JSON siblings, and its tail."""
    begins = {index: unit.start for index, unit in enumerate(units)}
    for parent, members in children.items():
        if parent is not None and units[parent].layout in (Layout.JSON_ARRAY, Layout.JSON_OBJECT):
            ends = [units[parent].head_end, *(units[member].end for member in members)]
            begins.update(zip(members, ends, strict=False))
    texts = [document.text for document in units.documents]
    return [
        (texts[unit.document][begins[index] : unit.head_end], texts[unit.document][unit.tail_start : unit.end])
        for index, unit in enumerate(units)
    ]
