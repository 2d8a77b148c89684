"""Building results: text with its spans, documents with their ids, and the accounting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from kompakt.compressor.models.tokenizers import Tokenizer
from kompakt.compressor.types import (
    DOCUMENT_SEPARATOR,
    Compressed,
    Document,
    Kind,
    Outcome,
    Span,
    StageTrace,
    Status,
    TextPart,
)
from kompakt.compressor.units.render import Fragment
from kompakt.compressor.units.segment import recognise


def joined_text(documents: Sequence[Document]) -> str:
    """Return what would be sent without compression: the documents with an empty line between them."""
    return DOCUMENT_SEPARATOR.join(document.text for document in documents)


def to_part(fragments: Sequence[Sequence[Fragment]]) -> TextPart:
    """Join the fragments of each document, and the documents that kept something by an empty line."""
    joined: list[Fragment] = []
    for pieces in fragments:
        if pieces and joined:
            joined.append(Fragment(DOCUMENT_SEPARATOR, Span(pieces[0].span.document_id, 0, 0, Kind.SEPARATOR)))
        joined.extend(pieces)
    starts: list[int] = []
    position = 0
    for fragment in joined:
        starts.append(position)
        position += len(fragment.text)
    text = "".join(fragment.text for fragment in joined)
    return TextPart(text, tuple(fragment.span for fragment in joined), tuple(starts))


def from_fragments(
    sources: Sequence[Document],
    fragments: Sequence[Sequence[Fragment]],
    tokenizer: Tokenizer,
    tokens_before: int,
) -> Compressed:
    """Make the result of a compression from what each document kept."""
    part = to_part(fragments)
    documents = tuple(
        replace(source, text="".join(piece.text for piece in pieces), protected=_protected(pieces))
        for source, pieces in zip(sources, fragments, strict=True)
        if pieces
    )
    return Compressed(
        parts=(part,) if part.text else (),
        documents=documents,
        outcome=Outcome(Status.COMPRESSED),
        tokens_before=tokens_before,
        tokens_after=tokenizer.count(part.text),
        n_bytes=len(part.text.encode()),
        sources=tuple(sources),
    )


def _protected(pieces: Sequence[Fragment]) -> tuple[tuple[int, int], ...]:
    """Return where the protected pieces stand in the compressed document, so that a later stage keeps them too."""
    ranges = []
    position = 0
    for piece in pieces:
        end = position + len(piece.text)
        if piece.span.protected:
            ranges.append((position, end))
        position = end
    return tuple(ranges)


def unchanged(sources: Sequence[Document], n_tokens: int, outcome: Outcome) -> Compressed:
    """Make the result of a call that returns its input as it came."""
    fragments = [
        [Fragment(source.text, Span(source.id or "", 0, len(source.text), recognise(source).kind))]
        for source in sources
    ]
    part = to_part(fragments)
    return Compressed(
        parts=(part,) if part.text else (),
        documents=tuple(sources),
        outcome=outcome,
        tokens_before=n_tokens,
        tokens_after=n_tokens,
        n_bytes=len(part.text.encode()),
        sources=tuple(sources),
    )


def fits(sources: Sequence[Document], n_tokens: int, stage: str, seconds: float) -> Compressed:
    """Make the result of a call whose input is already within the budget."""
    trace = (StageTrace(stage, seconds, n_tokens, n_tokens),)
    return replace(unchanged(sources, n_tokens, Outcome(Status.FITS)), trace=trace)


def traced_back(result: Compressed, earlier: Compressed) -> Compressed:
    """Express the spans of a stage's result in the sources of the stage before it.

    Args:
        result: What a stage made of ``earlier.documents``.
        earlier: What the stage before made of the original documents.
    """
    tables = {document.id: _table(document, earlier) for document in earlier.documents}
    pieces: list[Fragment] = []
    for part in result.parts:
        bounds = [*part.starts, len(part.text)]
        for span, start, end in zip(part.spans, bounds, bounds[1:], strict=False):
            pieces.extend(_back(part.text[start:end], span, tables[span.document_id]))
    part = to_part([pieces])
    return replace(
        result,
        parts=(part,) if part.text else (),
        tokens_before=earlier.tokens_before,
        sources=earlier.sources,
        trace=(*earlier.trace, *result.trace),
    )


_Row = tuple[int, int, Span]


def _table(document: Document, earlier: Compressed) -> list[_Row]:
    """Return ``(start, end, source span)`` for the pieces of an intermediate document."""
    rows: list[_Row] = []
    position = 0
    for part in earlier.parts:
        bounds = [*part.starts, len(part.text)]
        for span, start, end in zip(part.spans, bounds, bounds[1:], strict=False):
            is_join = span.kind is Kind.SEPARATOR and span.start == span.end == 0
            if span.document_id == document.id and not is_join:
                rows.append((position, position + end - start, span))
                position += end - start
    return rows


def _back(text: str, span: Span, rows: Sequence[_Row]) -> list[Fragment]:
    touching = [row for row in rows if row[0] < span.end and row[1] > span.start]
    if span.kind in (Kind.OMISSION, Kind.SEPARATOR):
        start = min((source.start for _, _, source in touching), default=0)
        end = max((source.end for _, _, source in touching), default=start)
        return [Fragment(text, replace(span, start=start, end=end if span.kind is Kind.OMISSION else start))]
    pieces = []
    for row_start, row_end, source in touching:
        start, end = max(row_start, span.start), min(row_end, span.end)
        piece = text[start - span.start : end - span.start]
        if source.kind in (Kind.OMISSION, Kind.SEPARATOR):
            pieces.append(Fragment(piece, source))
        else:
            begin = source.start + start - row_start
            pieces.append(Fragment(piece, replace(source, start=begin, end=begin + end - start)))
    return pieces
