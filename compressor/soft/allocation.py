"""How coarsely each piece of a context is compressed, so that all of them together meet a budget."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import ceil, log
from typing import Final

_GOLDEN: Final = 0.6180339887498949


def allocate(costs: Sequence[Sequence[int]], max_positions: int) -> list[int] | None:
    """Choose a level for each piece: the finest ones that the budget holds.

    All pieces begin at the finest level. One after another they go to the next coarser one until the budget is met,
    in an order that spreads those at the same level evenly over the context. So a larger budget never costs less.

    Args:
        costs: For each piece, its positions at each level, from the finest to the coarsest; never rising.
        max_positions: The budget.

    Returns:
        The level of each piece; None if even the coarsest levels exceed the budget.
    """
    levels = [0] * len(costs)
    total = sum(options[0] for options in costs)
    order = sorted(range(len(costs)), key=lambda piece: (piece * _GOLDEN) % 1.0)
    for level in range(1, max(map(len, costs), default=1)):
        for piece in order:
            if total <= max_positions:
                return levels
            total -= costs[piece][level - 1] - costs[piece][level]
            levels[piece] = level
    return levels if total <= max_positions else None


def interpolated(rates: Sequence[float]) -> tuple[float, ...]:
    """Return rates with others between them, no two more than a tenth apart: for methods that can have any rate."""
    steps = [
        fine + (coarse - fine) * step / n_steps
        for fine, coarse in pairwise(rates)
        for n_steps in [ceil(log(coarse / fine) / log(1.1))]
        for step in range(n_steps)
    ]
    return (*(round(rate, 3) for rate in steps), *rates[-1:])


def windows(n_tokens: int, size: int) -> list[int]:
    """Return the lengths of windows of ``size`` tokens; the last may be shorter."""
    whole, rest = divmod(n_tokens, size)
    return [size] * whole + ([rest] if rest else [])


def balanced(n_tokens: int, most: int) -> list[int]:
    """Return the lengths of as few segments of at most ``most`` tokens as there can be, nearly equal ones."""
    n_segments = -(-n_tokens // most)
    return windows(n_tokens, -(-n_tokens // n_segments)) if n_segments else []
