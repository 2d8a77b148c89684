"""Triton kernel that reads rows of a quantised embedding table."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kompakt.kernels.quantisation import Bits

_CODES = 512
"""Bytes of codes of a program, at most."""


def gathered(
    codes: torch.Tensor, scales: torch.Tensor, ids: torch.Tensor, *, bits: Bits, group: int, dtype: torch.dtype
) -> torch.Tensor:
    """Return rows of a table, ``[N, D]``; see ``gather_dequantised``."""
    codes, scales, ids = codes.contiguous(), scales.contiguous(), ids.contiguous()
    (n_rows, width), n_scales = codes.shape, scales.shape[1]
    numbers = torch.empty(len(ids), n_scales * group, dtype=dtype, device=codes.device)
    block = min(_CODES, max(2, triton.next_power_of_2(width)))
    if numbers.numel():
        # the first axis of a grid is the long one
        with torch.cuda.device_of(codes):  # type: ignore[no-untyped-call]
            _gather_kernel[(len(ids), triton.cdiv(width, block))](
                codes,
                scales,
                ids,
                numbers,
                n_rows,
                width,
                n_scales,
                group=group,
                is_packed=bits == 4,
                block=block,
            )
    return numbers


@triton.jit  # type: ignore[untyped-decorator]
def _gather_kernel(
    codes_ptr: tl.tensor,
    scales_ptr: tl.tensor,
    ids_ptr: tl.tensor,
    numbers_ptr: tl.tensor,
    n_rows: tl.tensor,
    width: tl.tensor,
    n_scales: tl.tensor,
    group: tl.constexpr,
    is_packed: tl.constexpr,
    block: tl.constexpr,
) -> None:
    place = tl.program_id(0).to(tl.int64)
    # one for each column, since the interpreter makes no mask from the comparison of two single numbers
    row = tl.load(ids_ptr + place).to(tl.int64) + tl.zeros((block,), dtype=tl.int64)
    columns = tl.program_id(1) * block + tl.arange(0, block)
    inside = (columns < width) & (row >= 0) & (row < n_rows)
    codes = tl.load(codes_ptr + row * width + columns, mask=inside, other=0).to(tl.int32)
    per_byte: tl.constexpr = 2 if is_packed else 1
    # both codes of a byte are of one group
    scales = tl.load(scales_ptr + row * n_scales + columns * per_byte // group, mask=inside, other=float("nan"))
    if is_packed:
        low = ((codes & 15) - 8).to(tl.float32) * scales
        high = ((codes >> 4) - 8).to(tl.float32) * scales
        numbers = tl.interleave(low, high)
        columns = tl.program_id(1) * (2 * block) + tl.arange(0, 2 * block)
    else:
        numbers = codes.to(tl.float32) * scales
    target = numbers_ptr + place * width * per_byte + columns
    tl.store(target, numbers.to(numbers_ptr.dtype.element_ty), mask=columns < width * per_byte)
