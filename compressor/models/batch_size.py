"""How many tokens a model reads at once: chosen from free memory, and fewer where that does not fit after all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

from kompakt.compressor.errors import ModelError

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig

Row = TypeVar("Row")
Result = TypeVar("Result")

_CPU_TOKENS: Final = 2048
"""Tokens whose activations mostly stay in a processor's cache; passes of 512 to 4096 cost the same for each token."""

_MOST_GPU_TOKENS: Final = 65_536
"""More only delays the first result, and pads more."""

_NO_MEMORY: Final = ("CUBLAS_STATUS_ALLOC_FAILED", "DefaultCPUAllocator: can't allocate memory")
"""How libraries below torch say that memory has run out."""


@dataclass
class BatchLimit:
    """The most tokens that are run at once. Shrinks when memory runs out; make one for each run over many batches.

    Args:
        tokens: Padding included.
    """

    tokens: int


def tokens_per_batch(
    device: torch.device | str,
    *,
    bytes_per_token: float,
    reserve: float = 0.2,
    on_cpu: int = _CPU_TOKENS,
) -> int:
    """Return how many tokens to run at once on a device.

    On a GPU as many as free memory holds, rounded down to a power of two, so that a little more or less of it does
    not change how results are rounded. On a CPU always ``on_cpu``: more are no faster, and with AMX the number of
    rows decides the last digits of a result.

    Args:
        device: Where the model computes.
        bytes_per_token: Memory that each token takes beside the model; see ``forward_bytes_per_token``.
        reserve: Share of the free memory that is left alone, in ``[0, 1)``.
        on_cpu: The number on a CPU.

    Returns:
        A number above 0.

    Raises:
        ValueError: If ``bytes_per_token``, ``reserve`` or ``on_cpu`` makes no sense.
    """
    import torch

    if not bytes_per_token > 0 or not 0 <= reserve < 1 or on_cpu < 1:
        raise ValueError(
            "bytes_per_token and on_cpu must be positive and reserve in [0, 1), "
            f"got {bytes_per_token}, {on_cpu} and {reserve}"
        )
    place = torch.device(device)
    if place.type != "cuda":
        return on_cpu
    return _fitting(_free_bytes(place) * (1 - reserve), bytes_per_token)


def _free_bytes(device: torch.device) -> int:
    import torch

    free, _ = torch.cuda.mem_get_info(device)
    # torch keeps what it has freed, and the driver counts it as taken
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def _fitting(n_bytes: float, bytes_per_token: float) -> int:
    fitting = min(int(n_bytes / bytes_per_token), _MOST_GPU_TOKENS)
    return 1 << max(fitting.bit_length() - 1, 0)


def forward_bytes_per_token(config: PretrainedConfig, dtype: torch.dtype) -> int:
    """Return how much memory a transformer's forward pass takes for each token at its widest place, rather too much.

    Counted are hidden states, queries, keys, values and the inner layer of the feed-forward network, without
    gradients, a cache, logits or attention weights: ``scaled_dot_product_attention`` never holds those, but models
    with attention of their own do.

    Args:
        config: The model's configuration.
        dtype: Number format of the activations.
    """
    text = config.get_text_config()
    hidden = int(text.hidden_size)
    heads = int(getattr(text, "num_attention_heads", None) or 1)
    width = max(hidden, heads * int(getattr(text, "head_dim", None) or 0))
    sizes = (getattr(text, name, None) for name in ("intermediate_size", "ffn_dim", "n_inner"))
    inner = int(next((size for size in sizes if size), 4 * hidden))
    # norms of half-precision models compute in fp32, with three copies of the hidden states; activation functions
    # that are written out in Python hold up to five copies of the inner layer
    return 3 * 4 * hidden + dtype.itemsize * max(8 * width, 2 * hidden + 5 * inner)


def with_backoff(
    batch: Sequence[Row],
    run: Callable[[Sequence[Row]], Iterable[Result]],
    *,
    lengths: Sequence[int] | None = None,
    limit: BatchLimit | None = None,
) -> list[Result]:
    """Run a batch, in smaller pieces if it does not fit in memory.

    A piece that runs out of memory is run again in halves, and ``limit`` becomes the size of the first half, so that
    the next batches begin there.

    Args:
        batch: The rows, the longest first.
        run: Computes one result a row. May run again on rows that it was given before.
        lengths: Tokens of each row, padding included; 1 each by default.
        limit: The most tokens at once; shared by the batches of a run.

    Returns:
        One result a row, in order.

    Raises:
        ModelError: If a single row does not fit.
    """
    # rows without tokens count too: every half must be less than the whole
    sizes = [max(length, 1) for length in lengths] if lengths is not None else [1] * len(batch)
    shared = limit or BatchLimit(sum(sizes))
    results: list[Result] = []
    while len(results) < len(batch):
        start = len(results)
        end = _end(sizes, start, shared.tokens)
        computed = _tried(run, batch[start:end], sizes[start])
        if computed is None:
            _free_unused()
            half = sum(sizes[start : (start + end + 1) // 2])
            shared.tokens = min(shared.tokens, half)
        else:
            results += computed
    return results


def _end(sizes: Sequence[int], start: int, most: int) -> int:
    """Return behind which row a piece of at most so many tokens ends; it has one row at least."""
    end, n_tokens = start + 1, sizes[start]
    while end < len(sizes) and n_tokens + sizes[end] <= most:
        n_tokens += sizes[end]
        end += 1
    return end


def _tried(run: Callable[[Sequence[Row]], Iterable[Result]], rows: Sequence[Row], size: int) -> list[Result] | None:
    """Return the results, or None if they do not fit.

    The error ends here: while it is handled, its frames hold every tensor of the pass that failed.
    """
    try:
        return list(run(rows))
    except RuntimeError as error:
        if not _is_out_of_memory(error):
            raise
        if len(rows) == 1:
            raise ModelError(
                f"a row of {size} tokens does not fit in memory by itself: {error}; take a smaller window or model"
            ) from error
    return None


def _is_out_of_memory(error: RuntimeError) -> bool:
    import torch

    return isinstance(error, torch.OutOfMemoryError) or any(sign in str(error) for sign in _NO_MEMORY)


def _free_unused() -> None:
    import torch

    # what is cached in blocks of other sizes
    torch.cuda.empty_cache()
