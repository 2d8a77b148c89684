"""Contexts as runs: text that stays text, and text that becomes vectors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kompakt.compressor.models.causal_lm import CausalLM, tokenize
from kompakt.compressor.models.tokenizers import Tokenizer
from kompakt.compressor.parts import Span, TextPart
from kompakt.compressor.results import to_part
from kompakt.compressor.types import Document
from kompakt.compressor.units.messages import chat_of
from kompakt.compressor.units.render import Fragment
from kompakt.compressor.units.segment import recognise


@dataclass(frozen=True, slots=True)
class Run:
    """A range of a document that is treated alike.

    Args:
        document: Index of the document.
        source: Its text.
        n_tokens: Tokens of the text as the budget counts them, where it stays text.
        ids: Its tokens for the encoder, where it becomes vectors; else empty.
    """

    document: int
    source: TextPart
    n_tokens: int
    ids: tuple[int, ...] = ()


def cut_runs(documents: Sequence[Document], lm: CausalLM, tokenizer: Tokenizer) -> list[Run]:
    """Cut documents where protected text begins and ends.

    Protected ranges and chats stay text, and so does white space between them: a chat holds instructions, and calls
    of tools with their ids.

    Args:
        documents: What to compress.
        lm: Whose tokens the encoder reads.
        tokenizer: Whose tokens the budget counts.
    """
    runs = []
    for index, document in enumerate(documents):
        kind = recognise(document).kind
        for start, end, stays in _ranges(document):
            text = document.text[start:end]
            span = Span(document.id or "", start, end, kind, protected=stays)
            source = to_part([[Fragment(text, span)]])
            if stays or not text.strip():
                runs.append(Run(index, source, tokenizer.count(text)))
            else:
                ids = tokenize(lm, [text])[0].ids
                runs.append(Run(index, source, 0, tuple(map(int, ids))))
    return runs


def _ranges(document: Document) -> Iterator[tuple[int, int, bool]]:
    """Yield the ranges of a document that are not empty, and whether each must stay text."""
    length = len(document.text)
    if chat_of(document.text):
        yield 0, length, True
        return
    position = 0
    for start, end in _merged(document.protected):
        if position < start:
            yield position, start, False
        yield start, end, True
        position = end
    if position < length:
        yield position, length, False


def _merged(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if start == end:
            continue
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((start, end))
    return merged


def joined_source(runs: Sequence[Run]) -> TextPart:
    """Return the text of several runs as one, with an empty line between documents."""
    fragments: dict[int, list[Fragment]] = {}
    for run in runs:
        fragments.setdefault(run.document, []).append(Fragment(run.source.text, run.source.spans[0]))
    return to_part(list(fragments.values()))
