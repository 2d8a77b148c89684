"""Documents to units: recognise what a document is and cut it the way that keeps it valid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kompakt.compressor.types import Document, Kind
from kompakt.compressor.units.code import guess_language, language_of, split_code
from kompakt.compressor.units.json_tree import is_json, is_json_lines, split_json
from kompakt.compressor.units.lines import is_log, split_lines, split_table, table_delimiter
from kompakt.compressor.units.markdown import split_markdown
from kompakt.compressor.units.messages import keep_messages_valid
from kompakt.compressor.units.protected import mark_protected
from kompakt.compressor.units.sentences import ProseSplitter, lines_of, split_sentences
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
    text = document.text
    named = next((language_of(hint) for hint in _hints(document) if language_of(hint)), None)
    if named:
        return Content(Kind.CODE, named)
    if is_json(text):
        return Content(Kind.JSON)
    if is_json_lines(text):
        return Content(Kind.JSON, by_line=True)
    if is_log(text):
        return Content(Kind.LOG)
    if table_delimiter(text):
        return Content(Kind.TABLE)
    guessed = guess_language(text)
    return Content(Kind.CODE, guessed) if guessed else Content(Kind.PROSE)


def _hints(document: Document) -> list[str]:
    values = (document.metadata.get(key) for key in ("language", "path"))
    return [value for value in values if isinstance(value, str) and value]


def segment(documents: Sequence[Document], *, prose: ProseSplitter = split_sentences) -> Units:
    """Cut the documents of a request into units.

    Args:
        documents: The documents.
        prose: Cuts running text; sentences by default.

    Returns:
        Units whose leaves, heads and tails tile the documents, but for the glue between JSON members.
    """
    units: list[Unit] = []
    for index, document in enumerate(documents):
        made = mark_protected(_split(document, index, prose), document)
        before = len(units)
        units.extend(shift(unit, by=0, units_before=before) for unit in made)
    return Units(documents, units)


def _split(document: Document, index: int, prose: ProseSplitter) -> list[Unit]:
    text = document.text
    if not text.strip():
        return [Unit(index, 0, len(text), Kind.PROSE, text)] if text else []
    title = document.metadata.get("title")
    context = title if isinstance(title, str) else ""
    content = recognise(document)
    match content.kind:
        case Kind.JSON if content.by_line:
            return _split_json_lines(text, index, context)
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


def _split_json_lines(text: str, index: int, context: str) -> list[Unit]:
    units: list[Unit] = []
    start = 0
    for line in lines_of(text):
        if len(line) <= _SHORT_LINE:
            made = [Unit(index, 0, len(line), Kind.JSON, line, context)]
        else:
            made = split_json(line, document=index, context=context)
        before = len(units)
        units.extend(shift(unit, by=start, units_before=before) for unit in made)
        start += len(line)
    return units


_SHORT_LINE = 2000
"""Characters up to which a row of a JSON Lines file is kept or dropped whole."""
