"""Surprisals of tokens under the output layers of real models."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from cases import Case

from kompakt.kernels.token_surprisal import token_surprisal, token_surprisal_reference

# tokens, width, vocabulary: of SmolLM2-135M; of Qwen3-8B
_ON_CPU = [(2048, 576, 49152), (512, 576, 49152)]
_ON_GPU = [(16384, 576, 49152), (8192, 4096, 151936)]


def cases(device: torch.device) -> Iterator[Case]:
    """Yield batches of tokens of a small and, on a GPU, of a large model."""
    on_gpu = device.type == "cuda"
    for size in _ON_GPU if on_gpu else _ON_CPU:
        for dtype in (torch.bfloat16,) if on_gpu else (torch.float32, torch.bfloat16):
            yield _case(*size, dtype, device)


def _case(n_tokens: int, width: int, vocabulary: int, dtype: torch.dtype, device: torch.device) -> Case:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(n_tokens, width, generator=generator).to(device, dtype)
    # logits with a deviation of 3, as models have them
    head = (torch.randn(vocabulary, width, generator=generator) * 3 / width**0.5).to(device, dtype)
    targets = torch.randint(vocabulary, (n_tokens,), generator=generator).to(device)
    return Case(
        operation="token_surprisal",
        size=f"[{n_tokens}, {width}] x [{vocabulary}, {width}]",
        dtype=dtype,
        call=lambda: token_surprisal(hidden, head, targets),
        reference=lambda: token_surprisal_reference(hidden, head, targets),
        tolerance=1e-5 if dtype == torch.float32 else 2**-7,
        flops=2.0 * n_tokens * width * vocabulary,
        n_bytes=hidden.nbytes + head.nbytes + targets.nbytes + 4 * n_tokens,
    )
