"""Attention inside packed segments: ragged texts under a causal mask, segments of 20 tokens, pooled queries."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from cases import Case

from kompakt.kernels.packed_attention import packed_attention, packed_attention_reference


def cases(device: torch.device) -> Iterator[Case]:
    """Yield heads as a model of 8 billion parameters has them on a GPU, and one of 135 million on a CPU."""
    on_gpu = device.type == "cuda"
    heads, head_size = ((32, 8), 128) if on_gpu else ((9, 3), 64)
    scale = 16 if on_gpu else 1
    # numbers that spread evenly from 10 to 300
    texts = [10 + 291 * (index * 37 % 100) // 100 for index in range(scale * 8)]
    pooled = [-(-length // 4) for length in texts]
    for dtype in (torch.float32, torch.bfloat16):
        yield _case("ragged texts, causal", texts, texts, True, heads, head_size, dtype, device)
        yield _case(
            "segments of 20, causal", [20] * scale * 50, [20] * scale * 50, True, heads, head_size, dtype, device
        )
        yield _case("ragged texts, pooled by 4", pooled, texts, False, heads, head_size, dtype, device)


def _case(
    name: str,
    query_lengths: list[int],
    key_lengths: list[int],
    is_causal: bool,
    heads: tuple[int, int],
    head_size: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Case:
    generator = torch.Generator().manual_seed(0)
    queries, keys, values = (
        torch.randn(sum(lengths), number, head_size, generator=generator).to(device, dtype)
        for lengths, number in ((query_lengths, heads[0]), (key_lengths, heads[1]), (key_lengths, heads[1]))
    )
    n_pairs = sum(
        n_queries * (n_queries + 1) // 2 if is_causal else n_queries * n_keys
        for n_queries, n_keys in zip(query_lengths, key_lengths, strict=True)
    )
    options = {"query_lengths": query_lengths, "key_lengths": key_lengths, "is_causal": is_causal}
    return Case(
        operation="packed_attention",
        size=f"{len(key_lengths)} {name}: {list(queries.shape)} of {list(keys.shape)}",
        dtype=dtype,
        call=lambda: packed_attention(queries, keys, values, **options),
        reference=lambda: packed_attention_reference(queries, keys, values, **options),
        # one step of bf16 at the largest outputs, of queries that see little, beside the mean of those that see much
        tolerance=1e-4 if dtype == torch.float32 else 2**-3,
        flops=4.0 * n_pairs * heads[0] * head_size,
        n_bytes=2.0 * queries.nbytes + keys.nbytes + values.nbytes,
    )
