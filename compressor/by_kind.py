"""A budget of its own for each kind of content, as calibration finds them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from kompakt.compressor.base import Request
from kompakt.compressor.results import fits, join_results, joined_text
from kompakt.compressor.types import Budget, Compressed, Document, Kind, Outcome, Status
from kompakt.compressor.units.segment import recognise
from kompakt.compressor.validity import check


def split_by_kind(request: Request) -> dict[Kind, Request]:
    """Return a request for the documents of each kind that has a budget; documents of other kinds are in none."""
    kinds = _kinds(request)
    keeps = request.budget.by_kind or {}
    return {
        kind: replace(request, documents=_of_kind(request, kinds, kind), budget=Budget(keep=keeps[kind]))
        for kind in dict.fromkeys(kinds)
        if kind in keeps
    }


def join_kinds(request: Request, results: Mapping[Kind, Compressed], stage: str) -> Compressed:
    """Return the results of ``split_by_kind`` as one, documents in their order; those of other kinds stay whole.

    Args:
        request: The whole request.
        results: What became of the documents of each kind.
        stage: Name of the compressor, for the trace of a request without any result.
    """
    reasons = "; ".join(
        f"{kind}: {result.outcome.reason}" for kind, result in results.items() if result.outcome.reason
    )
    compressed = {kind: result for kind, result in results.items() if result.outcome.status is Status.COMPRESSED}
    tokens_before = request.tokenizer.count(joined_text(request.documents))
    if not compressed:
        made = fits(request.documents, tokens_before, stage, 0.0)
        return replace(made, outcome=Outcome(Status.PASSED_THROUGH, reasons)) if reasons else made
    joined = join_results(request.documents, list(compressed.values()), request.tokenizer)
    check(joined)
    trace = tuple(trace for result in results.values() for trace in result.trace)
    return replace(joined, outcome=Outcome(Status.COMPRESSED, reasons), trace=trace)


def _kinds(request: Request) -> list[Kind]:
    return [recognise(document).kind for document in request.documents]


def _of_kind(request: Request, kinds: Sequence[Kind], wanted: Kind) -> tuple[Document, ...]:
    return tuple(document for document, kind in zip(request.documents, kinds, strict=True) if kind is wanted)
