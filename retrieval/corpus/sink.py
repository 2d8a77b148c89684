"""What a corpus is put into, batch by batch, and the documents of a batch that cannot be."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

from kompakt.compressor.errors import ConfigError, MissingExtraError, ModelNotFoundError, StoreError
from kompakt.compressor.models.tokenizers import Tokenizer
from kompakt.compressor.pipeline import Pipeline
from kompakt.compressor.store.base import Store
from kompakt.compressor.store.envelope import seal
from kompakt.compressor.store.tiered import TieredStore
from kompakt.compressor.types import Compressed, Document, Status
from kompakt.retrieval.chunks import Chunk, split_chunks
from kompakt.retrieval.compressed import SegmentCompressor

ENDS_THE_JOB: Final = (ConfigError, MissingExtraError, ModelNotFoundError, StoreError)
"""Errors that no document is to blame for: every other one would fail as well."""

FRONT_BYTES: Final = 4 << 20
"""Memory in front of a job's store: a corpus comes by once, so that little in it is asked for again."""

_MAX_REASON: Final = 2000
"""Characters of a reason: some parsers put the whole text into their messages."""


@dataclass(frozen=True, slots=True)
class DocumentReport:
    """What became of one document.

    Args:
        document_id: The document's id.
        n_segments: Segments that it was cut into.
        n_tokens_before: Tokens of its segments.
        n_tokens_after: Tokens of their compressed forms.
        n_stored: Segments whose compressed form was found in the store.
        n_compressed: Segments that were compressed, or passed through.
    """

    document_id: str
    n_segments: int
    n_tokens_before: int
    n_tokens_after: int
    n_stored: int
    n_compressed: int


@dataclass(frozen=True, slots=True)
class SinkReport:
    """What became of a batch.

    Args:
        documents: The documents that are in the sink now, in order.
        failures: Id of each document that is not, and why.
    """

    documents: tuple[DocumentReport, ...] = ()
    failures: tuple[tuple[str, str], ...] = ()

    @property
    def n_segments(self) -> int:
        """Segments of all documents."""
        return sum(document.n_segments for document in self.documents)

    @property
    def n_tokens_before(self) -> int:
        """Tokens of all segments."""
        return sum(document.n_tokens_before for document in self.documents)

    @property
    def n_tokens_after(self) -> int:
        """Tokens of the compressed forms of all segments."""
        return sum(document.n_tokens_after for document in self.documents)

    @property
    def n_stored(self) -> int:
        """Segments that were found in the store."""
        return sum(document.n_stored for document in self.documents)

    @property
    def n_compressed(self) -> int:
        """Segments that were compressed, or passed through."""
        return sum(document.n_compressed for document in self.documents)


class Sink(Protocol):
    """What a corpus is put into.

    Errors of ``ENDS_THE_JOB`` say that the sink cannot be used. After any other, the same documents may be added
    again one by one.
    """

    def add(self, documents: Sequence[Document]) -> SinkReport:
        """Put a batch into the sink; a document whose id is there replaces it.

        Adding what is there changes nothing, and reports the same segments and tokens.

        Args:
            documents: Documents with distinct ids.
        """

    def delete(self, document_ids: Sequence[str]) -> int:
        """Remove documents and return how many there were; unknown ids are passed over."""

    def save(self) -> None:
        """Make durable what was added and deleted; when this returns, it survives the end of the process."""

    def close(self) -> None:
        """Give back files and connections."""


class StoreSink:
    """Cuts documents into chunks, and compresses each into the store of a pipeline, where later calls find it.

    The store knows segments by their content, not documents: equal texts are compressed once, and what a deleted
    document leaves behind goes when the store needs the room.

    Args:
        compressor: What compresses. A stage that fails is an error here, whatever the pipeline's ``on_error``.
        tokenizer: Whose tokens limit the chunks.
        chunk_tokens: The most tokens of a chunk.

    Raises:
        ConfigError: If the pipeline has no store of its own, or ``chunk_tokens`` makes no sense.
        StoreError: If there is a store and it cannot be used.
    """

    def __init__(self, compressor: SegmentCompressor, *, tokenizer: Tokenizer, chunk_tokens: int = 256) -> None:
        check_chunk_tokens(chunk_tokens)
        if compressor.pipeline.store is None:
            raise ConfigError("the pipeline has no store, so that nothing would be kept: give it one with store=")
        self._compressor = replace(compressor, pipeline=_raising(compressor.pipeline))
        self._tokenizer = tokenizer
        self._chunk_tokens = chunk_tokens
        self._store = compressor.pipeline.artefacts().store
        # a file of another program, or one that cannot be read, is better found before the work than after it
        self._store.stats()

    def add(self, documents: Sequence[Document]) -> SinkReport:
        """Compress the chunks of documents into the store; see ``Sink.add``.

        Raises:
            StoreError: If the store did not keep them.
            Exception: Whatever a compressor raised; which document is at fault is not known.
        """
        return self.add_cut(documents)[0]

    def add_cut(self, documents: Sequence[Document]) -> tuple[SinkReport, list[Chunk]]:
        """Do as ``add`` does, and return the chunks as well, for those who have more to do with them."""
        chunked: list[tuple[str, list[Chunk]]] = []
        failures: list[tuple[str, str]] = []
        for document in documents:
            name = document.id or ""
            try:
                chunks = split_chunks(document, tokenizer=self._tokenizer, max_tokens=self._chunk_tokens)
            except ENDS_THE_JOB:
                raise
            except Exception as error:  # whatever it is, it must not stop the others
                failures.append((name, reason_of(error)))
            else:
                chunked.append((name, chunks))
        chunks = [chunk for _, of_one in chunked for chunk in of_one]
        results = self._compressor.compress(chunks)
        self._require_kept(chunks, results)
        counted = iter(_counted(chunks, results))
        reports = [_summed(name, [next(counted) for _ in of_one]) for name, of_one in chunked]
        return SinkReport(tuple(reports), tuple(failures)), chunks

    def delete(self, document_ids: Sequence[str]) -> int:
        """Return 0: segments are shared by all documents that have them, and stay until the store needs the room."""
        return 0

    def save(self) -> None:
        """Do nothing: ``add`` returns when the store has what it was given."""

    def close(self) -> None:
        """Close the store."""
        self._compressor.pipeline.close()

    def _require_kept(self, chunks: Sequence[Chunk], results: Sequence[Compressed]) -> None:
        """Check that a store whose failures are misses keeps what it was given, and try once more what it lacks."""
        store = self._store
        if not isinstance(store, TieredStore):
            return
        kept = [
            chunk
            for chunk, result in zip(chunks, results, strict=True)
            if result.outcome.status is not Status.PASSED_THROUGH
        ]
        keys = self._compressor.keys(kept)
        missing = _missing(store.back, keys)
        values = dict(zip(missing, store.front.get_many(missing), strict=True))
        # raises what stands in the way
        store.back.put_many({key: seal(key, value) for key, value in values.items() if value is not None})
        if missing and (lost := _missing(store.back, missing)):
            raise StoreError(
                f"the store {store.location} did not keep {len(lost)} of {len(keys)} segments that were put into it; "
                "it may be too small"
            )


def _missing(store: Store, keys: Sequence[bytes]) -> list[bytes]:
    values = zip(keys, store.get_many(keys), strict=True)
    return list(dict.fromkeys(key for key, value in values if value is None))


def with_store(
    pipeline: Pipeline, store: str | Store | None, *, tokenizer: str | Tokenizer | None = None
) -> Pipeline:
    """Return a pipeline with the stages and settings of another, a store of its own and, if given, a tokenizer.

    Raises:
        ConfigError: If the store's location makes no sense.
    """
    return Pipeline(
        pipeline.stages,
        tokenizer=tokenizer or pipeline.tokenizer,
        strict=pipeline.strict,
        on_error=pipeline.on_error,
        mark_omissions=pipeline.mark_omissions,
        keep=pipeline.budget.by_kind if pipeline.budget else None,
        store=store,
        tenant=pipeline.tenant,
    )


def _raising(pipeline: Pipeline) -> Pipeline:
    """Return a pipeline that shares stages and store with another, and raises what goes wrong."""
    raising = copy.copy(pipeline)
    raising.on_error = "raise"
    return raising


def _counted(chunks: Sequence[Chunk], results: Sequence[Compressed]) -> list[tuple[int, int, bool]]:
    """Return tokens before and after of each chunk, and whether it was found in the store or before in the batch."""
    seen: set[tuple[str, str]] = set()
    counted = []
    for chunk, result in zip(chunks, results, strict=True):
        content = (chunk.context, chunk.text)
        is_found = content in seen or result.trace[-1].cache_hits > 0
        seen.add(content)
        counted.append((result.tokens_before, result.tokens_after, is_found))
    return counted


def _summed(name: str, counted: Sequence[tuple[int, int, bool]]) -> DocumentReport:
    n_stored = sum(is_found for _, _, is_found in counted)
    return DocumentReport(
        document_id=name,
        n_segments=len(counted),
        n_tokens_before=sum(before for before, _, _ in counted),
        n_tokens_after=sum(after for _, after, _ in counted),
        n_stored=n_stored,
        n_compressed=len(counted) - n_stored,
    )


def open_sink(
    compressor: SegmentCompressor,
    *,
    tokenizer: Tokenizer,
    chunk_tokens: int = 256,
    index: str | os.PathLike[str] | None = None,
) -> Sink:
    """Return what a corpus is put into: the store of a pipeline, and with ``index`` an index as well.

    Args:
        compressor: What compresses; its pipeline has the store.
        tokenizer: Whose tokens limit the segments.
        chunk_tokens: The most tokens of a segment.
        index: Folder of the index; None for none.

    Raises:
        ConfigError: If an option makes no sense.
        StoreError: If store or index cannot be used.
    """
    if index is not None:
        from kompakt.retrieval.corpus.index_sink import IndexSink

        return IndexSink(index, compressor, tokenizer=tokenizer, chunk_tokens=chunk_tokens)
    return StoreSink(compressor, tokenizer=tokenizer, chunk_tokens=chunk_tokens)


def add_batch(sink: Sink, documents: Sequence[Document]) -> SinkReport:
    """Put a batch into a sink; documents that cannot be are found by splitting it, and reported.

    This is the whole of the work on a batch. It knows nothing of the corpus and the job, so that any runner can call
    it, in any process that has the sink.

    Args:
        sink: Where to.
        documents: Documents with distinct ids.

    Raises:
        KompaktError: One of ``ENDS_THE_JOB``, if the sink or the configuration is at fault.
    """
    try:
        return sink.add(documents)
    except ENDS_THE_JOB:
        raise
    except Exception as error:  # whatever it is, it must not stop the others
        if len(documents) <= 1:
            return SinkReport(failures=tuple((document.id or "", reason_of(error)) for document in documents))
    middle = len(documents) // 2
    halves = [add_batch(sink, documents[:middle]), add_batch(sink, documents[middle:])]
    return SinkReport(
        tuple(document for half in halves for document in half.documents),
        tuple(failure for half in halves for failure in half.failures),
    )


def reason_of(error: Exception) -> str:
    """Return type and message of an error."""
    text = f"{type(error).__name__}: {error}"
    # what has no UTF-8 form could be kept nowhere
    return text.encode("utf-8", "backslashreplace").decode()[:_MAX_REASON]


def check_chunk_tokens(chunk_tokens: int) -> None:
    """Raise ``ConfigError`` unless it is a whole number above 0."""
    if isinstance(chunk_tokens, bool) or not isinstance(chunk_tokens, int) or chunk_tokens < 1:
        raise ConfigError(f"chunk_tokens must be a whole number above 0, got {chunk_tokens!r}")
