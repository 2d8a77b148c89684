"""Selection: a hard ceiling, and never less for more."""

from contextlib import suppress

from hypothesis import given
from hypothesis import strategies as st

from kompakt.compressor.budget import Candidates, closures, fill, select
from kompakt.compressor.errors import BudgetError
from kompakt.compressor.types import Kind
from kompakt.compressor.units.unit import Unit


@st.composite
def candidates(draw):
    size = draw(st.integers(1, 25))
    parents = [draw(st.none() | st.integers(0, index - 1)) if index else None for index in range(size)]
    requires = [tuple(draw(st.lists(st.integers(0, size - 1), max_size=2))) for _ in range(size)]
    units = [
        Unit(0, n, n + 1, Kind.PROSE, "x", parent=parent, requires=needs)
        for n, (parent, needs) in enumerate(zip(parents, requires, strict=True))
    ]
    needs = closures(units)
    protected = draw(st.lists(st.integers(0, size - 1), max_size=2))
    return units, Candidates(
        order=draw(st.permutations(range(size))),
        costs=draw(st.lists(st.floats(0, 40), min_size=size, max_size=size)),
        needs=needs,
        protected=frozenset().union(*(needs[index] for index in protected)),
    )


def cost(found, kept):
    return sum(found.costs[index] for index in kept)


@given(candidates())
def test_closures_are_complete_and_minimal(drawn):
    units, found = drawn
    for index in range(len(units)):
        reached, open_links = set(), [index]
        while open_links:
            link = open_links.pop()
            if link not in reached:
                reached.add(link)
                parent = units[link].parent
                open_links += [*units[link].requires, *([] if parent is None else [parent])]
        assert found.needs[index] == reached


def test_closures_of_cycles_and_of_the_parents_of_later_units():
    def unit(parent=None, requires=()):
        return Unit(0, 0, 1, Kind.PROSE, "x", parent=parent, requires=requires)

    assert closures([unit(requires=(1,)), unit(requires=(0,))]) == [{0, 1}, {0, 1}]
    assert closures([unit(requires=(2,)), unit(), unit(parent=1)]) == [{0, 1, 2}, {1}, {1, 2}]


@given(candidates(), st.floats(0, 500), st.floats(0, 500))
def test_more_budget_never_fills_less(drawn, one, other):
    _, found = drawn
    small, large = sorted([one, other])
    kept = fill(found, small)
    assert found.protected <= kept
    assert all(found.needs[index] <= kept for index in kept)
    assert cost(found, kept) <= max(small, cost(found, found.protected)) + 1e-6
    assert cost(found, kept) <= cost(found, fill(found, large)) + 1e-6


@given(candidates(), st.integers(1, 400), st.floats(0.9, 1.3))
def test_the_ceiling_holds_by_the_exact_count(drawn, max_tokens, bias):
    _, found = drawn

    def count(kept):
        return round(cost(found, kept) * bias) + len(kept) % 3

    needed = count(found.protected) if found.protected else 0
    kept = None
    with suppress(BudgetError):
        kept = select(found, max_tokens, count)
    if kept is None:
        assert needed > max_tokens
        return
    assert found.protected <= kept
    assert count(kept) <= max_tokens or not kept


@given(st.lists(st.integers(1, 60), min_size=1, max_size=300), st.data())
def test_a_larger_ceiling_never_keeps_less(costs, data):
    size = len(costs)
    found = Candidates(range(size), costs, [frozenset({index}) for index in range(size)], frozenset())
    ceilings = sorted(data.draw(st.lists(st.integers(1, sum(costs) + 5), min_size=2, max_size=6)))
    kept = [select(found, ceiling, lambda kept: round(1.03 * cost(found, kept))) for ceiling in ceilings]
    used = [cost(found, choice) for choice in kept]
    assert used == sorted(used)


def test_nearly_all_of_the_budget_is_used():
    size = 10_000
    found = Candidates(range(size), [1.0] * size, [frozenset({index}) for index in range(size)], frozenset())
    for ceiling in (1, 7, 499, 501, 1003, 4097, 9999):
        assert 0.995 * ceiling - 1 <= len(select(found, ceiling, len)) <= ceiling
        assert 0.97 * ceiling - 1 <= len(select(found, ceiling, lambda kept: round(len(kept) * 1.02)))
