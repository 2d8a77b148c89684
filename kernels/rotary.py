"""Keys that are rotated for their positions: the rotation of old positions is replaced by that of new ones."""

from __future__ import annotations

from typing import Any, TypeAlias

import torch

from kompakt.kernels.dispatch import Implementation, choose

Rotation: TypeAlias = tuple[torch.Tensor, torch.Tensor]
"""Cosines and sines ``[..., m, R]`` as transformers makes them: of ``R / 2`` angles, and of the same ones again.

The first ``R`` dimensions of a head are rotated: dimension ``i`` with ``i + R / 2``. Only the first half of each
table is read.
"""


def rerotate_(keys: torch.Tensor, old: Rotation | None, new: Rotation | None) -> torch.Tensor:
    """Replace the rotation of keys by another, in place.

    Both are one pass, in fp32 (in fp64 for keys in fp64) and rounded once. Gradients flow into the keys, not into the
    tables.

    Args:
        keys: ``[..., m, D_head]`` with ``D_head >= R``; dimensions from ``R`` on stay as they are.
        old: The rotation they have, with tables that can be broadcast to ``[..., m, R]``; None if they have none.
        new: The rotation they get, likewise.

    Returns:
        ``keys``.

    Raises:
        ValueError: If shapes or number formats are others, or some of the keys share their memory.
    """
    if any(stride == 0 and size > 1 for stride, size in zip(keys.stride(), keys.shape, strict=True)):
        raise ValueError("keys share their memory, as those of Tensor.expand do: copy them with .contiguous() first")
    chosen = _checked_choice(keys, old, new)
    if old is None and new is None:
        return keys
    if chosen == "reference":
        return keys.copy_(rerotated_reference(keys, old, new))
    return _apply(keys, old, new, chosen, in_place=True)


def rerotated(keys: torch.Tensor, old: Rotation | None, new: Rotation | None) -> torch.Tensor:
    """Return what ``rerotate_`` returns, and leave ``keys`` as they are."""
    chosen = _checked_choice(keys, old, new)
    if old is None and new is None:
        return keys.clone()
    if chosen == "reference":
        return rerotated_reference(keys, old, new)
    return _apply(keys, old, new, chosen, in_place=False)


def rerotated_reference(keys: torch.Tensor, old: Rotation | None, new: Rotation | None) -> torch.Tensor:
    """Return what ``rerotated`` returns: pairs of dimensions are complex numbers, turned back and forth."""
    exact = torch.promote_types(keys.dtype, torch.float32)
    half = _width(old, new) // 2
    pairs = torch.complex(keys[..., :half].to(exact), keys[..., half : 2 * half].to(exact))
    for rotation, sign in ((old, -1), (new, 1)):
        if rotation is not None:
            cos, sin = (table[..., :half].to(exact) for table in rotation)
            pairs = pairs * torch.complex(cos, sign * sin)
    return torch.cat([pairs.real.to(keys.dtype), pairs.imag.to(keys.dtype), keys[..., 2 * half :]], dim=-1)


class _Rerotation(torch.autograd.Function):
    """A rotation and its gradient, which is rotated back."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        keys: torch.Tensor,
        old: Rotation | None,
        new: Rotation | None,
        chosen: Implementation,
        in_place: bool,
    ) -> torch.Tensor:
        ctx.save_for_backward(*(old or (None, None)), *(new or (None, None)))
        if in_place:
            ctx.mark_dirty(keys)
        out = keys if in_place else torch.empty_like(keys)
        if chosen == "triton":
            from kompakt.kernels.rotary_triton import rerotate_triton

            rerotate_triton(keys, out, old, new, half=_width(old, new) // 2)
        else:
            _rerotate_torch(keys, out, old, new)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None, None, None]:  # noqa: ANN401
        cos_old, sin_old, cos_new, sin_new = ctx.saved_tensors
        old = None if cos_old is None else (cos_old, sin_old)
        new = None if cos_new is None else (cos_new, sin_new)
        return rerotated(gradient, new, old), None, None, None, None


def _apply(
    keys: torch.Tensor, old: Rotation | None, new: Rotation | None, chosen: Implementation, *, in_place: bool
) -> torch.Tensor:
    turned: torch.Tensor = _Rerotation.apply(keys, old, new, chosen, in_place)  # type: ignore[no-untyped-call]
    return turned


def _rerotate_torch(keys: torch.Tensor, out: torch.Tensor, old: Rotation | None, new: Rotation | None) -> None:
    """Write rotated keys into ``out``, which may be ``keys``."""
    exact = torch.promote_types(keys.dtype, torch.float32)
    # tables are small beside the keys of many heads: they are brought together first
    cos, sin = _difference(old, new, exact)
    half = cos.shape[-1]
    first, second = keys[..., :half].to(exact), keys[..., half : 2 * half].to(exact)
    turned = first * cos - second * sin, second * cos + first * sin
    out[..., :half], out[..., half : 2 * half] = turned
    if out is not keys:
        out[..., 2 * half :] = keys[..., 2 * half :]


def _difference(old: Rotation | None, new: Rotation | None, dtype: torch.dtype) -> Rotation:
    """Return cosines and sines ``[..., m, R / 2]`` of the rotation that leads from the old one to the new one."""
    half = _width(old, new) // 2
    # of an angle of 0
    nothing = torch.ones((), dtype=dtype), torch.zeros((), dtype=dtype)
    (cos_old, sin_old), (cos_new, sin_new) = (
        nothing if rotation is None else tuple(table[..., :half].to(dtype) for table in rotation)
        for rotation in (old, new)
    )
    return cos_new * cos_old + sin_new * sin_old, sin_new * cos_old - cos_new * sin_old


def _width(old: Rotation | None, new: Rotation | None) -> int:
    return next((rotation[0].shape[-1] for rotation in (old, new) if rotation is not None), 0)


def _checked_choice(keys: torch.Tensor, old: Rotation | None, new: Rotation | None) -> Implementation:
    """Return which implementation a call takes.

    Raises:
        ValueError: If it is none that can be answered.
    """
    if keys.ndim < 2 or not keys.is_floating_point():
        raise ValueError(f"keys must be [..., m, D_head] in floating point, got {list(keys.shape)} in {keys.dtype}")
    tables = [table for rotation in (old, new) if rotation is not None for table in rotation]
    width = _width(old, new)
    for table in tables:
        if table.ndim < 2 or table.shape[-1] != width or width % 2 or not 0 < width <= keys.shape[-1]:
            raise ValueError(
                f"tables must be [..., m, R] with one even R from 2 to {keys.shape[-1]}, got "
                f"{[list(one.shape) for one in tables]}"
            )
        if not _can_be_broadcast(table.shape[:-1], keys.shape[:-1]):
            raise ValueError(f"a table {list(table.shape)} cannot be broadcast to keys {list(keys.shape)}")
    refusal = "keys in fp64 are not supported" if keys.dtype == torch.float64 else ""
    return choose("rerotate", keys, *tables, refusal=refusal)


def _can_be_broadcast(shape: torch.Size, target: torch.Size) -> bool:
    padded = (1,) * (len(target) - len(shape)) + tuple(shape)
    return len(padded) == len(target) and all(one in (1, other) for one, other in zip(padded, target, strict=True))
