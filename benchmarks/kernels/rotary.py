"""Keys of one layer's cache that are moved to other positions."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from cases import Case

from kompakt.kernels.rotary import Rotation, rerotated, rerotated_reference

_BASE = 500000.0


def cases(device: torch.device) -> Iterator[Case]:
    """Yield the keys of 8 heads of 128 dimensions: bare ones, moved ones, and ones that are rotated in part."""
    n_positions = 32768 if device.type == "cuda" else 4096
    for dtype in (torch.bfloat16, torch.float32):
        for name, n_rotated, has_old in (("moved", 128, True), ("rotated", 128, False), ("moved in part", 64, True)):
            yield _case(name, (8, n_positions, 128), n_rotated, has_old, dtype, device)


def _case(
    name: str, shape: tuple[int, int, int], n_rotated: int, has_old: bool, dtype: torch.dtype, device: torch.device
) -> Case:
    keys = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    old = _rotation(0, shape[1], n_rotated, device) if has_old else None
    new = _rotation(1000, shape[1], n_rotated, device)
    tables = [table for rotation in (old, new) if rotation for table in rotation]
    return Case(
        operation="rerotated",
        size=f"{name}: {n_rotated} of {list(shape)}",
        dtype=dtype,
        # a new tensor: in place, each call would begin with what the one before has left
        call=lambda: rerotated(keys, old, new),
        reference=lambda: rerotated_reference(keys, old, new),
        # one step of bf16 for the largest of normally distributed numbers
        tolerance=1e-5 if dtype == torch.float32 else 2**-5,
        flops=0,
        # only the first halves of the tables are needed
        n_bytes=2 * keys.nbytes + sum(table.nbytes // 2 for table in tables),
    )


def _rotation(start: int, n_positions: int, width: int, device: torch.device) -> Rotation:
    frequencies = _BASE ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    angles = torch.arange(start, start + n_positions)[:, None] * frequencies.repeat(2)
    return angles.cos().float().to(device), angles.sin().float().to(device)
