"""Attention inside each of several segments that are packed one behind the other."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
from torch.nn.functional import pad, scaled_dot_product_attention

from kompakt.kernels.dispatch import choose
from kompakt.kernels.range_attention import check_heads, masked_attention_reference, why_not_in_triton


def packed_attention(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    *,
    query_lengths: Sequence[int],
    key_lengths: Sequence[int],
    is_causal: bool = False,
) -> torch.Tensor:
    """Let each query see keys of its own segment and none of another.

    A segment may have fewer queries than keys: an encoder that pools its tokens before it projects queries, and
    projects keys of all of them, attends in this way. Queries that see nothing give zeros.

    Args:
        queries: ``[sum(query_lengths), H, D_head]``.
        keys: ``[sum(key_lengths), H_kv, D_head]``; ``H`` is a multiple of ``H_kv``.
        values: ``[sum(key_lengths), H_kv, D_head]``.
        query_lengths: Queries of each segment.
        key_lengths: Keys of each segment.
        is_causal: Whether a query sees only the keys up to its own. The last query of a segment has the place of its
            last key.

    Returns:
        ``[sum(query_lengths), H, D_head]``.

    Source: Pilchen et al. 2025, "ARC-Encoder: learning compressed text representations for large language models",
    section 3, for pooled queries.

    Raises:
        ValueError: If shapes and lengths do not fit together.
    """
    check_heads("packed_attention", queries, keys, values)
    _check_lengths(queries, keys, query_lengths, key_lengths)
    chosen = choose("packed_attention", queries, keys, values, refusal=why_not_in_triton(queries))
    if chosen == "triton":
        from kompakt.kernels.range_attention_triton import range_attention_triton

        ranges = _ranges(query_lengths, key_lengths, is_causal).to(queries.device)
        return range_attention_triton(queries, keys, values, ranges, None)
    implementation = packed_attention_reference if chosen == "reference" else _in_runs
    return implementation(
        queries, keys, values, query_lengths=query_lengths, key_lengths=key_lengths, is_causal=is_causal
    )


def packed_attention_reference(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    *,
    query_lengths: Sequence[int],
    key_lengths: Sequence[int],
    is_causal: bool = False,
) -> torch.Tensor:
    """Return what ``packed_attention`` returns, from one block-diagonal mask over everything."""
    owners_of_queries, queries_left = _places(query_lengths)
    owners_of_keys, keys_left = _places(key_lengths)
    seen = owners_of_queries[:, None] == owners_of_keys
    if is_causal:
        seen &= queries_left[:, None] <= keys_left
    return masked_attention_reference(queries, keys, values, seen.to(queries.device))


def _places(lengths: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return of each place ``[sum(lengths)]`` its segment, and how many places follow in that segment."""
    sizes = torch.tensor(lengths, dtype=torch.long)
    owners = torch.repeat_interleave(sizes)
    return owners, sizes.cumsum(0)[owners] - 1 - torch.arange(len(owners))


def _ranges(query_lengths: Sequence[int], key_lengths: Sequence[int], is_causal: bool) -> torch.Tensor:
    """Return which keys each query sees, as one range ``[sum(query_lengths), 1, 2]``."""
    owners, queries_left = _places(query_lengths)
    sizes = torch.tensor(key_lengths, dtype=torch.long)
    ends = sizes.cumsum(0)[owners]
    starts = ends - sizes[owners]
    return torch.stack([starts, ends - queries_left if is_causal else ends], dim=1)[:, None].to(torch.int32)


def _in_runs(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    *,
    query_lengths: Sequence[int],
    key_lengths: Sequence[int],
    is_causal: bool = False,
) -> torch.Tensor:
    """Attend over views of neighbouring segments of equal shape.

    On CPUs, to pad others to a common shape costs more, in copies and in keys that nothing sees, than calls cost.
    """
    runs = [(len(list(members)), *shape) for shape, members in groupby(zip(query_lengths, key_lengths, strict=True))]
    if not runs:
        return queries
    q_runs = torch.split(queries, [count * n_queries for count, n_queries, _ in runs])
    k_runs, v_runs = (torch.split(tensor, [count * n_keys for count, _, n_keys in runs]) for tensor in (keys, values))
    attended = []
    for (count, n_queries, n_keys), q, k, v in zip(runs, q_runs, k_runs, v_runs, strict=True):
        batch = _batch(
            q.reshape(count, n_queries, *q.shape[1:]),
            k.reshape(count, n_keys, *k.shape[1:]),
            v.reshape(count, n_keys, *v.shape[1:]),
            is_causal,
        )
        attended.append(batch.flatten(0, 1))
    return torch.cat(attended) if len(attended) > 1 else attended[0]


def _batch(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, is_causal: bool) -> torch.Tensor:
    """Return the attention ``[B, m, H, D_head]`` of queries like it over keys and values ``[B, n, H_kv, D_head]``."""
    n_queries, n_keys = queries.shape[1], keys.shape[1]
    if not n_queries or not n_keys:
        return torch.zeros_like(queries)
    n_blind = max(0, n_queries - n_keys) if is_causal else 0
    mask = None
    if is_causal and n_queries < n_keys:
        mask = torch.ones(n_queries, n_keys, dtype=torch.bool, device=queries.device).tril(n_keys - n_queries)
    attended = scaled_dot_product_attention(
        queries[:, n_blind:].transpose(1, 2),
        keys.transpose(1, 2),
        values.transpose(1, 2),
        attn_mask=mask,
        is_causal=is_causal and mask is None,
        enable_gqa=queries.shape[2] != keys.shape[2],
    ).transpose(1, 2)
    return pad(attended, (0, 0, 0, 0, n_blind, 0)) if n_blind else attended


def _check_lengths(
    queries: torch.Tensor, keys: torch.Tensor, query_lengths: Sequence[int], key_lengths: Sequence[int]
) -> None:
    if len(query_lengths) != len(key_lengths):
        raise ValueError(
            f"packed_attention takes lengths of the same segments, got {len(query_lengths)} of queries and "
            f"{len(key_lengths)} of keys"
        )
    for name, tensor, lengths in (("query_lengths", queries, query_lengths), ("key_lengths", keys, key_lengths)):
        if min(lengths, default=0) < 0 or sum(lengths) != len(tensor):
            raise ValueError(
                f"{name} must be numbers from 0 on that add up to the {len(tensor)} packed, got {list(lengths)}"
            )
