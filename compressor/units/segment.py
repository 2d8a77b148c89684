"""Documents to units: recognise what a document is and cut it the way that keeps it valid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from threading import Lock

from cachetools import LRUCache, cached

from kompakt.compressor.store.artefacts import Artefacts
from kompakt.compressor.types import Document, Kind
from kompakt.compressor.units.code import language_of, split_code
from kompakt.compressor.units.guess import guess_language
from kompakt.compressor.units.json_tree import is_json, is_json_lines, split_json, split_json_lines
from kompakt.compressor.units.lines import is_log, split_lines, split_table, table_delimiter
from kompakt.compressor.units.markdown import split_markdown
from kompakt.compressor.units.messages import keep_messages_valid
from kompakt.compressor.units.protected import mark_protected
from kompakt.compressor.units.sentences import ProseSplitter, split_sentences
from kompakt.compressor.units.syntax import parses
from kompakt.compressor.units.unit import Unit, Units, shift


@dataclass(frozen=True, slots=True)
class Content:
    """What a document is.

    Args:
        kind: Its kind as a whole.
        language: Its programming language, for code.
        by_line: Whether it is a sequence of JSON values, one a line.
    """

    kind: Kind
    language: str = ""
    by_line: bool = False


def recognise(document: Document) -> Content:
    """Tell what a document is, by its path or language if its metadata names one, else by its text."""
    named = next((language for hint in _hints(document) if (language := language_of(hint))), None)
    return Content(Kind.CODE, named) if named else _recognise_text(document.text)


def _hints(document: Document) -> list[str]:
    values = (document.metadata.get(key) for key in ("language", "path"))
    return [value for value in values if isinstance(value, str) and value]


def _digest(text: str) -> bytes:
    return blake2b(text.encode(), digest_size=16).digest()


# a text is recognised when it is cut and again when the result is checked; the cache must not keep it alive
@cached(LRUCache(maxsize=4096), key=_digest, lock=Lock())
def _recognise_text(text: str) -> Content:
    if is_json(text):
        return Content(Kind.JSON)
    if is_json_lines(text):
        return Content(Kind.JSON, by_line=True)
    if table_delimiter(text):
        return Content(Kind.TABLE)
    if is_log(text):
        return Content(Kind.LOG)
    guessed = guess_language(text)
    return Content(Kind.CODE, guessed) if guessed else Content(Kind.PROSE)


def forget() -> None:
    """Empty what is remembered of documents that were recognised and checked."""
    _recognise_text.cache_clear()
    parses.cache_clear()


def segment(
    documents: Sequence[Document], *, prose: ProseSplitter = split_sentences, artefacts: Artefacts | None = None
) -> Units:
    """Cut the documents of a request into units.

    Args:
        documents: The documents.
        prose: Cuts running text; sentences by default.
        artefacts: Where what models said of texts earlier is found.

    Returns:
        Units whose leaves, heads and tails tile the documents, but for the glue between JSON members.
    """
    units: list[Unit] = []
    for index, document in enumerate(documents):
        before = len(units)
        for unit in mark_protected(_split(document, index, prose), document):
            is_in_place = before == 0 or (unit.parent is None and not unit.requires)
            units.append(unit if is_in_place else shift(unit, by=0, units_before=before))
    return Units(documents, units, artefacts=artefacts)


def _split(document: Document, index: int, prose: ProseSplitter) -> list[Unit]:
    text = document.text
    if not text.strip():
        return [Unit(index, 0, len(text), Kind.PROSE, text)] if text else []
    title = document.metadata.get("title")
    context = title if isinstance(title, str) else ""
    content = recognise(document)
    match content.kind:
        case Kind.JSON if content.by_line:
            return split_json_lines(text, document=index, context=context)
        case Kind.JSON:
            return keep_messages_valid(split_json(text, document=index, context=context), text)
        case Kind.CODE:
            return split_code(text, content.language, document=index, context=context)
        case Kind.LOG:
            return split_lines(text, document=index, kind=Kind.LOG, context=context)
        case Kind.TABLE:
            return split_table(text, document=index, context=context)
        case _:
            return split_markdown(text, prose, document=index, context=context)
