"""What operations share whose queries see ranges of keys: the mask, the definition, and what calls must be like."""

from __future__ import annotations

from typing import Final

import torch

_DTYPES: Final = (torch.float32, torch.float16, torch.bfloat16)
_WIDEST: Final = 256


def visible(ranges: torch.Tensor, n_keys: int, hidden: torch.Tensor | None = None) -> torch.Tensor:
    """Return which keys each query sees, as a mask.

    A query sees the keys of its ranges, without those that are hidden, which nothing sees but the query of the same
    position. Queries stand at the end: query ``t`` of ``T`` has the position of key ``n_keys - T + t``.

    Args:
        ranges: The first key and the one behind the last of each of the R ranges a query sees ``[T, R, 2]``. They
            may overlap, be empty, and go beyond the keys.
        n_keys: How many keys there are, S.
        hidden: Which keys are hidden ``[S]``; None for none.

    Returns:
        ``[T, S]``.
    """
    places = torch.arange(n_keys, device=ranges.device)
    seen = ((places >= ranges[..., :1]) & (places < ranges[..., 1:])).any(dim=1)
    if hidden is None:
        return seen
    own = torch.arange(n_keys - len(ranges), n_keys, device=ranges.device)
    return seen & (~hidden.to(ranges.device) | (places == own[:, None]))


def masked_attention_reference(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, seen: torch.Tensor
) -> torch.Tensor:
    """Return attention under a mask, which is zero for queries that see nothing.

    Args:
        queries: ``[T, H, D_head]``.
        keys: ``[S, H_kv, D_head]``; ``H`` is a multiple of ``H_kv``.
        values: ``[S, H_kv, D_head]``.
        seen: Which keys each query sees ``[T, S]``.

    Returns:
        ``[T, H, D_head]``.
    """
    wide = torch.promote_types(queries.dtype, torch.float32)
    group = queries.shape[1] // keys.shape[1]
    all_keys, all_values = (tensor.to(wide).repeat_interleave(group, dim=1) for tensor in (keys, values))
    scores = torch.einsum("qhd,khd->hqk", queries.to(wide), all_keys) / queries.shape[2] ** 0.5
    # a softmax over nothing would be 0 / 0
    scores = scores.masked_fill(~seen, torch.finfo(wide).min)
    weights = scores.softmax(dim=-1).masked_fill(~seen, 0)
    return torch.einsum("hqk,khd->qhd", weights, all_values).to(queries.dtype)


def check_heads(operation: str, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
    """Refuse queries, keys and values that do not fit together.

    Raises:
        ValueError: If they are not ``[T, H, D_head]``, ``[S, H_kv, D_head]`` and the same, of one number format, with
            ``H`` a multiple of ``H_kv``.
    """
    shapes = [tuple(tensor.shape) for tensor in (queries, keys, values)]
    formats = {tensor.dtype for tensor in (queries, keys, values)}
    fits = (
        queries.dim() == keys.dim() == 3
        and keys.shape == values.shape
        and queries.shape[2] == keys.shape[2] > 0
        and queries.shape[1] >= keys.shape[1] > 0
        and queries.shape[1] % keys.shape[1] == 0
        and len(formats) == 1
    )
    if not fits:
        raise ValueError(
            f"{operation} takes queries [T, H, D_head] and keys and values [S, H_kv, D_head] of one number format, "
            f"with H a multiple of H_kv; got {shapes[0]}, {shapes[1]} and {shapes[2]} of "
            f"{', '.join(sorted(map(str, formats)))}"
        )


def why_not_in_triton(queries: torch.Tensor) -> str:
    """Return why the kernel cannot take such queries ``[T, H, D_head]``; empty if it can."""
    if queries.dtype not in _DTYPES:
        return f"{queries.dtype} is not supported"
    if queries.shape[2] > _WIDEST:
        return f"heads of {queries.shape[2]} numbers are wider than {_WIDEST}"
    return ""
