"""Means of runs of rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch

from kompakt.kernels.dispatch import Implementation, choose

_OFFSET_TYPES = (torch.int32, torch.int64)


def segment_mean(x: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """Return the mean of each of several runs of rows.

    Sums are made in fp32, or in fp64 for rows in fp64. Gradients flow into ``x``.

    Args:
        x: Rows ``[T, D]`` of floating-point numbers.
        offsets: Where segments begin and end ``[S + 1]``, whole numbers that do not fall: segment ``s`` has the rows
            from ``offsets[s]`` up to ``offsets[s + 1]``. Rows before the first and behind the last belong to none.
            Offsets on the CPU are checked, and may be given for rows on a GPU; a check of those on a GPU would wait
            for it.

    Returns:
        ``[S, D]`` in the number format of ``x``; zeros for a segment without rows.

    Raises:
        ValueError: If shapes, number formats or offsets on the CPU are others.
    """
    _check(x, offsets)
    refusal = "rows in fp64 are not supported" if x.dtype == torch.float64 else ""
    chosen = choose("segment_mean", x, refusal=refusal)
    if chosen == "reference":
        return segment_mean_reference(x, offsets)
    means: torch.Tensor = _SegmentMean.apply(x, offsets.to(x.device, non_blocking=True), chosen)  # type: ignore[no-untyped-call]
    return means


def strided_mean(x: torch.Tensor, lengths: Sequence[int], stride: int) -> torch.Tensor:
    """Return the mean of every ``stride`` rows of each segment; the last group of a segment may be shorter.

    Args:
        x: Rows ``[T, D]`` of floating-point numbers, segment behind segment.
        lengths: Rows of each segment, ``T`` in all.
        stride: Rows of a group, at least 1.

    Returns:
        The groups of all segments ``[sum(ceil(length / stride)), D]`` in the number format of ``x``.

    Raises:
        ValueError: If the lengths are not those of ``x``, or the stride is below 1.
    """
    if stride < 1:
        raise ValueError(f"stride must be at least 1, got {stride}")
    if any(length < 0 for length in lengths) or sum(lengths) != len(x):
        raise ValueError(f"lengths must be 0 or more and sum to the {len(x)} rows, got {list(lengths)}")
    groups = (min(stride, length - start) for length in lengths for start in range(0, length, stride))
    return segment_mean(x, segment_offsets(groups))


def segment_offsets(lengths: Iterable[int]) -> torch.Tensor:
    """Return where segments of these lengths that stand one behind another begin and end, ``[S + 1]``."""
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int64)


def segment_mean_reference(x: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """Return what ``segment_mean`` returns, from one segment after another."""
    exact = x.to(torch.promote_types(x.dtype, torch.float32))
    rows = [exact[start:end].sum(dim=0) / max(end - start, 1) for start, end in pairwise(offsets.tolist())]
    return (torch.stack(rows) if rows else exact[:0]).to(x.dtype)


class _SegmentMean(torch.autograd.Function):
    """The mean and its gradient, which is the same for all rows of a segment."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, offsets: torch.Tensor, chosen: Implementation) -> torch.Tensor:  # noqa: ANN401
        ctx.save_for_backward(offsets)
        ctx.n_rows = len(x)
        if chosen == "triton":
            from kompakt.kernels.segment_pooling_triton import segment_mean_triton

            return segment_mean_triton(x, offsets)
        return _segment_mean_torch(x, offsets)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:  # noqa: ANN401
        (offsets,) = ctx.saved_tensors
        exact = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
        shared = (exact / offsets.diff().clamp(min=1)[:, None]).to(gradient.dtype)
        # rows of no segment take the zeros at the two ends; torch gathers as fast as a kernel of ours could
        padded = torch.nn.functional.pad(shared, (0, 0, 1, 1))
        return padded.index_select(0, _owners(offsets, ctx.n_rows)), None, None


def _segment_mean_torch(x: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    exact = x.to(torch.promote_types(x.dtype, torch.float32))
    # with a place at each end for rows of no segment
    sums = exact.new_zeros(len(offsets) + 1, x.shape[1]).index_add_(0, _owners(offsets, len(x)), exact)
    return (sums[1:-1] / offsets.diff().clamp(min=1)[:, None]).to(x.dtype)


def _owners(offsets: torch.Tensor, n_rows: int) -> torch.Tensor:
    """Return the number of each row's segment, from 1 on, ``[T]``: 0 before the first, ``S + 1`` behind the last."""
    rows = torch.arange(n_rows, device=offsets.device, dtype=offsets.dtype)
    return torch.searchsorted(offsets, rows, right=True)


def _check(x: torch.Tensor, offsets: torch.Tensor) -> None:
    if x.ndim != 2 or offsets.ndim != 1 or not len(offsets):
        raise ValueError(f"expected [T, D] and [S + 1], got {list(x.shape)} and {list(offsets.shape)}")
    if not x.is_floating_point() or offsets.dtype not in _OFFSET_TYPES:
        raise ValueError(
            f"expected floating-point rows and offsets in int32 or int64, got {x.dtype} and {offsets.dtype}"
        )
    if offsets.device.type != "cpu":
        return
    if offsets[0] < 0 or offsets[-1] > len(x) or (offsets.diff() < 0).any():
        raise ValueError(f"offsets must rise from 0 or more to at most {len(x)}, got {offsets.tolist()}")
