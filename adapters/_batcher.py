"""Compressions of many requests in few batches, off the threads and event loops that wait for them."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Final

from kompakt.compressor.base import Request
from kompakt.compressor.errors import BackendError
from kompakt.compressor.types import Compressed

CompressBatch = Callable[[Sequence[Request]], list[Compressed]]

_WAIT_SECONDS: Final = 0.002
"""How long a batch waits for company once its first job is there."""

_BATCH_CHARACTERS: Final = 400_000
"""Characters in a batch: those who came first should not wait long for those who came last."""

_IDLE_SECONDS: Final = 30.0
"""After so long without a job the thread ends, and with it what it holds; the next job starts another."""


@dataclass(frozen=True, slots=True)
class _Job:
    request: Request
    future: Future[Compressed]

    @property
    def size(self) -> int:
        return sum(len(document.text) for document in self.request.documents)


class Batcher:
    """One thread that compresses what several callers ask for at about the same time as one batch.

    Args:
        compress_batch: What compresses.
        max_waiting: How many requests may wait; more are refused.
    """

    def __init__(self, compress_batch: CompressBatch, *, max_waiting: int = 4096) -> None:
        self._compress_batch = compress_batch
        self._max_waiting = max_waiting
        self._jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._is_closed = False

    def submit(self, requests: Sequence[Request]) -> list[Future[Compressed]]:
        """Ask for the result of each request; a future that is cancelled before its turn costs nothing.

        Raises:
            BackendError: If too many requests wait, or this was closed.
        """
        jobs = [_Job(request, Future()) for request in requests]
        with self._lock:
            if self._is_closed:
                raise BackendError("kompakt was closed for this client")
            if self._jobs.qsize() + len(jobs) > self._max_waiting:
                raise BackendError(f"{self._jobs.qsize()} texts wait to be compressed already")
            for job in jobs:
                self._jobs.put(job)
            if jobs and (self._thread is None or not self._thread.is_alive()):
                self._thread = threading.Thread(target=self._run, name="kompakt-batcher", daemon=True)
                self._thread.start()
        return [job.future for job in jobs]

    def close(self) -> None:
        """Refuse what comes from now on; what waits is done before this returns."""
        with self._lock:
            thread, self._is_closed = self._thread, True
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _run(self) -> None:
        while (batch := self._gather()) is not None:
            self._answer([job for job in batch if job.future.set_running_or_notify_cancel()])

    def _gather(self) -> list[_Job] | None:
        """Return the jobs of a batch, or None when there is nothing more to do."""
        first = self._first()
        if first is None:
            return None
        batch, size, until = [first], first.size, time.monotonic() + _WAIT_SECONDS
        while size < _BATCH_CHARACTERS:
            try:
                batch.append(self._jobs.get(timeout=max(0.0, until - time.monotonic())))
            except queue.Empty:
                break
            size += batch[-1].size
        return batch

    def _first(self) -> _Job | None:
        until = time.monotonic() + _IDLE_SECONDS
        while True:
            try:
                return self._jobs.get(timeout=0.1)
            except queue.Empty:
                with self._lock:
                    if self._jobs.empty() and (self._is_closed or time.monotonic() > until):
                        self._thread = None
                        return None

    def _answer(self, batch: Sequence[_Job]) -> None:
        try:
            results = self._compress_batch([job.request for job in batch]) if batch else []
        except Exception as error:  # one text's fault must not be that of the others
            if len(batch) == 1:
                batch[0].future.set_exception(error)
            else:
                for job in batch:
                    self._answer([job])
            return
        for job, result in zip(batch, results, strict=True):
            job.future.set_result(result)
