"""A corpus into a sink: resumable, incremental, and past the documents that cannot be used."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

from kompakt.compressor.errors import KompaktError, StoreError
from kompakt.retrieval.corpus.batches import DIED, Batches, Limits
from kompakt.retrieval.corpus.files import bytes_read, content_hash, is_one_document, records_of
from kompakt.retrieval.corpus.ledger import PendingFile
from kompakt.retrieval.corpus.manifest import (
    JobSettings,
    JobState,
    Manifest,
    check_settings,
    describe,
    environment,
    read_manifest,
    write_failures,
    write_manifest,
)
from kompakt.retrieval.corpus.readers import ReadOptions, Record, find_files, skipped_files
from kompakt.retrieval.corpus.runner import InProcess, Runner
from kompakt.retrieval.corpus.sink import Sink
from kompakt.retrieval.corpus.state import STATE_FILE, State
from kompakt.retrieval.manifest import WriterLock

__all__ = ["JobSettings", "Limits", "OnProgress", "Progress", "job_status", "run_job"]

_DELETED_AT_ONCE: Final = 10_000
_SHOW_EVERY: Final = 0.1
"""Seconds between two calls of who is told the progress."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a job is.

    Args:
        done_bytes: Bytes of the files that are read, roughly.
        total_bytes: Bytes of all files that this run reads.
        documents: Documents in the sink.
        quarantined: Documents that cannot be used.
        tokens_per_second: Tokens that went into the sink, per second since this process began.
        eta_seconds: Seconds that are left at the rate of this process; None as long as that cannot be told.
    """

    done_bytes: int
    total_bytes: int
    documents: int
    quarantined: int
    tokens_per_second: float
    eta_seconds: float | None


OnProgress: TypeAlias = Callable[[Progress], None]


def run_job(
    settings: JobSettings,
    folder: str | os.PathLike[str],
    open_sink: Callable[[], Sink],
    *,
    is_update: bool = False,
    retry: bool = False,
    limits: Limits | None = None,
    on_progress: OnProgress | None = None,
    open_runner: Callable[[Sink], Runner] = InProcess,
) -> Manifest:
    """Put a corpus into a sink, from where an earlier run in this folder stopped.

    Files of the same size and time as before are not read again, and documents of the same text and metadata are not
    put into the sink again. A document counts as done once the sink has saved it.

    Args:
        settings: What decides the results; those of an earlier run must be the same.
        folder: Where the state of the job is kept, with ``manifest.json`` and ``failures.jsonl``.
        open_sink: Opens the sink; called once.
        is_update: Whether documents that are no longer in the corpus are deleted from the sink.
        retry: Whether to try again what was quarantined before.
        limits: How much is done at once.
        on_progress: Called a few times a second while files are read, and at the end.
        open_runner: Opens what puts batches into the sink; called once. By default, this process does it.

    Returns:
        The manifest as it was written.

    Raises:
        ConfigError: If the folder holds a job with other settings, or the configuration cannot be used.
        InputError: If an input is missing, or there is no file in any.
        StoreError: If sink or state cannot be used, or another process works in the folder.
        MissingExtraError: If a format or a compressor needs an optional dependency.
        ModelNotFoundError: If a model is not on this machine.
        BackendError: If the job runs on a cluster, and that fails.
    """
    path = Path(folder)
    if (path / STATE_FILE).is_file():
        # before anything is loaded or made
        with _opened(path) as state:
            _settle(state, path, settings)
    about = environment(settings.pipeline_toml, skipped_files(settings.inputs))
    sink = open_sink()
    try:
        with _claimed(path) as state:
            _settle(state, path, settings)
            state.begin_run()
            own = path.resolve()
            # the failures of an earlier run are no documents
            state.scan(file for file in find_files(settings.inputs) if not file.path.is_relative_to(own))
            if retry:
                state.retry()
            with closing(open_runner(sink)) as runner:
                batches = Batches(state, sink, limits or Limits(), runner)
                meter = _Meter(batches, on_progress, *state.bytes_of_run())
                return _Job(state, batches, sink, settings.read, path, about, meter).run(is_update=is_update)
    finally:
        sink.close()


def job_status(folder: str | os.PathLike[str]) -> Manifest:
    """Return the manifest of a job as it stands; that of one that was killed is written anew, with its failures.

    Raises:
        StoreError: If there is no job, or its state is damaged.
    """
    path = Path(folder)
    known = read_manifest(path)
    about = {name: known.get(name) for name in environment()}
    with _opened(path) as state:
        job_state: JobState = "finished" if state.run()["finished"] else "interrupted"
        if not os.access(path, os.W_OK):
            return describe(state, job_state, about=about)
        try:
            lock = WriterLock(path)
        except StoreError:
            return describe(state, "running", about=about, is_complete=False)
        try:
            manifest = describe(state, job_state, about=about)
            write_failures(path, state)
            write_manifest(path, manifest)
        finally:
            lock.release()
    return manifest


@contextmanager
def _opened(folder: Path, *, create: bool = False) -> Iterator[State]:
    state = State.open(folder, create=create)
    try:
        yield state
    finally:
        state.close()


@contextmanager
def _claimed(folder: Path) -> Iterator[State]:
    """Open the state of a job, or make one, and keep other processes out of the folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot make the folder {folder}: {error}") from error
    lock = WriterLock(folder)
    try:
        with _opened(folder, create=True) as state:
            yield state
    finally:
        lock.release()


def _settle(state: State, folder: Path, settings: JobSettings) -> None:
    """Write the settings of a new job, or check that those of an old one are the same."""
    known = state.settings()
    if known:
        check_settings(folder, known, settings.as_json())
    else:
        state.set_settings(settings.as_json())


class _Meter:
    """Tells how far a job is, a few times a second.

    Args:
        batches: What counts documents.
        on_progress: Whom to tell.
        done_bytes: Bytes that the run had read when this process began.
        total_bytes: Bytes that it is to read.
    """

    def __init__(self, batches: Batches, on_progress: OnProgress | None, done_bytes: int, total_bytes: int) -> None:
        self._batches = batches
        self._on_progress = on_progress
        self._before = self._done = done_bytes
        self._total = total_bytes
        self._began = time.monotonic()
        self._shown = 0.0

    def show(self, n_more: int = 0, *, is_last: bool = False) -> None:
        """Tell how far it is.

        Args:
            n_more: Bytes that were read of a file that is not at its end.
            is_last: Whether it must be told now, as nothing else will be.
        """
        now = time.monotonic()
        if self._on_progress is None or (now - self._shown < _SHOW_EVERY and not is_last):
            return
        self._shown = now
        done = min(self._total, self._done + n_more)
        seconds = max(now - self._began, 1e-6)
        fresh = done - self._before
        self._on_progress(
            Progress(
                done_bytes=done,
                total_bytes=self._total,
                documents=self._batches.n_documents,
                quarantined=self._batches.n_quarantined,
                tokens_per_second=self._batches.n_tokens / seconds,
                eta_seconds=seconds / fresh * (self._total - done) if fresh > 0 else None,
            )
        )

    def end_file(self, file: PendingFile) -> None:
        """Note that a file was read to its end."""
        self._done += file.file.n_bytes - min(file.progress.n_read, file.file.n_bytes)
        self.show()


@dataclass(slots=True)
class _Job:
    """One process's part of a run."""

    state: State
    batches: Batches
    sink: Sink
    options: ReadOptions
    folder: Path
    about: Mapping[str, Any]
    meter: _Meter
    n_failures_written: int = -1

    def run(self, *, is_update: bool) -> Manifest:
        """Do what there is to do."""
        try:
            self._write("running")
            self._read_all()
            if is_update:
                while self.state.read_again():
                    self._read_all()
                self._delete_vanished()
            self.state.finish_run()
            self.meter.show(is_last=True)
            return self._write("finished")
        except BaseException:
            # what stopped the job is what its caller must see
            with suppress(KompaktError):
                self.batches.stop()
                self._write("interrupted")
            raise

    def _read_all(self) -> None:
        after = -1
        while (file := self.state.pending(after)) is not None:
            after = file.ordinal
            self._read(file)
            self.meter.end_file(file)
        self._checkpoint(is_last=True)

    def _read(self, file: PendingFile) -> None:
        source, progress = file.file, file.progress
        if progress.position == 0:
            digest = content_hash(source.path)
            is_same = file.is_known and digest == progress.sha256 != ""
            if is_same and not self.batches.has_taken_from(source.name):
                self.state.keep_reading(source.name)
                return
            progress = progress._replace(sha256=digest)
        text_bytes = 0
        for record in self._records(file):
            text_bytes += 0 if record.document is None else len(record.document.text.encode())
            n_more = bytes_read(source, text_bytes)
            progress = progress._replace(
                position=record.position + 1,
                n_records=progress.n_records + 1,
                n_read=min(source.n_bytes, file.progress.n_read + n_more),
            )
            self.batches.take(record, file, progress)
            if self.batches.is_due:
                self._checkpoint()
            self.meter.show(progress.n_read - file.progress.n_read)
        self.batches.end_file(file, progress)

    def _records(self, file: PendingFile) -> Iterator[Record]:
        source = file.file
        records = records_of(source, self.options, start=file.progress.position)
        if not is_one_document(source.name):
            return records
        # parsers of whole files can bring the process down
        if not self.batches.begin_reading(source.name):
            return iter([Record(source.name, 0, None, DIED)])
        read = list(records)
        self.batches.end_reading(source.name)
        return iter(read)

    def _checkpoint(self, *, is_last: bool = False) -> None:
        self.batches.checkpoint(is_last=is_last)
        self._write("running")

    def _delete_vanished(self) -> None:
        while vanished := self.state.vanished(_DELETED_AT_ONCE):
            self.sink.delete(vanished)
            self.sink.save()
            self.state.forget(vanished)
        self.state.forget_files()

    def _write(self, job_state: JobState) -> Manifest:
        """Write manifest and failures."""
        manifest = describe(self.state, job_state, about=self.about, is_complete=job_state != "running")
        n_failures = manifest["counts"]["quarantined"]
        if job_state != "running" or n_failures != self.n_failures_written:
            write_failures(self.folder, self.state)
            self.n_failures_written = n_failures
        write_manifest(self.folder, manifest)
        return manifest
