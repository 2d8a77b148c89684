"""What runs in the processes of a Ray cluster: a desk that hands out pieces, and workers that compress them."""

from __future__ import annotations

import asyncio
import json
import platform
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from kompakt.compressor import errors
from kompakt.compressor.errors import BackendError, ConfigError, KompaktError, MissingExtraError
from kompakt.compressor.types import Document
from kompakt.retrieval.corpus.batches import MAX_DEATHS
from kompakt.retrieval.corpus.sink import (
    FRONT_BYTES,
    DocumentReport,
    Sink,
    SinkReport,
    StoreSink,
    add_batch,
    with_store,
)

if TYPE_CHECKING:
    import pyarrow as pa

    from kompakt.compressor.models.tokenizers import Tokenizer
    from kompakt.retrieval.compressed import SegmentCompressor
    from kompakt.retrieval.corpus.manifest import JobSettings

NUMBER: Final = "number"
DOCUMENTS: Final = "documents"
ANSWER: Final = "answer"
_MAX_OPENINGS: Final = 5
"""Deaths of one worker while it opens its sink, after which the job ends: no document is to blame."""


class Answer(NamedTuple):
    """What a worker says of a piece: one of three things, or nothing if nobody waits for it any more.

    Args:
        report: What came of its documents.
        is_deadly: Whether it was left alone, as processes died while they worked on it.
        error: What ends the job.
    """

    report: SinkReport | None = None
    is_deadly: bool = False
    error: KompaktError | None = None


class Desk:
    """Where the driver hands in pieces and workers say what they begin with. An actor; it outlives every worker.

    Pieces are numbered from 0 without gaps, so that whoever hands them out can begin again after a death.
    """

    def __init__(self) -> None:
        self._changed = asyncio.Condition()
        self._pieces: dict[int, list[Any]] = {}
        self._n = 0
        self._is_closed = False
        self._begun: Counter[int | str] = Counter()

    async def put(self, pieces: Sequence[list[Any]]) -> None:
        """Take pieces: lists of one reference each, so that what they refer to stays where it is."""
        async with self._changed:
            self._pieces.update(enumerate(pieces, start=self._n))
            self._n += len(pieces)
            self._changed.notify_all()

    async def close(self) -> None:
        """Take no more pieces."""
        async with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    async def get(self, number: int) -> list[Any] | None:
        """Wait for a piece and return it; an empty one if it is done with, and None if there will be none."""
        async with self._changed:
            await self._changed.wait_for(lambda: number < self._n or self._is_closed)
            return self._pieces.get(number, []) if number < self._n else None

    async def drop(self, numbers: Sequence[int]) -> None:
        """Forget pieces that are done with."""
        for number in numbers:
            self._pieces.pop(number, None)
            self._begun.pop(number, None)

    async def begin(self, key: int | str) -> int:
        """Note that a worker begins with a piece, or with something else, and return how often that was begun."""
        self._begun[key] += 1
        return self._begun[key]

    async def end(self, key: int | str) -> None:
        """Note that a worker survived it."""
        self._begun.pop(key, None)


def hand_out(_: object, desk: Any) -> Iterator[pa.Table]:  # noqa: ANN401 (a handle of Ray's)
    """Yield the pieces of a desk, a row each, for as long as it takes some. For ``map_batches``."""
    import pyarrow as pa
    import ray

    number = 0
    while (piece := ray.get(desk.get.remote(number))) is not None:
        documents = ray.get(piece[0]) if piece else b""
        yield pa.table({NUMBER: [number], DOCUMENTS: [documents]})
        number += 1


class Worker:
    """Puts pieces into a sink of its own, which is opened once. A class for ``map_batches``.

    Args:
        open_sink: Opens the sink.
        desk: Where deaths are counted.
    """

    def __init__(self, open_sink: Callable[[], Sink], desk: Any) -> None:  # noqa: ANN401 (a handle of Ray's)
        self._open_sink = open_sink
        self._desk = desk
        self._sink: Sink | None = None

    def __call__(self, pieces: pa.Table) -> pa.Table:
        """Return the answer to each piece."""
        import pyarrow as pa

        rows = zip(pieces[NUMBER].to_pylist(), pieces[DOCUMENTS].to_pylist(), strict=True)
        answers = {number: encode_answer(self._answer(number, documents)) for number, documents in rows}
        return pa.table({NUMBER: list(answers), ANSWER: list(answers.values())})

    def _answer(self, number: int, documents: bytes) -> Answer:
        if not documents:
            return Answer()
        try:
            sink = self._opened()
            if self._begin(number) > MAX_DEATHS:
                return Answer(is_deadly=True)
            report = add_batch(sink, decode_documents(documents))
            sink.save()
            return Answer(report)
        except KompaktError as error:
            return Answer(error=error)
        finally:
            self._desk.end.remote(number)

    def _opened(self) -> Sink:
        if self._sink is None:
            import ray

            # an actor that is started again keeps its id
            key = f"opening {ray.get_runtime_context().get_actor_id()}"
            if self._begin(key) > _MAX_OPENINGS:
                raise BackendError(
                    f"a worker died {_MAX_OPENINGS} times while it loaded its models; its log in Ray's session "
                    "folder says more. Perhaps there is too little memory for so many workers"
                )
            self._sink = self._open_sink()
            self._desk.end.remote(key)
        return self._sink

    def _begin(self, key: int | str) -> int:
        import ray

        return int(ray.get(self._desk.begin.remote(key)))


@dataclass(frozen=True, slots=True)
class OpenSink:
    """Opens the sink of a worker, from what means the same on every machine.

    Args:
        settings: Those of the job.
        store: Location of the store, with its password if it has one.
        encoder: What the index was made with; empty if there is no index.
    """

    settings: JobSettings
    store: str = field(repr=False)
    encoder: str = ""

    def __call__(self) -> Sink:
        """Open it.

        Raises:
            ConfigError: If this machine would make other segments than the driver's.
            ModelNotFoundError: If a model is not on this machine.
            StoreError: If the store cannot be used.
        """
        from kompakt.compressor.config import parse_pipeline
        from kompakt.compressor.models.tokenizers import load_tokenizer
        from kompakt.compressor.store.places import open_store
        from kompakt.retrieval.compressed import SegmentCompressor

        settings = self.settings
        tokenizer = load_tokenizer(settings.tokenizer)
        store = open_store(self.store, memory_bytes=FRONT_BYTES)
        pipeline = with_store(parse_pipeline(settings.pipeline_toml or ""), store, tokenizer=settings.tokenizer)
        compressor = SegmentCompressor(pipeline, keep=settings.keep, max_tokens=settings.max_tokens)
        self._check(compressor, tokenizer)
        segments = StoreSink(compressor, tokenizer=tokenizer, chunk_tokens=settings.chunk_tokens)
        if not self.encoder:
            return segments
        from kompakt.retrieval.corpus.vector_sink import VectorSink

        return VectorSink(segments, compressor, encoder=self.encoder)

    def _check(self, compressor: SegmentCompressor, tokenizer: Tokenizer) -> None:
        from kompakt.compressor.store.keys import release

        found = {
            "release": release(),
            "tokenizer_fingerprint": tokenizer.fingerprint,
            "pipeline_fingerprint": compressor.pipeline.fingerprint,
        }
        for name, value in found.items():
            wanted = getattr(self.settings, name)
            if value != wanted:
                raise ConfigError(
                    f"a worker on {platform.node()} has {name} = {value!r}, and the job {wanted!r}: "
                    "install the same kompakt and the same models on every machine"
                )


def encode_documents(documents: Sequence[Document]) -> bytes:
    """Write documents as bytes; their metadata must be JSON, as a job has made sure of."""
    rows = [[one.id, one.text, dict(one.metadata), one.protected] for one in documents]
    # ids may hold what is no Unicode
    return json.dumps(rows, ensure_ascii=False).encode("utf-8", "surrogatepass")


def decode_documents(data: bytes) -> list[Document]:
    """Read what ``encode_documents`` wrote."""
    rows = json.loads(data.decode("utf-8", "surrogatepass"))
    return [
        Document(text, id=name, metadata=metadata, protected=tuple((start, end) for start, end in protected))
        for name, text, metadata, protected in rows
    ]


def encode_answer(answer: Answer) -> str:
    """Write an answer as JSON."""
    report, error = answer.report, answer.error
    return json.dumps(
        {
            "report": report and [[astuple(one) for one in report.documents], report.failures],
            "is_deadly": answer.is_deadly,
            "error": error and [type(error).__name__, _arguments(error)],
        }
    )


def decode_answer(text: str) -> Answer:
    """Read what ``encode_answer`` wrote; an error is one of the class that it had."""
    read = json.loads(text)
    report = error = None
    if read["report"] is not None:
        documents, failures = read["report"]
        report = SinkReport(
            tuple(DocumentReport(*one) for one in documents), tuple((name, reason) for name, reason in failures)
        )
    if read["error"] is not None:
        name, arguments = read["error"]
        error = getattr(errors, name, BackendError)(*arguments)
    return Answer(report, read["is_deadly"], error)


def _arguments(error: KompaktError) -> list[str]:
    return [error.feature, error.extra] if isinstance(error, MissingExtraError) else [str(error)]
