"""The references of decoders and adapters, against stock models."""

from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from reference_parts import (  # noqa: E402
    REFERENCES,
    TOLERANCE,
    distance,
    in_float64,
    mask_of_padding,
    one_thread,  # noqa: F401 (a fixture)
    random_ids,
    random_vectors,
    run,
    stock_model,
)
from soft_references import llama, lora  # noqa: E402


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("llama", {}),
        ("llama", {"tie_word_embeddings": True, "num_key_value_heads": 4, "rope_theta": 500.0}),
        ("llama", {"head_dim": 12, "attention_bias": True, "mlp_bias": True}),
        ("mistral", {"sliding_window": None}),
        ("qwen2", {}),
        ("opt", {}),
    ],
)
def test_a_model_is_that_of_transformers(kind, settings):
    model, weights = stock_model(kind, **settings)
    reference = REFERENCES[kind]
    ids = random_ids(3, 14)
    mask = mask_of_padding(14)
    counted = mask.cumsum(1) * mask - 1
    positions = counted if kind == "opt" else counted.clamp(min=0)
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=mask, position_ids=positions, output_hidden_states=True)
    for row in range(3):
        real = mask[row].bool()
        visible = llama.causal(14) & real
        embeds = reference.embed(weights, ids[row])
        hidden = reference.hidden_states(weights, model.config, embeds, positions[row], visible)
        assert distance(hidden[real], expected.hidden_states[-1][row][real]) < TOLERANCE
        assert distance(reference.logits(weights, hidden)[real], expected.logits[row][real]) < TOLERANCE
        two_layers = reference.hidden_states(
            weights, model.config, embeds, positions[row], visible, n_layers=2, final_norm=False
        )
        assert distance(two_layers[real], expected.hidden_states[2][row][real]) < TOLERANCE


@pytest.mark.parametrize("kind", ["llama", "opt"])
def test_a_model_keeps_the_dtype_of_its_weights(kind):
    model, weights = stock_model(kind)
    reference = REFERENCES[kind]
    ids = random_ids(9)
    single = run(reference, weights, model.config, reference.embed(weights, ids))
    weights = in_float64(weights)
    double = run(reference, weights, model.config, reference.embed(weights, ids))
    assert double.dtype == torch.float64
    assert 0 < distance(single, double) < TOLERANCE


def test_a_plain_theta_and_scaled_positions():
    assert llama.rope_theta(SimpleNamespace(rope_theta=123.0)) == 123.0
    scaled = SimpleNamespace(rope_parameters={"rope_theta": 1.0, "rope_type": "linear", "factor": 2.0})
    with pytest.raises(NotImplementedError, match="linear"):
        llama.rope_theta(scaled)


def test_a_position_that_sees_nothing_gets_no_attention():
    queries, keys, values = (random_vectors(3, 2, 4, seed=seed) for seed in range(3))
    visible = llama.causal(3)
    visible[1] = False
    attended = llama.attend(queries, keys, values, visible)
    assert attended[1].count_nonzero() == 0
    assert distance(attended[0], values[0].flatten()) < TOLERANCE


def test_lora_adds_a_scaled_product():
    weights = {"layer.weight": random_vectors(4, 5), "other.weight": random_vectors(2, 2)}
    low, high = random_vectors(2, 5, seed=1), random_vectors(4, 2, seed=2)
    adapter = {"base_model.model.layer.lora_A.weight": low, "base_model.model.layer.lora_B.weight": high}
    adapter["memory_token_embed.weight"] = random_vectors(1, 1)
    merged = lora.merged(weights, adapter, alpha=6)
    inputs = random_vectors(3, 5, seed=3)
    expected = inputs @ weights["layer.weight"].T + 3 * (inputs @ low.T) @ high.T
    assert distance(inputs @ merged["layer.weight"].T, expected) < TOLERANCE
    assert merged["other.weight"] is weights["other.weight"]
    assert merged.keys() == weights.keys()


# PEFT asks transformers for an attribute by its former name
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
def test_lora_is_merged_as_peft_applies_it():
    peft = pytest.importorskip("peft")
    model, weights = stock_model("llama")
    weights = {name: tensor.clone() for name, tensor in weights.items()}
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=3, lora_alpha=7, target_modules=["q_proj", "up_proj"]))
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    in_memory = adapted.eval().state_dict()
    saved = peft.get_peft_model_state_dict(adapted)
    assert not any(".default." in name for name in saved)
    ids = random_ids(8)
    with torch.no_grad():
        expected = adapted(input_ids=ids[None]).logits[0]
    for adapter in (in_memory, saved, {f"icae.{name}": tensor for name, tensor in in_memory.items()}):
        merged = lora.merged(weights, adapter, 7)
        assert merged.keys() == weights.keys()
        hidden = run(llama, merged, model.config, llama.embed(merged, ids))
        assert distance(llama.logits(merged, hidden), expected) < TOLERANCE
