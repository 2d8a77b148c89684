"""The pool of database connections of the checkout service, as of release 4.18.0."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

DEFAULT_POOL_SIZE = 4
"""Enough for a developer's machine. Production sets ``pool_max_size``."""


class Connection(Protocol):
    """What the pool needs to know about a connection."""

    def ping(self) -> bool: ...
    def close(self) -> None: ...


class PoolExhaustedError(RuntimeError):
    """No connection became free in time."""


@dataclass(frozen=True)
class PoolSettings:
    """Size and patience of a pool."""

    max_size: int = DEFAULT_POOL_SIZE
    wait_seconds: float = 2.0

    @classmethod
    def from_environment(cls, settings: Mapping[str, str]) -> PoolSettings:
        """Read the settings; what is missing takes its default."""
        return cls(
            max_size=int(settings.get("pool_max_size", DEFAULT_POOL_SIZE)),
            wait_seconds=float(settings.get("pool_wait_seconds", 2.0)),
        )


class ConnectionPool:
    """Hands out connections, and takes them back."""

    def __init__(self, connect: Callable[[], Connection], settings: PoolSettings) -> None:
        self._connect = connect
        self._settings = settings
        self._idle: queue.LifoQueue[Connection] = queue.LifoQueue()
        self._lock = threading.Lock()
        self._open = 0

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        """Lend a connection for the time of a ``with`` block."""
        connection = self._take()
        try:
            yield connection
        finally:
            self._idle.put(connection)

    def _take(self) -> Connection:
        try:
            return self._checked(self._idle.get_nowait())
        except queue.Empty:
            pass
        with self._lock:
            if self._open < self._settings.max_size:
                self._open += 1
                return self._connect()
        try:
            return self._checked(self._idle.get(timeout=self._settings.wait_seconds))
        except queue.Empty:
            size = self._settings.max_size
            raise PoolExhaustedError(f"connection pool exhausted: {size} of {size} connections in use") from None

    def _checked(self, connection: Connection) -> Connection:
        if connection.ping():
            return connection
        connection.close()
        return self._connect()

    def close(self) -> None:
        """Close every idle connection."""
        while True:
            try:
                self._idle.get_nowait().close()
            except queue.Empty:
                return
