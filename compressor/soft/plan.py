"""What is done to one context: which text becomes slots, at which rates, and what comes out."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import TYPE_CHECKING, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from kompakt.compressor.base import Job
from kompakt.compressor.errors import BudgetError, InputError
from kompakt.compressor.parts import Part, TextPart
from kompakt.compressor.soft.allocation import allocate
from kompakt.compressor.soft.runs import Run, cut_runs, joined_source
from kompakt.compressor.store.artefacts import Artefacts
from kompakt.compressor.types import Compressed, Outcome, StageTrace, State, Status

if TYPE_CHECKING:
    from kompakt.compressor.soft.slot_encoder import SlotEncoder

_PREFIX: Final = "prefix"


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """What is encoded at once.

    Args:
        ids: Its tokens.
        rate: Source tokens that one vector stands for.
        prefix: The vectors of the segments before it ``[s, D]``, for sequential methods.
    """

    ids: tuple[int, ...]
    rate: float
    prefix: torch.Tensor | None = None

    @property
    def content(self) -> str:
        """Everything about it that decides its code, as text."""
        before = "" if self.prefix is None else hashlib.sha256(_to_bytes(self.prefix)).hexdigest()
        return json.dumps([self.rate, before, self.ids], separators=(",", ":"))


@dataclass(frozen=True, slots=True)
class _Piece:
    """Tokens of a run that share a rate; ``costs`` are its vectors at each rate."""

    run: int
    ids: tuple[int, ...]
    costs: tuple[int, ...]


class Plan:
    """The way of one context from text to vectors.

    Args:
        encoder: What encodes.
        job: What was asked for, with a ceiling below what the context has.

    Raises:
        BudgetError: If the ceiling cannot be met.
        InputError: If the state is not of this encoder.
    """

    def __init__(self, encoder: SlotEncoder, job: Job) -> None:
        self._encoder = encoder
        self._job = job
        self.artefacts: Artefacts = job.request.artefacts
        after = encoder.after_text()
        self._n_after_text = 0 if after is None else len(after)
        runs = cut_runs(job.request.documents, encoder.reading_lm, job.request.tokenizer)
        self._runs = [self._smaller(run) for run in runs]
        pieces = [piece for index, run in enumerate(self._runs) for piece in self._pieces(index, run)]
        rates = self._rates(pieces)
        self._cuts = [list(self._cut(piece, rate)) for piece, rate in zip(pieces, rates, strict=True)]
        self._owners = [piece.run for piece in pieces]
        self._place_rates = rates
        self.segments = [segment for cut in self._cuts for segment in cut]
        self._codes: list[torch.Tensor] = []
        self._prefix = _prefix_of(job.request.state, encoder.fingerprint) if encoder.is_sequential else None

    def following(self, step: int) -> Segment:
        """Return a segment with the vectors of those before it."""
        return dataclasses.replace(self.segments[step], prefix=self._prefix)

    def add(self, codes: Sequence[torch.Tensor]) -> None:
        """Take the codes of the next segments."""
        self._codes += codes
        if self._encoder.is_sequential:
            for code in codes:
                known = self._prefix if self._encoder.accumulates else None
                self._prefix = code if known is None else torch.cat([known, code])

    def result(self) -> Compressed:
        """Return what came out, once all segments have their codes."""
        request = self._job.request
        parts = list(self._parts())
        positions = sum(part.n_positions for part in parts if not isinstance(part, TextPart))
        positions += sum(run.n_tokens for run in self._runs)
        trace = StageTrace(
            self._encoder.name,
            0.0,
            self._job.tokens_before,
            positions,
            self.artefacts.hits,
            self.artefacts.misses,
            "untrained weights" if self._encoder.weights is None else "",
        )
        return Compressed(
            parts=tuple(parts),
            documents=request.documents,
            outcome=Outcome(Status.COMPRESSED),
            tokens_before=self._job.tokens_before,
            tokens_after=positions,
            n_bytes=sum(len(part.text.encode()) if isinstance(part, TextPart) else part.n_bytes for part in parts),
            trace=(trace,),
            sources=request.documents,
            state=self._state(),
        )

    def _smaller(self, run: Run) -> Run:
        """Return a run as text if vectors would not take fewer positions."""
        if not run.ids:
            return run
        encoder = self._encoder
        fewest = min(
            sum(self._cost(piece, rate) for piece in encoder.pieces(len(run.ids))) for rate in encoder.levels
        )
        n_tokens = self._job.request.tokenizer.count(run.source.text)
        if fewest + self._n_after_text < n_tokens:
            return run
        return dataclasses.replace(run, ids=(), n_tokens=n_tokens)

    def _cost(self, n_tokens: int, rate: float) -> int:
        return sum(self._encoder.n_vectors(length, rate) for length in self._encoder.cut(n_tokens, rate))

    def _pieces(self, index: int, run: Run) -> Iterator[_Piece]:
        ids = iter(run.ids)
        for length in self._encoder.pieces(len(run.ids)) if run.ids else ():
            costs = tuple(self._cost(length, rate) for rate in self._encoder.levels)
            yield _Piece(index, tuple(islice(ids, length)), costs)

    def _cut(self, piece: _Piece, rate: float) -> Iterator[Segment]:
        ids = iter(piece.ids)
        for length in self._encoder.cut(len(piece.ids), rate):
            yield Segment(tuple(islice(ids, length)), self._encoder.code_rate(rate))

    def _rates(self, pieces: Sequence[_Piece]) -> list[float]:
        """Choose the rate of each piece: document by document under a fraction, else for the context as a whole."""
        after = self._encoder.after_context()
        fixed = sum(self._fixed(run) for run in self._runs) + (0 if after is None or not pieces else len(after))
        budget = self._job.request.budget
        levels = self._levels_by_document(pieces) if budget.keep is not None and after is None else None
        if levels is None:
            levels = allocate([piece.costs for piece in pieces], self._job.max_tokens - fixed)
        rates = self._encoder.levels
        if levels is None:
            least = fixed + sum(piece.costs[-1] for piece in pieces)
            raise BudgetError(
                f"{self._encoder.name} leaves {least} positions at its coarsest rate, {rates[-1]}, {fixed} of them "
                f"for text that stays text and for markers; the budget is {self._job.max_tokens}: raise it, or put "
                "a stage that selects text before this one"
            )
        return [rates[level] for level in levels]

    def _fixed(self, run: Run) -> int:
        return self._n_after_text if run.ids else run.n_tokens

    def _levels_by_document(self, pieces: Sequence[_Piece]) -> list[int] | None:
        """Spend a fraction of each document on it, so that what became of it does not depend on the others."""
        request = self._job.request
        levels: list[int] = []
        by_document = {
            document: list(own) for document, own in groupby(pieces, key=lambda piece: self._runs[piece.run].document)
        }
        for index, document in enumerate(request.documents):
            fixed = sum(self._fixed(run) for run in self._runs if run.document == index)
            ceiling = request.budget.resolve(request.tokenizer.count(document.text))
            found = allocate([piece.costs for piece in by_document.get(index, ())], ceiling - fixed)
            if found is None:
                return None
            levels += found
        return levels

    def _parts(self) -> Iterator[Part]:
        codes = iter(self._codes)
        vectors: dict[int, list[torch.Tensor]] = {}
        for owner, rate, cut in zip(self._owners, self._place_rates, self._cuts, strict=True):
            placed = [self._encoder.place(code, rate) for code in islice(codes, len(cut))]
            vectors.setdefault(owner, []).extend(placed)
        last = max(vectors, default=None)
        for index, run in enumerate(self._runs):
            if index not in vectors:
                yield run.source
            elif self._encoder.accumulates:
                own = [*vectors[index], self._encoder.after_text()]
                if index == last:
                    own.append(self._encoder.after_context())
                yield self._encoder.make_part(torch.cat([one for one in own if one is not None]), run.source)
            elif index == last:
                source = joined_source([self._runs[one] for one in vectors])
                yield self._encoder.make_part(vectors[index][-1], source)

    def _state(self) -> State | None:
        if not self._encoder.is_sequential or self._prefix is None:
            return self._job.request.state
        return State(self._encoder.fingerprint, _to_bytes(self._prefix))


def _to_bytes(prefix: torch.Tensor) -> bytes:
    return save({_PREFIX: prefix.contiguous()})


def _prefix_of(state: State | None, fingerprint: str) -> torch.Tensor | None:
    if state is None:
        return None
    if state.compressor != fingerprint:
        raise InputError(
            f"the state was written by the compressor {state.compressor[:12]!r}, not by this one, "
            f"{fingerprint[:12]!r}: go on with the one that wrote it"
        )
    try:
        return load(state.data)[_PREFIX]
    except (SafetensorError, LookupError) as error:
        raise InputError(f"the state is damaged: {error!r}") from error
