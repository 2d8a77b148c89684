"""The promises about an output that can be read off the output itself."""

from __future__ import annotations

from kompakt.compressor.errors import ValidityError
from kompakt.compressor.types import Compressed, Document, Kind
from kompakt.compressor.units.json_tree import is_json
from kompakt.compressor.units.segment import Content, recognise
from kompakt.compressor.units.sentences import lines_of
from kompakt.compressor.units.syntax import parses


def check(result: Compressed) -> None:
    """Raise if an output broke a promise, so that it is never sent.

    JSON must parse, code must be free of syntax errors that were not in its source, protected text must be there
    byte for byte, and verbatim spans must equal their source.

    Raises:
        ValidityError: Naming the document and the promise.
    """
    sources = {source.id or "": source for source in result.sources}
    for document in result.documents:
        _check_syntax(document, sources[document.id or ""])
    _check_spans(result, sources)
    _check_protected(result)


def _check_syntax(document: Document, source: Document) -> None:
    if document.text == source.text:
        return
    content = recognise(source)
    if content.kind is Kind.JSON and not _is_json(document.text, content):
        raise ValidityError(f"document {document.id!r} was JSON and would no longer be")
    if (
        content.kind is Kind.CODE
        and not parses(document.text, content.language)
        and parses(source.text, content.language)
    ):
        raise ValidityError(f"document {document.id!r} is {content.language} and would no longer parse")


def _is_json(text: str, content: Content) -> bool:
    if content.by_line:
        return all(is_json(line) for line in lines_of(text) if line.strip())
    return is_json(text)


def _check_spans(result: Compressed, sources: dict[str, Document]) -> None:
    for part in result.parts:
        bounds = [*part.starts, len(part.text)]
        for span, start, end in zip(part.spans, bounds, bounds[1:], strict=False):
            if span.kind in (Kind.OMISSION, Kind.SEPARATOR):
                continue
            if part.text[start:end] != sources[span.document_id].text[span.start : span.end]:
                raise ValidityError(f"characters {start} to {end} of the output are not those of their source {span}")


def _check_protected(result: Compressed) -> None:
    kept: dict[str, list[tuple[int, int]]] = {}
    for span in result.spans:
        if span.kind not in (Kind.OMISSION, Kind.SEPARATOR):
            kept.setdefault(span.document_id, []).append((span.start, span.end))
    for source in result.sources:
        for start, end in source.protected:
            if not _covers(kept.get(source.id or "", []), start, end):
                raise ValidityError(
                    f"protected characters {start} to {end} of document {source.id!r} would be lost: "
                    f"{source.text[start:end][:60]!r}"
                )


def _covers(ranges: list[tuple[int, int]], start: int, end: int) -> bool:
    """Tell whether ascending ranges cover ``[start, end)`` without a gap."""
    position = start
    for a, b in ranges:
        if a <= position < b:
            position = b
    return position >= end
