"""Attention over keys of which each query sees two ranges, as beacons and the tokens around them do."""

from __future__ import annotations

import torch
from torch.nn.functional import scaled_dot_product_attention

from kompakt.kernels.dispatch import choose
from kompakt.kernels.range_attention import check_heads, masked_attention_reference, visible, why_not_in_triton


def beacon_attention(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    *,
    ranges: torch.Tensor,
    hidden: torch.Tensor | None = None,
) -> torch.Tensor:
    """Let each query see up to two ranges of keys, without those that are hidden.

    The queries are those of the last ``T`` keys; a hidden key is seen by its own query alone, and by that only inside
    its ranges. ``range_attention.visible`` spells the mask out. Queries that see nothing give zeros.

    Args:
        queries: ``[T, H, D_head]``.
        keys: ``[S, H_kv, D_head]``; ``H`` is a multiple of ``H_kv``.
        values: ``[S, H_kv, D_head]``.
        ranges: The first key and the one behind the last of the two ranges of each query ``[T, 2, 2]``, int32 or
            int64. They may overlap or be empty.
        hidden: Which keys are hidden ``[S]``; None for none.

    Returns:
        ``[T, H, D_head]``.

    Source: Zhang et al. 2024, "Long Context Compression with Activation Beacon", section 3.2, and "Soaring from 4K to
    400K", section 3.2.

    Raises:
        ValueError: If shapes do not fit together.
    """
    check_heads("beacon_attention", queries, keys, values)
    _check_sight(queries, keys, ranges, hidden)
    chosen = choose("beacon_attention", queries, keys, values, refusal=why_not_in_triton(queries))
    if chosen == "triton":
        from kompakt.kernels.range_attention_triton import range_attention_triton

        return range_attention_triton(queries, keys, values, ranges, hidden)
    if chosen == "reference":
        return beacon_attention_reference(queries, keys, values, ranges=ranges, hidden=hidden)
    return _masked(queries, keys, values, visible(ranges.to(queries.device), len(keys), hidden))


def beacon_attention_reference(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    *,
    ranges: torch.Tensor,
    hidden: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return what ``beacon_attention`` returns, from a mask over everything."""
    return masked_attention_reference(queries, keys, values, visible(ranges.to(queries.device), len(keys), hidden))


def _masked(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    if not len(queries) or not len(keys):
        return torch.zeros_like(queries)
    q, k, v = (tensor.transpose(0, 1)[None] for tensor in (queries, keys, values))
    attended = scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=q.shape[1] != k.shape[1])
    return attended[0].transpose(0, 1)


def _check_sight(
    queries: torch.Tensor, keys: torch.Tensor, ranges: torch.Tensor, hidden: torch.Tensor | None
) -> None:
    n_queries, n_keys = len(queries), len(keys)
    if ranges.shape != (n_queries, 2, 2) or ranges.dtype not in (torch.int32, torch.int64):
        raise ValueError(
            f"ranges must be whole numbers [{n_queries}, 2, 2] for {n_queries} queries, got {ranges.dtype} of "
            f"{tuple(ranges.shape)}"
        )
    if hidden is None:
        return
    if hidden.shape != (n_keys,) or hidden.dtype != torch.bool:
        raise ValueError(
            f"hidden must be bool [{n_keys}] for {n_keys} keys, got {hidden.dtype} of {tuple(hidden.shape)}"
        )
    if n_queries > n_keys:
        raise ValueError(f"with hidden keys, each of the {n_queries} queries must have a key, but there are {n_keys}")
