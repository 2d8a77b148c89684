"""Choosing chunks under a cost: against all ordered subsets, and what must hold for any input."""

from itertools import combinations, permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kompakt import BudgetError, ConfigError, InputError
from kompakt.retrieval.corag import CostConstrainedSearch, _Problem, _Search


@st.composite
def problems(draw, max_size, relevances):
    """Relevances, cosines of random vectors, tokens and a budget."""
    n = draw(st.integers(1, max_size))
    relevance = draw(st.lists(relevances, min_size=n, max_size=n))
    n_tokens = draw(st.lists(st.integers(0, 60), min_size=n, max_size=n))
    vectors = np.random.default_rng(draw(st.integers(0, 2**16))).normal(size=(n, draw(st.integers(1, 4))))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.array(relevance), vectors @ vectors.T, n_tokens, draw(st.integers(1, 120))


def value(search, chosen, relevance, similarity, n_tokens, max_tokens):
    """The value of a sequence as the class defines it, in plain Python."""
    fitting = [i for i in range(len(n_tokens)) if n_tokens[i] <= max_tokens and relevance[i] > 0]
    most, left = 0.0, max_tokens
    for i in sorted(fitting, key=lambda i: n_tokens[i] / relevance[i]):
        share = min(1.0, left / n_tokens[i]) if n_tokens[i] else 1.0
        most += share * relevance[i]
        left -= share * n_tokens[i]
    benefit = sum(relevance[i] for i in chosen)
    for position, i in enumerate(chosen):
        benefit -= search.redundancy * sum(max(0.0, similarity[i][j]) for j in chosen[:position])
    return benefit / (most or 1.0) - search.cost_weight * sum(n_tokens[i] for i in chosen) / max_tokens


def best_of_all(search, relevance, similarity, n_tokens, max_tokens):
    """The highest value over all ordered subsets within the budget; None if there is none."""
    values = [
        value(search, chosen, relevance, similarity, n_tokens, max_tokens)
        for size in range(1, len(n_tokens) + 1)
        for chosen in permutations(range(len(n_tokens)), size)
        if sum(n_tokens[i] for i in chosen) <= max_tokens
    ]
    return max(values, default=None)


@given(
    problem=problems(5, st.integers(-50, 100).map(lambda percent: percent / 100)),
    cost_weight=st.sampled_from([0.0, 0.1, 1.0]),
    mu=st.sampled_from([0.0, 0.5, 2.0]),
)
def test_finds_the_best_of_all_ordered_subsets(problem, cost_weight, mu):
    search = CostConstrainedSearch(iterations=100, patience=100, cost_weight=cost_weight, redundancy=mu)
    relevance, similarity, n_tokens, max_tokens = problem
    found = search.select(relevance, similarity, n_tokens, max_tokens=max_tokens)
    best = best_of_all(search, relevance, similarity, n_tokens, max_tokens)
    if best is None:
        assert found == ()
    else:
        assert value(search, found, relevance, similarity, n_tokens, max_tokens) == pytest.approx(best, abs=1e-9)


def test_given_time_every_set_within_the_budget_is_tried_once():
    options = CostConstrainedSearch(iterations=200, patience=200)
    n_tokens = np.array([10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0])
    search = _Search(_Problem(np.ones(7), np.eye(7), n_tokens, 110, options), options)
    search.run()
    sets = (frozenset(found) for size in range(1, 8) for found in combinations(range(7), size))
    assert search._tried == {found for found in sets if n_tokens[list(found)].sum() <= 110}


@pytest.mark.parametrize("seed", range(20))
def test_default_search_is_within_one_percent_of_the_best_set_of_ten(seed):
    random = np.random.default_rng(seed)
    vectors = np.abs(random.normal(size=(10, 6)))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    relevance, n_tokens = random.random(10), random.integers(20, 200, size=10).tolist()
    search, max_tokens = CostConstrainedSearch(redundancy=0.2), 400
    similarity = vectors @ vectors.T
    sets = ([i for i in range(10) if mask >> i & 1] for mask in range(1, 1 << 10))
    best = max(
        value(search, chosen, relevance, similarity, n_tokens, max_tokens)
        for chosen in sets
        if sum(n_tokens[i] for i in chosen) <= max_tokens
    )
    found = search.select(relevance, similarity, n_tokens, max_tokens=max_tokens)
    assert value(search, found, relevance, similarity, n_tokens, max_tokens) >= 0.99 * best


@given(problem=problems(30, st.floats(-3, 1e3)), seed=st.integers(0, 3))
def test_is_within_the_budget_and_empty_only_if_nothing_fits(problem, seed):
    relevance, similarity, n_tokens, max_tokens = problem
    search = CostConstrainedSearch(iterations=12, seed=seed)
    found = search.select(relevance, similarity, n_tokens, max_tokens=max_tokens)
    assert len(set(found)) == len(found)
    assert sum(n_tokens[i] for i in found) <= max_tokens
    assert bool(found) == (min(n_tokens) <= max_tokens)
    assert found == search.select(relevance, similarity, n_tokens, max_tokens=max_tokens)


def greedy(relevance, similarity, n_tokens, max_tokens, search, *, by_token):
    """Greedy selection by the gain in value, or by that gain per token, in plain Python."""
    chosen, of = [], (relevance, similarity, n_tokens, max_tokens)
    while True:
        now = value(search, chosen, *of)
        gains = {
            i: (value(search, [*chosen, i], *of) - now) / (n_tokens[i] if by_token else 1)
            for i in range(len(n_tokens))
            if i not in chosen and sum(n_tokens[j] for j in [*chosen, i]) <= max_tokens
        }
        if not gains or max(gains.values()) <= 0:
            return chosen
        chosen.append(max(gains, key=gains.get))


@pytest.mark.parametrize("by_token", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_is_never_worse_than_greedy_selection(seed, by_token):
    random = np.random.default_rng(seed)
    vectors = random.normal(size=(18, 8))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    problem = (random.random(18), vectors @ vectors.T, random.integers(10, 90, size=18).tolist(), 250)
    search = CostConstrainedSearch(iterations=1)
    found = search.select(*problem[:3], max_tokens=250)
    chosen = greedy(*problem, search, by_token=by_token)
    assert value(search, found, *problem) >= value(search, chosen, *problem) - 1e-9


def test_a_repeat_is_left_out_although_it_fits():
    relevance = np.array([0.9, 0.88, 0.5])
    similarity = np.array([[1, 0.99, 0.1], [0.99, 1, 0.1], [0.1, 0.1, 1]])
    search = CostConstrainedSearch(redundancy=1.0)
    assert search.select(relevance, similarity, [50, 50, 50], max_tokens=200) == (0, 2)
    assert search.select(relevance, similarity, [50, 50, 50], max_tokens=100) == (0, 2)
    everything = CostConstrainedSearch(redundancy=0.0).select(relevance, similarity, [50] * 3, max_tokens=200)
    assert everything == (0, 1, 2)


def test_the_budget_need_not_be_used_up():
    relevance = np.array([0.9, 0.02])
    assert CostConstrainedSearch().select(relevance, np.eye(2), [10, 90], max_tokens=100) == (0,)
    assert CostConstrainedSearch(cost_weight=0.0).select(relevance, np.eye(2), [10, 90], max_tokens=100) == (0, 1)


def test_two_short_chunks_beat_the_one_that_greedy_takes():
    relevance = np.array([1.0, 0.9, 0.9])
    assert set(CostConstrainedSearch().select(relevance, np.eye(3), [100, 50, 50], max_tokens=100)) == {1, 2}


def test_a_chunk_that_fits_is_chosen_though_twenty_longer_ones_are_more_relevant():
    relevance = np.array([0.9] * 25 + [0.1])
    assert CostConstrainedSearch().select(relevance, np.eye(26), [50] * 25 + [5], max_tokens=10) == (25,)


def test_nothing_comes_of_nothing():
    assert CostConstrainedSearch().select(np.zeros(0), np.zeros((0, 0)), [], max_tokens=10) == ()


@pytest.mark.parametrize(
    ("option", "bad"),
    [("iterations", 0), ("leaves", 0), ("patience", 0), ("exploration", -1.0), ("cost_weight", float("nan")),
     ("redundancy", float("inf")), ("seed", -1)],
)  # fmt: skip
def test_bad_options_are_named(option, bad):
    with pytest.raises(ConfigError, match=option):
        CostConstrainedSearch(**{option: bad})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"relevance": np.ones(3)}, "shapes"),
        ({"similarity": np.ones((2, 3))}, "shapes"),
        ({"relevance": np.array([1, np.nan])}, "relevance must be finite"),
        ({"similarity": np.array([[1, 0.5], [0.1, 1]])}, "symmetric"),
        ({"n_tokens": [1, -2]}, "negative, got -2"),
    ],
)
def test_bad_input_is_named(change, message):
    given_ = {"relevance": np.ones(2), "similarity": np.eye(2), "n_tokens": [1, 2]} | change
    with pytest.raises(InputError, match=message):
        CostConstrainedSearch().select(**given_, max_tokens=5)


@pytest.mark.parametrize("max_tokens", [0, -1, 2.5, True])
def test_bad_budget_is_named(max_tokens):
    with pytest.raises(BudgetError, match="max_tokens"):
        CostConstrainedSearch().select(np.ones(1), np.eye(1), [1], max_tokens=max_tokens)
