"""The promises about an output that can be read off the output itself."""

from __future__ import annotations

from bisect import bisect_right
from operator import itemgetter

from kompakt.compressor.errors import ValidityError
from kompakt.compressor.parts import CachePart
from kompakt.compressor.results import fragments_of, joined_text
from kompakt.compressor.types import Compressed, Document, Kind, TextPart
from kompakt.compressor.units.json_tree import is_json
from kompakt.compressor.units.messages import chat_of, is_same_chat
from kompakt.compressor.units.segment import Content, recognise
from kompakt.compressor.units.syntax import parses


def check(result: Compressed) -> None:
    """Raise if an output broke a promise, so that it is never sent.

    In text, JSON must parse, a chat must keep its messages and tool calls, and code must be free of syntax errors
    that were not in its source. Protected text must be there byte for byte, and verbatim spans must equal theirs.

    Raises:
        ValidityError: Naming the document and the promise.
    """
    sources = {source.id or "": source for source in result.sources}
    for document in result.documents:
        if document.text != sources[document.id or ""].text:
            _check_syntax(document, sources[document.id or ""])
    if result.forms <= {"text"} and result.text != joined_text(result.documents):
        raise ValidityError("the output as a whole differs from its documents")
    _check_spans(result, sources)
    _check_protected(result)


def _check_syntax(document: Document, source: Document) -> None:
    content = recognise(source)
    if content.kind is Kind.JSON:
        _check_json(document, source, content)
    if content.kind is Kind.CODE and _breaks(document.text, source.text, content.language):
        raise ValidityError(f"document {document.id!r} is {content.language} and would no longer parse")


def _breaks(text: str, source: str, language: str) -> bool:
    return not parses(text, language) and parses(source, language)


def _check_json(document: Document, source: Document, content: Content) -> None:
    lines = [line for line in document.text.split("\n") if line.strip()]
    if not (all(map(is_json, lines)) if content.by_line else is_json(document.text)):
        raise ValidityError(f"document {document.id!r} was JSON and would no longer be")
    if not content.by_line and chat_of(source.text) and not is_same_chat(document.text, source.text):
        raise ValidityError(f"document {document.id!r} is a chat and would lose messages, ids or tool calls")


def _check_spans(result: Compressed, sources: dict[str, Document]) -> None:
    for part in result.parts:
        starts = part.source.starts
        if list(starts) != sorted(starts) or len(starts) != len(part.spans) or starts[:1] != (0,):
            raise ValidityError("the spans do not tile the output")
        for piece in fragments_of(part):
            span = piece.span
            if span.kind in (Kind.OMISSION, Kind.SEPARATOR):
                continue
            if piece.text != sources[span.document_id].text[span.start : span.end]:
                raise ValidityError(f"{piece.text[:60]!r} is not what stands in its source {span}")


def _check_protected(result: Compressed) -> None:
    kept: dict[str, list[tuple[int, int]]] = {}
    for part in result.parts:
        for span in part.spans:
            # a cache says of which spans all positions were kept
            survives = isinstance(part, TextPart) or (isinstance(part, CachePart) and span.protected)
            if survives and span.kind not in (Kind.OMISSION, Kind.SEPARATOR):
                kept.setdefault(span.document_id, []).append((span.start, span.end))
    for source in result.sources:
        blocks = _joined(kept.get(source.id or "", []))
        for start, end in source.protected:
            if not _covers(blocks, start, end):
                raise ValidityError(
                    f"protected characters {start} to {end} of document {source.id!r} would be lost: "
                    f"{source.text[start:end][:60]!r}"
                )


def _joined(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Join ascending ranges where there is no gap between one and the next."""
    joined: list[tuple[int, int]] = []
    for start, end in ranges:
        if joined and joined[-1][0] <= start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], end))
        else:
            joined.append((start, end))
    return sorted(joined)


def _covers(blocks: list[tuple[int, int]], start: int, end: int) -> bool:
    """Tell whether one of the ascending blocks holds all of ``[start, end)``."""
    index = bisect_right(blocks, start, key=itemgetter(0)) - 1
    return start >= end or (index >= 0 and blocks[index][1] >= end)
