"""Locks on open files, which end with the process that holds them."""

from __future__ import annotations

import sys

if sys.platform == "win32":
    import msvcrt

    def lock(handle: int) -> None:
        """Take an open file for this process.

        Raises:
            OSError: If another holds it, or the file system cannot lock.
        """
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)

    def unlock(handle: int) -> None:
        """Give an open file back."""
        msvcrt.locking(handle, msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def lock(handle: int) -> None:
        """Take an open file for this process.

        Raises:
            OSError: If another holds it, or the file system cannot lock.
        """
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def unlock(handle: int) -> None:
        """Give an open file back."""
        # closing would not do: a forked child may hold the file open
        fcntl.flock(handle, fcntl.LOCK_UN)
