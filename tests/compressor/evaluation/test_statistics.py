"""Intervals and bounds, against loops that are obviously right and against what they promise."""

import math
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from kompakt.compressor.errors import MissingExtraError
from kompakt.compressor.evaluation.statistics import (
    N_RESAMPLES,
    estimate,
    loss_bound,
    mean_of_means,
    resampled_means,
)

values = st.lists(st.floats(-5, 5, allow_subnormal=False), min_size=1, max_size=9)
few = settings(max_examples=15)


def names(n):
    return [str(index) for index in range(n)]


def means_by_hand(numbers, groups, seed):
    """The means of resamples, put together group by group."""
    distinct = list(dict.fromkeys(groups))
    members = [[number for number, group in zip(numbers, groups, strict=True) if group == name] for name in distinct]
    chosen = np.random.default_rng([seed, len(distinct)]).integers(len(distinct), size=(N_RESAMPLES, len(distinct)))
    means = []
    for row in chosen.tolist():
        drawn = [number for index in row for number in members[index]]
        means.append(sum(drawn) / len(drawn))
    return means


@given(numbers=values, data=st.data(), seed=st.integers(0, 3))
@few
def test_resamples_are_those_of_a_loop(numbers, data, seed):
    groups = data.draw(st.lists(st.sampled_from("abcd"), min_size=len(numbers), max_size=len(numbers)))
    expected = means_by_hand(numbers, groups, seed)
    assert resampled_means(numbers, groups, seed=seed) == pytest.approx(np.array(expected), abs=1e-9)
    found = estimate(numbers, groups, seed=seed)
    assert found.mean == pytest.approx(sum(numbers) / len(numbers), abs=1e-9)
    ordered = sorted(expected)
    # the percentiles lie between the values next to them
    for bound, share in ((found.low, 0.025), (found.high, 0.975)):
        at = share * (N_RESAMPLES - 1)
        assert ordered[math.floor(at)] - 1e-9 <= bound <= ordered[math.ceil(at)] + 1e-9
    assert found.n == len(numbers)


@given(numbers=values, times=st.integers(2, 4), seed=st.integers(0, 3))
@few
def test_repeating_what_shares_a_context_adds_no_certainty(numbers, times, seed):
    once = estimate(numbers, names(len(numbers)), seed=seed)
    often = estimate(numbers * times, names(len(numbers)) * times, seed=seed)
    assert (often.mean, often.low, often.high) == pytest.approx((once.mean, once.low, once.high), abs=1e-9)
    assert often.n == times * once.n


def test_groups_widen_the_interval():
    numbers = [0.0, 1.0] * 50
    alone = estimate(numbers, names(100), seed=0)
    # ten groups that are all alike within
    together = estimate(sorted(numbers), [str(index // 10) for index in range(100)], seed=0)
    assert together.high - together.low > 2 * (alone.high - alone.low)


def test_the_names_of_groups_do_not_matter_and_the_seed_does():
    numbers = [0.1, 0.9, 0.4, 0.7, 0.2]
    assert estimate(numbers, list("abcde"), seed=1) == estimate(numbers, list("zyxwv"), seed=1)
    assert estimate(numbers, list("abcde"), seed=1) != estimate(numbers, list("abcde"), seed=2)


def test_nothing_varies_where_all_is_alike():
    assert (estimate([0.5] * 8, names(8), seed=0).low, estimate([0.5] * 8, names(8), seed=0).high) == (0.5, 0.5)
    single = estimate([0.25, 0.75], ["a", "a"], seed=0)
    assert (single.mean, single.low, single.high, single.n) == (0.5, 0.5, 0.5, 2)


def test_the_interval_holds_the_mean_as_often_as_it_says():
    random = np.random.default_rng(7)
    hits = 0
    for _ in range(400):
        found = estimate(random.exponential(size=80).tolist(), names(80), seed=0)
        hits += found.low <= 1.0 <= found.high
    # 95 % less what the bootstrap loses on a skewed sample of this size
    assert 0.90 <= hits / 400 <= 0.975


@given(samples=st.lists(values, min_size=1, max_size=3), seed=st.integers(0, 3))
@few
def test_mean_of_means_is_that_of_a_loop(samples, seed):
    found = mean_of_means([(numbers, names(len(numbers))) for numbers in samples], seed=seed)
    by_task = [means_by_hand(numbers, names(len(numbers)), seed + at) for at, numbers in enumerate(samples)]
    means = [sum(drawn) / len(drawn) for drawn in zip(*by_task, strict=True)]
    assert found.mean == pytest.approx(sum(sum(one) / len(one) for one in samples) / len(samples), abs=1e-9)
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(means, (2.5, 97.5))), abs=1e-9)
    assert found.n == sum(map(len, samples))


def test_tasks_count_alike_and_are_drawn_each_on_its_own():
    small, large = [1.0] * 3, [0.0] * 300
    assert mean_of_means([(small, names(3)), (large, names(300))], seed=0).mean == 0.5
    numbers = [0.0, 1.0] * 30
    one = estimate(numbers, names(60), seed=0)
    four = mean_of_means([(numbers, names(60))] * 4, seed=0)
    # the mean of four independent means is half as uncertain
    assert (four.high - four.low) / (one.high - one.low) == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.99])
@pytest.mark.parametrize(("n_lost", "n"), [(0, 1), (0, 59), (1, 59), (3, 20), (19, 20), (7, 200)])
def test_the_bound_on_a_coin_is_exact(n_lost, n, confidence):
    losses = [1.0] * n_lost + [0.0] * (n - n_lost)
    bound = loss_bound(losses, names(n), confidence=confidence, seed=0)
    at_most = sum(math.comb(n, k) * bound**k * (1 - bound) ** (n - k) for k in range(n_lost + 1))
    assert at_most == pytest.approx(1 - confidence)
    twin = binomtest(n_lost, n, alternative="less").proportion_ci(confidence, method="exact")
    assert bound == pytest.approx(twin.high)


@pytest.mark.parametrize("share", [0.01, 0.05, 0.1, 0.3, 0.7, 0.97])
def test_the_bound_on_a_coin_fails_no_more_often_than_it_says(share):
    n = 40
    bounds = [loss_bound([1.0] * k + [0.0] * (n - k), names(n), confidence=0.9, seed=0) for k in range(n + 1)]
    held = sum(
        math.comb(n, k) * share**k * (1 - share) ** (n - k) for k, bound in enumerate(bounds) if bound >= share
    )
    assert held >= 0.9
    assert bounds == sorted(bounds)
    assert bounds[-1] == 1.0


def test_the_rule_of_three():
    assert loss_bound([0.0] * 59, names(59), confidence=0.95, seed=0) < 0.05
    assert loss_bound([0.0] * 58, names(58), confidence=0.95, seed=0) > 0.05


def test_only_groups_count_as_independent():
    grouped = [str(index // 10) for index in range(100)]
    ten = loss_bound([0.0] * 10, names(10), confidence=0.95, seed=0)
    assert loss_bound([0.0] * 100, grouped, confidence=0.95, seed=0) == pytest.approx(ten)
    assert ten == pytest.approx(1 - 0.05**0.1)
    lost = [1.0] * 10 + [0.0] * 90
    one_of_ten = loss_bound([1.0] + [0.0] * 9, names(10), confidence=0.95, seed=0)
    assert loss_bound(lost, grouped, confidence=0.95, seed=0) >= one_of_ten - 1e-12


def test_what_compression_helped_does_not_make_up_for_what_it_lost():
    ten = loss_bound([0.0] * 10, names(10), confidence=0.95, seed=0)
    assert loss_bound([-1.0] * 10, names(10), confidence=0.95, seed=0) == pytest.approx(ten)
    two = loss_bound([1.0] * 2 + [0.0] * 8, names(10), confidence=0.95, seed=0)
    assert loss_bound([1.0] * 2 + [-1.0] * 8, names(10), confidence=0.95, seed=0) == pytest.approx(two)


@given(losses=st.lists(st.floats(-1, 1, allow_subnormal=False), min_size=2, max_size=9), data=st.data())
@few
def test_other_losses_have_the_larger_of_both_bounds(losses, data):
    groups = data.draw(st.lists(st.sampled_from("abc"), min_size=len(losses), max_size=len(losses)))
    losses = [0.5, *losses[1:]]
    found = loss_bound(losses, groups, confidence=0.9, seed=3)
    by_hand = float(np.percentile(means_by_hand(losses, groups, 3), 90))
    n = len(set(groups))
    n_lost = n * sum(max(0.0, loss) for loss in losses) / len(losses)
    assert found >= by_hand - 1e-9
    if found > by_hand + 1e-9:
        # between the bounds for the whole numbers on both sides
        low, high = (
            binomtest(k, n, alternative="less").proportion_ci(0.9, method="exact").high
            for k in (math.floor(n_lost), math.ceil(n_lost))
        )
        assert low - 1e-9 <= found <= high + 1e-9


def test_unequal_groups_have_the_bound_of_the_bootstrap():
    losses = [0.0] * 90 + [1.0] * 5 + [0.0] * 5
    groups = ["large"] * 90 + names(10)
    found = loss_bound(losses, groups, confidence=0.95, seed=0)
    assert found == pytest.approx(float(np.percentile(means_by_hand(losses, groups, 0), 95)))
    one_of_eleven = binomtest(1, 11, alternative="less").proportion_ci(0.95, method="exact").high
    assert found > one_of_eleven


def test_losses_without_limits_have_the_bootstrap_alone():
    losses = [0.0, 0.0, 1.0, 0.0, 3.5, -2.0]
    for numbers in (losses, [0.0] * 6, [1.0, 0.0] * 3):
        by_hand = float(np.percentile(means_by_hand(numbers, names(6), 5), 95))
        found = loss_bound(numbers, names(6), confidence=0.95, seed=5, is_share=False)
        assert found == pytest.approx(by_hand, abs=1e-9)


@pytest.mark.parametrize(
    "draw",
    [
        lambda random, size: [float(random.random() < 0.15)] * size,
        lambda random, size: random.beta(0.2, 1.0, size).tolist(),
        lambda random, size: (random.random(size) < random.beta(0.3, 1.7)).astype(float).tolist(),
    ],
    ids=["lost whole", "shares", "lost in part"],
)
def test_the_bound_on_groups_fails_no_more_often_than_it_says(draw):
    mean = 0.15 if draw(np.random.default_rng(0), 3)[0] in (0.0, 1.0) else 1 / 6
    random = np.random.default_rng(11)
    held = 0
    for _ in range(300):
        sizes = random.integers(1, 6, size=25)
        losses = [draw(random, int(size)) for size in sizes]
        groups = [str(index) for index, size in enumerate(sizes) for _ in range(size)]
        bound = loss_bound([loss for group in losses for loss in group], groups, confidence=0.9, seed=0)
        held += bound >= mean
    assert held / 300 >= 0.87


def test_without_scipy_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    with pytest.raises(MissingExtraError, match="report"):
        loss_bound([0.0], ["a"], confidence=0.95, seed=0)
