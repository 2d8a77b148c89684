"""A corpus into an index of compressed segments."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from kompakt.compressor.errors import ConfigError
from kompakt.compressor.models.tokenizers import Tokenizer
from kompakt.compressor.types import Document
from kompakt.retrieval.compressed import SegmentCompressor
from kompakt.retrieval.corpus.sink import SinkReport, StoreSink
from kompakt.retrieval.index import SegmentIndex
from kompakt.retrieval.manifest import Manifest
from kompakt.retrieval.retriever import SentenceReader


class IndexSink:
    """Compresses the segments of documents into a store, and puts them into an index.

    ``save`` makes documents durable and leaves the vectors, which are in the store, for ``close`` to write: to write
    them at every checkpoint would take longer and longer as the index grows.

    Args:
        folder: The index; it is made if it is not there.
        compressor: What compresses; its pipeline's store also keeps the vectors.
        tokenizer: Whose tokens limit the segments.
        chunk_tokens: The most tokens of a segment.
        encoder: A model's name or folder; what an index that is there was made with stays.

    Raises:
        ConfigError: If the pipeline has no store, or the index was made with segments of another size.
        StoreError: If store or index cannot be used.
        ModelNotFoundError: If the encoder is not on this machine.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        compressor: SegmentCompressor,
        *,
        tokenizer: Tokenizer,
        chunk_tokens: int = 256,
        encoder: str = "minilm-l6",
    ) -> None:
        self._segments = StoreSink(compressor, tokenizer=tokenizer, chunk_tokens=chunk_tokens)
        artefacts = compressor.pipeline.artefacts()
        path = Path(folder)
        if Manifest.is_in(path):
            size = Manifest.read(path).chunk_tokens
            if size != chunk_tokens:
                raise ConfigError(f"the index {path} has segments of {size} tokens, not {chunk_tokens}")
            index = SegmentIndex.open(path, tokenizer=tokenizer, artefacts=artefacts)
        else:
            index = SegmentIndex.create(
                path, encoder=encoder, tokenizer=tokenizer, chunk_tokens=chunk_tokens, artefacts=artefacts
            )
        self._index = index
        self._sentences = SentenceReader(compressor.pipeline)

    def add(self, documents: Sequence[Document]) -> SinkReport:
        """Compress and index documents; see ``Sink.add``."""
        report = self._segments.add(documents)
        failed = {name for name, _ in report.failures}
        indexed = [document for document in documents if document.id not in failed]
        self._index.add(indexed)
        self._sentences.read_ahead(self._index.segments_of(document.id or "" for document in indexed))
        return report

    def index(self, documents: Sequence[Document]) -> None:
        """Index documents whose compressed segments and vectors are in the store: see ``VectorSink``."""
        self._index.add(documents)

    def delete(self, document_ids: Sequence[str]) -> int:
        """Remove documents from the index; their segments stay in the store until it needs the room."""
        return self._index.delete(document_ids)

    def save(self) -> None:
        """Make the documents durable; see the class."""
        self._index.checkpoint()

    def close(self) -> None:
        """Write the vectors, and close index and store."""
        try:
            self._index.close()
        finally:
            self._segments.close()
