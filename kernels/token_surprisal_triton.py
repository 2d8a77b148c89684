"""Surprisals of given tokens in Triton: sums over the logits, and the gradients of a block of them."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kompakt.kernels.dispatch import is_interpreted

_PROGRAMS = 512
"""Programs that fill a GPU: where there are fewer blocks of tokens, several share the vocabulary of one."""

_BLOCK_ROWS = 64
_BLOCK_COLUMNS = 128
_BLOCK_WIDTH = 64


def normalisers_triton(
    hidden: torch.Tensor, head: torch.Tensor, targets: torch.Tensor, bias: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ``ln sum exp`` of all logits of each token ``[N]``, and the logit of its target ``[N]``, in fp32.

    Each program reduces the logits of some tokens over a part of the vocabulary, in one pass.

    Args:
        hidden: ``[N, D]`` in fp32, bf16 or fp16, with any strides.
        head: ``[V, D]``, likewise.
        targets: ``[N]``; the logit of one outside ``[0, V)`` is NaN.
        bias: ``[V]`` or None.
    """
    n_rows, n_columns = len(hidden), len(head)
    wanted = hidden.new_full((n_rows,), torch.nan, dtype=torch.float32)
    if not n_rows:
        return wanted.clone(), wanted
    blocks = _block_sizes(hidden)
    n_row_blocks, n_column_blocks = triton.cdiv(n_rows, blocks["block_rows"]), triton.cdiv(n_columns, _BLOCK_COLUMNS)
    n_parts = max(1, min(n_column_blocks, triton.cdiv(_PROGRAMS, n_row_blocks)))
    columns_of_part = triton.cdiv(n_column_blocks, n_parts) * _BLOCK_COLUMNS
    n_parts = triton.cdiv(n_columns, columns_of_part)
    normalisers = torch.empty(n_parts, n_rows, dtype=torch.float32, device=hidden.device)
    with torch.cuda.device_of(hidden):  # type: ignore[no-untyped-call]
        _normalisers[(n_row_blocks, n_parts)](
            hidden,
            head,
            hidden if bias is None else bias,
            targets,
            normalisers,
            wanted,
            n_rows,
            n_columns,
            hidden.shape[1],
            columns_of_part,
            *hidden.stride(),
            *head.stride(),
            0 if bias is None else bias.stride(0),
            targets.stride(0),
            has_bias=bias is not None,
            widens=is_interpreted(),
            **blocks,
        )
    return normalisers.logsumexp(dim=0), wanted


def logit_gradients_triton(
    hidden: torch.Tensor,
    head: torch.Tensor,
    targets: torch.Tensor,
    bias: torch.Tensor | None,
    normalisers: torch.Tensor,
    of_surprisals: torch.Tensor,
    *,
    out: torch.Tensor,
) -> torch.Tensor:
    """Return the gradients of the logits ``[n, m]`` of some tokens and a part of the vocabulary.

    Args:
        hidden: ``[n, D]`` in fp32, bf16 or fp16, with any strides.
        head: ``[m, D]``, likewise.
        targets: ``[n]``, counted from the first row of this part of the head; those elsewhere are outside ``[0, m)``.
        bias: ``[m]`` or None.
        normalisers: ``ln sum exp`` of all logits of each token ``[n]``, fp32.
        of_surprisals: Gradient of each token's surprisal ``[n]``, fp32.
        out: Where to write them, ``[n, m]``, row behind row.
    """
    n_rows, n_columns = out.shape
    blocks = _block_sizes(hidden)
    grid = (triton.cdiv(n_rows, blocks["block_rows"]), triton.cdiv(n_columns, _BLOCK_COLUMNS))
    with torch.cuda.device_of(hidden):  # type: ignore[no-untyped-call]
        _logit_gradients[grid](
            hidden,
            head,
            hidden if bias is None else bias,
            targets,
            normalisers,
            of_surprisals,
            out,
            n_rows,
            n_columns,
            hidden.shape[1],
            *hidden.stride(),
            *head.stride(),
            0 if bias is None else bias.stride(0),
            targets.stride(0),
            has_bias=bias is not None,
            widens=is_interpreted(),
            **blocks,
        )
    return out


def _block_sizes(hidden: torch.Tensor) -> dict[str, int]:
    # products of blocks have at least 16 rows
    rows = min(_BLOCK_ROWS, max(16, triton.next_power_of_2(len(hidden))))
    return {"block_rows": rows, "block_columns": _BLOCK_COLUMNS, "block_width": _BLOCK_WIDTH}


@triton.jit  # type: ignore[untyped-decorator]
def _logits(
    hidden: tl.tensor,
    head: tl.tensor,
    bias: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    n_rows: tl.tensor,
    n_columns: tl.tensor,
    width: tl.tensor,
    hidden_row_stride: tl.tensor,
    hidden_stride: tl.tensor,
    head_row_stride: tl.tensor,
    head_stride: tl.tensor,
    bias_stride: tl.tensor,
    has_bias: tl.constexpr,
    widens: tl.constexpr,
    block_rows: tl.constexpr,
    block_columns: tl.constexpr,
    block_width: tl.constexpr,
) -> tl.tensor:
    """Return the logits of some rows and columns in fp32, -inf in columns that do not exist."""
    logits = tl.zeros([block_rows, block_columns], dtype=tl.float32)
    for start in range(0, width, block_width):
        features = start + tl.arange(0, block_width).to(tl.int64)
        states = tl.load(
            hidden + rows[:, None] * hidden_row_stride + features[None, :] * hidden_stride,
            mask=(rows < n_rows)[:, None] & (features < width)[None, :],
            other=0.0,
        )  # [block_rows, block_width]
        weights = tl.load(
            head + features[:, None] * head_stride + columns[None, :] * head_row_stride,
            mask=(features < width)[:, None] & (columns < n_columns)[None, :],
            other=0.0,
        )  # [block_width, block_columns]
        if widens:  # the interpreter multiplies no bf16
            states, weights = states.to(tl.float32), weights.to(tl.float32)
        # fp32 stays fp32: TF32 would keep three digits
        logits = tl.dot(states, weights, logits, input_precision="ieee")
    if has_bias:
        logits += tl.load(bias + columns * bias_stride, mask=columns < n_columns, other=0.0).to(tl.float32)[None, :]
    return tl.where((columns < n_columns)[None, :], logits, float("-inf"))


@triton.jit  # type: ignore[untyped-decorator]
def _normalisers(
    hidden: tl.tensor,
    head: tl.tensor,
    bias: tl.tensor,
    targets: tl.tensor,
    normalisers: tl.tensor,
    wanted: tl.tensor,
    n_rows: tl.tensor,
    n_columns: tl.tensor,
    width: tl.tensor,
    columns_of_part: tl.tensor,
    hidden_row_stride: tl.tensor,
    hidden_stride: tl.tensor,
    head_row_stride: tl.tensor,
    head_stride: tl.tensor,
    bias_stride: tl.tensor,
    target_stride: tl.tensor,
    has_bias: tl.constexpr,
    widens: tl.constexpr,
    block_rows: tl.constexpr,
    block_columns: tl.constexpr,
    block_width: tl.constexpr,
) -> None:
    rows = tl.program_id(0).to(tl.int64) * block_rows + tl.arange(0, block_rows)
    part = tl.program_id(1).to(tl.int64)
    first = part * columns_of_part
    end = tl.minimum(first + columns_of_part, n_columns)
    target = tl.load(targets + rows * target_stride, mask=rows < n_rows, other=-1)

    highest = tl.full([block_rows], float("-inf"), dtype=tl.float32)
    total = tl.zeros([block_rows], dtype=tl.float32)
    logit_of_target = tl.zeros([block_rows], dtype=tl.float32)
    for start in range(first, end, block_columns):
        columns = start + tl.arange(0, block_columns)
        logits = _logits(
            hidden,
            head,
            bias,
            rows,
            columns,
            n_rows,
            n_columns,
            width,
            hidden_row_stride,
            hidden_stride,
            head_row_stride,
            head_stride,
            bias_stride,
            has_bias,
            widens,
            block_rows,
            block_columns,
            block_width,
        )
        higher = tl.maximum(highest, tl.max(logits, axis=1))
        # from -inf, which a row of biases can hold alone, nothing can be taken
        shift = tl.where(higher == float("-inf"), 0.0, higher)
        total = total * tl.exp(highest - shift) + tl.sum(tl.exp(logits - shift[:, None]), axis=1)
        is_target = columns[None, :] == target[:, None]
        logit_of_target += tl.sum(tl.where(is_target, logits, 0.0), axis=1)
        highest = higher
    # where every bias is -inf, so is the highest logit
    normaliser = highest + tl.log(tl.where(total == 0.0, 1.0, total))
    tl.store(normalisers + part * n_rows + rows, normaliser, mask=rows < n_rows)
    # one part holds it; of a target that does not exist, none does
    tl.store(wanted + rows, logit_of_target, mask=(rows < n_rows) & (target >= first) & (target < end))


@triton.jit  # type: ignore[untyped-decorator]
def _logit_gradients(
    hidden: tl.tensor,
    head: tl.tensor,
    bias: tl.tensor,
    targets: tl.tensor,
    normalisers: tl.tensor,
    of_surprisals: tl.tensor,
    out: tl.tensor,
    n_rows: tl.tensor,
    n_columns: tl.tensor,
    width: tl.tensor,
    hidden_row_stride: tl.tensor,
    hidden_stride: tl.tensor,
    head_row_stride: tl.tensor,
    head_stride: tl.tensor,
    bias_stride: tl.tensor,
    target_stride: tl.tensor,
    has_bias: tl.constexpr,
    widens: tl.constexpr,
    block_rows: tl.constexpr,
    block_columns: tl.constexpr,
    block_width: tl.constexpr,
) -> None:
    rows = tl.program_id(0).to(tl.int64) * block_rows + tl.arange(0, block_rows)
    columns = tl.program_id(1).to(tl.int64) * block_columns + tl.arange(0, block_columns)
    logits = _logits(
        hidden,
        head,
        bias,
        rows,
        columns,
        n_rows,
        n_columns,
        width,
        hidden_row_stride,
        hidden_stride,
        head_row_stride,
        head_stride,
        bias_stride,
        has_bias,
        widens,
        block_rows,
        block_columns,
        block_width,
    )
    target = tl.load(targets + rows * target_stride, mask=rows < n_rows, other=-1)
    normaliser = tl.load(normalisers + rows, mask=rows < n_rows, other=0.0)
    of_surprisal = tl.load(of_surprisals + rows, mask=rows < n_rows, other=0.0)
    is_target = (columns[None, :] == target[:, None]).to(tl.float32)
    gradients = (tl.exp(logits - normaliser[:, None]) - is_target) * of_surprisal[:, None]
    inside = (rows < n_rows)[:, None] & (columns < n_columns)[None, :]
    places = out + rows[:, None] * n_columns + columns[None, :]
    tl.store(places, gradients.to(out.dtype.element_ty), mask=inside)
