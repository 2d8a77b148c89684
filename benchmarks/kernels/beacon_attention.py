"""Attention of a window with beacons behind a memory: appended, and interleaved and hidden."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from cases import Case

from kompakt.kernels.beacon_attention import beacon_attention, beacon_attention_reference
from kompakt.kernels.range_attention import visible


def cases(device: torch.device) -> Iterator[Case]:
    """Yield windows of 1024 tokens of a model of 8 billion parameters; on CPUs, of 256 of one of 135 million."""
    on_gpu = device.type == "cuda"
    n_context, window, ratio = (4096, 1024, 8) if on_gpu else (512, 256, 8)
    for dtype in (torch.float32, torch.bfloat16):
        yield _case("appended", _appended(n_context, window, ratio), None, n_context, dtype, device)
        n_new = window + window // ratio
        is_beacon = torch.arange(n_context + n_new) % (ratio + 1) == ratio
        is_beacon[:n_context] = False
        yield _case("interleaved, hidden", _causal(n_context, n_new), is_beacon, n_context, dtype, device)


def _causal(n_context: int, n_new: int) -> torch.Tensor:
    ranges = torch.zeros(n_new, 2, 2, dtype=torch.int32)
    ranges[:, 0, 1] = n_context + torch.arange(n_new) + 1
    return ranges


def _appended(n_context: int, window: int, ratio: int) -> torch.Tensor:
    n_beacons = window // ratio
    ranges = _causal(n_context, window + n_beacons)
    ranges[window:, 1, 0] = n_context + window
    ranges[window:, 1, 1] = ranges[window:, 0, 1]
    ranges[window:, 0, 1] = n_context + (torch.arange(n_beacons) + 1) * ratio
    return ranges


def _case(
    name: str,
    ranges: torch.Tensor,
    hidden: torch.Tensor | None,
    n_context: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Case:
    heads, head_size = ((32, 8), 128) if device.type == "cuda" else ((9, 3), 64)
    n_keys = n_context + len(ranges)
    generator = torch.Generator().manual_seed(0)
    queries, keys, values = (
        torch.randn(length, number, head_size, generator=generator).to(device, dtype)
        for length, number in ((len(ranges), heads[0]), (n_keys, heads[1]), (n_keys, heads[1]))
    )
    n_pairs = int(visible(ranges, n_keys, hidden).sum())
    sight = {"ranges": ranges.to(device), "hidden": None if hidden is None else hidden.to(device)}
    return Case(
        operation="beacon_attention",
        size=f"{name}: {list(queries.shape)} of {list(keys.shape)}",
        dtype=dtype,
        call=lambda: beacon_attention(queries, keys, values, **sight),
        reference=lambda: beacon_attention_reference(queries, keys, values, **sight),
        # one step of bf16 at the largest outputs, of queries that see little, beside the mean of those that see much
        tolerance=1e-4 if dtype == torch.float32 else 2**-3,
        flops=4.0 * n_pairs * heads[0] * head_size,
        n_bytes=2.0 * queries.nbytes + keys.nbytes + values.nbytes,
    )
