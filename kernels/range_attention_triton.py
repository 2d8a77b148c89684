"""Attention over ranges of keys in Triton, forwards and backwards, without a mask in memory.

Blocks of keys that no query of a block sees are not read. Block sizes are not tuned: the kernels have been run in
Triton's interpreter alone.
"""

from __future__ import annotations

from typing import Any, Final

import torch
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from kompakt.kernels.dispatch import is_interpreted

_LOG2_E: Final = 1.4426950408889634


def range_attention_triton(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    ranges: torch.Tensor,
    hidden: torch.Tensor | None,
) -> torch.Tensor:
    """Return attention over ranges of keys, differentiable in queries, keys and values.

    Args:
        queries: ``[T, H, D_head]`` in fp32, bf16 or fp16.
        keys: ``[S, H_kv, D_head]``.
        values: ``[S, H_kv, D_head]``.
        ranges: What each query sees ``[T, R, 2]``, R is 1 or 2; see ``range_attention.visible``.
        hidden: Which keys are hidden ``[S]``; None for none.

    Returns:
        ``[T, H, D_head]``.
    """
    ranges = ranges.to(queries.device, torch.int32).contiguous()
    if hidden is not None:
        hidden = hidden.to(queries.device).contiguous().view(torch.uint8)
    attended: torch.Tensor = _RangeAttention.apply(queries, keys, values, ranges, hidden)  # type: ignore[no-untyped-call]
    return attended


class _RangeAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 (versions of torch name its type differently)
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        ranges: torch.Tensor,
        hidden: torch.Tensor | None,
    ) -> torch.Tensor:
        queries, keys, values = (_with_dense_heads(tensor) for tensor in (queries, keys, values))
        n_queries, n_heads, _ = queries.shape
        attended = torch.empty(queries.shape, dtype=queries.dtype, device=queries.device)
        log_sums = torch.empty(n_heads, n_queries, dtype=torch.float32, device=queries.device)
        if attended.numel():
            options = _options(queries, keys, ranges, hidden)
            arguments = _arguments(queries, keys, values, ranges, hidden)
            with torch.cuda.device_of(queries):  # type: ignore[no-untyped-call]
                _forward[triton.cdiv(n_queries, options["block_q"]), n_heads](
                    *arguments, attended, log_sums, **options
                )
        ctx.save_for_backward(queries, keys, values, ranges, hidden, attended, log_sums)
        return attended

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # noqa: ANN401 (as above)
        queries, keys, values, ranges, hidden, attended, log_sums = ctx.saved_tensors
        gradient = gradient.contiguous()
        arguments = _arguments(queries, keys, values, ranges, hidden)
        options = _options(queries, keys, ranges, hidden)
        n_queries, n_heads, _ = queries.shape
        of_queries = torch.empty_like(attended)
        # gradient times output, summed over each head: both kernels need it
        products = torch.empty_like(log_sums)
        of_keys, of_values = (torch.empty(keys.shape, dtype=keys.dtype, device=keys.device) for _ in range(2))
        with torch.cuda.device_of(queries):  # type: ignore[no-untyped-call]
            if of_queries.numel():
                _backward_of_queries[triton.cdiv(n_queries, options["block_q"]), n_heads](
                    *arguments, attended, gradient, log_sums, of_queries, products, **options
                )
            if of_keys.numel():
                readers = _readers(ranges, len(keys), options["block_q"], options["block_k"])
                _backward_of_keys[len(readers), keys.shape[1]](
                    *arguments, readers, gradient, log_sums, products, of_keys, of_values, **options
                )
        return of_queries, of_keys, of_values, None, None


def _with_dense_heads(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.stride(2) == 1 else tensor.contiguous()


def _arguments(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, ranges: torch.Tensor, hidden: torch.Tensor | None
) -> tuple[torch.Tensor | int | float, ...]:
    strides = [stride for tensor in (queries, keys, values) for stride in tensor.stride()[:2]]
    # where nothing is hidden, what stands for it is not read
    sight = (ranges, ranges if hidden is None else hidden)
    scale = queries.shape[2] ** -0.5
    return queries, keys, values, *strides, *sight, len(queries), len(keys), scale, scale * _LOG2_E


def _options(
    queries: torch.Tensor, keys: torch.Tensor, ranges: torch.Tensor, hidden: torch.Tensor | None
) -> dict[str, int]:
    block_d = max(16, triton.next_power_of_2(queries.shape[2]))
    # blocks of several tensors are in the memory of one multiprocessor at once, which has 99 KiB or more
    n_rows = min(64, max(16, 16384 // (block_d * queries.element_size())))
    return {
        "n_heads": queries.shape[1],
        "group": queries.shape[1] // keys.shape[1],
        "head_size": queries.shape[2],
        "n_ranges": ranges.shape[1],
        "hides": hidden is not None,
        "block_q": n_rows,
        "block_k": n_rows,
        "block_d": block_d,
        "widens": is_interpreted(),
        "num_warps": 4,
        "num_stages": 2,
    }


def _readers(ranges: torch.Tensor, n_keys: int, block_q: int, block_k: int) -> torch.Tensor:
    """Return the first block of queries that reads each block of keys, and the one behind the last ``[n, 2]``."""
    places = torch.arange(triton.cdiv(n_keys, block_k), device=ranges.device)
    if not len(ranges):
        return torch.zeros(len(places), 2, dtype=torch.int32, device=ranges.device)
    starts, ends = ranges.unbind(-1)
    is_empty = starts >= ends
    first, last = (
        pad(bounds.masked_fill(is_empty, none), (0, 0, 0, -len(ranges) % block_q), value=none)
        for bounds, none in ((starts, n_keys), (ends, 0))
    )
    first, last = (bounds.view(-1, block_q, bounds.shape[1]) for bounds in (first, last))
    reads = (places + 1) * block_k > first.amin(1)[..., None]
    reads = (reads & (places * block_k < last.amax(1)[..., None])).any(dim=1)
    numbers = torch.arange(1, len(reads) + 1, device=ranges.device)[:, None]
    behind = (reads * numbers).amax(0)
    return torch.stack([reads.to(torch.uint8).argmax(0), behind], dim=1).to(torch.int32)


@triton.jit  # type: ignore[untyped-decorator]
def _dot(left: tl.tensor, right: tl.tensor, widens: tl.constexpr) -> tl.tensor:
    """Multiply matrices and sum in fp32; the interpreter multiplies no bf16."""
    if widens:
        left, right = left.to(tl.float32), right.to(tl.float32)
    return tl.dot(left, right, input_precision="ieee")


@triton.jit  # type: ignore[untyped-decorator]
def _head_rows(
    head: tl.tensor,
    rows: tl.tensor,
    stride: tl.tensor,
    n_rows: tl.tensor,
    head_size: tl.constexpr,
    block_d: tl.constexpr,
) -> tl.tensor:
    """Load rows of a head; what lies outside is zero."""
    columns = tl.arange(0, block_d)
    inside = (rows < n_rows)[:, None] & (columns < head_size)[None, :]
    return tl.load(head + rows.to(tl.int64)[:, None] * stride + columns[None, :], mask=inside, other=0.0)


@triton.jit  # type: ignore[untyped-decorator]
def _store_head_rows(
    tensor: tl.tensor,
    tile: tl.tensor,
    rows: tl.tensor,
    head: tl.tensor,
    n_rows: tl.tensor,
    n_heads: tl.constexpr,
    head_size: tl.constexpr,
    block_d: tl.constexpr,
) -> None:
    """Store rows of a head of a dense tensor."""
    columns = tl.arange(0, block_d)
    inside = (rows < n_rows)[:, None] & (columns < head_size)[None, :]
    places = (rows.to(tl.int64)[:, None] * n_heads + head) * head_size + columns[None, :]
    tl.store(tensor + places, tile.to(tensor.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _bounds(
    ranges: tl.tensor, rows: tl.tensor, n_queries: tl.tensor, number: tl.constexpr, n_ranges: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """Load where one of the ranges of each query begins and ends; both are 0 where there is none."""
    exists = (rows < n_queries) & (number < n_ranges)
    at = ranges + (rows.to(tl.int64) * n_ranges + number) * 2
    return tl.load(at, mask=exists, other=0), tl.load(at + 1, mask=exists, other=0)


@triton.jit  # type: ignore[untyped-decorator]
def _span(
    starts: tl.tensor, ends: tl.tensor, n_keys: tl.tensor, block_k: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """Return the first block of keys that any range reaches, and the one behind the last."""
    first = tl.maximum(tl.min(tl.where(starts < ends, starts, n_keys), axis=0), 0) // block_k
    end = tl.minimum(tl.max(tl.where(starts < ends, ends, 0), axis=0), n_keys)
    return first, tl.maximum(first, (end + block_k - 1) // block_k)


@triton.jit  # type: ignore[untyped-decorator]
def _spans(
    first_starts: tl.tensor,
    first_ends: tl.tensor,
    second_starts: tl.tensor,
    second_ends: tl.tensor,
    n_keys: tl.tensor,
    block_k: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """Return two runs of blocks of keys that any query reaches, none of them twice: beginnings and numbers."""
    start, end = _span(first_starts, first_ends, n_keys, block_k)
    other_start, other_end = _span(second_starts, second_ends, n_keys, block_k)
    overlap = tl.maximum(start, other_start) < tl.minimum(end, other_end)
    whole_start, whole_end = tl.minimum(start, other_start), tl.maximum(end, other_end)
    n_first = tl.where(overlap, whole_end - whole_start, end - start)
    return tl.where(overlap, whole_start, start), n_first, other_start, tl.where(overlap, 0, other_end - other_start)


@triton.jit  # type: ignore[untyped-decorator]
def _seen(
    first_starts: tl.tensor,
    first_ends: tl.tensor,
    second_starts: tl.tensor,
    second_ends: tl.tensor,
    hidden: tl.tensor,
    rows: tl.tensor,
    places: tl.tensor,
    n_queries: tl.tensor,
    n_keys: tl.tensor,
    hides: tl.constexpr,
) -> tl.tensor:
    """Return which of some keys each query sees."""
    seen = (places[None, :] >= first_starts[:, None]) & (places[None, :] < first_ends[:, None])
    seen |= (places[None, :] >= second_starts[:, None]) & (places[None, :] < second_ends[:, None])
    seen &= (places < n_keys)[None, :]
    if hides:
        is_hidden = tl.load(hidden + places, mask=places < n_keys, other=0) != 0
        is_own = places[None, :] == (rows + (n_keys - n_queries))[:, None]
        seen &= is_own | (is_hidden == 0)[None, :]
    return seen


@triton.jit  # type: ignore[untyped-decorator]
def _forward(
    queries: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    query_stride: tl.tensor,
    query_head_stride: tl.tensor,
    key_stride: tl.tensor,
    key_head_stride: tl.tensor,
    value_stride: tl.tensor,
    value_head_stride: tl.tensor,
    ranges: tl.tensor,
    hidden: tl.tensor,
    n_queries: tl.tensor,
    n_keys: tl.tensor,
    scale: tl.tensor,
    scale_to_base_2: tl.tensor,
    attended: tl.tensor,
    log_sums: tl.tensor,
    n_heads: tl.constexpr,
    group: tl.constexpr,
    head_size: tl.constexpr,
    n_ranges: tl.constexpr,
    hides: tl.constexpr,
    block_q: tl.constexpr,
    block_k: tl.constexpr,
    block_d: tl.constexpr,
    widens: tl.constexpr,
) -> None:
    """Attend with a block of queries of one head, and keep the logarithm to base 2 of each softmax's sum."""
    rows = tl.program_id(0) * block_q + tl.arange(0, block_q)
    head = tl.program_id(1).to(tl.int64)
    q = _head_rows(queries + head * query_head_stride, rows, query_stride, n_queries, head_size, block_d)
    starts, ends = _bounds(ranges, rows, n_queries, 0, n_ranges)
    more_starts, more_ends = _bounds(ranges, rows, n_queries, 1, n_ranges)
    start, n_first, more_start, n_more = _spans(starts, ends, more_starts, more_ends, n_keys, block_k)

    largest = tl.full([block_q], float("-inf"), tl.float32)
    total = tl.zeros([block_q], tl.float32)
    sums = tl.zeros([block_q, block_d], tl.float32)
    for step in range(0, n_first + n_more):
        block = tl.where(step < n_first, start + step, more_start + step - n_first)
        places = block * block_k + tl.arange(0, block_k)
        k = _head_rows(keys + head // group * key_head_stride, places, key_stride, n_keys, head_size, block_d)
        v = _head_rows(values + head // group * value_head_stride, places, value_stride, n_keys, head_size, block_d)
        seen = _seen(starts, ends, more_starts, more_ends, hidden, rows, places, n_queries, n_keys, hides)
        scores = _dot(q, tl.trans(k), widens) * scale_to_base_2
        scores = tl.where(seen, scores, float("-inf"))
        new_largest = tl.maximum(largest, tl.max(scores, axis=1))
        # nothing seen so far: infinity minus infinity is not a number
        shift = tl.where(new_largest == float("-inf"), 0.0, new_largest)
        weights = tl.exp2(scores - shift[:, None])
        shrunk = tl.exp2(largest - shift)
        total = total * shrunk + tl.sum(weights, axis=1)
        sums = sums * shrunk[:, None] + _dot(weights.to(v.dtype), v, widens)
        largest = new_largest

    sees = total > 0
    _store_head_rows(
        attended, sums / tl.where(sees, total, 1.0)[:, None], rows, head, n_queries, n_heads, head_size, block_d
    )
    log_sum = tl.where(sees, largest + tl.log2(tl.where(sees, total, 1.0)), 0.0)
    tl.store(log_sums + head * n_queries + rows, log_sum, mask=rows < n_queries)


@triton.jit  # type: ignore[untyped-decorator]
def _backward_of_queries(
    queries: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    query_stride: tl.tensor,
    query_head_stride: tl.tensor,
    key_stride: tl.tensor,
    key_head_stride: tl.tensor,
    value_stride: tl.tensor,
    value_head_stride: tl.tensor,
    ranges: tl.tensor,
    hidden: tl.tensor,
    n_queries: tl.tensor,
    n_keys: tl.tensor,
    scale: tl.tensor,
    scale_to_base_2: tl.tensor,
    attended: tl.tensor,
    gradient: tl.tensor,
    log_sums: tl.tensor,
    of_queries: tl.tensor,
    products: tl.tensor,
    n_heads: tl.constexpr,
    group: tl.constexpr,
    head_size: tl.constexpr,
    n_ranges: tl.constexpr,
    hides: tl.constexpr,
    block_q: tl.constexpr,
    block_k: tl.constexpr,
    block_d: tl.constexpr,
    widens: tl.constexpr,
) -> None:
    """Write the gradient of a block of queries of one head, and their products of output and its gradient."""
    rows = tl.program_id(0) * block_q + tl.arange(0, block_q)
    head = tl.program_id(1).to(tl.int64)
    q = _head_rows(queries + head * query_head_stride, rows, query_stride, n_queries, head_size, block_d)
    at_head, dense_stride = head * head_size, n_heads * head_size
    o = _head_rows(attended + at_head, rows, dense_stride, n_queries, head_size, block_d)
    do = _head_rows(gradient + at_head, rows, dense_stride, n_queries, head_size, block_d)
    product = tl.sum(o.to(tl.float32) * do.to(tl.float32), axis=1)
    tl.store(products + head * n_queries + rows, product, mask=rows < n_queries)
    log_sum = tl.load(log_sums + head * n_queries + rows, mask=rows < n_queries, other=0.0)
    starts, ends = _bounds(ranges, rows, n_queries, 0, n_ranges)
    more_starts, more_ends = _bounds(ranges, rows, n_queries, 1, n_ranges)
    start, n_first, more_start, n_more = _spans(starts, ends, more_starts, more_ends, n_keys, block_k)

    dq = tl.zeros([block_q, block_d], tl.float32)
    for step in range(0, n_first + n_more):
        block = tl.where(step < n_first, start + step, more_start + step - n_first)
        places = block * block_k + tl.arange(0, block_k)
        k = _head_rows(keys + head // group * key_head_stride, places, key_stride, n_keys, head_size, block_d)
        v = _head_rows(values + head // group * value_head_stride, places, value_stride, n_keys, head_size, block_d)
        seen = _seen(starts, ends, more_starts, more_ends, hidden, rows, places, n_queries, n_keys, hides)
        scores = _dot(q, tl.trans(k), widens) * scale_to_base_2
        weights = tl.exp2(tl.where(seen, scores - log_sum[:, None], float("-inf")))
        of_weights = _dot(do, tl.trans(v), widens)
        of_scores = weights * (of_weights - product[:, None])
        dq += _dot(of_scores.to(k.dtype), k, widens)
    _store_head_rows(of_queries, dq * scale, rows, head, n_queries, n_heads, head_size, block_d)


@triton.jit  # type: ignore[untyped-decorator]
def _backward_of_keys(
    queries: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    query_stride: tl.tensor,
    query_head_stride: tl.tensor,
    key_stride: tl.tensor,
    key_head_stride: tl.tensor,
    value_stride: tl.tensor,
    value_head_stride: tl.tensor,
    ranges: tl.tensor,
    hidden: tl.tensor,
    n_queries: tl.tensor,
    n_keys: tl.tensor,
    scale: tl.tensor,
    scale_to_base_2: tl.tensor,
    readers: tl.tensor,
    gradient: tl.tensor,
    log_sums: tl.tensor,
    products: tl.tensor,
    of_keys: tl.tensor,
    of_values: tl.tensor,
    n_heads: tl.constexpr,
    group: tl.constexpr,
    head_size: tl.constexpr,
    n_ranges: tl.constexpr,
    hides: tl.constexpr,
    block_q: tl.constexpr,
    block_k: tl.constexpr,
    block_d: tl.constexpr,
    widens: tl.constexpr,
) -> None:
    """Write the gradients of a block of keys and values of one head, over all the heads of queries that share it."""
    block = tl.program_id(0)
    places = block * block_k + tl.arange(0, block_k)
    kv_head = tl.program_id(1).to(tl.int64)
    k = _head_rows(keys + kv_head * key_head_stride, places, key_stride, n_keys, head_size, block_d)
    v = _head_rows(values + kv_head * value_head_stride, places, value_stride, n_keys, head_size, block_d)
    first, behind = tl.load(readers + block * 2), tl.load(readers + block * 2 + 1)

    dk = tl.zeros([block_k, block_d], tl.float32)
    dv = tl.zeros([block_k, block_d], tl.float32)
    for reader in range(first, behind):
        rows = reader * block_q + tl.arange(0, block_q)
        starts, ends = _bounds(ranges, rows, n_queries, 0, n_ranges)
        more_starts, more_ends = _bounds(ranges, rows, n_queries, 1, n_ranges)
        seen = _seen(starts, ends, more_starts, more_ends, hidden, rows, places, n_queries, n_keys, hides)
        for member in range(0, group):
            head = kv_head * group + member
            q = _head_rows(queries + head * query_head_stride, rows, query_stride, n_queries, head_size, block_d)
            do = _head_rows(gradient + head * head_size, rows, n_heads * head_size, n_queries, head_size, block_d)
            log_sum = tl.load(log_sums + head * n_queries + rows, mask=rows < n_queries, other=0.0)
            product = tl.load(products + head * n_queries + rows, mask=rows < n_queries, other=0.0)
            scores = _dot(q, tl.trans(k), widens) * scale_to_base_2
            weights = tl.exp2(tl.where(seen, scores - log_sum[:, None], float("-inf")))
            dv += _dot(tl.trans(weights).to(do.dtype), do, widens)
            of_weights = _dot(do, tl.trans(v), widens)
            of_scores = weights * (of_weights - product[:, None])
            dk += _dot(tl.trans(of_scores).to(q.dtype), q, widens)
    _store_head_rows(of_keys, dk * scale, places, kv_head, n_keys, n_heads // group, head_size, block_d)
    _store_head_rows(of_values, dv, places, kv_head, n_keys, n_heads // group, head_size, block_d)
