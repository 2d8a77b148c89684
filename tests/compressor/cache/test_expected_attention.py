"""Expected attention against its slow twin, and against queries that really come."""

import pytest
import torch
from cache_parts import computed, context_of, lm_of, places_of, weights_of
from soft_parts import assert_close
from soft_references import expected_attention as reference

from kompakt import ConfigError, load
from kompakt.compressor.cache.expected_attention import _expected_attention
from kompakt.compressor.cache.rotary import mean_rotation, rotated


def made(folder, **options):
    return load("expected-attention", decoder=folder, dtype="float32", device="cpu", **options)


@pytest.mark.parametrize(("n_before", "n_sink", "epsilon"), [(1, 4, 0.0), (6, 4, 0.1), (2, 0, 0.0)])
@pytest.mark.parametrize("name", ["llama", "all-heads", "qwen2"])
def test_it_keeps_what_the_paper_keeps(family_bases, name, n_before, n_sink, epsilon):
    compressor = made(family_bases[name], n_future=9, n_sink=n_sink, epsilon=epsilon)
    weights, config = weights_of(family_bases[name])
    context = context_of(40, n_before=n_before)
    expected = [
        reference.kept(weights, config, context.before, context.ids, n_keep, 9, n_sink, epsilon) for n_keep in (2, 17)
    ]
    for n_keep, layers in zip((2, 17), expected, strict=True):
        found = computed(compressor, context, n_keep)
        for layer, (keys, values) in enumerate(layers):
            assert_close(found[0, layer], keys.float())
            assert_close(found[1, layer], values.float())


def test_the_closed_form_is_the_mean_over_many_queries():
    generator = torch.Generator().manual_seed(0)
    keys, mean = torch.randn(12, 4, generator=generator), torch.randn(1, 4, generator=generator)
    mixing = 0.5 * torch.randn(4, 4, generator=generator)
    queries = mean + torch.randn(400_000, 4, generator=generator) @ mixing.T
    exponentials = torch.exp(0.5 * queries @ keys.T).mean(dim=0)
    found = _expected_attention(keys, mean, (mixing @ mixing.T)[None], 0.5)
    torch.testing.assert_close(found[0], exponentials / exponentials.sum(), atol=2e-3, rtol=0.02)


def test_the_mean_rotation_is_the_mean_of_rotated_vectors(base):
    lm = lm_of(base)
    vectors = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    positions = torch.arange(30, 41)
    each = torch.stack([rotated(vectors[:, None], position[None], 1, lm)[:, 0] for position in positions])
    torch.testing.assert_close(vectors @ mean_rotation(positions, 8, 1, lm).T, each.mean(dim=0), atol=1e-6, rtol=0)


def test_the_first_tokens_of_a_prompt_are_kept_where_they_are_the_contexts(base):
    compressor = made(base, n_sink=4)
    for n_before, sinks in ((1, {0, 1, 2}), (8, set())):
        context = context_of(60, n_before=n_before)
        everything = computed(compressor, context, 60)[1, 0]
        kept = [set(places) for places in places_of(computed(compressor, context, 6)[1, 0], everything)]
        assert all(sinks <= places for places in kept)
        assert sinks or not all(0 in places for places in kept)


@pytest.mark.parametrize("n_tokens", [2, 3, 4, 5])
def test_contexts_of_few_tokens_are_compressed_too(base, n_tokens):
    assert computed(made(base), context_of(n_tokens), 1).shape[-2] == 1


@pytest.mark.parametrize("options", [{"n_future": 0}, {"n_sink": -1}, {"epsilon": -0.1}])
def test_bad_options_are_named(base, options):
    with pytest.raises(ConfigError, match="n_future must be at least 1"):
        made(base, **options)
