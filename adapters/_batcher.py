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


@dataclass(frozen=True, slots=True)
class _Job:
    requests: Sequence[Request]
    future: Future[list[Compressed]]

    @property
    def size(self) -> int:
        return sum(len(document.text) for request in self.requests for document in request.documents)


class Batcher:
    """One thread that compresses what several callers ask for at about the same time as one batch.

    Args:
        compress_batch: What compresses.
        max_waiting: How many jobs may wait; one more is refused.
    """

    def __init__(self, compress_batch: CompressBatch, *, max_waiting: int = 1024) -> None:
        self._compress_batch = compress_batch
        self._max_waiting = max_waiting
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._is_closed = False

    def submit(self, requests: Sequence[Request]) -> Future[list[Compressed]]:
        """Ask for the results of some requests; a future that is cancelled before its turn costs nothing.

        Raises:
            BackendError: If too many jobs wait, or this was closed.
        """
        future: Future[list[Compressed]] = Future()
        with self._lock:
            if self._is_closed:
                raise BackendError("kompakt was closed for this client")
            if self._jobs.qsize() >= self._max_waiting:
                raise BackendError(f"{self._max_waiting} requests wait to be compressed already")
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="kompakt-batcher", daemon=True)
                self._thread.start()
            self._jobs.put(_Job(requests, future))
        return future

    def close(self) -> None:
        """End the thread after what it works at; what still waits is done before."""
        with self._lock:
            thread, self._is_closed = self._thread, True
            self._jobs.put(None)
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _run(self) -> None:
        job = self._jobs.get()
        while job is not None:
            batch, job = self._gather(job)
            self._answer(batch)
            job = self._jobs.get() if job is _NOTHING else job

    def _gather(self, first: _Job) -> tuple[list[_Job], _Job | None]:
        """Return the jobs of a batch, and what came after them: a job, ``None`` for the end, or nothing yet."""
        batch, size, until = [first], first.size, time.monotonic() + _WAIT_SECONDS
        while size < _BATCH_CHARACTERS:
            try:
                job = self._jobs.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                return batch, _NOTHING
            if job is None:
                return batch, None
            batch.append(job)
            size += job.size
        return batch, _NOTHING

    def _answer(self, batch: Sequence[_Job]) -> None:
        wanted = [job for job in batch if job.future.set_running_or_notify_cancel()]
        try:
            results = iter(self._compress_batch([request for job in wanted for request in job.requests]))
            answers = [[next(results) for _ in job.requests] for job in wanted]
        except Exception as error:  # one job's fault must not be that of the others
            if len(wanted) > 1:
                for job in wanted:
                    self._answer_one(job)
            elif wanted:
                wanted[0].future.set_exception(error)
            return
        for job, answer in zip(wanted, answers, strict=True):
            job.future.set_result(answer)

    def _answer_one(self, job: _Job) -> None:
        try:
            job.future.set_result(self._compress_batch(job.requests))
        except Exception as error:  # it belongs to whoever asked
            job.future.set_exception(error)


_NOTHING: Final = _Job((), Future())
