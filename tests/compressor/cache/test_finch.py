"""Finch against its slow twin, and contexts that are longer than what its decoder reads."""

import pytest
import torch
from cache_parts import computed, context_of, places_of, weights_of
from soft_parts import CONTEXT, assert_close
from soft_references import finch as reference

from kompakt import ConfigError, InputError, load


def made(folder, **options):
    return load("finch", decoder=folder, dtype="float32", device="cpu", **options)


@pytest.mark.parametrize(("chunk", "n_keep"), [(16, 20), (16, 3), (50, 12), (7, 30)])
@pytest.mark.parametrize("name", ["llama", "all-heads"])
def test_it_keeps_what_the_paper_keeps(family_bases, name, chunk, n_keep):
    context = context_of(50, n_before=3, n_after=4)
    weights, config = weights_of(family_bases[name])
    found = computed(made(family_bases[name], chunk_tokens=chunk), context, n_keep)
    expected = reference.kept(weights, config, context.before, context.ids, context.after, n_keep, chunk)
    for layer, (keys, values) in enumerate(expected):
        assert_close(found[0, layer], keys.float())
        assert_close(found[1, layer], values.float())


def test_all_heads_of_a_layer_keep_the_same_positions(base):
    compressor, context = made(base), context_of(60, n_after=4)
    kept, everything = computed(compressor, context, 20), computed(compressor, context, 60)
    layers = [places_of(kept[1, layer], everything[1, layer]) for layer in range(kept.shape[1])]
    assert all(heads[0] == heads[1] == sorted(heads[0]) for heads in layers)
    assert layers[0][0] != layers[1][0]


def test_protected_positions_survive_every_chunk(base):
    protected = (0, 1, 2, 3, 4, 5, 6, 7, 30, 59)
    context = context_of(60, n_after=4, protected=protected)
    plain = context_of(60, n_after=4)
    compressor = made(base, chunk_tokens=10)
    everything = computed(compressor, plain, 60)[1, 0]
    for n_keep in (10, 12, 40):
        places = places_of(computed(compressor, context, n_keep)[1, 0], everything)[0]
        assert set(protected) <= set(places)
        assert len(places) == n_keep


def test_a_context_longer_than_what_is_read_at_once(base):
    context = context_of(3 * CONTEXT, n_after=8)
    found = computed(made(base, chunk_tokens=512), context, 300)
    assert found.shape[-2] == 300
    assert torch.isfinite(found).all()


def test_chunks_are_as_long_as_the_decoder_reads_beside_what_is_kept(base):
    context = context_of(3 * CONTEXT, n_after=8)
    compressor = made(base, chunk_tokens=CONTEXT)
    steps = compressor._steps(context, 800)
    room = CONTEXT - context.first - 8
    known = [0, *(step.n_keep for step in steps)]
    read = [step.end - step.start for step in steps]
    assert all(size + kept == room for size, kept in zip(read[:-1], known, strict=False))
    assert (sum(read), known[-1]) == (3 * CONTEXT, 800)
    assert computed(compressor, context, 800).shape[-2] == 800
    # nothing is kept before the only chunk is read
    context = context_of(CONTEXT - 9, n_after=8)
    assert computed(compressor, context, 900).shape[-2] == 900


def test_a_budget_that_leaves_no_room_to_read_is_named_with_the_fix(base):
    context = context_of(3 * CONTEXT, n_after=8)
    message = rf"reads {CONTEXT} positions at once; with \d+ kept .* and 8 of the question, .*: lower the budget"
    with pytest.raises(InputError, match=message):
        computed(made(base), context, 2 * CONTEXT)


def test_a_context_without_a_question_is_refused_with_the_fix(base):
    with pytest.raises(InputError, match=r"give query=, or use expected-attention"):
        made(base).compress("the treaty was signed by the river " * 9, keep=0.5, tokenizer=base)


def test_moving_with_every_chunk_adds_up_no_error(base):
    context = context_of(240, n_after=8)
    # all are kept, so that each key is moved by every one of the 40 chunks
    many, once = (
        computed(load("finch", decoder=base, dtype="bfloat16", device="cpu", chunk_tokens=chunk), context, 240)[0, 0]
        for chunk in (6, 240)
    )
    error = torch.linalg.norm(many.float() - once.float()) / torch.linalg.norm(once.float())
    assert error < 2**-8


def test_bad_options_are_named(base):
    with pytest.raises(ConfigError, match="chunk_tokens must be at least 1, got 0"):
        made(base, chunk_tokens=0)
