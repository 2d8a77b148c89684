"""Triton kernel that fills the budget of each row from its best item to its last."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

_ITEMS = 1024
"""Items that are tried together, at most."""


def selected(
    order: torch.Tensor,
    lengths: torch.Tensor,
    budgets: torch.Tensor,
    protected: torch.Tensor,
    valid: torch.Tensor,
) -> torch.Tensor:
    """Return which items are kept, bool ``[B, N]``; see ``select_within_budget``.

    Args:
        order: Items from the best to the last, ``[B, N]``.
        lengths: Tokens of each item, ``[B, N]``.
        budgets: Tokens that each row may keep, ``[B]``.
        protected: Items to keep, ``[B, N]``, all valid.
        valid: Which items there are, ``[B, N]``.
    """
    order, lengths, budgets = order.contiguous(), lengths.contiguous(), budgets.contiguous()
    n_rows, n_items = order.shape
    kept = torch.empty(n_rows, n_items, dtype=torch.bool, device=order.device)
    if kept.numel():
        block = min(_ITEMS, max(2, triton.next_power_of_2(n_items)))
        with torch.cuda.device_of(order):  # type: ignore[no-untyped-call]
            _select_kernel[(n_rows,)](
                order, lengths, budgets, protected.contiguous(), valid.contiguous(), kept, n_items, block=block
            )
    return kept


@triton.jit  # type: ignore[untyped-decorator]
def _select_kernel(
    order_ptr: tl.tensor,
    lengths_ptr: tl.tensor,
    budgets_ptr: tl.tensor,
    protected_ptr: tl.tensor,
    valid_ptr: tl.tensor,
    kept_ptr: tl.tensor,
    n_items: tl.tensor,
    block: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    start = row * n_items
    left = tl.load(budgets_ptr + row).to(tl.int64)
    for first in range(0, n_items, block):
        items = first + tl.arange(0, block)
        inside = items < n_items
        protected = tl.load(protected_ptr + start + items, mask=inside, other=0).to(tl.int1)
        lengths = tl.load(lengths_ptr + start + items, mask=inside, other=0).to(tl.int64)
        left -= tl.sum(tl.where(protected, lengths, 0), axis=0)
    for first in range(0, n_items, block):
        places = first + tl.arange(0, block)
        inside = places < n_items
        items = tl.load(order_ptr + start + places, mask=inside, other=0)
        lengths = tl.load(lengths_ptr + start + items, mask=inside, other=0).to(tl.int64)
        protected = tl.load(protected_ptr + start + items, mask=inside, other=0).to(tl.int1)
        valid = tl.load(valid_ptr + start + items, mask=inside, other=0).to(tl.int1)
        kept = protected.to(tl.int32)
        rest = (inside & valid & (kept == 0) & (lengths <= left)).to(tl.int32)
        # those up to the first whose total does not fit; it, and all longer than what is left, never will
        while tl.sum(rest, axis=0) > 0:
            totals = tl.cumsum(tl.where(rest == 1, lengths, 0), axis=0)
            taken = tl.where(totals <= left, rest, 0)
            kept += taken
            left -= tl.sum(tl.where(taken == 1, lengths, 0), axis=0)
            rest = tl.where((taken == 0) & (lengths <= left), rest, 0)
        tl.store(kept_ptr + start + items, kept.to(tl.int1), mask=inside)
