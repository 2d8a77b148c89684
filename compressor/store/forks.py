"""Forks while other threads are inside SQLite, whose own locks nobody in the child would give back."""

from __future__ import annotations

import os
import threading
from typing import Final, Protocol
from weakref import WeakSet

_PATIENCE: Final = 5.0
"""Seconds that a fork waits for a store: one that a thread does not leave must not stop it for ever."""


class _Lockable(Protocol):
    @property
    def lock(self) -> threading.RLock:
        """What a thread holds while it is inside SQLite."""


class _Guard:
    """Holds the locks of all stores while the process forks, so that no thread is inside SQLite then."""

    def __init__(self) -> None:
        self._stores: WeakSet[_Lockable] = WeakSet()
        self._own_lock = threading.Lock()
        self._held: list[threading.RLock] = []
        self._is_registered = False

    def watch(self, store: _Lockable) -> None:
        """Keep forks out of a store for as long as it exists."""
        with self._own_lock:
            self._stores.add(store)
            if not self._is_registered and hasattr(os, "register_at_fork"):
                os.register_at_fork(before=self._take, after_in_parent=self._give, after_in_child=self._give)
                self._is_registered = True

    def _take(self) -> None:
        self._own_lock.acquire()
        for lock in [store.lock for store in sorted(self._stores, key=id)]:
            if lock.acquire(timeout=_PATIENCE):
                self._held.append(lock)

    def _give(self) -> None:
        while self._held:
            self._held.pop().release()
        self._own_lock.release()


_GUARD: Final = _Guard()


def keep_forks_out(store: _Lockable) -> None:
    """Let no fork happen while a thread is inside a store, from now on."""
    _GUARD.watch(store)
