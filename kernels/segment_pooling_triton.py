"""Means of runs of rows in Triton."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

_TILE = 2048
"""Numbers that a program holds at a time."""


def segment_mean_triton(x: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """Return what ``segment_mean`` returns.

    Each program sums the rows of one segment over some of the columns, so that long segments are no faster with more
    processors than there are segments and blocks of columns.

    Args:
        x: ``[T, D]`` in fp32, bf16 or fp16, with any strides.
        offsets: ``[S + 1]`` on the same device.
    """
    n_segments, width = len(offsets) - 1, x.shape[1]
    means = torch.empty(n_segments, width, dtype=x.dtype, device=x.device)
    if not means.numel():
        return means
    rows_at_once = min(triton.next_power_of_2(triton.cdiv(max(len(x), 1), n_segments)), 32)
    columns_at_once = min(triton.next_power_of_2(width), _TILE // rows_at_once)
    n_blocks = triton.cdiv(width, columns_at_once)
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        _segment_mean[(n_segments * n_blocks,)](
            x,
            offsets.contiguous(),
            means,
            len(x),
            width,
            n_blocks,
            x.stride(0),
            x.stride(1),
            block_rows=rows_at_once,
            block_columns=columns_at_once,
        )
    return means


@triton.jit  # type: ignore[untyped-decorator]
def _segment_mean(
    x: tl.tensor,
    offsets: tl.tensor,
    means: tl.tensor,
    n_rows: tl.tensor,
    width: tl.tensor,
    n_blocks: tl.tensor,
    row_stride: tl.tensor,
    column_stride: tl.tensor,
    block_rows: tl.constexpr,
    block_columns: tl.constexpr,
) -> None:
    program = tl.program_id(0)
    segment = (program // n_blocks).to(tl.int64)
    columns = (program % n_blocks).to(tl.int64) * block_columns + tl.arange(0, block_columns)
    inside = columns < width
    # offsets on a GPU are not checked: rows that do not exist are not read
    start = tl.maximum(tl.load(offsets + segment).to(tl.int64), 0)
    end = tl.minimum(tl.load(offsets + segment + 1).to(tl.int64), n_rows)

    total = tl.zeros([block_columns], dtype=tl.float32)
    for first in range(start, end, block_rows):
        rows = first + tl.arange(0, block_rows)
        mask = (rows < end)[:, None] & inside[None, :]
        places = rows[:, None] * row_stride + columns[None, :] * column_stride
        tile = tl.load(x + places, mask=mask, other=0.0)  # [block_rows, block_columns]
        total += tl.sum(tile.to(tl.float32), axis=0)
    # a segment without rows divides 0 by 1
    mean = total / tl.maximum(end - start, 1).to(tl.float32)
    tl.store(means + segment * width + columns, mean.to(means.dtype.element_ty), mask=inside)
