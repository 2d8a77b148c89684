"""Selection of the best items whose lengths fit into a budget, for many rows at once."""

from __future__ import annotations

from typing import Final

import torch

from kompakt.kernels.dispatch import choose

_BLOCK: Final = 1024
"""Items that are tried together."""
_ROUNDS: Final = 16
"""How often they are, before what is left of them is tried one by one: real lengths seldom need so many."""


def select_within_budget(
    scores: torch.Tensor,
    lengths: torch.Tensor,
    budgets: torch.Tensor,
    *,
    protected: torch.Tensor | None = None,
    valid: torch.Tensor | None = None,
) -> torch.Tensor:
    """Keep items in order of their scores, passing over those that no longer fit.

    Equal scores go by place, the earlier first. A score of -inf is the lowest there is, but such an item is kept if
    it fits; NaN counts as -inf. Protected items are kept whatever the budget is, and take from it first: if they
    exceed it, nothing else is kept, not even items of length 0. No gradient passes.

    Args:
        scores: Floating point ``[B, N]``.
        lengths: Tokens of each item, whole numbers of at least 0, ``[B, N]``.
        budgets: Tokens that each row may keep, whole numbers, ``[B]``.
        protected: Items to keep, bool ``[B, N]``.
        valid: Which items there are, bool ``[B, N]``: rows of different lengths are filled up with others, which are
            never kept, take nothing and may hold anything.

    Returns:
        Which items are kept, bool ``[B, N]``.

    Raises:
        ValueError: If shapes or types do not fit, or a length of a valid item on the CPU is negative.
    """
    _check(scores, lengths, budgets, protected, valid)
    scores = scores.detach()
    everywhere = torch.ones_like(scores, dtype=torch.bool)
    valid = everywhere if valid is None else valid
    protected = ~everywhere if protected is None else protected & valid
    if not lengths.is_cuda and bool((valid & (lengths < 0)).any()):
        raise ValueError(f"lengths must be at least 0, got {int(lengths[valid].min())}")
    chosen = choose("select_within_budget", scores, lengths, budgets, protected, valid)
    if chosen == "reference":
        return select_within_budget_reference(scores, lengths, budgets, protected=protected, valid=valid)
    ranks = scores.masked_fill(scores.isnan(), -torch.inf)
    order = ranks.sort(dim=1, descending=True, stable=True).indices
    if chosen == "triton":
        from kompakt.kernels.budget_selection_triton import selected

        return selected(order, lengths, budgets, protected, valid)
    return _selected(order, lengths, budgets, protected, valid)


def select_within_budget_reference(
    scores: torch.Tensor,
    lengths: torch.Tensor,
    budgets: torch.Tensor,
    *,
    protected: torch.Tensor | None = None,
    valid: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return what ``select_within_budget`` returns, item by item."""
    n_rows, n_items = scores.shape
    is_valid = valid.tolist() if valid is not None else [[True] * n_items] * n_rows
    is_protected = protected.tolist() if protected is not None else [[False] * n_items] * n_rows
    found = torch.zeros(n_rows, n_items, dtype=torch.bool)
    for row, (row_scores, row_lengths, budget) in enumerate(
        zip(scores.tolist(), lengths.tolist(), budgets.tolist(), strict=True)
    ):
        items = [item for item in range(n_items) if is_valid[row][item]]
        kept = {item for item in items if is_protected[row][item]}
        used = sum(row_lengths[item] for item in kept)
        # NaN is not equal to itself
        ranks = [score if score == score else -torch.inf for score in row_scores]
        for item in sorted(items, key=lambda item: (-ranks[item], item)):
            if item not in kept and used + row_lengths[item] <= budget:
                kept.add(item)
                used += row_lengths[item]
        found[row, sorted(kept)] = True
    return found.to(scores.device)


def _selected(
    order: torch.Tensor,
    lengths: torch.Tensor,
    budgets: torch.Tensor,
    protected: torch.Tensor,
    valid: torch.Tensor,
) -> torch.Tensor:
    """Return which items are kept, from the best to the last."""
    lengths = lengths.long()
    left = budgets.long() - (lengths * protected).sum(dim=1)
    ordered, is_open, kept = (tensor.gather(1, order) for tensor in (lengths, valid & ~protected, protected))
    for block_lengths, block_open, block_kept in zip(
        *(torch.split(tensor, _BLOCK, dim=1) for tensor in (ordered, is_open, kept)), strict=True
    ):
        rest = block_open & (block_lengths <= left[:, None])
        left, rest = _in_rounds(block_lengths, rest, left, block_kept)
        left = _one_by_one(block_lengths, rest, left, block_kept)
    return torch.zeros_like(kept).scatter_(1, order, kept)


def _in_rounds(
    lengths: torch.Tensor, rest: torch.Tensor, left: torch.Tensor, kept: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keep what fits up to the first item whose total does not, and try again what may still fit.

    That item, and all that are longer than what is left, will never fit.

    Returns:
        The budgets that are left ``[B]``, and which items are still to be tried ``[B, N]``.
    """
    for _ in range(_ROUNDS):
        if not rest.any():
            break
        fits = (lengths * rest).cumsum(dim=1) <= left[:, None]
        taken = rest & fits
        kept |= taken
        left = left - (lengths * taken).sum(dim=1)
        rest = rest & ~fits & (lengths <= left[:, None])
    return left, rest


def _one_by_one(lengths: torch.Tensor, rest: torch.Tensor, left: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """Keep each item that fits, and return the budgets that are left ``[B]``."""
    for item in rest.any(dim=0).nonzero()[:, 0].tolist():
        taken = rest[:, item] & (lengths[:, item] <= left)
        kept[:, item] |= taken
        left = left - lengths[:, item] * taken
    return left


def _check(
    scores: torch.Tensor,
    lengths: torch.Tensor,
    budgets: torch.Tensor,
    protected: torch.Tensor | None,
    valid: torch.Tensor | None,
) -> None:
    if scores.dim() != 2 or not scores.is_floating_point():
        raise ValueError(f"scores must be floating point [B, N], got {scores.dtype} {list(scores.shape)}")
    for name, tensor, shape in (("lengths", lengths, scores.shape), ("budgets", budgets, scores.shape[:1])):
        if tensor.shape != shape or tensor.dtype not in (torch.int64, torch.int32):
            # sums of floats depend on their order
            raise ValueError(f"{name} must be int64 or int32 {list(shape)}, got {tensor.dtype} {list(tensor.shape)}")
    for name, mask in (("protected", protected), ("valid", valid)):
        if mask is not None and (mask.shape != scores.shape or mask.dtype != torch.bool):
            raise ValueError(f"{name} must be bool {list(scores.shape)}, got {mask.dtype} {list(mask.shape)}")
