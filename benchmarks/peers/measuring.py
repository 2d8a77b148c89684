"""Seconds and peak memory of one call, measured alike in kompakt's process and in a peer's.

The peak is the process's largest resident set during the call, which Linux counts anew on demand; elsewhere it is
unknown. This file runs in every environment: it uses the standard library alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

_Result = TypeVar("_Result")

_PROCESS = Path("/proc/self")
_RESET_PEAK = "5"
"""Written to ``clear_refs``: proc(5)."""


@dataclass(frozen=True)
class Usage:
    """What a call took.

    Args:
        seconds: Wall-clock time.
        base_mib: Resident memory before it, weights and libraries included; not a number where it is unknown.
        peak_mib: The most resident memory during it.
    """

    seconds: float
    base_mib: float
    peak_mib: float


def measured(call: Callable[[], _Result]) -> tuple[_Result, Usage]:
    """Return what a call returns, and what it took."""
    _release()
    base = _resident("VmRSS")
    with contextlib.suppress(OSError):
        (_PROCESS / "clear_refs").write_text(_RESET_PEAK)
    began = time.perf_counter()
    result = call()
    seconds = time.perf_counter() - began
    return result, Usage(seconds, base, _resident("VmHWM"))


def _release() -> None:
    """Give freed memory back, so that what the call before left is not taken for this one's."""
    gc.collect()
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def _resident(name: str) -> float:
    try:
        lines = (_PROCESS / "status").read_text().splitlines()
    except OSError:
        return math.nan
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:")), math.nan)
