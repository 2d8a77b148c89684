"""A corpus job on Ray Data: workers compress into the store that they share, and the driver keeps state and index."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from operator import itemgetter
from pathlib import Path
from typing import Final

from kompakt.compressor.errors import ConfigError, MissingExtraError
from kompakt.compressor.types import Document
from kompakt.retrieval.corpus.batches import DIED
from kompakt.retrieval.corpus.index_sink import IndexSink
from kompakt.retrieval.corpus.manifest import JobSettings
from kompakt.retrieval.corpus.ray_cluster import AUTO, LOCAL, Cluster, RayOptions, is_server, require_reachable
from kompakt.retrieval.corpus.ray_worker import Answer, OpenSink, encode_documents
from kompakt.retrieval.corpus.sink import DocumentReport, Sink, SinkReport, add_batch
from kompakt.retrieval.manifest import Manifest

_FEATURE: Final = "the corpus job on Ray"


@dataclass(slots=True)
class _Round:
    """A batch of the job, and what is known of its documents so far."""

    documents: Sequence[Document]
    n_left: int = 0
    numbers: list[int] = field(default_factory=list)
    done: dict[str, DocumentReport] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    def report(self) -> SinkReport:
        """Return what came of the documents, in their order."""
        names = [document.id or "" for document in self.documents]
        return SinkReport(
            tuple(self.done[name] for name in names if name in self.done),
            tuple((name, self.reasons[name]) for name in names if name in self.reasons),
        )


class RayRunner:
    """Has batches compressed by the workers of a Ray cluster, and puts them into the index if there is one.

    A batch is cut into pieces of documents of similar length. They stream through Ray Data's ``map_batches``, whose
    actors hold the models. A piece whose worker dies is done again; one that was worked on by two processes that
    died is cut into its documents, and a document that was, alone, is quarantined. What is in work at one time is
    bounded by the batches that are started, and in Ray by limits of the object store.

    The cluster is started or joined by the first batch. If Ray runs in this process already, it is used as it is, and
    left running. Ray's usage statistics are turned off for the whole process.

    Args:
        sink: The job's own sink; of one with an index, only the index is filled by this process.
        open_worker: Opens the sink of a worker, on any machine of the cluster.
        options: Where the job runs.

    Raises:
        MissingExtraError: If Ray is not installed.
    """

    n_ahead: Final = 1
    is_isolated: Final = True

    def __init__(self, sink: Sink, open_worker: Callable[[], Sink], options: RayOptions) -> None:
        if find_spec("ray") is None or find_spec("pyarrow") is None:
            raise MissingExtraError(_FEATURE, "ray")
        self._index = sink if isinstance(sink, IndexSink) else None
        self._open_worker = open_worker
        self._options = options
        self._rounds: list[_Round] = []
        self._pieces: dict[int, tuple[_Round, list[Document]]] = {}
        self._n_pieces = 0
        self._cluster: Cluster | None = None

    def start(self, documents: Sequence[Document]) -> None:
        """Hand a batch to the workers; see ``Runner.start``."""
        made = _Round(documents)
        options = self._options
        self._send(made, pieces_of(documents, n_bytes=options.piece_bytes, n_documents=options.piece_documents))
        self._rounds.append(made)

    def finish(self) -> SinkReport:
        """Wait for the earliest batch; see ``Runner.finish``."""
        first = self._rounds[0]
        while first.n_left:
            for number, answer in self._opened().answers():
                self._take(number, answer)
        self._opened().drop(first.numbers)
        del self._rounds[0]
        report = first.report()
        return report if self._index is None else _indexed(self._index, first.documents, report)

    def close(self) -> None:
        """Leave what is in work, and the cluster."""
        if self._cluster is not None:
            self._cluster.close()

    def _opened(self) -> Cluster:
        if self._cluster is None:
            self._cluster = Cluster(self._open_worker, self._options)
        return self._cluster

    def _send(self, made: _Round, pieces: Sequence[list[Document]]) -> None:
        for piece in pieces:
            made.numbers.append(self._n_pieces)
            self._pieces[self._n_pieces] = made, piece
            self._n_pieces += 1
        made.n_left += len(pieces)
        self._opened().send([encode_documents(piece) for piece in pieces])

    def _take(self, number: int, answer: Answer) -> None:
        if answer.error is not None:
            raise answer.error
        made, documents = self._pieces.pop(number, (None, []))
        if made is None:
            return  # it was done twice
        made.n_left -= 1
        if answer.report is not None:
            made.done |= {one.document_id: one for one in answer.report.documents}
            made.reasons |= dict(answer.report.failures)
        elif len(documents) == 1:
            made.reasons[documents[0].id or ""] = DIED
        else:
            self._send(made, [[document] for document in documents])


def ray_runner(settings: JobSettings, store: str, options: RayOptions) -> Callable[[Sink], RayRunner]:
    """Return what opens the runner of a job on Ray, for ``run_job``.

    Args:
        settings: Those of the job.
        store: Location of its store, which every worker opens.
        options: Where the job runs.

    Raises:
        ConfigError: If workers could not open the store or the pipeline.
    """
    if settings.pipeline_toml is None:
        raise ConfigError(f"{_FEATURE} needs a pipeline that can be written as TOML: registered compressors only")
    require_reachable(store, is_shared=options.address not in (LOCAL, AUTO))
    place = store if is_server(store) else settings.store

    def opened(sink: Sink) -> RayRunner:
        encoder = Manifest.read(Path(settings.index)).encoder if settings.index else ""
        if settings.index and not encoder:
            raise ConfigError(f"the index {settings.index} was made with an encoder that has no name for workers")
        return RayRunner(sink, OpenSink(settings, place, encoder), options)

    return opened


def pieces_of(documents: Sequence[Document], *, n_bytes: int, n_documents: int) -> list[list[Document]]:
    """Cut documents into pieces of similar length, so that little is padded; the longest first, which take longest.

    Args:
        documents: The documents.
        n_bytes: The most bytes of text in a piece, unless a single document has more.
        n_documents: The most documents in a piece.
    """
    sized = [(len(document.text.encode()), document) for document in documents]
    pieces: list[list[Document]] = []
    room = 0
    for size, document in sorted(sized, key=itemgetter(0), reverse=True):
        if not pieces or size > room or len(pieces[-1]) >= n_documents:
            pieces.append([])
            room = n_bytes
        pieces[-1].append(document)
        room -= size
    return pieces


def _indexed(index: IndexSink, documents: Sequence[Document], report: SinkReport) -> SinkReport:
    """Put documents that are in the store into the index as well; return the report of both."""
    done = {one.document_id: one for one in report.documents}
    found = add_batch(_IndexOnly(index, done), [one for one in documents if one.id in done])
    return SinkReport(found.documents, (*report.failures, *found.failures))


@dataclass(frozen=True, slots=True)
class _IndexOnly:
    """The index of a sink whose store has the documents already."""

    inner: IndexSink
    reports: dict[str, DocumentReport]

    def add(self, documents: Sequence[Document]) -> SinkReport:
        self.inner.index(documents)
        return SinkReport(tuple(self.reports[document.id or ""] for document in documents))

    def delete(self, document_ids: Sequence[str]) -> int:
        return self.inner.delete(document_ids)

    def save(self) -> None:
        self.inner.save()

    def close(self) -> None:
        self.inner.close()
