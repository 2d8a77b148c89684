"""Triton kernels of quantisation."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kompakt.kernels.quantisation import LEVELS, Bits

_NUMBERS = 4096
"""Numbers of a program, where groups are shorter."""
_CODES = 1024
"""Bytes of codes of a program."""


def quantised(
    x: torch.Tensor, n_groups: int, *, bits: Bits, group: int, limit: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return codes and scales; see ``quantise``.

    Args:
        x: Numbers of any shape.
        n_groups: Groups of them, the last one filled with zeros.
        bits: 8 or 4.
        group: Numbers that share a scale.
        limit: The largest scale.
    """
    numbers = x.contiguous()
    width, dtype = (group, torch.int8) if bits == 8 else (group // 2, torch.uint8)
    codes = torch.empty(n_groups, width, dtype=dtype, device=x.device)
    scales = torch.empty(n_groups, 1, dtype=torch.float32, device=x.device)
    columns = max(2, triton.next_power_of_2(group))
    rows = max(1, _NUMBERS // columns)
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        _quantise_kernel[(triton.cdiv(n_groups, rows),)](
            numbers,
            codes,
            scales,
            numbers.numel(),
            n_groups,
            limit,
            torch.finfo(torch.float32).max,
            group=group,
            max_code=LEVELS[bits],
            is_packed=bits == 4,
            block_rows=rows,
            block_columns=columns,
        )
    return codes, scales


def dequantised(
    codes: torch.Tensor, scales: torch.Tensor, size: int, *, bits: Bits, group: int, dtype: torch.dtype
) -> torch.Tensor:
    """Return the first ``size`` numbers, ``[size]``; see ``dequantise``."""
    codes, scales = codes.contiguous(), scales.contiguous()
    numbers = torch.empty(size, dtype=dtype, device=codes.device)
    if size:
        with torch.cuda.device_of(codes):  # type: ignore[no-untyped-call]
            _dequantise_kernel[(triton.cdiv(codes.numel(), _CODES),)](
                codes, scales, numbers, codes.numel(), size, group=group, is_packed=bits == 4, block=_CODES
            )
    return numbers


@triton.jit  # type: ignore[untyped-decorator]
def _quantise_kernel(
    x_ptr: tl.tensor,
    codes_ptr: tl.tensor,
    scales_ptr: tl.tensor,
    size: tl.tensor,
    n_groups: tl.tensor,
    limit: tl.tensor,
    largest_finite: tl.tensor,
    group: tl.constexpr,
    max_code: tl.constexpr,
    is_packed: tl.constexpr,
    block_rows: tl.constexpr,
    block_columns: tl.constexpr,
) -> None:
    rows = tl.program_id(0).to(tl.int64) * block_rows + tl.arange(0, block_rows)
    columns = tl.arange(0, block_columns)
    offsets = rows[:, None] * group + columns[None, :]
    inside = (columns[None, :] < group) & (offsets < size)
    x = tl.load(x_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
    magnitudes = tl.abs(x)
    # a maximum may leave NaN out
    n_wrong = tl.sum((magnitudes <= largest_finite).to(tl.int32) ^ 1, axis=1)
    levels = tl.full((block_rows,), max_code, tl.float32)
    # the plain division of a GPU is not exact
    scales = tl.minimum(tl.math.div_rn(tl.max(magnitudes, axis=1), levels), limit)
    has_codes = (n_wrong == 0) & (scales > 0)
    divisors = tl.broadcast_to(tl.where(has_codes, scales, 1.0)[:, None], (block_rows, block_columns))
    ratios = tl.math.div_rn(tl.where(has_codes[:, None], x, 0.0), divisors)
    ratios = tl.minimum(tl.maximum(ratios, -max_code), max_code)
    # above 2^23 floats are whole numbers: this rounds to the nearest, halves to even, as rint does
    codes = ((ratios + 12582912.0) - 12582912.0).to(tl.int32)
    tl.store(scales_ptr + rows, tl.where(n_wrong == 0, scales, float("nan")), mask=rows < n_groups)
    if is_packed:
        low, high = tl.split(tl.reshape(codes + 8, (block_rows, block_columns // 2, 2)))
        codes = low | (high << 4)
        columns = tl.arange(0, block_columns // 2)
    width: tl.constexpr = group // 2 if is_packed else group
    where = rows[:, None] * width + columns[None, :]
    kept = (rows[:, None] < n_groups) & (columns[None, :] < width)
    tl.store(codes_ptr + where, codes.to(codes_ptr.dtype.element_ty), mask=kept)


@triton.jit  # type: ignore[untyped-decorator]
def _dequantise_kernel(
    codes_ptr: tl.tensor,
    scales_ptr: tl.tensor,
    numbers_ptr: tl.tensor,
    n_bytes: tl.tensor,
    size: tl.tensor,
    group: tl.constexpr,
    is_packed: tl.constexpr,
    block: tl.constexpr,
) -> None:
    offsets = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = offsets < n_bytes
    codes = tl.load(codes_ptr + offsets, mask=inside, other=0).to(tl.int32)
    per_byte: tl.constexpr = 2 if is_packed else 1
    # both codes of a byte are of one group
    scales = tl.load(scales_ptr + offsets * per_byte // group, mask=inside, other=0.0)
    if is_packed:
        low = ((codes & 15) - 8).to(tl.float32) * scales
        high = ((codes >> 4) - 8).to(tl.float32) * scales
        numbers = tl.interleave(low, high)
        offsets = tl.program_id(0).to(tl.int64) * (2 * block) + tl.arange(0, 2 * block)
    else:
        numbers = codes.to(tl.float32) * scales
    tl.store(numbers_ptr + offsets, numbers.to(numbers_ptr.dtype.element_ty), mask=offsets < size)
