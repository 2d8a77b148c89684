"""Packed decoders against transformers' own forward pass of each row alone."""

from __future__ import annotations

import pytest
import torch
from tiny_models import SCALED_ROPE, save_model
from torch.testing import assert_close

from kompakt.compressor.models.causal_lm import load_causal_lm
from kompakt.compressor.models.packed_decoder import PackedDecoder, packed_decoder, why_not_packed
from kompakt.compressor.soft.decoder import shared_copy
from kompakt.compressor.soft.lora import Lora, adapter_parameters, with_adapter

LENGTHS = (1, 7, 24, 7, 7, 13)


@pytest.fixture
def load(tmp_path):
    def load(kind, *, dtype="float32", **settings):
        folder = save_model(tmp_path / str(len(list(tmp_path.iterdir()))), kind, **settings)
        return load_causal_lm(folder, dtype=dtype, device="cpu").model.base_model

    return load


def embeddings_for(body, lengths):
    chance = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 250, (sum(lengths),), generator=chance)
    return body.get_input_embeddings()(ids)


def reference(body, embeddings, lengths):
    return torch.cat(
        [body(inputs_embeds=row[None], use_cache=False)[0][0] for row in embeddings.split(list(lengths))]
    )


def disturbed(body):
    """Return a copy of a body whose normalisations do something."""
    other = shared_copy(body)
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            if "norm" in name:
                parameter.mul_(torch.linspace(0.5, 1.5, parameter.numel()))
    return other


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("llama", {}),
        ("llama", {"rope_parameters": SCALED_ROPE}),
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("mistral", {"sliding_window": None}),
        ("qwen2", {}),
        ("qwen3", {}),
    ],
    ids=["llama", "scaled rope", "biases", "mistral", "qwen2", "qwen3"],
)
def test_each_row_is_what_transformers_makes_of_it_alone(load, kind, settings):
    body = disturbed(load(kind, **settings))
    packed = packed_decoder(body)
    embeddings = embeddings_for(body, LENGTHS)
    with torch.inference_mode():
        assert_close(packed(embeddings, LENGTHS), reference(body, embeddings, LENGTHS), atol=2e-5, rtol=1e-4)


def test_in_bf16_it_is_as_close_to_fp32_as_transformers_is(load):
    exact, rounded = load("llama"), load("llama", dtype="bfloat16")
    embeddings = embeddings_for(exact, LENGTHS)
    with torch.inference_mode():
        expected = reference(exact, embeddings, LENGTHS)
        theirs = reference(rounded, embeddings.bfloat16(), LENGTHS)
        ours = packed_decoder(rounded)(embeddings.bfloat16(), LENGTHS)
    ours, theirs = ((one.float() - expected).norm() / expected.norm() for one in (ours, theirs))
    assert ours < 1.5 * theirs
    assert theirs < 0.02


def test_adapters_are_folded_in(load):
    adapted = with_adapter(load("llama"), Lora(rank=2))
    with torch.no_grad():
        for parameter in adapter_parameters(adapted).values():
            parameter.normal_(std=0.2)
    embeddings = embeddings_for(adapted, LENGTHS)
    with torch.inference_mode():
        expected = reference(adapted, embeddings, LENGTHS)
        assert_close(PackedDecoder(adapted)(embeddings, LENGTHS), expected, atol=2e-5, rtol=1e-4)
        assert not torch.allclose(expected, reference(load("llama"), embeddings, LENGTHS), atol=1e-2)


@pytest.mark.parametrize(
    ("kind", "settings", "reason"),
    [
        ("gpt2", {}, "'gpt2' are not known"),
        ("gemma3", {}, "'gemma3_text' are not known"),
        ("llama", {"hidden_act": "gelu"}, "its activation is 'gelu'"),
        ("mistral", {"sliding_window": 8}, "see a window alone"),
        (
            "llama",
            {"rope_parameters": SCALED_ROPE | {"rope_type": "dynamic"}},
            "depend on the length",
        ),
    ],
    ids=["another family", "windows in layers", "activation", "a window", "dynamic rotations"],
)
def test_what_cannot_be_packed_is_left_to_transformers(load, kind, settings, reason):
    body = load(kind, **settings)
    assert reason in why_not_packed(body)
    assert packed_decoder(body) is None


def test_a_known_type_with_layers_of_its_own_is_left_to_transformers(load):
    body = shared_copy(load("llama"))
    body.layers[1].mlp = torch.nn.Identity()
    assert why_not_packed(body) == ""
    assert packed_decoder(body) is None
    scaled = shared_copy(load("llama"))
    scaled.layers[0].register_forward_hook(lambda module, inputs, output: output * 2)
    assert packed_decoder(scaled) is None
