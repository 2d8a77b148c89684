"""Means of runs of rows: the groups that an encoder pools, and whole texts."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from cases import Case

from kompakt.kernels.segment_pooling import segment_mean, segment_mean_reference, segment_offsets


def cases(device: torch.device) -> Iterator[Case]:
    """Yield groups of 8 rows, 4 rows and one, and texts of ragged lengths, of a model of width 4096."""
    n_rows, width = (65536, 4096) if device.type == "cuda" else (2048, 1024)
    dtypes = (torch.float32, torch.bfloat16) if device.type == "cuda" else (torch.float32,)
    for dtype in dtypes:
        for name, lengths in _LENGTHS.items():
            yield _case(name, lengths * (n_rows // sum(lengths)), width, dtype, device)


_LENGTHS = {"groups of 8": [8], "groups of 1 and 4": [4, 1, 4, 4], "texts of 40 to 700": [700, 40, 233, 1]}


def _case(name: str, lengths: list[int], width: int, dtype: torch.dtype, device: torch.device) -> Case:
    n_rows = sum(lengths)
    x = torch.randn(n_rows, width, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    offsets = segment_offsets(lengths).to(device)
    return Case(
        operation="segment_mean",
        size=f"[{n_rows}, {width}] in {len(lengths)} {name}",
        dtype=dtype,
        call=lambda: segment_mean(x, offsets),
        reference=lambda: segment_mean_reference(x, offsets),
        # one step of bf16 for the largest of normally distributed numbers
        tolerance=1e-5 if dtype == torch.float32 else 2**-5,
        flops=0,
        n_bytes=(n_rows + len(lengths)) * width * x.element_size() + offsets.nbytes,
    )
