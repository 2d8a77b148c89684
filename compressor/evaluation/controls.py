"""Baselines at the same budget, which every compressor must beat, and the two ends of the scale."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from kompakt.compressor.base import Compressor, Request, ScoringCompressor
from kompakt.compressor.results import fits, from_fragments, joined_text
from kompakt.compressor.types import Compressed, Document, Kind, Outcome, Span, StageTrace, Status
from kompakt.compressor.units.render import Fragment
from kompakt.compressor.units.segment import recognise
from kompakt.compressor.units.sentences import split_words
from kompakt.compressor.units.unit import Units


class Full(Compressor):
    """The whole context, whatever the budget."""

    name: ClassVar[str] = "full"
    uses_query = False

    def compress_batch(self, requests: Sequence[Request]) -> list[Compressed]:
        """Return each input as it came."""
        return [
            fits(request.documents, request.tokenizer.count(joined_text(request.documents)), self.name, 0.0)
            for request in requests
        ]


class Nothing(Compressor):
    """No context at all: what the reader knows by itself."""

    name: ClassVar[str] = "none"
    uses_query = False

    def compress_batch(self, requests: Sequence[Request]) -> list[Compressed]:
        """Return results without a part."""
        return [
            Compressed(
                parts=(),
                documents=(),
                outcome=Outcome(Status.COMPRESSED),
                tokens_before=request.tokenizer.count(joined_text(request.documents)),
                tokens_after=0,
                n_bytes=0,
                sources=request.documents,
            )
            for request in requests
        ]


class Truncation(Compressor):
    """As many of the first and of the last words as the budget holds: what an application does by itself.

    It knows no structure, so what it makes of JSON and code seldom parses.
    """

    name: ClassVar[str] = "truncate"
    uses_query = False

    def compress_batch(self, requests: Sequence[Request]) -> list[Compressed]:
        """Return head and tail of each context."""
        return [self._truncate(request) for request in requests]

    def _truncate(self, request: Request) -> Compressed:
        began = time.perf_counter()
        tokens_before = request.tokenizer.count(joined_text(request.documents))
        ceiling = request.budget.resolve(tokens_before)
        if tokens_before <= ceiling:
            return fits(request.documents, tokens_before, self.name, time.perf_counter() - began)
        words = [
            (index, start, end)
            for index, document in enumerate(request.documents)
            for start, end in split_words(document.text)
        ]
        low, high = 0, len(words)
        best = _ends(request, words, 0, tokens_before)
        while low < high:  # the most words that fit, half of them from each end
            middle = (low + high + 1) // 2
            tried = _ends(request, words, middle, tokens_before)
            if tried.tokens_after <= ceiling:
                low, best = middle, tried
            else:
                high = middle - 1
        trace = StageTrace(self.name, time.perf_counter() - began, tokens_before, best.tokens_after)
        return replace(best, trace=(trace,))


def _ends(request: Request, words: Sequence[tuple[int, int, int]], n: int, tokens_before: int) -> Compressed:
    """Return the result that keeps ``n`` words, the odd one at the head."""
    n_tail = n // 2
    kept = [*words[: n - n_tail], *(words[len(words) - n_tail :] if n_tail else ())]
    fragments: list[list[Fragment]] = [[] for _ in request.documents]
    kinds = [recognise(document).kind for document in request.documents]
    for position, (index, start, end) in enumerate(kept):
        if position == n - n_tail and fragments[index]:
            name = request.documents[index].id or ""
            fragments[index].append(Fragment("\n", Span(name, start, start, Kind.SEPARATOR)))
        document = request.documents[index]
        span = Span(document.id or "", start, end, kinds[index])
        fragments[index].append(Fragment(document.text[start:end], span))
    return from_fragments(request.documents, fragments, request.tokenizer, tokens_before)


@dataclass(frozen=True)
class RandomUnits(ScoringCompressor):
    """Sentences, rows and lines drawn by lot.

    Args:
        seed: Decides the draw, together with the texts.
    """

    seed: int = 0

    name: ClassVar[str] = "random"
    uses_query = False

    def score(self, units: Units, query: str | None) -> Sequence[float]:
        """Return a number from 0 to 1 for each unit, the same for the same texts."""
        del query
        prefix = hashlib.sha256(f"{self.seed}\n{_digest(units.documents)}".encode())
        scores = []
        for index in range(len(units)):
            drawn = prefix.copy()
            drawn.update(str(index).encode())
            scores.append(int.from_bytes(drawn.digest()[:6]) / 2**48)
        return scores


def _digest(documents: Sequence[Document]) -> str:
    return hashlib.sha256(joined_text(documents).encode()).hexdigest()
