"""A context as a decoder reads it: its tokens, and what stands around them in the prompt."""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from kompakt.compressor.models.causal_lm import CausalLM, tokenize
from kompakt.compressor.models.chat_format import chat_format
from kompakt.compressor.parts import TextPart
from kompakt.compressor.results import joined_text, to_part, whole
from kompakt.compressor.types import DOCUMENT_SEPARATOR, Document
from kompakt.compressor.units.messages import chat_of
from kompakt.compressor.units.render import Fragment


@dataclass(frozen=True, slots=True)
class CacheContext:
    """Tokens whose keys and values are compressed.

    Args:
        before: Tokens that stand before the context; their keys are not part of the result.
        ids: The context's tokens.
        after: The question's tokens; empty without one.
        protected: Indices of the context's tokens that must be kept, ascending.
        source: The context's text; spans of protected text say so.
    """

    before: tuple[int, ...]
    ids: tuple[int, ...]
    after: tuple[int, ...]
    protected: tuple[int, ...]
    source: TextPart

    @property
    def first(self) -> int:
        """Position of the context's first token."""
        return len(self.before)

    @property
    def last(self) -> int:
        """Position after the context's last token."""
        return len(self.before) + len(self.ids)

    @property
    def content(self) -> str:
        """Everything about it that decides its keys, as text."""
        return json.dumps([self.before, self.ids, self.after, self.protected], separators=(",", ":"))


def read_context(
    documents: Sequence[Document], lm: CausalLM, *, model: str, query: str | None, is_chat: bool, before: str
) -> CacheContext:
    """Return a context's tokens as they stand in a prompt.

    Args:
        documents: What is compressed.
        lm: The decoder.
        model: Its name or folder, where its chat format is.
        query: The question that will follow, if the compressor is to know it.
        is_chat: Whether the prompt is a user's message in the model's chat format.
        before: Text before the context.
    """
    text = joined_text(documents)
    tokens = tokenize(lm, [text])[0]
    written = chat_format(model) if is_chat else None
    head = written.head if written else (lm.prefix_id,)
    own, following = tokenize(lm, [before, f"\n\n{query}" if query else ""])
    ends = tokens.ends.tolist()
    protected: set[int] = set()
    offset = 0
    for document in documents:
        for start, end in _protected(document):
            # a token belongs to a range if it reaches into it; several may share the end of one character
            first, last = bisect_right(ends, offset + start), bisect_left(ends, offset + end)
            protected.update(range(first, bisect_right(ends, ends[min(last, len(ends) - 1)])))
        offset += len(document.text) + len(DOCUMENT_SEPARATOR)
    return CacheContext(
        before=(*head, *map(int, own.ids)),
        ids=tuple(map(int, tokens.ids)),
        after=tuple(map(int, following.ids)),
        protected=tuple(sorted(protected)),
        source=to_part([_pieces(document) for document in documents]),
    )


def _protected(document: Document) -> list[tuple[int, int]]:
    """Return the protected ranges of a document, ascending and apart; a chat is one, as it holds instructions."""
    ranges = [(0, len(document.text))] if chat_of(document.text) else sorted(document.protected)
    merged: list[tuple[int, int]] = []
    for start, end in ranges:
        if start == end:
            continue
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged


def _pieces(document: Document) -> list[Fragment]:
    """Return a document cut where protected text begins and ends, whose pieces say that it keeps every position."""
    fragment = whole(document)
    ranges = _protected(document)
    inner = sorted({cut for pair in ranges for cut in pair} - {0, len(document.text)})
    starts = {start for start, _ in ranges}
    pieces = []
    for start, end in pairwise([0, *inner, len(document.text)]):
        span = replace(fragment.span, start=start, end=end, protected=start in starts)
        pieces.append(Fragment(fragment.text[start:end], span))
    return pieces
