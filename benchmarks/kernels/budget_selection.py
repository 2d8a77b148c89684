"""Selection of sentences, tokens and chunks under a budget."""

from collections.abc import Iterator
from functools import partial

import torch
from cases import Case

from kompakt.kernels.budget_selection import select_within_budget, select_within_budget_reference


def cases(device: torch.device) -> Iterator[Case]:
    """A quarter of the tokens of one long text, of a batch of texts, and of many short ones."""
    shapes = (
        ((1, 20_000), (64, 1_000), (1024, 200)) if device.type == "cuda" else ((1, 20_000), (16, 1_000), (128, 100))
    )
    for n_rows, n_items in shapes:
        generator = torch.Generator().manual_seed(0)
        scores = torch.randn(n_rows, n_items, generator=generator).to(device)
        # as sentences are: 20 tokens in the middle, some five times as many
        lengths = (torch.randn(n_rows, n_items, generator=generator) * 0.8 + 3).exp().long().add(1).to(device)
        data = scores, lengths, lengths.sum(dim=1) // 4
        yield Case(
            operation="select_within_budget",
            size=f"[{n_rows}, {n_items}]",
            dtype=scores.dtype,
            call=partial(_kept, select_within_budget, *data),
            reference=partial(_kept, select_within_budget_reference, *data),
            tolerance=0.0,
            flops=0,
            n_bytes=n_rows * (n_items * (scores.itemsize + lengths.itemsize + 1) + 8),
        )


def _kept(function, *data):
    """Return what is kept as numbers, which can be compared."""
    return function(*data).float()
