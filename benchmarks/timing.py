"""How long a call takes, on a CPU or a GPU."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

BLOCK_SECONDS = 0.05
"""Short calls are timed many at a time, so that the clock's steps and one call's bad luck do not count."""

_FLUSHED_BYTES = 256 << 20
"""Above the caches of any GPU."""


@dataclass(frozen=True)
class Timing:
    """Seconds of a call.

    Args:
        median: Of all repeats.
        spread: Slowest less fastest repeat, as a share of the median.
    """

    median: float
    spread: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Timing:
        median = statistics.median(samples)
        return cls(median, (max(samples) - min(samples)) / median)


def medians(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Return the median seconds of calls that take turns, after one turn that is not counted."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            if repeat:
                times[name].append(time.perf_counter() - began)
    return {name: statistics.median(several) for name, several in times.items()}


def timed(call: Callable[[], object], device: torch.device, repeats: int = 5) -> Timing:
    n = calls_per_block(call, device)
    return Timing.of([block(call, n, device) for _ in range(repeats)])


def calls_per_block(call: Callable[[], object], device: torch.device) -> int:
    """Warm up, and return how many calls fill a block."""
    call()
    return max(1, int(BLOCK_SECONDS / max(block(call, 1, device), 1e-9)))


def block(call: Callable[[], object], n: int, device: torch.device) -> float:
    """Return the seconds of one of ``n`` calls.

    On a GPU its caches are overwritten before each call, and the GPU's clock counts. On a CPU the calls follow one
    another, so that what fits in its caches stays there.
    """
    if device.type == "cuda":
        return _block_on_gpu(call, n, device)
    began = time.perf_counter()
    for _ in range(n):
        call()
    return (time.perf_counter() - began) / n


def _block_on_gpu(call: Callable[[], object], n: int, device: torch.device) -> float:
    flushed = torch.empty(_FLUSHED_BYTES, dtype=torch.int8, device=device)
    starts, ends = ([torch.cuda.Event(enable_timing=True) for _ in range(n)] for _ in range(2))
    for start, end in zip(starts, ends, strict=True):
        flushed.zero_()
        start.record()
        call()
        end.record()
    torch.cuda.synchronize(device)
    return sum(start.elapsed_time(end) for start, end in zip(starts, ends, strict=True)) / n / 1000
