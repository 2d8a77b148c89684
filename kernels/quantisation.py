"""Numbers as small integers: groups that follow each other share a scale, symmetric around zero."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Final, Literal, TypeAlias

import torch

from kompakt.kernels.dispatch import choose

Bits: TypeAlias = Literal[8, 4]

LEVELS: Final = {8: 127, 4: 7}
"""The largest code."""
_MAX_GROUP: Final = 1 << 15
"""Numbers of a group that a kernel holds at once."""


@dataclass(frozen=True, slots=True, eq=False)
class Quantised:
    """Codes and scales of quantised numbers.

    Args:
        codes: With 8 bits int8 ``[n_groups, group]``. With 4 bits uint8 ``[n_groups, group / 2]``: two codes a byte,
            each plus 8, the first in the low half.
        scales: What a code of 1 stands for, fp32 ``[n_groups, 1]``.
    """

    codes: torch.Tensor
    scales: torch.Tensor


def quantise(x: torch.Tensor, *, bits: Bits, group: int) -> Quantised:
    """Quantise groups of consecutive numbers, rounded to nearest.

    A group with a number that is not finite in fp32 has codes of 0 and a scale of NaN. No gradient passes.

    Args:
        x: Floating-point numbers of any shape; the last group is filled with zeros.
        bits: 8 for codes in [-127, 127], 4 for codes in [-7, 7].
        group: Numbers that share a scale.

    Raises:
        ValueError: If ``x`` is not floating point, or an option makes no sense.
    """
    check_options(bits, group)
    if not x.is_floating_point():
        raise ValueError(f"x must be floating point to be quantised, got {x.dtype}")
    x = x.detach()
    chosen = choose("quantise", x, refusal=_refusal(group))
    if chosen == "reference":
        return quantise_reference(x, bits=bits, group=group)
    n_groups = -(-max(x.numel(), 1) // group)
    if chosen == "triton":
        from kompakt.kernels.quantisation_triton import quantised

        return Quantised(*quantised(x, n_groups, bits=bits, group=group, limit=_largest_scale(LEVELS[bits])))
    return _quantised(x, n_groups, bits=bits, group=group)


def dequantise(
    codes: torch.Tensor,
    scales: torch.Tensor,
    *,
    shape: tuple[int, ...],
    bits: Bits,
    group: int,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Return the numbers that codes stand for.

    Args:
        codes: As in ``Quantised``, in any shape.
        scales: fp32, one a group, in any shape.
        shape: Of the numbers; what fills the last group is left out.
        bits: As they were quantised.
        group: As they were quantised.
        dtype: To which the products of fp32 are rounded.

    Raises:
        ValueError: If the tensors do not fit each other or the shape, or an option makes no sense.
    """
    check_options(bits, group)
    _check_codes(codes, scales, bits)
    if not dtype.is_floating_point:
        raise ValueError(f"dtype must be floating point, got {dtype}")
    n_codes, size = codes.numel() * 8 // bits, math.prod(shape)
    if min(shape, default=0) < 0 or n_codes != scales.numel() * group or size > n_codes:
        raise ValueError(
            f"{n_codes} codes, {scales.numel()} scales and groups of {group} are not numbers of the shape "
            f"{list(shape)}"
        )
    codes, scales = codes.reshape(scales.numel(), -1), scales.detach().reshape(-1, 1)
    chosen = choose("dequantise", codes, scales)
    if chosen == "reference":
        return dequantise_reference(codes, scales, shape=shape, bits=bits, group=group, dtype=dtype)
    if chosen == "triton":
        from kompakt.kernels.quantisation_triton import dequantised

        return dequantised(codes, scales, size, bits=bits, group=group, dtype=dtype).view(shape)
    numbers = unpacked(codes, bits).view(-1, group).float().mul_(scales)
    return numbers.view(-1)[:size].view(shape).to(dtype)


def quantise_reference(x: torch.Tensor, *, bits: Bits, group: int) -> Quantised:
    """Return what ``quantise`` returns, step by step."""
    levels = LEVELS[bits]
    numbers = x.float().reshape(-1)
    rows = torch.nn.functional.pad(numbers, (0, -x.numel() % group if x.numel() else group)).view(-1, group)
    largest = rows.abs().amax(dim=1, keepdim=True)
    scales = torch.minimum(largest / torch.full_like(largest, levels), largest.new_tensor(_largest_scale(levels)))
    is_finite = rows.isfinite().all(dim=1, keepdim=True)
    scales = torch.where(is_finite, scales, torch.nan)
    codes = torch.where(scales > 0, rows / scales, 0.0).round().clamp(-levels, levels).int()
    if bits == 4:
        return Quantised((codes[:, 0::2] + 8 + (codes[:, 1::2] + 8) * 16).to(torch.uint8), scales)
    return Quantised(codes.to(torch.int8), scales)


def dequantise_reference(
    codes: torch.Tensor,
    scales: torch.Tensor,
    *,
    shape: tuple[int, ...],
    bits: Bits,
    group: int,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Return what ``dequantise`` returns, by the arithmetic of whole numbers."""
    whole = codes.reshape(-1).int()
    if bits == 4:
        whole = torch.stack([whole % 16 - 8, whole // 16 - 8], dim=1).reshape(-1)
    numbers = whole.float() * scales.reshape(-1).repeat_interleave(group)
    return numbers[: math.prod(shape)].reshape(shape).to(dtype)


def unpacked(codes: torch.Tensor, bits: Bits) -> torch.Tensor:
    """Return codes as int8, with 4 bits twice as wide: ``[..., 2 * width]``."""
    if bits == 8:
        return codes
    both = torch.stack([codes & 15, codes >> 4], dim=-1).flatten(-2)
    return both.view(torch.int8).sub_(8)


def check_options(bits: Bits, group: int) -> None:
    """Check how numbers are quantised.

    Raises:
        ValueError: If an option makes no sense.
    """
    if bits not in LEVELS:
        raise ValueError(f"bits must be 8 or 4, got {bits!r}")
    if group < 1 or (bits == 4 and group % 2):
        raise ValueError(f"group must be at least 1, and even for 4 bits, got {group}")


def _check_codes(codes: torch.Tensor, scales: torch.Tensor, bits: Bits) -> None:
    wanted = torch.int8 if bits == 8 else torch.uint8
    if codes.dtype != wanted or scales.dtype != torch.float32:
        raise ValueError(
            f"codes of {bits} bits must be {wanted} with scales of torch.float32, "
            f"got {codes.dtype} and {scales.dtype}"
        )


def _refusal(group: int) -> str:
    return f"groups of {group} are longer than {_MAX_GROUP}" if group > _MAX_GROUP else ""


@cache
def _largest_scale(levels: int) -> float:
    """Return the scale above which the largest code, times a scale that was rounded up, would overflow."""
    largest = torch.tensor(torch.finfo(torch.float32).max) / levels
    return float(torch.nextafter(largest, torch.zeros_like(largest)))


def _quantised(x: torch.Tensor, n_groups: int, *, bits: Bits, group: int) -> Quantised:
    levels = LEVELS[bits]
    rows = x.float().reshape(-1)
    if rows.numel() != n_groups * group:
        rows = torch.nn.functional.pad(rows, (0, n_groups * group - rows.numel()))
    rows = rows.view(n_groups, group)
    largest = torch.maximum(rows.amax(dim=1, keepdim=True), rows.amin(dim=1, keepdim=True).neg_())
    # by a tensor, since a GPU multiplies by the reciprocal of a number
    scales = (largest / largest.new_tensor(levels)).clamp_(max=_largest_scale(levels))
    scales.masked_fill_(~largest.isfinite(), math.nan)
    # by infinity all finite numbers are 0, and the others are NaN
    ratios = rows / torch.where(scales > 0, scales, math.inf)
    codes = ratios.nan_to_num_(nan=0.0).round_().clamp_(-levels, levels).to(torch.int8)
    return Quantised(codes if bits == 8 else _packed(codes), scales)


def _packed(codes: torch.Tensor) -> torch.Tensor:
    # two codes as one number with the first in its low byte: every other byte at a time takes twice as long
    pairs = (codes + 8).view(torch.int16)
    return (pairs | (pairs >> 4)).to(torch.uint8)
