"""The reference of ARC-Encoder, against stock models and against the words of the paper."""

import json
import math
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
safetensors_torch = pytest.importorskip("safetensors.torch")
yaml = pytest.importorskip("yaml")

from reference_parts import (  # noqa: E402
    TOLERANCE,
    distance,
    in_float64,
    one_thread,  # noqa: F401 (a fixture)
    random_ids,
    random_vectors,
    stock_model,
)
from soft_references import arc_encoder, llama, official_layouts  # noqa: E402


@pytest.mark.parametrize("factor", [2, 3, 4, 8])
@pytest.mark.parametrize("length", range(1, 41))
def test_arc_encoder_groups_are_those_of_the_paper(length, factor):
    sizes = arc_encoder.group_sizes(length, -factor)
    assert sum(sizes) == length
    if length < factor:
        assert sizes == [length]
    elif length % factor == 0:
        assert sizes == [factor] * (length // factor)
    else:
        assert len(sizes) == math.ceil(length / factor)
        n_larger = length % len(sizes)
        assert sizes == [length // len(sizes) + 1] * n_larger + [length // len(sizes)] * (len(sizes) - n_larger)


def test_arc_encoder_groups_of_other_rates():
    assert arc_encoder.group_sizes(5, -1) == [1] * 5
    assert arc_encoder.group_sizes(5, 0) == [5]
    assert arc_encoder.group_sizes(3, 4) == [1, 1, 1]
    assert arc_encoder.group_sizes(10, 4) == [3, 3, 2, 2]
    with pytest.raises(ValueError, match="nothing"):
        arc_encoder.group_sizes(0, -8)


def encoder_as_llama(weights, args):
    """The encoder with the names and the rotary layout of Hugging Face."""
    model = args["model_args"]
    names = {
        "attention_norm": "input_layernorm",
        "attention.wq": "self_attn.q_proj",
        "attention.wk": "self_attn.k_proj",
        "attention.wv": "self_attn.v_proj",
        "attention.wo": "self_attn.o_proj",
        "ffn_norm": "post_attention_layernorm",
        "feed_forward.w1": "mlp.gate_proj",
        "feed_forward.w2": "mlp.down_proj",
        "feed_forward.w3": "mlp.up_proj",
    }
    n_layers = model["n_layers"] - args["embedder_args"]["n_truncated_layers"]
    converted = {"model.embed_tokens.weight": weights["embedder.tok_embeddings.weight"]}
    for i in range(n_layers):
        for meta, name in names.items():
            tensor = weights[f"embedder.layers.{i}.{meta}.weight"]
            if meta in ("attention.wq", "attention.wk"):
                pairs = tensor.view(-1, model["head_dim"] // 2, 2, tensor.shape[1])
                tensor = pairs.transpose(1, 2).reshape(tensor.shape)
            converted[f"model.layers.{i}.{name}.weight"] = tensor
    config = SimpleNamespace(
        hidden_size=model["dim"],
        num_hidden_layers=n_layers,
        num_attention_heads=model["n_heads"],
        num_key_value_heads=model["n_kv_heads"],
        head_dim=model["head_dim"],
        rms_norm_eps=model["norm_eps"],
        rope_theta=model["rope_theta"],
    )
    return converted, config


def small_arc_encoder(tmp_path, n_decoders=1, **settings):
    args = official_layouts.arc_encoder_args(n_decoders, **settings)
    weights = official_layouts.write_arc_encoder(tmp_path, n_decoders, args=args)
    return in_float64(weights), args


def test_arc_encoder_without_pooling_is_a_llama_that_looks_both_ways(tmp_path):
    weights, args = small_arc_encoder(tmp_path, compress_rates=[-1])
    converted, config = encoder_as_llama(weights, args)
    ids = random_ids(11)
    visible = torch.ones(11, 11, dtype=torch.bool)
    embeds = llama.embed(converted, ids)
    expected = llama.hidden_states(converted, config, embeds, torch.arange(11), visible, final_norm=False)
    assert distance(arc_encoder.encode(weights, args, ids), expected) < 1e-10


def pooled_layer(converted, config, layer, hidden, sizes):
    """A layer with pooled queries, with the operators of torch and the rotary layout of Hugging Face."""
    groups = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    averages = torch.nn.functional.one_hot(groups).T.to(hidden) / torch.tensor(sizes)[:, None]
    pooled = averages @ hidden

    def matrix(name):
        return converted[f"model.layers.{layer}.{name}.weight"]

    def norm(vectors, name):
        return torch.nn.functional.rms_norm(vectors, vectors.shape[-1:], matrix(name), config.rms_norm_eps)

    def heads(vectors, name, rotated=True):
        projected = (norm(vectors, "input_layernorm") @ matrix(name).T).unflatten(-1, (-1, config.head_dim))
        projected = projected.transpose(0, 1)
        half = config.head_dim // 2
        frequencies = config.rope_theta ** (-torch.arange(half).to(hidden) / half)
        turns = torch.polar(torch.ones(()).to(hidden), torch.arange(len(vectors))[:, None] * frequencies)
        turned = torch.complex(projected[..., :half], projected[..., half:]) * turns
        return torch.cat([turned.real, turned.imag], -1) if rotated else projected

    attended = torch.nn.functional.scaled_dot_product_attention(
        heads(pooled, "self_attn.q_proj")[None],
        heads(hidden, "self_attn.k_proj")[None],
        heads(hidden, "self_attn.v_proj", rotated=False)[None],
        enable_gqa=True,
    )[0]
    after = pooled + attended.transpose(0, 1).flatten(1) @ matrix("self_attn.o_proj").T
    normed = norm(after, "post_attention_layernorm")
    inner = torch.nn.functional.silu(normed @ matrix("mlp.gate_proj").T) * (normed @ matrix("mlp.up_proj").T)
    return after + inner @ matrix("mlp.down_proj").T


@pytest.mark.parametrize(
    ("rates", "length", "sizes"),
    [
        ([-4], 10, [[4, 3, 3]]),
        ([-8], 5, [[5]]),
        ([0], 9, [[9]]),
        ([4], 9, [[3, 2, 2, 2]]),
        ([4], 3, [[1, 1, 1]]),
        ([-2, -3], 13, [[2, 2, 2, 2, 2, 2, 1], [3, 2, 2]]),
        ([-2, -1], 6, [[2, 2, 2], [1, 1, 1]]),
    ],
)
def test_arc_encoder_pools_the_queries_of_its_last_layers(tmp_path, rates, length, sizes):
    weights, args = small_arc_encoder(tmp_path, compress_rates=rates)
    converted, config = encoder_as_llama(weights, args)
    ids = random_ids(length)
    visible = torch.ones(length, length, dtype=torch.bool)
    n_full = config.num_hidden_layers - len(rates)
    hidden = llama.hidden_states(
        converted, config, llama.embed(converted, ids), torch.arange(length), visible, n_full, final_norm=False
    )
    for layer, sizes_of_layer in enumerate(sizes, start=n_full):
        hidden = pooled_layer(converted, config, layer, hidden, sizes_of_layer)
    assert distance(arc_encoder.encode(weights, args, ids), hidden) < 1e-10


@pytest.mark.parametrize("pool_type", ["mean", "last_pooled_queries", "sum", "mean_pooled_queries"])
@pytest.mark.parametrize("where", ["before", "between"])
def test_arc_encoder_other_pooling_is_none_in_groups_of_one(tmp_path, pool_type, where):
    pooling = {"pool_type": pool_type, "where": where}
    weights, args = small_arc_encoder(tmp_path, compress_rates=[-1], pooling=pooling)
    ids = random_ids(6)
    _, plain = small_arc_encoder(tmp_path, compress_rates=[-1])
    assert distance(arc_encoder.encode(weights, args, ids), arc_encoder.encode(weights, plain, ids)) < 1e-12
    args["embedder_args"]["compress_rates"] = [-4]
    assert arc_encoder.encode(weights, args, ids).shape == (2, 32)


def test_arc_encoder_causal_query_sees_as_many_keys_as_queries(tmp_path):
    weights, args = small_arc_encoder(tmp_path, compress_rates=[-3])
    args["embedder_args"]["causal_embedder"] = True
    ids = random_ids(9)
    changed = ids.clone()
    changed[3:] = random_ids(6, seed=1)
    found, other = (arc_encoder.encode(weights, args, sequence) for sequence in (ids, changed))
    assert torch.equal(found[0], other[0])
    assert not torch.equal(found[1], other[1])


@pytest.mark.parametrize("bridge_type", ["mlp", "linear", "rms"])
def test_arc_encoder_bridge_maps_pooled_and_special_vectors(tmp_path, bridge_type):
    weights, args = small_arc_encoder(tmp_path, bridge_type=bridge_type, compress_rates=[-2])
    ids = random_ids(5)
    inputs = torch.cat([arc_encoder.encode(weights, args, ids), weights["embedder.rec_tok.0.weight"]])
    if bridge_type == "rms":
        norm = weights["bridge_module.norm.weight"]
        inputs = torch.nn.functional.rms_norm(inputs, (32,), norm, 1e-5)
    expected = inputs @ weights["bridge_module.layer1.weight"].T
    if bridge_type != "linear":
        expected = expected @ weights["bridge_module.layer2.weight"].T
    with_special, without = (arc_encoder.vectors(weights, args, [ids], kind)[0] for kind in ("rec", None))
    assert distance(with_special, expected) < 1e-10
    assert distance(without, with_special[:-1]) < 1e-10


def test_arc_encoder_has_a_bridge_and_special_vectors_per_decoder(tmp_path):
    weights, args = small_arc_encoder(tmp_path, n_decoders=2)
    spans = [random_ids(5).tolist(), random_ids(17).tolist()]
    first, second = (arc_encoder.vectors(weights, args, spans, "cont", decoder) for decoder in range(2))
    assert [len(vectors) for vectors in first] == [2, 4]
    assert not torch.equal(first[0], second[0])
    special = weights["embedder.cont_tok.1.weight"]
    bridged = special @ weights["bridge_module.1.layer1.weight"].T @ weights["bridge_module.1.layer2.weight"].T
    assert distance(second[1][-1:], bridged) < 1e-10


def test_arc_encoder_chunks_share_one_special_vector(tmp_path):
    weights, args = small_arc_encoder(tmp_path)
    chunks = [random_ids(16, seed=1), random_ids(9, seed=2)]
    span = arc_encoder.span_vectors(weights, args, chunks, "cont")
    apart = arc_encoder.vectors(weights, args, chunks)
    assert distance(span[:-1], torch.cat(apart)) < 1e-10
    assert len(span) == 2 + 2 + 1


def test_arc_encoder_increments_are_not_places():
    model, weights = stock_model("mistral", sliding_window=None)
    text = random_ids(11)
    spans = [random_vectors(n, 32, seed=n) for n in (2, 3, 1)]
    logits = arc_encoder.decoder_logits(weights, model.config, text.tolist(), spans, [3, 5, 0])
    embeds = model.get_input_embeddings()(text)
    mixed = torch.cat([embeds[:3], spans[0], embeds[3:8], spans[1], spans[2], embeds[8:]])
    with torch.no_grad():
        expected = model(inputs_embeds=mixed[None]).logits[0]
    assert distance(logits, torch.cat([expected[:3], expected[5:10], expected[14:]])) < TOLERANCE
    with pytest.raises(ValueError, match="text of 11 tokens"):
        arc_encoder.decoder_logits(weights, model.config, text.tolist(), spans, [3, 5, 4])


def test_arc_encoder_decoder_without_spans_is_the_plain_model():
    model, weights = stock_model("llama")
    text = random_ids(7)
    with torch.no_grad():
        expected = model(input_ids=text[None]).logits[0]
    assert distance(arc_encoder.decoder_logits(weights, model.config, text, [], []), expected) < TOLERANCE


def test_arc_encoder_checkpoint_of_the_hub(tmp_path):
    for name, read in (("config.yaml", yaml.safe_load), ("config.json", json.loads)):
        weights = official_layouts.write_arc_encoder(tmp_path, n_decoders=2, config_name=name)
        args = read((tmp_path / name).read_text())
        assert args == official_layouts.arc_encoder_args(2)
    saved = safetensors_torch.load_file(tmp_path / "model.safetensors")
    assert saved.keys() == weights.keys()
    assert {name for name in saved if "layers" not in name} == {
        "embedder.tok_embeddings.weight",
        *(f"embedder.{special}_tok.{decoder}.weight" for special in ("rec", "cont") for decoder in (0, 1)),
        *(f"bridge_module.{decoder}.layer{layer}.weight" for decoder in (0, 1) for layer in (1, 2)),
    }
    assert saved["bridge_module.1.layer1.weight"].shape == (20, 32)


@pytest.mark.parametrize("old", [False, True])
def test_arc_encoder_checkpoint_of_a_run(tmp_path, old):
    weights = official_layouts.write_arc_encoder(tmp_path, layout="run", old=old)
    checkpoint = tmp_path / "checkpoints" / "checkpoint_000010"
    params = json.loads((checkpoint / "params.json").read_text())
    assert params.keys() == {"param_dtype", "embedder_params", "bridge_module"}
    encoder = safetensors_torch.load_file(checkpoint / "embedder" / "consolidated.safetensors")
    bridge = safetensors_torch.load_file(checkpoint / "bridge_module" / "consolidated.safetensors")
    assert bridge.keys() == {"layer1.weight", "layer2.weight"}
    assert ("cont_tok.weight" if old else "cont_tok.0.weight") in encoder
    joined = {f"embedder.{name}": tensor for name, tensor in encoder.items()}
    joined |= {f"bridge_module.{name}": tensor for name, tensor in bridge.items()}
    assert joined.keys() == weights.keys()
    args = {
        "model_args": json.loads((tmp_path / "backbone" / "params.json").read_text()),
        "embedder_args": params["embedder_params"],
        "bridge_args": params["bridge_module"],
    }
    ids = random_ids(10)
    expected = arc_encoder.vectors(weights, official_layouts.arc_encoder_args(), [ids], "cont")[0]
    assert torch.equal(arc_encoder.vectors(joined, args, [ids], "cont")[0], expected)
