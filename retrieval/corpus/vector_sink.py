"""What an index will look up, made beforehand and elsewhere: compressed segments and vectors, in a store."""

from __future__ import annotations

import os
from collections.abc import Sequence

from kompakt.compressor.types import Document
from kompakt.retrieval.compressed import SegmentCompressor
from kompakt.retrieval.corpus.sink import SinkReport, StoreSink
from kompakt.retrieval.encoding import BATCH, as_encoder, embedded
from kompakt.retrieval.retriever import SentenceReader


class VectorSink:
    """Puts documents into a store as ``StoreSink`` does, and the vectors of their segments and sentences beside them.

    An index that is filled with the same documents later, by its one writer, finds all of it there.

    Args:
        segments: Where the compressed segments go.
        compressor: What it compresses with; the pipeline's store also keeps the vectors.
        encoder: A model's name or folder.

    Raises:
        ModelNotFoundError: If the encoder is not on this machine.
    """

    def __init__(
        self,
        segments: StoreSink,
        compressor: SegmentCompressor,
        *,
        encoder: str | os.PathLike[str],
    ) -> None:
        self._segments = segments
        _, self._encoder = as_encoder(encoder, artefacts=compressor.pipeline.artefacts())
        self._sentences = SentenceReader(compressor.pipeline)

    def add(self, documents: Sequence[Document]) -> SinkReport:
        """Compress and encode the segments of documents; see ``Sink.add``."""
        report, chunks = self._segments.add_cut(documents)
        for start in range(0, len(chunks), BATCH):
            self._encoder.encode([embedded(one.context, one.text) for one in chunks[start : start + BATCH]])
        self._sentences.read_ahead(chunks)
        return report

    def delete(self, document_ids: Sequence[str]) -> int:
        """Return 0: what is in the store stays until it needs the room."""
        return self._segments.delete(document_ids)

    def save(self) -> None:
        """Do nothing: ``add`` returns when the store has what it was given."""

    def close(self) -> None:
        """Close the store."""
        self._segments.close()
