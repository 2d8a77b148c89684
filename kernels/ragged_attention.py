"""Attention inside each of several sequences that are packed one behind the other, without a causal mask."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.functional import scaled_dot_product_attention


def ragged_attention(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    *,
    query_lengths: Sequence[int],
    key_lengths: Sequence[int],
) -> torch.Tensor:
    """Let each query see all keys of its own sequence and none of another.

    Sequences with equal lengths are computed together.

    Args:
        queries: ``[sum(query_lengths), H, D_head]``.
        keys: ``[sum(key_lengths), H_kv, D_head]``; ``H`` is a multiple of ``H_kv``.
        values: ``[sum(key_lengths), H_kv, D_head]``.
        query_lengths: Queries of each sequence.
        key_lengths: Keys of each sequence, at least one where there are queries.

    Returns:
        ``[sum(query_lengths), H, D_head]``.
    """
    q_blocks, k_blocks, v_blocks = (
        torch.split(tensor, list(lengths))
        for tensor, lengths in ((queries, query_lengths), (keys, key_lengths), (values, key_lengths))
    )
    alike: dict[tuple[int, int], list[int]] = {}
    for index, shape in enumerate(zip(query_lengths, key_lengths, strict=True)):
        alike.setdefault(shape, []).append(index)
    results: dict[int, torch.Tensor] = {}
    for members in alike.values():
        q, k, v = (
            torch.stack([blocks[index] for index in members]).transpose(1, 2)
            for blocks in (q_blocks, k_blocks, v_blocks)
        )
        attended = scaled_dot_product_attention(q, k, v, enable_gqa=queries.shape[1] != keys.shape[1])
        results.update(zip(members, attended.transpose(1, 2), strict=True))
    return torch.cat([results[index] for index in range(len(results))]) if results else queries


def ragged_attention_reference(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    *,
    query_lengths: Sequence[int],
    key_lengths: Sequence[int],
) -> torch.Tensor:
    """Return what ``ragged_attention`` returns, from one block-diagonal mask over everything."""
    owner_of_query = torch.repeat_interleave(torch.arange(len(query_lengths)), torch.tensor(query_lengths))
    owner_of_key = torch.repeat_interleave(torch.arange(len(key_lengths)), torch.tensor(key_lengths))
    visible = owner_of_query[:, None] == owner_of_key[None, :]
    group = queries.shape[1] // keys.shape[1]
    all_keys, all_values = keys.repeat_interleave(group, dim=1), values.repeat_interleave(group, dim=1)
    scores = torch.einsum("qhd,khd->hqk", queries, all_keys) / queries.shape[2] ** 0.5
    weights = scores.masked_fill(~visible.to(scores.device), float("-inf")).softmax(dim=-1)
    return torch.einsum("hqk,khd->qhd", weights, all_values)
