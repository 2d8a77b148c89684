"""SnapKV against its slow twin, and what its options do."""

import pytest
import torch
from cache_parts import computed, context_of, places_of, weights_of
from soft_parts import assert_close
from soft_references import snapkv as reference

from kompakt import ConfigError, load


def made(folder, **options):
    return load("snapkv", decoder=folder, dtype="float32", device="cpu", **options)


@pytest.mark.parametrize(("n_before", "n_after"), [(1, 6), (5, 1), (1, 0), (3, 0)])
@pytest.mark.parametrize("name", ["llama", "all-heads", "qwen2"])
def test_it_keeps_what_the_paper_keeps(family_bases, name, n_before, n_after):
    compressor = made(family_bases[name], window=7, kernel=3)
    weights, config = weights_of(family_bases[name])
    context = context_of(40, n_before=n_before, n_after=n_after)
    for n_keep in (5, 7, 16, 39):
        found = computed(compressor, context, n_keep)
        expected = reference.kept(weights, config, context.before, context.ids, context.after, n_keep, 7, 3)
        for layer, (keys, values) in enumerate(expected):
            assert_close(found[0, layer], keys.float())
            assert_close(found[1, layer], values.float())


def test_a_context_shorter_than_the_window_is_its_own_end(base):
    context = context_of(12)
    everything = computed(made(base), context, 12)[1, 0]
    for places in places_of(computed(made(base), context, 5)[1, 0], everything):
        assert places == [7, 8, 9, 10, 11]
    small = made(base).compress("the treaty of 1492", keep=0.5, tokenizer=base)
    assert small.parts[0].n_positions == small.tokens_after


def test_the_end_of_a_context_without_a_question_is_kept(base):
    compressor = made(base, window=6)
    context = context_of(30)
    everything = computed(compressor, context, 30)[1, 0]
    for n_keep, window in ((12, range(24, 30)), (4, range(26, 30))):
        for places in places_of(computed(compressor, context, n_keep)[1, 0], everything):
            assert set(window) <= set(places)


def test_heads_keep_positions_of_their_own(base):
    found = computed(made(base), context_of(60, n_after=4), 20)
    everything = computed(made(base), context_of(60, n_after=4), 60)
    first, second = places_of(found[1, 1], everything[1, 1])
    assert first != second
    assert first == sorted(first)


def test_wide_pooling_keeps_neighbours(base):
    def n_gaps(kernel):
        compressor = made(base, kernel=kernel)
        context = context_of(200, n_after=4)
        everything = computed(compressor, context, 200)[1, 0]
        places = torch.tensor(places_of(computed(compressor, context, 60)[1, 0], everything))
        return int((places.diff(dim=1) > 1).sum())

    assert n_gaps(13) < n_gaps(5) < n_gaps(1)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"window": 0}, "window must be at least 1, got 0"), ({"kernel": 4}, "odd number"), ({"kernel": -1}, "got -1")],
)
def test_bad_options_are_named(base, options, message):
    with pytest.raises(ConfigError, match=message):
        made(base, **options)
