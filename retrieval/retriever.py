"""Retrieval over compressed segments: what is found is already small, and one budget is spent over all of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final, Literal, Self, TypeAlias, get_args

from kompakt.compressor.base import Request
from kompakt.compressor.errors import BudgetError, ConfigError
from kompakt.compressor.models.tokenizers import DEFAULT_TOKENIZER, Tokenizer, load_tokenizer
from kompakt.compressor.pipeline import Pipeline
from kompakt.compressor.results import fits, join_results, joined_text
from kompakt.compressor.text.mmr import MaximalMarginalRelevance
from kompakt.compressor.types import Budget, Compressed, Document, Kind, Span
from kompakt.retrieval.compressed import SegmentCompressor, TextRange, as_documents
from kompakt.retrieval.corag import CostConstrainedSearch
from kompakt.retrieval.crag import clustered_rag
from kompakt.retrieval.encoding import embedded
from kompakt.retrieval.filters import Where
from kompakt.retrieval.index import AddReport, Hit, Mode, Segment, SegmentIndex

Selection: TypeAlias = Literal["marginal", "equal", "clusters", "search"]


@dataclass(frozen=True, slots=True)
class Found:
    """A segment that a search found, with its compressed form.

    Args:
        hit: The segment and why it was found.
        compressed: Its compressed form; spans count from the start of the segment.
    """

    hit: Hit
    compressed: Compressed

    @property
    def text(self) -> str:
        """The compressed text."""
        return self.compressed.text

    @property
    def citations(self) -> tuple[Span, ...]:
        """Where each kept piece stands in the document that the segment was cut from."""
        return _citations(self.compressed, {as_documents([self.hit.segment])[0].id or "": self.hit.segment})


@dataclass(frozen=True, slots=True)
class Context:
    """What a question was answered with: one compressed context over several segments.

    Args:
        compressed: The context; each segment is a document of it, and spans count from its start.
        hits: The segments that were considered, best first.
        segments: The segments by the ids of the context's documents.
    """

    compressed: Compressed
    hits: tuple[Hit, ...]
    segments: Mapping[str, Segment]

    @property
    def text(self) -> str:
        """What to send."""
        return self.compressed.text

    @property
    def citations(self) -> tuple[Span, ...]:
        """Where each kept piece stands in the documents that the segments were cut from, in the text's order."""
        return _citations(self.compressed, self.segments)

    def source_of(self, offset: int) -> Span:
        """Return where the character at an offset of ``text`` stands in its document.

        Raises:
            InputError: If the offset is outside the text.
        """
        (part,) = self.compressed.parts
        span = part.source.source_of(offset)
        return _moved(span, self.segments[span.document_id])


class Retriever:
    """An index whose segments are compressed when they are added, and looked up when they are found.

    Args:
        index: The segments.
        compressor: What compresses them; its pipeline's store holds the results.
    """

    def __init__(self, index: SegmentIndex, compressor: SegmentCompressor) -> None:
        self.index = index
        self.compressor = compressor
        self._sentences = SentenceReader(compressor.pipeline)
        self._reader = self._sentences.pipeline

    @classmethod
    def create(
        cls,
        folder: str | os.PathLike[str],
        *,
        pipeline: Pipeline,
        keep: float | None = None,
        max_tokens: int | None = None,
        encoder: str = "minilm-l6",
        chunk_tokens: int = 256,
    ) -> Self:
        """Make an empty index whose segments a pipeline compresses.

        Args:
            folder: Where the index is made.
            pipeline: What compresses; its store keeps compressed segments and embeddings.
            keep: The fraction of each segment's tokens that may remain.
            max_tokens: The most tokens that may remain of each segment; give this or ``keep``.
            encoder: A model's name or folder.
            chunk_tokens: The most tokens of a segment.

        Raises:
            KompaktError: If the folder, the budget or an option cannot be used.
        """
        compressor = SegmentCompressor(pipeline, keep=keep, max_tokens=max_tokens)
        index = SegmentIndex.create(
            folder,
            encoder=encoder,
            tokenizer=pipeline.tokenizer or DEFAULT_TOKENIZER,
            chunk_tokens=chunk_tokens,
            artefacts=pipeline.artefacts(),
        )
        return cls(index, compressor)

    @classmethod
    def open(
        cls,
        folder: str | os.PathLike[str],
        *,
        pipeline: Pipeline,
        keep: float | None = None,
        max_tokens: int | None = None,
        memory_map: bool = True,
    ) -> Self:
        """Open an index; see ``SegmentIndex.open``.

        Args:
            folder: Where it is.
            pipeline: What its segments were compressed with. With another one, or another budget, they are compressed
                when they are first found.
            keep: The fraction of each segment's tokens that may remain.
            max_tokens: The most tokens that may remain of each segment; give this or ``keep``.
            memory_map: Leave the vectors in their file until they are needed.

        Raises:
            KompaktError: If the index or the budget cannot be used.
        """
        compressor = SegmentCompressor(pipeline, keep=keep, max_tokens=max_tokens)
        index = SegmentIndex.open(folder, memory_map=memory_map, artefacts=pipeline.artefacts())
        return cls(index, compressor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, traceback: object) -> None:
        self.index.__exit__(kind, error, traceback)
        self.compressor.pipeline.close()

    def add(self, documents: Document | Iterable[Document]) -> AddReport:
        """Add documents, compress their segments and embed their sentences; see ``SegmentIndex.add``.

        Raises:
            KompaktError: If a document cannot be used or the index not be written.
        """
        items = [documents] if isinstance(documents, Document) else list(documents)
        report = self.index.add(items)
        segments = self.index.segments_of(document.id or "" for document in items)
        self.compressor.compress(segments)
        self._sentences.read_ahead(segments)
        return report

    def search(
        self, query: str, k: int = 10, *, where: Where | None = None, mode: Mode = "hybrid", candidates: int = 50
    ) -> list[Found]:
        """Return the segments that fit a query best, compressed; those that are stored are not computed again.

        Args:
            query: A question or some words.
            k: The most segments to return.
            where: Conditions on the documents' metadata.
            mode: By meaning (``vector``), by ``words``, or both (``hybrid``).
            candidates: How long each of the two rankings is.

        Raises:
            InputError: If the query is empty or a condition cannot be used.
        """
        hits = self.index.search(query, k, where=where, mode=mode, candidates=candidates)
        results = self.compressor.compress([hit.segment for hit in hits])
        return [Found(hit, compressed) for hit, compressed in zip(hits, results, strict=True)]

    def retrieve_and_compress(
        self,
        query: str,
        max_tokens: int,
        *,
        k: int = 20,
        where: Where | None = None,
        mode: Mode = "hybrid",
        select: Selection = "marginal",
        tokenizer: str | Tokenizer | None = None,
    ) -> Context:
        """Find segments and spend one budget over all of them.

        Args:
            query: The question.
            max_tokens: The most tokens of the context.
            k: Segments to consider.
            where: Conditions on the documents' metadata.
            mode: How to search.
            select: ``marginal`` keeps the sentences with the most relevance and novelty a token, whichever segment
                they are in (``MaximalMarginalRelevance``); ``equal`` gives every segment the same share; ``clusters``
                groups segments that say the same (``clustered_rag``); ``search`` looks for the best set of whole
                segments (``CostConstrainedSearch``).
            tokenizer: Whose tokens are counted; the pipeline's own without one.

        Returns:
            The context, with citations; empty if nothing was found.

        Raises:
            InputError: If the query is empty or a condition cannot be used.
            BudgetError: If the budget holds nothing of what was found.
        """
        if select not in get_args(Selection):
            raise ConfigError(f"select must be one of {', '.join(get_args(Selection))}, got {select!r}")
        counter = load_tokenizer(tokenizer or self.compressor.pipeline.tokenizer)
        hits = self.index.search(query, k, where=where, mode=mode, candidates=max(50, k))
        documents = as_documents([hit.segment for hit in hits])
        job = Job(query, Budget(max_tokens), counter, documents, tuple(hit.segment for hit in hits))
        compressed = _SELECTIONS[select](self, job) if documents else fits((), 0, select, 0.0)
        segments = {document.id or "": hit.segment for document, hit in zip(documents, hits, strict=True)}
        return Context(compressed, tuple(hits), MappingProxyType(segments))


class SentenceReader:
    """Selects sentences by their vectors, which the store of a pipeline keeps.

    Args:
        pipeline: Whose store.

    Attributes:
        pipeline: What selects.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self._sentences = MaximalMarginalRelevance()
        self.pipeline = Pipeline([self._sentences], store=pipeline.opened_store, tenant=pipeline.tenant)

    def read_ahead(self, segments: Sequence[TextRange]) -> None:
        """Embed the sentences of segments, so that ``Retriever.retrieve_and_compress`` need not."""
        from kompakt.compressor.units.segment import segment as cut

        artefacts = self.pipeline.artefacts()
        jobs = [(cut([document], artefacts=artefacts), None) for document in as_documents(segments)]
        if jobs:
            self._sentences.read_ahead_units(jobs, artefacts)


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be selected from.

    Args:
        query: The question.
        budget: The ceiling over all.
        tokenizer: Whose tokens it counts.
        documents: The segments as documents, best first.
        segments: The segments.
    """

    query: str
    budget: Budget
    tokenizer: Tokenizer
    documents: tuple[Document, ...]
    segments: tuple[Segment, ...]

    def request(self, documents: Sequence[Document], budget: Budget) -> Request:
        """Return the request to compress some of the documents for the question."""
        return Request(tuple(documents), budget, self.tokenizer, self.query)

    @property
    def max_tokens(self) -> int:
        """The ceiling in tokens."""
        return self.budget.resolve(0)


def _by_marginal_benefit(retriever: Retriever, job: Job) -> Compressed:
    return retriever._reader.compress_batch([job.request(job.documents, job.budget)])[0]


def _by_equal_shares(retriever: Retriever, job: Job) -> Compressed:
    """Give each segment the same number of tokens; what the seams cost is taken from all."""
    share = job.max_tokens // len(job.documents)
    while share > 0:
        parts = [job.request([document], Budget(share)) for document in job.documents]
        joined = join_results(job.documents, retriever._reader.compress_batch(parts), job.tokenizer)
        if joined.tokens_after <= job.max_tokens:
            return joined
        share -= 1
    raise BudgetError(
        f"{job.max_tokens} tokens are less than one for each of {len(job.documents)} segments; "
        "lower k, or select='marginal'"
    )


def _by_clusters(retriever: Retriever, job: Job) -> Compressed:
    return clustered_rag(
        job.documents,
        retriever.index.embed([embedded(one.context, one.text) for one in job.segments]),
        max_tokens=job.max_tokens,
        tokenizer=job.tokenizer,
        compressor=retriever._reader,
    )


def _by_search(retriever: Retriever, job: Job) -> Compressed:
    """Take the best set of whole segments; if not one of them fits, the sentences that do."""
    import numpy as np

    texts = [embedded(one.context, one.text) for one in job.segments]
    vectors = retriever.index.embed([job.query, *texts])
    relevance = np.clip(vectors[1:] @ vectors[0], 0.0, 1.0)
    similarity = np.clip(vectors[1:] @ vectors[1:].T, 0.0, 1.0)
    seam = job.tokenizer.count("\n\n")
    n_tokens = [count + seam for count in job.tokenizer.count_batch([one.text for one in job.documents])]
    chosen = CostConstrainedSearch().select(relevance, similarity, n_tokens, max_tokens=job.max_tokens)
    documents = [job.documents[index] for index in chosen]
    if not documents:
        return _by_marginal_benefit(retriever, job)
    result = retriever._reader.compress_batch([job.request(documents, job.budget)])[0]
    before = job.tokenizer.count(joined_text(job.documents))
    return replace(result, tokens_before=before, sources=job.documents)


_SELECTIONS: Final[Mapping[str, Callable[[Retriever, Job], Compressed]]] = MappingProxyType(
    {"marginal": _by_marginal_benefit, "equal": _by_equal_shares, "clusters": _by_clusters, "search": _by_search}
)


def _citations(compressed: Compressed, segments: Mapping[str, Segment]) -> tuple[Span, ...]:
    return tuple(
        _moved(span, segments[span.document_id]) for span in compressed.spans if span.kind is not Kind.SEPARATOR
    )


def _moved(span: Span, segment: Segment) -> Span:
    return replace(
        span, document_id=segment.document_id, start=span.start + segment.start, end=span.end + segment.start
    )
