"""Moving keys, against models that read the same tokens elsewhere."""

import pytest
import torch
from cache_parts import lm_of
from soft_parts import save_decoder
from tiny_models import SCALED_ROPE, save_model

from kompakt.compressor.cache.rotary import (
    has_rotations,
    mean_rotation,
    moved,
    rotated,
    rotated_to,
    unrotated,
    why_immovable,
)
from kompakt.compressor.errors import InputError
from kompakt.compressor.models.key_value_caches import cache_argument, new_cache
from kompakt.compressor.parts import CachePart, TextPart

ROTATING = ("llama", "all-heads", "mistral", "window", "qwen2", "qwen3")
LEARNED = ("gpt2", "opt")


def keys_at(lm, positions):
    """Keys of the same tokens, whose first stands at the first of ``positions``."""
    cache = new_cache()
    body = lm.model.base_model
    with torch.no_grad():
        body(
            input_ids=torch.arange(1, len(positions) + 1)[None],
            position_ids=positions[None],
            attention_mask=torch.ones(1, len(positions)),
            **cache_argument(body, cache),
        )
    return [layer.keys[0] for layer in cache.layers]


@pytest.mark.parametrize("name", ROTATING)
def test_moved_keys_are_those_of_tokens_that_stand_there(family_bases, name):
    lm = lm_of(family_bases[name])
    here, there = torch.arange(3, 15), torch.arange(200, 212)
    assert has_rotations(lm)
    assert why_immovable(lm) == ""
    for layer, (one, expected) in enumerate(zip(keys_at(lm, here), keys_at(lm, there), strict=True)):
        moved = rotated(unrotated(one, here, layer, lm), there, layer, lm)
        torch.testing.assert_close(moved, expected, atol=1e-3, rtol=1e-4)
        assert not torch.allclose(one, expected, atol=0.1)


def test_scaled_frequencies_are_those_of_the_model(tmp_path):
    lm = lm_of(save_model(tmp_path / "scaled", rope_parameters=SCALED_ROPE))
    here, there = torch.arange(2, 8), torch.arange(15, 21)
    for layer, (one, expected) in enumerate(zip(keys_at(lm, here), keys_at(lm, there), strict=True)):
        moved = rotated(unrotated(one, here, layer, lm), there, layer, lm)
        torch.testing.assert_close(moved, expected, atol=1e-4, rtol=1e-4)


def test_each_head_may_have_positions_of_its_own(base):
    lm = lm_of(base)
    keys = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    positions = torch.tensor([[4, 8, 15, 16, 23], [1, 2, 3, 5, 8]])
    together = rotated(keys, positions, 0, lm)
    for head in range(2):
        alone = rotated(keys[head : head + 1], positions[head], 0, lm)
        assert torch.equal(together[head : head + 1], alone)
    torch.testing.assert_close(unrotated(together, positions, 0, lm), keys, atol=1e-5, rtol=0)
    assert unrotated(keys, None, 0, lm) is keys


def test_a_rotation_changes_no_length_and_keeps_the_number_format(base):
    lm = lm_of(base)
    keys = torch.randn(2, 5, 8, dtype=torch.bfloat16, generator=torch.Generator().manual_seed(0))
    moved = rotated(keys, torch.arange(900, 905), 0, lm)
    assert moved.dtype == torch.bfloat16
    torch.testing.assert_close(moved.float().norm(dim=-1), keys.float().norm(dim=-1), rtol=2**-7, atol=0)


def test_moving_rounds_once_and_leaves_what_was_given(base):
    lm = lm_of(base)
    keys = torch.randn(2, 64, 8, dtype=torch.bfloat16, generator=torch.Generator().manual_seed(0))
    given, here, there = keys.clone(), torch.arange(3, 67), torch.arange(900, 964)
    exact = rotated(unrotated(keys.float(), here, 0, lm), there, 0, lm)
    once = (moved(keys, here, there, 0, lm).float() - exact).norm()
    twice = (rotated(unrotated(keys, here, 0, lm), there, 0, lm).float() - exact).norm()
    assert once < 0.8 * twice
    assert torch.equal(keys, given)
    assert moved(keys, None, None, 0, lm) is keys


def test_gradients_flow_into_keys_that_are_moved(base):
    lm = lm_of(base)
    keys = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    weights = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1))
    here, there = torch.arange(3, 8), torch.arange(20, 25)
    (moved(keys, here, there, 0, lm) * weights).sum().backward()
    torch.testing.assert_close(keys.grad, moved(weights, there, here, 0, lm), atol=1e-5, rtol=1e-5)


def test_a_mean_rotation_of_one_position_is_its_rotation(base):
    lm = lm_of(base)
    matrix = mean_rotation(torch.tensor([7]), 8, 0, lm)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(8), atol=1e-6, rtol=0)
    vector = torch.randn(1, 1, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(matrix @ vector[0, 0], rotated(vector, torch.tensor([7]), 0, lm)[0, 0])


def part_of(lm, rope):
    generator = torch.Generator().manual_seed(0)
    tensors = [tuple(torch.randn(2, 3, 8, generator=generator) for _ in range(3)) for _ in range(2)]
    return CachePart(*tensors, lm.fingerprint, TextPart("", (), ()), rope)


def test_a_part_stands_where_it_is_put(base):
    lm = lm_of(base)
    bare = part_of(lm, "unrotated")
    moved = rotated_to(bare, 5, lm)
    assert moved.rope == (5, 6, 7)
    assert rotated_to(moved, 5, lm) is moved
    again = rotated_to(rotated_to(moved, 400, lm), 5, lm)
    for one, two in zip(again.keys, moved.keys, strict=True):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=0)
    fixed = part_of(lm, "as-is")
    assert rotated_to(fixed, 40, lm) is fixed


@pytest.mark.parametrize("name", LEARNED)
def test_keys_without_rotations_stay_and_others_cannot_be_moved(family_bases, name):
    lm = lm_of(family_bases[name])
    assert not has_rotations(lm)
    bare = part_of(lm, "unrotated")
    assert rotated_to(bare, 5, lm) is bare
    with pytest.raises(InputError, match=rf"at positions from 3 on and would have to stand at 5.*'{name}'"):
        rotated_to(part_of(lm, (3, 4, 5)), 5, lm)


@pytest.mark.parametrize(
    ("kind", "scaling", "reason"),
    [
        ("phi", None, "in a way that is not known here"),
        ("cohere", None, "rotates the keys of layer 0"),
        ("llama", {"rope_type": "dynamic", "factor": 2.0}, "length of the text"),
        ("llama", {"rope_type": "yarn", "factor": 4.0}, "scales its keys by"),
    ],
)
def test_why_keys_cannot_be_moved(tmp_path, kind, scaling, reason):
    settings = {"rope_parameters": scaling | {"rope_theta": 10000.0}} if scaling else {}
    lm = lm_of(save_model(tmp_path / kind, kind, **settings))
    assert has_rotations(lm)
    assert reason in why_immovable(lm)


def test_bf16_decoders_can_move_their_keys(tmp_path):
    lm = lm_of(save_decoder(tmp_path / "llama"), dtype="bfloat16")
    assert why_immovable(lm) == ""
