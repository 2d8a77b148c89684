"""What was kept and what was dropped, in place: every character of the sources, with score and stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from kompakt.compressor.types import Compressed, Decision, Document, Kind, Span
from kompakt.compressor.units.segment import recognise


@dataclass(frozen=True, slots=True)
class Piece:
    """A range of a source that met one fate.

    Args:
        start: Offset of the first character.
        end: Offset after the last character.
        is_kept: Whether it stands in the result.
        stage: The stage that dropped it, or that kept it last; empty if unknown.
        score: What that stage gave the unit it belongs to; None if unknown.
        kind: What stands there.
    """

    start: int
    end: int
    is_kept: bool
    stage: str = ""
    score: float | None = None
    kind: Kind = Kind.PROSE


@dataclass(frozen=True, slots=True)
class InspectedDocument:
    """A source with the fate of each of its characters.

    Args:
        id: Its id.
        title: Its title; empty if it has none.
        text: Its text.
        pieces: Ranges that tile the text; none if the method does not say what it kept.
    """

    id: str
    title: str
    text: str
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class View:
    """One compression, to be looked at.

    Args:
        method: What compressed.
        query: The question it had; empty if none.
        outcome: How it ended, with the reason if there is one.
        tokens_before: Tokens that went in.
        tokens_after: Tokens that came out.
        documents: The sources.
        text: The result.
        keep: The fraction asked for; None if the budget was a number of tokens.
        max_tokens: The ceiling in tokens.
        has_answer: Whether an answer stands in the result; None if that is not known.
        reader_answer: What a reader answered from it; None if none did.
        seconds: Wall time.
    """

    method: str
    query: str
    outcome: str
    tokens_before: int
    tokens_after: int
    documents: tuple[InspectedDocument, ...]
    text: str
    keep: float | None = None
    max_tokens: int | None = None
    has_answer: bool | None = None
    reader_answer: str | None = None
    seconds: float | None = None


def inspect_result(
    result: Compressed,
    *,
    method: str,
    query: str | None = None,
    keep: float | None = None,
    max_tokens: int | None = None,
) -> View:
    """Lay out a result over its sources.

    Stages and scores are known if the request asked for a record (``record=True``), else only what was kept.

    Args:
        result: What a compressor returned.
        method: A name for it.
        query: The question that the request had.
        keep: The fraction of tokens that was asked for.
        max_tokens: The ceiling that was asked for.
    """
    reason = f": {result.outcome.reason}" if result.outcome.reason else ""
    return View(
        method=method,
        query=query or "",
        outcome=f"{result.outcome.status.replace('_', ' ')}{reason}",
        tokens_before=result.tokens_before,
        tokens_after=result.tokens_after,
        documents=_inspected(result),
        text=result.text,
        keep=keep,
        max_tokens=max_tokens,
        seconds=sum(trace.seconds for trace in result.trace),
    )


def _inspected(result: Compressed) -> tuple[InspectedDocument, ...]:
    decisions: dict[str, list[Decision]] = {}
    for decision in result.decisions:
        decisions.setdefault(decision.span.document_id, []).append(decision)
    kept: dict[str, list[Span]] = {}
    for span in result.spans:
        if span.kind not in (Kind.OMISSION, Kind.SEPARATOR):
            kept.setdefault(span.document_id, []).append(span)
    says_what_it_kept = bool(result.spans) or not result.text
    return tuple(
        InspectedDocument(
            source.id or "",
            title_of(source),
            source.text,
            _pieces(source, kept.get(source.id or "", []), decisions.get(source.id or "", []))
            if says_what_it_kept
            else (),
        )
        for source in result.sources
    )


def title_of(document: Document) -> str:
    """Return a document's title; empty if its metadata names none."""
    title = document.metadata.get("title")
    return title if isinstance(title, str) else ""


def _pieces(source: Document, kept: Sequence[Span], decisions: Sequence[Decision]) -> tuple[Piece, ...]:
    length = len(source.text)
    is_kept = [False] * length
    kinds = [recognise(source).kind] * length
    for span in kept:
        is_kept[span.start : span.end] = [True] * (span.end - span.start)
        kinds[span.start : span.end] = [span.kind] * (span.end - span.start)
    # decisions come stage by stage, so that the last one on a character is the one that settled its fate
    settled: list[Decision | None] = [None] * length
    for decision in decisions:
        span = decision.span
        settled[span.start : span.end] = [decision] * (span.end - span.start)
        kinds[span.start : span.end] = [span.kind] * (span.end - span.start)
    stages = list(dict.fromkeys(decision.stage for decision in decisions))
    pieces = []
    for (_, was_kept, kind), run in groupby(range(length), key=lambda at: (id(settled[at]), is_kept[at], kinds[at])):
        positions = list(run)
        fate = settled[positions[0]]
        pieces.append(
            Piece(
                start=positions[0],
                end=positions[-1] + 1,
                is_kept=was_kept,
                stage=fate.stage if fate else _stage_of_glue(stages, is_kept=was_kept),
                score=fate.score if fate else None,
                kind=kind,
            )
        )
    return tuple(pieces)


def _stage_of_glue(stages: Sequence[str], *, is_kept: bool) -> str:
    """Return the stage that settled what is no unit's own, such as a comma; of several, any may have dropped it."""
    return stages[-1] if stages and (is_kept or len(stages) == 1) else ""
