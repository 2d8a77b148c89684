"""Records to batches of documents, batches into the sink, and what came of them into the state."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from kompakt.compressor.errors import ConfigError
from kompakt.compressor.types import Document
from kompakt.retrieval.corpus.ledger import (
    DocumentRow,
    FileProgress,
    Hashes,
    KnownDocument,
    PassedOver,
    PendingFile,
    Work,
    hashes_of,
)
from kompakt.retrieval.corpus.readers import Record
from kompakt.retrieval.corpus.runner import InProcess, Runner
from kompakt.retrieval.corpus.sink import DocumentReport, Sink, SinkReport, reason_of
from kompakt.retrieval.corpus.state import State

DIED: Final = "the process died while working on it"
MAX_DEATHS: Final = 2
"""Deaths while nothing else was in work, after which a document is left alone."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How much is done at once, and how much a kill can cost.

    Args:
        batch_bytes: Bytes of text at which a batch is full.
        batch_documents: Documents at which it is.
        checkpoint_records: Records after which what was done is saved.
        checkpoint_bytes: Bytes of text after which it is.
        checkpoint_seconds: Seconds after which it is.

    Raises:
        ConfigError: If one is not above 0.
    """

    batch_bytes: int = 4 << 20
    batch_documents: int = 256
    checkpoint_records: int = 5000
    checkpoint_bytes: int = 64 << 20
    checkpoint_seconds: float = 30.0

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be above 0, got {getattr(self, name)!r}")


class _Entry(NamedTuple):
    """A document of a batch."""

    document: Document
    position: int
    file: PendingFile
    hashes: Hashes
    known: KnownDocument | None

    @property
    def id(self) -> str:
        return self.document.id or ""

    @property
    def n_bytes(self) -> int:
        return len(self.document.text.encode())

    @property
    def was_in_sink(self) -> bool:
        return self.known is not None and self.known.status == "ok"

    def row(self, report: DocumentReport | None, reason: str = "") -> DocumentRow:
        """Return what is to be written down: what became of it or, without a report, why nothing did."""
        return DocumentRow(
            id=self.id,
            source=self.file.file.name,
            position=self.position,
            reading=self.file.reading,
            sha256=self.hashes.document,
            text_sha256=self.hashes.text,
            status="quarantined" if report is None else "ok",
            reason=reason,
            n_segments=report.n_segments if report else 0,
            n_bytes=self.n_bytes,
            tokens_before=report.n_tokens_before if report else 0,
            tokens_after=report.n_tokens_after if report else 0,
        )


class _Started(NamedTuple):
    """A batch that is in work, and what is done once the sink has taken it."""

    batch: list[_Entry]
    work: Work


class Batches:
    """Puts records into a sink, batch by batch, and writes down what came of them at each checkpoint.

    What is done goes from ``_current``, together with the batch that is being filled, to ``_started`` while the
    runner works on the batch, to ``_settled`` once the sink has taken it, and from there into the state once the sink
    has saved it. Whatever stops the job, only ``_settled`` is written down, and what was read since is read again.

    Before a batch is put into the sink by this process, the ids of its documents are written down. Those that are
    found there at the beginning were in work when the process died; each is then tried alone, so that the next death
    is its own.

    Args:
        state: What was done before.
        sink: Where to.
        limits: How much is done at once.
        runner: Who puts batches into the sink; this process without one.

    Attributes:
        n_documents: Documents in the sink, those included that no checkpoint has written down.
        n_quarantined: Documents that cannot be used, likewise.
        n_tokens: Tokens that were compressed since the beginning.
    """

    def __init__(self, state: State, sink: Sink, limits: Limits, runner: Runner | None = None) -> None:
        self._state = state
        self._sink = sink
        self._runner = runner or InProcess(sink)
        self._limits = limits
        self._suspects = state.attempts()
        self._current = Work()
        self._started: deque[_Started] = deque()
        self._settled = Work()
        self._batch: list[_Entry] = []
        self._batch_bytes = 0
        self._recent: dict[str, KnownDocument] = {}
        self._in_work: tuple[list[str], bool] = [], False
        self._survived: list[str] = []
        self._n_records = self._n_bytes = 0
        self._checkpoint_at = time.monotonic()
        totals = state.totals()
        self.n_documents = totals["ok"]["n"]
        self.n_quarantined = totals["quarantined"]["n"] + totals["unreadable"]["n"]
        self.n_tokens = 0

    @property
    def is_due(self) -> bool:
        """Whether it is time for a checkpoint."""
        limits = self._limits
        return (
            self._n_records >= limits.checkpoint_records
            or self._n_bytes >= limits.checkpoint_bytes
            or time.monotonic() - self._checkpoint_at >= limits.checkpoint_seconds
        )

    def has_taken_from(self, name: str) -> bool:
        """Tell whether a document that was known to stand in a file was found in another one since."""
        return any(name in work.robbed for work in (self._settled, *self._unsettled()))

    def begin_reading(self, name: str) -> bool:
        """Note that a file is read that may bring the process down; return whether it did so before, and often."""
        key = _reading(name)
        if self._suspects.get(key, 0) >= MAX_DEATHS:
            self._current.survived.append(key)
            return False
        self._begin([key], is_alone=True)
        return True

    def end_reading(self, name: str) -> None:
        """Note that the file was read."""
        self._suspects.pop(_reading(name), None)
        self._end()

    def take(self, record: Record, file: PendingFile, progress: FileProgress) -> None:
        """Take a record: skip it, pass it over, or put its document into a batch.

        Args:
            record: The record.
            file: Its file.
            progress: How far the file is read, this record included.
        """
        entry = self._entry(record, file)
        suspicion = self._suspects.get(entry.id) if isinstance(entry, _Entry) else None
        if suspicion is not None:
            # what is settled must not tell that this one was read
            self.flush()
        self._note(file, progress)
        self._n_records += 1
        if isinstance(entry, PassedOver):
            self._pass_over(entry)
        elif entry.known is not None and entry.known.sha256 == entry.hashes.document:
            self._skip(entry)
        elif suspicion is not None and suspicion >= MAX_DEATHS:
            self._remember(entry)
            self._quarantine(entry, DIED, self._current)
        else:
            self._remember(entry)
            self._batch.append(entry)
            self._batch_bytes += entry.n_bytes
            is_full = (
                self._batch_bytes >= self._limits.batch_bytes or len(self._batch) >= self._limits.batch_documents
            )
            if is_full or suspicion is not None:
                self.flush()

    def end_file(self, file: PendingFile, progress: FileProgress) -> None:
        """Note that a file was read to its end."""
        self._note(file, progress._replace(is_done=True))

    def _note(self, file: PendingFile, progress: FileProgress) -> None:
        self._current.files[file.file.name] = progress

    def flush(self) -> None:
        """Have the batch put into the sink, full or not."""
        if self._batch:
            self._start(self._batch)
        else:
            # what was read after a batch counts after it
            last = self._started[-1].work if self._started else self._settled
            last.add(self._current)
        self._n_bytes += self._batch_bytes
        self._batch, self._batch_bytes, self._current = [], 0, Work()
        self._settle(n_left=self._runner.n_ahead)

    def _start(self, batch: list[_Entry]) -> None:
        if not self._runner.is_isolated:
            # of one that is alone by chance, nothing is suspected
            is_alone = len(batch) == 1 and batch[0].id in self._suspects
            self._begin([entry.id for entry in batch], is_alone=is_alone)
        self._started.append(_Started(batch, self._current))
        self._runner.start([entry.document for entry in batch])

    def _settle(self, n_left: int) -> None:
        """Wait until no more than so many batches are in work."""
        while len(self._started) > n_left:
            report = self._runner.finish()
            if not self._runner.is_isolated:
                self._end()
            batch, work = self._started.popleft()
            self._note_report(batch, report, work)
            self._settled.add(work)

    def _note_report(self, batch: list[_Entry], report: SinkReport, work: Work) -> None:
        done = {one.document_id: one for one in report.documents}
        reasons = dict(report.failures)
        for entry in batch:
            self._suspects.pop(entry.id, None)
            if entry.id in done:
                work.documents.append(entry.row(done[entry.id]))
                self.n_documents += not entry.was_in_sink
            else:
                self._quarantine(entry, reasons.get(entry.id, "the sink did not say what became of it"), work)
        work.n_stored += report.n_stored
        work.n_compressed += report.n_compressed
        self.n_tokens += report.n_tokens_before

    def _unsettled(self) -> list[Work]:
        return [*(started.work for started in self._started), self._current]

    def checkpoint(self, *, is_last: bool = False) -> None:
        """Save the sink, and then write down what it has taken.

        Args:
            is_last: Whether to wait for all that is in work.
        """
        self.flush()
        if is_last:
            self._settle(n_left=0)
        self._save()

    def _save(self) -> None:
        now = time.monotonic()
        self._sink.save()
        self._settled.survived += self._survived
        self._state.checkpoint(self._settled, now - self._checkpoint_at)
        self._settled, self._survived = Work(), []
        # what the state does not know yet
        ids = {entry.id for started in self._started for entry in started.batch}
        for work in self._unsettled():
            ids.update(name for *_, name in work.unchanged)
            ids.update(row.id for row in work.documents)
        self._recent = {name: known for name, known in self._recent.items() if name in ids}
        self._n_records = self._n_bytes = 0
        self._checkpoint_at = now

    def stop(self) -> None:
        """Save what the sink has taken, and drop what is in work."""
        keys, is_alone = self._in_work
        self._state.withdraw(keys, is_alone=is_alone)
        self._in_work = [], False
        self._save()

    def _entry(self, record: Record, file: PendingFile) -> _Entry | PassedOver:
        """Return what is known of a record's document, or why it is none of its own."""
        document = record.document
        where = (record.source, record.position, file.reading)
        if document is None or document.id is None:
            return PassedOver(*where, "", record.error or "the document has no id")
        try:
            hashes = hashes_of(document)
        except Exception as error:  # whatever it is, it must not stop the others
            return PassedOver(*where, document.id, reason_of(error))
        known = self._recent.get(document.id) or self._state.find(document.id)
        is_elsewhere = known is not None and (known.source, known.position) != (record.source, record.position)
        if known is None or not known.is_live or not is_elsewhere:
            return _Entry(document, record.position, file, hashes, known)
        if known.sha256 == hashes.document:
            return PassedOver(*where, document.id, "")
        other = f"{known.source}, position {known.position}"
        return PassedOver(*where, document.id, f"another document has the id {document.id!r}: {other}")

    def _remember(self, entry: _Entry) -> None:
        name = entry.file.file.name
        self._recent[entry.id] = KnownDocument(entry.hashes.document, "ok", name, entry.position, is_live=True)
        if entry.known is not None and entry.known.source != name:
            self._current.robbed.add(entry.known.source)

    def _skip(self, entry: _Entry) -> None:
        self._remember(entry)
        self._current.unchanged.append((entry.file.file.name, entry.position, entry.file.reading, entry.id))

    def _pass_over(self, record: PassedOver) -> None:
        # what has no UTF-8 form could not be kept
        reason = record.reason.encode("utf-8", "backslashreplace").decode()
        self._current.passed_over.append(record._replace(reason=reason))
        self.n_quarantined += bool(reason)

    def _quarantine(self, entry: _Entry, reason: str, work: Work) -> None:
        if entry.was_in_sink:
            # its old text would still be found
            self._sink.delete([entry.id])
            self.n_documents -= 1
        work.documents.append(entry.row(None, reason))
        work.survived.append(entry.id)
        self.n_quarantined += 1

    def _begin(self, keys: Sequence[str], *, is_alone: bool) -> None:
        self._in_work = list(keys), is_alone
        self._state.begin(keys, is_alone=is_alone, survived=self._survived)
        self._survived = []

    def _end(self) -> None:
        self._survived += self._in_work[0]
        self._in_work = [], False


def _reading(name: str) -> str:
    """Return the key under which the reading of a file is written down, unlike the id of any document."""
    return f"reading {name}"
