"""Building results: text with its spans, documents with their ids, and the accounting."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

from kompakt.compressor.models.tokenizers import Tokenizer
from kompakt.compressor.types import (
    DOCUMENT_SEPARATOR,
    Compressed,
    Decision,
    Document,
    Kind,
    Outcome,
    Part,
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


def text_of(fragments: Sequence[Sequence[Fragment]]) -> str:
    """Return the text that ``to_part`` makes of fragments, without its spans."""
    return DOCUMENT_SEPARATOR.join("".join(piece.text for piece in pieces) for pieces in fragments if pieces)


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
        replace(source, text="".join(piece.text for piece in pieces), protected=_protected(pieces, source))
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


def _protected(pieces: Sequence[Fragment], source: Document) -> tuple[tuple[int, int], ...]:
    """Return where the source's protected ranges stand in the compressed document, so that a later stage keeps them.

    What its structure alone protected is left out: the next stage finds that again by itself.
    """
    ranges = []
    position = 0
    # pieces ascend: each range is met once, and let go when a piece begins after it
    ahead = sorted(enumerate(source.protected), key=lambda item: item[1], reverse=True)
    met: list[tuple[int, tuple[int, int]]] = []
    for piece in pieces:
        span = piece.span
        if span.protected and span.kind not in (Kind.OMISSION, Kind.SEPARATOR):
            while ahead and ahead[-1][1][0] < span.end:
                met.append(ahead.pop())
            met = sorted(item for item in met if item[1][1] > span.start)
            for _, (start, end) in met:
                first, last = max(start, span.start), min(end, span.end)
                if first < last:
                    ranges.append((position + first - span.start, position + last - span.start))
        position += len(piece.text)
    return tuple(ranges)


def unchanged(sources: Sequence[Document], n_tokens: int, outcome: Outcome) -> Compressed:
    """Make the result of a call that returns its input as it came."""
    part = to_part([[whole(source)] for source in sources])
    return Compressed(
        parts=(part,) if part.text else (),
        documents=tuple(sources),
        outcome=outcome,
        tokens_before=n_tokens,
        tokens_after=n_tokens,
        n_bytes=len(part.text.encode()),
        sources=tuple(sources),
    )


def whole(source: Document) -> Fragment:
    """Return a document as a single piece."""
    return Fragment(source.text, Span(source.id or "", 0, len(source.text), recognise(source).kind))


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
    origins = _origins(earlier)
    return replace(
        result,
        parts=tuple(_traced_part(part, origins) for part in result.parts),
        tokens_before=earlier.tokens_before,
        sources=earlier.sources,
        trace=(*earlier.trace, *result.trace),
        decisions=(*earlier.decisions, *_traced_decisions(result, earlier, origins)),
    )


def _traced_part(part: Part, origins: Mapping[str, _Origin]) -> Part:
    pieces = []
    for fragment in fragments_of(part):
        for piece in _traced(fragment, origins[fragment.span.document_id]):
            if not isinstance(part, TextPart) and piece.span.kind not in (Kind.OMISSION, Kind.SEPARATOR):
                # what a cache has kept whole is for it to say, not for the stage before
                piece = replace(piece, span=replace(piece.span, protected=fragment.span.protected))
            pieces.append(piece)
    text = to_part([pieces])
    return text if isinstance(part, TextPart) else replace(part, source=text)


def _traced_decisions(result: Compressed, earlier: Compressed, origins: Mapping[str, _Origin]) -> Iterator[Decision]:
    texts = {document.id or "": document.text for document in earlier.documents}
    for decision in result.decisions:
        span = decision.span
        if span.start < span.end:
            own = Fragment(texts[span.document_id][span.start : span.end], span)
            for piece in _traced(own, origins[span.document_id]):
                if piece.span.kind not in (Kind.OMISSION, Kind.SEPARATOR):
                    yield replace(decision, span=piece.span)


def fragments_of(part: Part) -> Iterator[Fragment]:
    """Cut a part, or the text that it stands for, into its spans' texts."""
    text = part.source
    for span, (start, end) in zip(text.spans, pairwise([*text.starts, len(text.text)]), strict=True):
        yield Fragment(text.text[start:end], span)


@dataclass(frozen=True, slots=True)
class _Origin:
    """Where the pieces of a compressed document come from; ``bounds`` are their offsets in it, with its length."""

    bounds: list[int]
    spans: list[Span]

    def touching(self, start: int, end: int) -> range:
        """Return the indices of the pieces in ``[start, end)``; of an empty range, that of the piece it is in."""
        last = len(self.spans) - 1
        first = min(last, bisect_right(self.bounds, start) - 1)
        return range(first, min(last, max(first, bisect_left(self.bounds, end) - 1)) + 1)


def by_document(result: Compressed) -> dict[str, list[Fragment]]:
    """Return the pieces that a result has of each of its documents, without what joins one document to the next."""
    pieces: dict[str, list[Fragment]] = {document.id or "": [] for document in result.documents}
    for part in result.parts:
        for fragment in fragments_of(part):
            own = pieces[fragment.span.document_id]
            # a separator that precedes a document's first piece joins it to the document before
            if own or fragment.span.kind is not Kind.SEPARATOR:
                own.append(fragment)
    return pieces


def join_results(sources: Sequence[Document], results: Sequence[Compressed], tokenizer: Tokenizer) -> Compressed:
    """Return what became of several documents, each of which is in at most one result, as one.

    Args:
        sources: The documents, in the order in which they are joined; those that no result is of stay whole.
        results: What became of the others.
        tokenizer: Whose tokens are counted.
    """
    treated = {source.id for result in results for source in result.sources}
    if any(result.forms - {"text"} for result in results):
        return _join_forms(sources, results, tokenizer)
    pieces = {name: kept for result in results for name, kept in by_document(result).items()}
    fragments = [pieces.get(source.id or "", []) if source.id in treated else [whole(source)] for source in sources]
    joined = from_fragments(sources, fragments, tokenizer, tokenizer.count(joined_text(sources)))
    return replace(
        joined,
        trace=tuple(trace for result in results for trace in result.trace),
        decisions=tuple(decision for result in results for decision in result.decisions),
    )


def _join_forms(sources: Sequence[Document], results: Sequence[Compressed], tokenizer: Tokenizer) -> Compressed:
    """Join results of which some hold vectors or caches; a cache stands where the first of its documents would."""
    own: dict[str, list[Part]] = {source.id or "": [] for result in results for source in result.sources}
    for result in results:
        for part in result.parts:
            if not isinstance(part, TextPart):
                own[part.spans[0].document_id].append(part)
                continue
            for name, pieces in by_document(replace(result, parts=(part,))).items():
                own.setdefault(name, []).extend([to_part([pieces])] if pieces else [])
    parts: list[Part] = []
    for source in sources:
        parts += _apart(parts, own.get(source.id or "", [to_part([[whole(source)]])]))
    kept = {document.id: document for result in results for document in result.documents}
    rest = (source for source in sources if source.id in kept or source.id not in own)
    n_tokens = tokenizer.count(joined_text(sources))
    return Compressed(
        parts=tuple(parts),
        documents=tuple(kept.get(source.id, source) for source in rest),
        outcome=Outcome(Status.COMPRESSED),
        tokens_before=n_tokens,
        tokens_after=sum(
            tokenizer.count(part.text) if isinstance(part, TextPart) else part.n_positions for part in parts
        ),
        n_bytes=sum(len(part.text.encode()) if isinstance(part, TextPart) else part.n_bytes for part in parts),
        trace=tuple(trace for result in results for trace in result.trace),
        sources=tuple(sources),
    )


def _apart(before: Sequence[Part], parts: Sequence[Part]) -> list[Part]:
    """Return the parts of a document with an empty line in front, if they begin with text that follows something."""
    if not before or not parts or not isinstance(parts[0], TextPart):
        return list(parts)
    pieces = list(fragments_of(parts[0]))
    line = Fragment(DOCUMENT_SEPARATOR, Span(pieces[0].span.document_id, 0, 0, Kind.SEPARATOR))
    return [to_part([[line, *pieces]]), *parts[1:]]


def _origins(result: Compressed) -> dict[str, _Origin]:
    """Return where each of a result's documents comes from."""
    return {
        name: _Origin(list(accumulate((len(piece.text) for piece in pieces), initial=0)), [p.span for p in pieces])
        for name, pieces in by_document(result).items()
    }


def _traced(fragment: Fragment, origin: _Origin) -> list[Fragment]:
    span = fragment.span
    touching = origin.touching(span.start, span.end)
    if span.kind is Kind.SEPARATOR:
        at = 0 if span.end == 0 else _source_offset(origin, touching[0], span.start)
        return [Fragment(fragment.text, replace(span, start=at, end=at))]
    if span.kind is Kind.OMISSION:
        start = min(origin.spans[index].start for index in touching)
        end = max(origin.spans[index].end for index in touching)
        return [Fragment(fragment.text, replace(span, start=start, end=end))]
    pieces = []
    for index in touching:
        start, end = max(origin.bounds[index], span.start), min(origin.bounds[index + 1], span.end)
        source = origin.spans[index]
        if source.kind not in (Kind.OMISSION, Kind.SEPARATOR):
            begin = _source_offset(origin, index, start)
            source = replace(source, start=begin, end=begin + end - start)
        pieces.append(Fragment(fragment.text[start - span.start : end - span.start], source))
    return pieces


def _source_offset(origin: _Origin, index: int, offset: int) -> int:
    """Return where an offset in a compressed document stands in its source, as near as can be told."""
    source = origin.spans[index]
    return min(source.end, source.start + offset - origin.bounds[index])
