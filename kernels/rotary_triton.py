"""Rotations of keys in Triton."""

from __future__ import annotations

from typing import TypeAlias

import torch
import triton
import triton.language as tl

_Tables: TypeAlias = tuple[torch.Tensor, torch.Tensor] | None
_TILE = 2048
"""Pairs of dimensions that a program rotates."""


def rerotate_triton(keys: torch.Tensor, out: torch.Tensor, old: _Tables, new: _Tables, *, half: int) -> None:
    """Write rotated keys into ``out``, which may be ``keys``.

    Args:
        keys: ``[..., m, D_head]`` in fp32, bf16 or fp16, with any strides.
        out: Likewise.
        old: The rotation they have.
        new: The rotation they get.
        half: Half of the dimensions that are rotated.
    """
    if not keys.numel():
        return
    heads = _by_head(keys)
    results = heads if out is keys else _by_head(out)
    n_heads, n_positions, width = heads.shape
    # in place, they stand there
    rest = 0 if out is keys else width - 2 * half
    block_half = triton.next_power_of_2(max(half, 1))
    block_rows = min(max(_TILE // block_half, 1), triton.next_power_of_2(n_positions))
    n_blocks = triton.cdiv(n_positions, block_rows)
    old_tables, new_tables = ((heads, heads) if one is None else _by_head_too(one, keys) for one in (old, new))
    with torch.cuda.device_of(keys):  # type: ignore[no-untyped-call]
        _rerotate[(n_heads * n_blocks,)](
            heads,
            results,
            *old_tables,
            *new_tables,
            n_positions,
            n_blocks,
            half,
            rest,
            *heads.stride(),
            *results.stride(),
            *old_tables[0].stride()[:2],
            *new_tables[0].stride()[:2],
            has_old=old is not None,
            has_new=new is not None,
            block_rows=block_rows,
            block_half=block_half,
            block_rest=triton.next_power_of_2(max(rest, 1)),
        )
    if results.data_ptr() != out.data_ptr():
        out.copy_(results.view(out.shape))


def _by_head(keys: torch.Tensor) -> torch.Tensor:
    """Return keys ``[N, m, D_head]``: the same memory, or a copy where their strides allow no such view."""
    return keys.reshape(-1, *keys.shape[-2:])


def _by_head_too(tables: tuple[torch.Tensor, torch.Tensor], keys: torch.Tensor) -> list[torch.Tensor]:
    """Return cosines and sines ``[N, m, R]`` with the same strides; what is broadcast has strides of 0."""
    return [_by_head(table.contiguous().expand(*keys.shape[:-1], -1)) for table in tables]


@triton.jit  # type: ignore[untyped-decorator]
def _rerotate(
    keys: tl.tensor,
    out: tl.tensor,
    cos_old: tl.tensor,
    sin_old: tl.tensor,
    cos_new: tl.tensor,
    sin_new: tl.tensor,
    n_positions: tl.tensor,
    n_blocks: tl.tensor,
    half: tl.tensor,
    rest: tl.tensor,
    keys_head: tl.tensor,
    keys_row: tl.tensor,
    keys_column: tl.tensor,
    out_head: tl.tensor,
    out_row: tl.tensor,
    out_column: tl.tensor,
    old_head: tl.tensor,
    old_row: tl.tensor,
    new_head: tl.tensor,
    new_row: tl.tensor,
    has_old: tl.constexpr,
    has_new: tl.constexpr,
    block_rows: tl.constexpr,
    block_half: tl.constexpr,
    block_rest: tl.constexpr,
) -> None:
    program = tl.program_id(0)
    head = (program // n_blocks).to(tl.int64)
    rows = ((program % n_blocks).to(tl.int64) * block_rows + tl.arange(0, block_rows))[:, None]
    columns = tl.arange(0, block_half).to(tl.int64)[None, :]
    inside = (rows < n_positions) & (columns < half)

    read = keys + head * keys_head + rows * keys_row
    first = tl.load(read + columns * keys_column, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(read + (columns + half) * keys_column, mask=inside, other=0.0).to(tl.float32)
    if has_old:
        places = head * old_head + rows * old_row + columns
        cos = tl.load(cos_old + places, mask=inside, other=0.0).to(tl.float32)
        sin = tl.load(sin_old + places, mask=inside, other=0.0).to(tl.float32)
        before = first
        first = before * cos + second * sin
        second = second * cos - before * sin
    if has_new:
        places = head * new_head + rows * new_row + columns
        cos = tl.load(cos_new + places, mask=inside, other=0.0).to(tl.float32)
        sin = tl.load(sin_new + places, mask=inside, other=0.0).to(tl.float32)
        before = first
        first = before * cos - second * sin
        second = second * cos + before * sin
    written = out + head * out_head + rows * out_row
    tl.store(written + columns * out_column, first.to(out.dtype.element_ty), mask=inside)
    tl.store(written + (columns + half) * out_column, second.to(out.dtype.element_ty), mask=inside)
    if rest > 0:
        others = tl.arange(0, block_rest).to(tl.int64)[None, :]
        left = (rows < n_positions) & (others < rest)
        kept = tl.load(read + (others + 2 * half) * keys_column, mask=left, other=0.0)
        tl.store(written + (others + 2 * half) * out_column, kept, mask=left)
