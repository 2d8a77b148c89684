"""Segments of an index and what a pipeline makes of them, each on its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from kompakt.compressor.base import Request, make_request
from kompakt.compressor.pipeline import Pipeline
from kompakt.compressor.store.segments import SegmentKeys, compress_each, find_segments
from kompakt.compressor.types import Compressed, Document


class TextRange(Protocol):
    """A chunk of a document, or a segment of an index."""

    @property
    def document_id(self) -> str:
        """The document's id."""

    @property
    def start(self) -> int:
        """Offset of its first character in the document."""

    @property
    def text(self) -> str:
        """Its text."""

    @property
    def context(self) -> str:
        """What stands above it: title and headings."""


@dataclass(frozen=True)
class SegmentCompressor:
    """Compresses segments without a question, so that each is compressed once and serves every question.

    Args:
        pipeline: What compresses; its store keeps the results, and its tokenizer counts.
        keep: The fraction of each segment's tokens that may remain.
        max_tokens: The most tokens that may remain of each; give this, ``keep``, or neither if the pipeline has a
            budget by kind.

    Raises:
        BudgetError: If there is no budget, or it makes no sense.
    """

    pipeline: Pipeline
    keep: float | None = None
    max_tokens: int | None = None
    _like: Request = field(init=False, repr=False)

    def __post_init__(self) -> None:
        budget = self.pipeline.budget_for(self.max_tokens, self.keep)
        like = make_request(
            [], budget=budget, tokenizer=self.pipeline.tokenizer, mark_omissions=self.pipeline.mark_omissions
        )
        object.__setattr__(self, "_like", like)

    def keys(self, segments: Sequence[TextRange]) -> list[bytes]:
        """Return the key under which the store keeps the compressed form of each segment."""
        return SegmentKeys(self.pipeline, self._request(segments)).keys(as_documents(segments))

    def compress(self, segments: Sequence[TextRange]) -> list[Compressed]:
        """Return the compressed form of each segment, from the store where it is there.

        Spans count from the start of the segment. A segment that is too small for its budget, or whose compression
        failed, passes through, with the reason.
        """
        return compress_each(self.pipeline, self._request(segments), decoded=self.pipeline.decoded)

    def find(self, segments: Sequence[TextRange]) -> list[Compressed | None]:
        """Return the compressed form of each segment that is in the store; nothing is computed."""
        like = self._request(segments)
        keys = SegmentKeys(self.pipeline, like).keys(like.documents)
        return find_segments(like.artefacts, keys, like.documents, decoded=self.pipeline.decoded)

    def _request(self, segments: Sequence[TextRange]) -> Request:
        return replace(self._like, documents=as_documents(segments), artefacts=self.pipeline.artefacts())


def as_documents(segments: Sequence[TextRange]) -> tuple[Document, ...]:
    """Return segments as documents, with what stands above them as their titles."""
    return tuple(
        Document(
            segment.text,
            id=f"{segment.document_id}:{segment.start}",
            metadata={"title": segment.context} if segment.context else {},
        )
        for segment in segments
    )
