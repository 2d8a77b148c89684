"""What a corpus job would take: a sample is compressed for real, and the rest told from it."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any, Final

from kompakt.compressor.errors import InputError
from kompakt.compressor.models.tokenizers import Tokenizer
from kompakt.compressor.store.memory import MemoryStore
from kompakt.compressor.types import Document
from kompakt.retrieval.compressed import SegmentCompressor
from kompakt.retrieval.corpus.files import ROW_FORMATS, format_of, records_of
from kompakt.retrieval.corpus.formats import READ_ERRORS, open_stream
from kompakt.retrieval.corpus.readers import ReadOptions, Record, SourceFile, find_files
from kompakt.retrieval.corpus.sink import Sink, SinkReport, StoreSink, add_batch, with_store

SAMPLE: Final = 50
"""Documents of a sample."""
_MIN_SAMPLE: Final = 5
"""Documents of each format, however rare it is."""
_READ_FOR_ONE: Final = 8
"""Records that are read for one of the sample, so that it is more than the head of a file."""
_READ_CHARACTERS: Final = 16 << 20
_PIECE: Final = 1 << 20
_STORE_BYTES: Final = 1 << 30


@dataclass(frozen=True, slots=True)
class FormatEstimate:
    """What the files of one format would take.

    Args:
        format: Name of the format.
        n_files: Files, counted.
        n_bytes: Their bytes, counted.
        n_sampled: Documents of the sample, those included that cannot be used.
        n_failed: How many of them cannot be used.
        documents: Documents that can be used, estimated, as is all that follows.
        segments: Segments.
        tokens_before: Tokens of the segments.
        tokens_after: Tokens of their compressed forms.
        seconds: Time, at the speed of the sample.
        store_bytes: Bytes of the compressed segments.
    """

    format: str
    n_files: int
    n_bytes: int
    n_sampled: int = 0
    n_failed: int = 0
    documents: int = 0
    segments: int = 0
    tokens_before: int = 0
    tokens_after: int = 0
    seconds: float = 0.0
    store_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a job would take.

    Args:
        formats: By format, in the order of their names.
        n_sampled: Documents of the sample.
    """

    formats: tuple[FormatEstimate, ...]
    n_sampled: int

    @property
    def total(self) -> FormatEstimate:
        """All formats together."""
        names = [name for name in FormatEstimate.__slots__ if name != "format"]
        return FormatEstimate("all", **{name: sum(getattr(one, name) for one in self.formats) for name in names})

    def as_json(self) -> dict[str, Any]:
        """Return the estimate as JSON values."""
        formats = {one.format: asdict(one) for one in self.formats}
        return {"n_sampled": self.n_sampled, "formats": formats, "total": asdict(self.total)}


@dataclass(slots=True)
class _Sample:
    """Documents of the files of one format, and how much of the files they stand for."""

    documents: list[Document] = field(default_factory=list)
    n_failed: int = 0
    n_bytes: float = 0.0
    seconds: float = 0.0


def estimate(
    inputs: Sequence[str | os.PathLike[str]],
    compressor: SegmentCompressor,
    *,
    tokenizer: Tokenizer,
    chunk_tokens: int = 256,
    read: ReadOptions | None = None,
    n_sample: int = SAMPLE,
) -> Estimate:
    """Estimate what a job would take. Nothing is written.

    The sample is the same each time. It is compressed into memory; a store that holds some of the corpus already
    makes the job faster than that.

    Args:
        inputs: Files and folders.
        compressor: What compresses.
        tokenizer: Whose tokens limit the segments.
        chunk_tokens: The most tokens of a segment.
        read: How files become documents.
        n_sample: Documents to sample, roughly.

    Raises:
        InputError: If an input is missing, or there is no file in any.
        ConfigError: If an option makes no sense.
        KompaktError: Whatever else would end the job at once.
    """
    by_format: dict[str, list[SourceFile]] = {}
    for file in find_files(inputs):
        by_format.setdefault(format_of(file.name), []).append(file)
    if not by_format:
        raise InputError("the inputs hold no file that can be read")
    total = sum(file.n_bytes for files in by_format.values() for file in files)
    memory = MemoryStore(_STORE_BYTES)
    pipeline = with_store(compressor.pipeline, memory)
    own = SegmentCompressor(pipeline, keep=compressor.keep, max_tokens=compressor.max_tokens)
    sink = StoreSink(own, tokenizer=tokenizer, chunk_tokens=chunk_tokens)
    formats = []
    is_warm = False
    for name, files in sorted(by_format.items()):
        share = sum(file.n_bytes for file in files) / max(1, total)
        sample = _sampled(files, max(_MIN_SAMPLE, round(n_sample * share)), read or ReadOptions())
        if sample.documents and not is_warm:
            # loading models is no part of the speed
            add_batch(sink, sample.documents[:1])
            memory.clear()
            is_warm = True
        formats.append(_extrapolated(name, files, sample, sink, memory))
    return Estimate(tuple(formats), sum(one.n_sampled for one in formats))


def _extrapolated(
    name: str, files: Sequence[SourceFile], sample: _Sample, sink: Sink, memory: MemoryStore
) -> FormatEstimate:
    n_bytes = sum(file.n_bytes for file in files)
    stored = memory.stats().n_bytes
    began = time.perf_counter()
    report = add_batch(sink, sample.documents) if sample.documents else SinkReport()
    seconds = sample.seconds + time.perf_counter() - began
    n_failed = sample.n_failed + len(report.failures)
    n_sampled = len(sample.documents) + sample.n_failed
    scale = n_bytes / sample.n_bytes if sample.n_bytes else 0.0
    n_documents = len(report.documents) * scale
    if name not in ROW_FORMATS and n_sampled:
        n_documents = len(files) * len(report.documents) / n_sampled
    return FormatEstimate(
        format=name,
        n_files=len(files),
        n_bytes=n_bytes,
        n_sampled=n_sampled,
        n_failed=n_failed,
        documents=round(n_documents),
        segments=round(report.n_segments * scale),
        tokens_before=round(report.n_tokens_before * scale),
        tokens_after=round(report.n_tokens_after * scale),
        seconds=round(seconds * scale, 3),
        store_bytes=round((memory.stats().n_bytes - stored) * scale),
    )


def _sampled(files: Sequence[SourceFile], n: int, options: ReadOptions) -> _Sample:
    """Read about ``n`` documents of files of one format, spread evenly over them."""
    sample = _Sample()
    chosen = _spread(files, n)
    per_file = math.ceil(n / len(chosen))
    for file in chosen:
        began = time.perf_counter()
        records = _head(file, options, per_file * _READ_FOR_ONE)
        seconds = time.perf_counter() - began
        if not records:
            continue
        kept = _spread(records, per_file)
        share = len(kept) / len(records)
        sample.seconds += seconds * share
        sample.n_bytes += _bytes_of(file, records) * share
        documents = [record.document for record in kept if record.document is not None]
        sample.documents += documents
        sample.n_failed += len(kept) - len(documents)
    sample.documents = _distinct(sample.documents)
    return sample


def _head(file: SourceFile, options: ReadOptions, n: int) -> list[Record]:
    """Return the first ``n`` records of a file, or as many as fit into memory well."""
    records: list[Record] = []
    n_characters = 0
    for record in islice(records_of(file, options, start=0), n):
        records.append(record)
        n_characters += 0 if record.document is None else len(record.document.text)
        if n_characters > _READ_CHARACTERS:
            break
    return records


def _spread(items: Sequence[Any], n: int) -> list[Any]:
    """Return at most ``n`` items, evenly spaced, the first one among them."""
    if len(items) <= n:
        return list(items)
    return [items[index * len(items) // n] for index in range(n)]


def _distinct(documents: Iterable[Document]) -> list[Document]:
    return list({document.id: document for document in documents}.values())


def _bytes_of(file: SourceFile, records: Sequence[Record]) -> float:
    """Return roughly how many bytes of a file its first records take."""
    n_records = records[-1].position + 1
    kind = format_of(file.name)
    try:
        if kind == "jsonl":
            return _bytes_of_lines(file, n_records)
        if kind == "parquet":
            return _bytes_of_rows(file, n_records)
    except READ_ERRORS:
        pass  # the records say so
    return file.n_bytes


def _bytes_of_lines(file: SourceFile, n_lines: int) -> int:
    with open_stream(file) as stream:
        for _ in range(n_lines):
            while (piece := stream.readline(_PIECE)) and not piece.endswith(b"\n"):
                pass
        if not stream.peek(1):
            return file.n_bytes
        # of a packed file, that which is packed
        packed = getattr(stream, "fileobj", None)
        return min(file.n_bytes, (packed or stream).tell())


def _bytes_of_rows(file: SourceFile, n_rows: int) -> float:
    from pyarrow import ArrowException
    from pyarrow.parquet import read_metadata

    try:
        return file.n_bytes * n_rows / max(n_rows, int(read_metadata(file.path).num_rows))
    except ArrowException:
        return file.n_bytes
