"""Selection under a budget: the ceiling is hard, the budget is used, and more budget never keeps less."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kompakt.compressor.errors import BudgetError
from kompakt.compressor.units.unit import Unit

_LONG = 2000
_FINE_STEPS = 500
"""Below twice as many tokens every nominal budget is tried; above, they are 0.1 % to 0.2 % apart."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """The units of a request as the selection sees them.

    Args:
        order: Indices of the units, best first. It must not depend on the budget.
        costs: Tokens that each unit adds, by index.
        needs: For each unit, the indices that must stand with it, itself included.
        protected: Indices that must be kept.
    """

    order: Sequence[int]
    costs: Sequence[float]
    needs: Sequence[frozenset[int]]
    protected: frozenset[int]


def closures(units: Sequence[Unit]) -> list[frozenset[int]]:
    """Return for each unit the units that must stand with it: parents and whatever it requires, transitively."""
    done: list[frozenset[int]] = []
    for index, unit in enumerate(units):
        if unit.parent is None and not unit.requires:
            done.append(frozenset((index,)))
            continue
        found = {index}
        links = _links(unit)
        while links:
            link = links.pop()
            if link in found:
                continue
            if link < index:
                found |= done[link]
            else:
                found.add(link)
                links.extend(_links(units[link]))
        done.append(frozenset(found))
    return done


def _links(unit: Unit) -> list[int]:
    return [*unit.requires] if unit.parent is None else [*unit.requires, unit.parent]


def fill(candidates: Candidates, budget: float) -> frozenset[int]:
    """Keep units in order of rank, passing over those that no longer fit.

    A larger budget never keeps less: where two budgets first differ, the smaller passed over a unit because its
    total would have exceeded that budget, and the larger has kept it.
    """
    kept = set(candidates.protected)
    cost_of = candidates.costs.__getitem__
    used = sum(map(cost_of, kept))
    for index in candidates.order:
        if index in kept:
            continue
        needed = candidates.needs[index]
        added = needed if len(needed) == 1 else needed - kept
        cost = sum(map(cost_of, added))
        if used + cost <= budget:
            kept |= added
            used += cost
    return frozenset(kept)


def select(candidates: Candidates, max_tokens: int, count: Callable[[frozenset[int]], int]) -> frozenset[int]:
    """Choose what to keep so that the counted result is at most ``max_tokens``.

    Costs are estimates, since tokens can merge across the seams of units. The result is therefore counted, and if
    it is over, the next smaller nominal budget is tried.

    Args:
        candidates: The units.
        max_tokens: The ceiling.
        count: Returns the exact number of tokens of a selection as it would be written.

    Raises:
        BudgetError: If the protected units alone exceed the ceiling.
    """
    nominal = _on_grid(max_tokens)
    while nominal > 0:
        kept = fill(candidates, nominal)
        excess = count(kept) - max_tokens if kept else 0
        if excess <= 0:
            return kept
        if kept == candidates.protected:
            break
        # a long text is counted twice rather than six times; a short one by small steps, so that results nest
        nominal = _on_grid(nominal - max(1, excess if nominal > _LONG else excess // 4))
    protected_tokens = count(candidates.protected) if candidates.protected else 0
    if protected_tokens > max_tokens:
        raise BudgetError(
            f"the protected content needs {protected_tokens} tokens, the budget is {max_tokens}; "
            f"raise it to at least {protected_tokens} or protect less"
        )
    return candidates.protected


def _on_grid(nominal: int) -> int:
    """Round down to a grid that is the same for every ceiling, so that a larger one never ends on a smaller value."""
    step = 1 << max(0, (nominal // _FINE_STEPS).bit_length() - 1)
    return nominal // step * step
