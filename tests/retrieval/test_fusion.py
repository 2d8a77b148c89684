"""Reciprocal rank fusion."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kompakt import ConfigError
from kompakt.retrieval.fusion import reciprocal_rank_fusion

rankings = st.lists(st.lists(st.integers(0, 20), unique=True, max_size=10), max_size=4)


@given(rankings, st.integers(0, 100))
def test_scores_are_those_of_the_paper(lists, k):
    expected = {
        name: sum(1 / (k + 1 + ranking.index(name)) for ranking in lists if name in ranking)
        for name in {name for ranking in lists for name in ranking}
    }
    found = reciprocal_rank_fusion(lists, k=k)
    assert dict(found) == pytest.approx(expected)
    assert [name for name, _ in found] == sorted(dict(found), key=lambda name: (-dict(found)[name], name))


@given(rankings)
def test_the_order_of_the_rankings_does_not_matter(lists):
    assert reciprocal_rank_fusion(lists) == reciprocal_rank_fusion(lists[::-1])


@given(st.lists(st.integers(0, 20), unique=True))
def test_one_ranking_stays_as_it_is(ranking):
    assert [name for name, _ in reciprocal_rank_fusion([ranking])] == ranking
    second = reciprocal_rank_fusion([ranking, ranking[::-1]], weights=[1, 0])
    assert [name for name, _ in second] == ranking


def test_what_both_find_is_before_what_one_finds():
    assert [name for name, _ in reciprocal_rank_fusion([[1, 2, 3], [4, 3, 5]])] == [3, 1, 4, 2, 5]


def test_equals_are_in_the_order_of_their_ids():
    assert [name for name, _ in reciprocal_rank_fusion([[7, 2], [2, 7]])] == [2, 7]
    assert reciprocal_rank_fusion([[9, 9, 3]]) == [(9, 1 / 61), (3, 1 / 62)]


def test_weights_count():
    assert [name for name, _ in reciprocal_rank_fusion([[1, 2], [2, 1]], weights=[1, 1.5])] == [2, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": -1}, "k must be at least 0"),
        ({"weights": [1]}, "as many as the 2 rankings"),
        ({"weights": [1, -1]}, "at least 0"),
        ({"weights": [1, float("nan")]}, "finite"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        reciprocal_rank_fusion([[1], [2]], **options)
