"""Rows of a quantised embedding table, dequantised as they are read."""

from __future__ import annotations

import torch

from kompakt.kernels.dispatch import choose
from kompakt.kernels.quantisation import Bits, check_options, dequantise_reference, unpacked


def gather_dequantised(
    codes: torch.Tensor,
    scales: torch.Tensor,
    ids: torch.Tensor,
    *,
    bits: Bits,
    group: int,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Return rows of a table that ``quantise`` wrote, by id.

    Its codes and scales are those of the whole table in one row for each of its rows, where ``group`` divides D.

    No gradient passes. On a GPU, where to check ids would mean to wait for it, Triton gives a row of NaN for an id
    that is out of range.

    Args:
        codes: int8 ``[V, D]`` with 8 bits, uint8 ``[V, D / 2]`` with 4.
        scales: fp32 ``[V, D / group]``.
        ids: Rows to take, int64 or int32 ``[N]``.
        bits: As the table was quantised.
        group: As the table was quantised.
        dtype: To which the products of fp32 are rounded.

    Returns:
        ``[N, D]``.

    Raises:
        IndexError: If an id on the CPU is not in [0, V).
        ValueError: If shapes or types do not fit, or an option makes no sense.
    """
    check_options(bits, group)
    _check_table(codes, scales, bits, group)
    _check_ids(ids, len(codes))
    if not dtype.is_floating_point:
        raise ValueError(f"dtype must be floating point, got {dtype}")
    scales = scales.detach()
    chosen = choose("gather_dequantised", codes, scales, ids)
    if chosen == "reference":
        return gather_dequantised_reference(codes, scales, ids, bits=bits, group=group, dtype=dtype)
    if chosen == "triton":
        from kompakt.kernels.gather_dequantised_triton import gathered

        return gathered(codes, scales, ids, bits=bits, group=group, dtype=dtype)
    rows = unpacked(codes.index_select(0, ids), bits)
    numbers = rows.view(len(ids), scales.shape[1], group).float().mul_(scales.index_select(0, ids)[..., None])
    return numbers.view(rows.shape).to(dtype)


def gather_dequantised_reference(
    codes: torch.Tensor,
    scales: torch.Tensor,
    ids: torch.Tensor,
    *,
    bits: Bits,
    group: int,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Return what ``gather_dequantised`` returns, by way of the whole table."""
    shape = (len(codes), scales.shape[1] * group)
    return dequantise_reference(codes, scales, shape=shape, bits=bits, group=group, dtype=dtype)[ids.long()]


def _check_table(codes: torch.Tensor, scales: torch.Tensor, bits: Bits, group: int) -> None:
    wanted = torch.int8 if bits == 8 else torch.uint8
    fits = (
        codes.dim() == scales.dim() == 2
        and (codes.dtype, scales.dtype) == (wanted, torch.float32)
        and len(codes) == len(scales)
        and codes.shape[1] * 8 == scales.shape[1] * group * bits
    )
    if not fits:
        raise ValueError(
            f"codes of {bits} bits must be {wanted} [V, D{' / 2' if bits == 4 else ''}] and scales torch.float32 "
            f"[V, D / {group}], got {codes.dtype} {list(codes.shape)} and {scales.dtype} {list(scales.shape)}"
        )


def _check_ids(ids: torch.Tensor, n_rows: int) -> None:
    if ids.dim() != 1 or ids.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"ids must be int64 or int32 [N], got {ids.dtype} {list(ids.shape)}")
    if ids.is_cuda or not len(ids):
        return
    smallest, largest = (int(end) for end in ids.aminmax())
    if smallest < 0 or largest >= n_rows:
        raise IndexError(f"ids must be in [0, {n_rows}), got {smallest if smallest < 0 else largest}")
