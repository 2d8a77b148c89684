"""The references of the soft compression methods, against stock models and against the words of the papers."""

import json
import math
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
safetensors_torch = pytest.importorskip("safetensors.torch")
yaml = pytest.importorskip("yaml")

from soft_references import (  # noqa: E402
    arc_encoder,
    auto_compressor,
    compllm,
    extensible_tokenization,
    icae,
    llama,
    lora,
    official_layouts,
    opt,
)

TOLERANCE = 1e-5
N_SUMMARY = 3
REFERENCES = {"llama": llama, "mistral": llama, "qwen2": llama, "opt": opt}


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def stock_model(kind, **settings):
    """A model of transformers with random weights, norms and biases too, and its weights by name."""
    shared = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
    shared |= {"max_position_embeddings": 64, "pad_token_id": 1, "attn_implementation": "eager"}
    if kind == "opt":
        shared |= {"ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0.0}
    else:
        shared |= {"intermediate_size": 48, "num_key_value_heads": 2, "rms_norm_eps": 1e-5}
    classes = {
        "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
        "mistral": (transformers.MistralConfig, transformers.MistralForCausalLM),
        "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
        "opt": (transformers.OPTConfig, transformers.OPTForCausalLM),
    }
    config_class, model_class = classes[kind]
    model = model_class(config_class(**(shared | settings))).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            mean = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.copy_(mean + 0.15 * torch.randn(parameter.shape, generator=generator))
    return model, dict(model.state_dict())


def random_ids(*shape, seed=0, vocabulary=61):
    return torch.randint(2, vocabulary, shape, generator=torch.Generator().manual_seed(seed))


def random_vectors(*shape, seed=0):
    return 0.3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def in_float64(weights):
    return {name: tensor.double() for name, tensor in weights.items()}


def distance(found, expected):
    assert found.shape == expected.shape
    return (found.double() - expected.double()).abs().max().item() if found.numel() else 0.0


def run(reference, weights, config, embeds, **settings):
    length = len(embeds)
    return reference.hidden_states(weights, config, embeds, torch.arange(length), llama.causal(length), **settings)


def mask_of_padding(length):
    """Rows without padding, with it on the left and with it on the right."""
    mask = torch.ones(3, length, dtype=torch.long)
    mask[1, :4] = 0
    mask[2, -5:] = 0
    return mask


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


def auto_compressor_model(family):
    model, weights = stock_model(family, **({} if family == "opt" else {"num_key_value_heads": 4}))
    weights["embed_summary.weight"] = random_vectors(N_SUMMARY, 32, seed=1)
    return model, weights


def batched_auto_compressor(model, weights, ids, mask, lengths, softprompt, accumulate, output_softprompt):
    """The same with a stock model: padding stays in the batch, hidden from attention and skipped by positions."""
    family = model.config.model_type
    batch = len(ids)
    logits = []
    start = 0
    for number, length in enumerate(lengths):
        emits = output_softprompt or number < len(lengths) - 1
        n_soft, n_summary = softprompt.shape[1], N_SUMMARY if emits else 0
        segment = model.get_input_embeddings()(ids[:, start : start + length])
        summary_tokens = weights["embed_summary.weight"][:n_summary].expand(batch, -1, -1)
        segment_mask = mask[:, start : start + length]
        ones_before, ones_after = mask.new_ones(batch, n_soft), mask.new_ones(batch, n_summary)
        whole_mask = torch.cat([ones_before, segment_mask, ones_after], 1)
        if family == "opt":
            counted = segment_mask.cumsum(1) * segment_mask - 1
            positions = torch.cat([-ones_before, counted, -ones_after], 1)
        else:
            positions = (whole_mask.cumsum(1) - 1).clamp(min=0)
        output = model(
            inputs_embeds=torch.cat([softprompt, segment, summary_tokens], 1),
            attention_mask=whole_mask,
            position_ids=positions,
            output_hidden_states=True,
            use_cache=False,
        )
        logits.append(output.logits[:, n_soft : n_soft + length])
        summary = output.hidden_states[-1][:, n_soft + length :]
        if accumulate:
            softprompt = torch.cat([softprompt, summary], 1)
        elif n_summary:
            softprompt = summary
        start += length
    return torch.cat(logits, 1), softprompt


@pytest.mark.parametrize("family", ["llama", "opt"])
@pytest.mark.parametrize("accumulate", [True, False])
@pytest.mark.parametrize(
    ("segment_lengths", "lengths", "output_softprompt", "n_given"),
    [
        (None, [16], False, 0),
        (None, [16], True, 2),
        (6, [6, 6, 4], False, 2),
        (6, [6, 6, 4], True, 0),
        ([7, 2, 7], [7, 2, 7], True, 2),
    ],
)
def test_auto_compressor_is_a_stock_model_on_a_padded_batch(
    family, accumulate, segment_lengths, lengths, output_softprompt, n_given
):
    model, weights = auto_compressor_model(family)
    ids, mask = random_ids(3, 16), mask_of_padding(16)
    given = random_vectors(3, n_given, 32, seed=2)
    labels = torch.where(mask.bool(), ids, -100)
    # what comes before it is padding, about which implementations differ
    labels[1, 4] = -100
    logits, softprompt, loss = auto_compressor.forward(
        family,
        weights,
        model.config,
        ids,
        mask,
        segment_lengths,
        given if n_given else None,
        accumulate,
        output_softprompt,
        labels,
    )
    with torch.no_grad():
        expected_logits, expected_softprompt = batched_auto_compressor(
            model, weights, ids, mask, lengths, given, accumulate, output_softprompt
        )
    real = mask.bool()
    assert distance(logits[real], expected_logits[real]) < 3 * TOLERANCE
    assert logits[~real].count_nonzero() == 0
    assert distance(softprompt, expected_softprompt) < 3 * TOLERANCE
    expected_loss = torch.nn.functional.cross_entropy(expected_logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    assert distance(loss, expected_loss) < TOLERANCE


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_auto_compressor_with_one_segment_is_the_plain_model(family):
    model, weights = auto_compressor_model(family)
    ids = random_ids(2, 10)
    logits, softprompt, loss = auto_compressor.forward(family, weights, model.config, ids, None, None)
    with torch.no_grad():
        assert distance(logits, model(input_ids=ids).logits) < TOLERANCE
    assert softprompt.shape == (2, 0, 32)
    assert loss is None


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_auto_compressor_continues_from_a_given_soft_prompt(family):
    model, weights = auto_compressor_model(family)
    ids = random_ids(1, 14)
    logits, softprompt, _ = auto_compressor.forward(
        family, weights, model.config, ids, None, [5, 5, 4], output_softprompt=True
    )
    _, first, _ = auto_compressor.forward(
        family, weights, model.config, ids[:, :5], None, None, output_softprompt=True
    )
    later_logits, later, _ = auto_compressor.forward(
        family, weights, model.config, ids[:, 5:], None, 5, softprompt=first, output_softprompt=True
    )
    assert first.shape[1] == N_SUMMARY
    assert torch.equal(later, softprompt)
    assert torch.equal(later_logits, logits[:, 5:])


def test_auto_compressor_replaces_only_by_what_was_emitted():
    model, weights = auto_compressor_model("llama")
    given = random_vectors(1, 5, 32)
    ids = random_ids(1, 8)
    settings = {"softprompt": given, "accumulate": False}
    _, unchanged, _ = auto_compressor.forward("llama", weights, model.config, ids, None, None, **settings)
    assert torch.equal(unchanged, given)
    _, replaced, _ = auto_compressor.forward("llama", weights, model.config, ids, None, 4, **settings)
    assert replaced.shape[1] == N_SUMMARY


def test_auto_compressor_refuses_segments_of_another_length():
    with pytest.raises(ValueError, match="9 tokens for a text of 8"):
        auto_compressor.lengths_of_segments(8, [5, 4])


def test_auto_compressor_without_summary_tokens_reads_segments_apart():
    model, weights = stock_model("llama")
    ids = random_ids(1, 8)
    logits, softprompt, _ = auto_compressor.forward(
        "llama", weights, model.config, ids, None, 4, output_softprompt=True
    )
    with torch.no_grad():
        assert distance(logits[:, 4:], model(input_ids=ids[:, 4:]).logits) < TOLERANCE
    assert softprompt.shape[1] == 0


def test_auto_compressor_passes_gradients_through_summaries():
    model, weights = auto_compressor_model("opt")
    weights = in_float64(weights)
    table = weights["embed_summary.weight"].clone().requires_grad_()
    ids = random_ids(1, 8)
    _, _, loss = auto_compressor.forward(
        "opt", weights | {"embed_summary.weight": table}, model.config, ids, None, 4, labels=ids
    )
    loss.backward()

    step = torch.zeros_like(table)
    step[1, 3] = 1e-5
    losses = [
        auto_compressor.forward(
            "opt", weights | {"embed_summary.weight": moved.detach()}, model.config, ids, None, 4, labels=ids
        )[2]
        for moved in (table + step, table - step)
    ]
    assert table.grad[1, 3].item() == pytest.approx(((losses[0] - losses[1]) / 2e-5).item(), rel=1e-5)


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


def test_compllm_reads_copies_of_the_end_token():
    model, weights = stock_model("qwen2")
    ids = random_ids(7).tolist()
    matrix, bias = random_vectors(32, 32), random_vectors(32, seed=1)
    found = compllm.segment_vectors(weights, model.config, ids, 4, 5, matrix, bias)
    with torch.no_grad():
        hidden = model.model(input_ids=torch.tensor([ids + [5] * 4])).last_hidden_state[0]
    assert distance(found, torch.nn.functional.linear(hidden[7:], matrix, bias)) < TOLERANCE


def test_compllm_segments_do_not_know_each_other():
    model, weights = stock_model("llama")
    identity = torch.eye(32)
    first, second, rest = random_ids(6).tolist(), random_ids(6, seed=1).tolist(), random_ids(3, seed=2).tolist()
    vectors = compllm.document_vectors(weights, model.config, first + second + rest, 6, 2, 5, identity)
    swapped = compllm.document_vectors(weights, model.config, second + first + rest, 6, 2, 5, identity)
    assert vectors.shape == (3 + 3 + 2, 32)
    assert torch.equal(vectors, torch.cat([swapped[3:6], swapped[:3], swapped[6:]]))
    own = compllm.document_vectors(weights, model.config, None, None, 2, 5, identity, segments=[first, second, rest])
    assert torch.equal(own, vectors)
    assert compllm.document_vectors(weights, model.config, [], 6, 2, 5, identity).shape == (0, 32)


@pytest.mark.parametrize(
    ("length", "sizes"), [(0, []), (1, [1]), (8, [8]), (9, [5, 4]), (17, [6, 6, 5]), (24, [8, 8, 8])]
)
def test_icae_segments_are_equal(length, sizes):
    parts = icae.segments(list(range(length)), slots=2, rate=4)
    assert [len(part) for part in parts] == sizes
    assert [i for part in parts for i in part] == list(range(length))


def test_icae_segments_are_never_empty():
    assert all(all(icae.segments(range(length), slots, 1)) for length in range(1, 80) for slots in range(1, 12))


def test_icae_memory_is_read_at_the_memory_tokens():
    model, weights = stock_model("mistral", sliding_window=None)
    table = random_vectors(2 + 3, 32)
    ids = random_ids(9).tolist()
    found = icae.memory(weights, model.config, table, ids, slots=2, rate=4)
    for number, segment in enumerate((ids[:5], ids[5:])):
        embeds = torch.cat([model.get_input_embeddings()(torch.tensor(segment)), table[:2]])
        with torch.no_grad():
            hidden = model.model(inputs_embeds=embeds[None]).last_hidden_state[0]
        assert distance(found[2 * number : 2 * number + 2], hidden[-2:]) < TOLERANCE
    assert icae.memory(weights, model.config, table, []).shape == (0, 32)


def test_icae_markers_follow_the_memory_rows():
    table = random_vectors(128 + 3, 4)
    ids = {"ae": 32129, "lm": 32130, "ft": 32131}
    for name, token_id in ids.items():
        assert torch.equal(icae.marker(table, name)[0], table[icae.row_of_id(token_id, 32000)])
    assert icae.row_of_id(32001, 32000) == 0


def test_icae_decoder_inputs():
    model, weights = stock_model("mistral", sliding_window=None)
    table, memory = random_vectors(5, 32), random_vectors(4, 32, seed=1)
    embeds = model.get_input_embeddings()
    prompt = [7, 8]
    mixed = icae.instruction_embeds(weights, table, memory, prompt, start=[2, 3], end=[4])
    start, rest = embeds(torch.tensor([2, 3])), embeds(torch.tensor([*prompt, 4]))
    assert torch.equal(mixed, torch.cat([start, memory, table[4:5], rest]))
    assert torch.equal(icae.auto_encoding_embeds(table, memory), torch.cat([memory, table[2:3]]))
    assert torch.equal(icae.continuation_embeds(table, memory), memory)
    assert torch.equal(icae.continuation_embeds(table, memory, True), torch.cat([memory, table[3:4]]))
    with torch.no_grad():
        expected = model(inputs_embeds=mixed[None]).logits[0]
    assert distance(icae.decoder_logits(weights, model.config, mixed), expected) < TOLERANCE


@pytest.mark.parametrize(
    ("length", "stride", "kept"), [(8, 4, [3, 7]), (9, 4, [3, 7, 8]), (3, 4, [2]), (3, 1, [0, 1, 2]), (0, 4, [])]
)
def test_extensible_tokenization_keeps_the_last_of_each_stride(length, stride, kept):
    numbers = torch.arange(length)
    assert extensible_tokenization.strided(numbers, stride).tolist() == kept


def test_extensible_tokenization_is_the_first_layers_of_its_base():
    model, weights = stock_model("llama")
    ids = random_ids(10)
    with torch.no_grad():
        expected = model(input_ids=ids[None], output_hidden_states=True)
        apart = model(input_ids=ids[None, 7:], output_hidden_states=True).hidden_states[2][0]
    outputs = extensible_tokenization.outputs(weights, model.config, ids, n_layers=2)
    assert distance(outputs, expected.hidden_states[2][0]) < TOLERANCE
    normed = extensible_tokenization.outputs(weights, model.config, ids, n_layers=3, final_norm=True)
    assert distance(normed, expected.hidden_states[3][0]) < TOLERANCE
    vectors = extensible_tokenization.vectors(weights, model.config, ids, 4, n_layers=2, chunk_length=7)
    assert distance(vectors, torch.cat([expected.hidden_states[2][0, [3, 6]], apart[[2]]])) < TOLERANCE


def test_extensible_tokenization_decoder_reads_vectors_then_tokens():
    model, weights = stock_model("llama")
    vectors, ids = random_vectors(3, 32), random_ids(5)
    with torch.no_grad():
        mixed = torch.cat([vectors, model.get_input_embeddings()(ids)])
        expected = model(inputs_embeds=mixed[None]).logits[0, 3:]
    found = extensible_tokenization.decoder_logits(weights, model.config, vectors, ids)
    assert distance(found, expected) < TOLERANCE


@pytest.mark.parametrize("family", ["llama", "opt"])
@pytest.mark.parametrize(("as_torch", "shards"), [(False, 1), (False, 3), (True, 1), (True, 2)])
def test_auto_compressor_checkpoint_is_one_of_its_base_and_a_table(tmp_path, family, as_torch, shards):
    weights = official_layouts.write_auto_compressor(
        tmp_path, family, as_torch, shards, inverse_frequencies=family == "llama", summary_length=4
    )
    written = json.loads((tmp_path / "config.json").read_text())
    assert (written["summary_length"], written["accumulate_summary"]) == (4, True)
    assert weights["embed_summary.weight"].shape == (4, 32)
    assert len(list(tmp_path.glob("*.bin"))) == (shards if as_torch else 0)
    assert len(list(tmp_path.glob("*.safetensors"))) == (0 if as_torch else shards)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert len(transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)) == model.config.vocab_size
    ids = random_ids(1, 9, vocabulary=model.config.vocab_size)
    logits, _, _ = auto_compressor.forward(family, weights, model.config, ids, None, None)
    with torch.no_grad():
        assert distance(logits, model(input_ids=ids).logits) < 1e-4


def test_auto_compressor_checkpoint_takes_settings(tmp_path):
    weights = official_layouts.write_auto_compressor(
        tmp_path, summary_length=0, accumulate=False, dtype=torch.bfloat16, num_key_value_heads=2
    )
    assert "embed_summary.weight" not in weights
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert model.dtype == torch.bfloat16
    assert model.config.num_key_value_heads == 2
    assert model.config.accumulate_summary is False


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


@pytest.mark.parametrize("as_torch", [False, True])
def test_icae_checkpoint_is_an_adapter_and_a_table(tmp_path, as_torch):
    model, base = stock_model("mistral", sliding_window=None)
    adapter = official_layouts.write_icae(tmp_path, model.config, as_torch)
    suffix = "pt" if as_torch else "safetensors"
    assert [path.name for path in tmp_path.iterdir()] == [f"mistral_7b_ft_icae.{suffix}"]
    merged = lora.merged(base, adapter, 32)
    changed = {name for name in base if not torch.equal(base[name], merged[name])}
    assert changed == {f"model.layers.{i}.self_attn.{name}.weight" for i in range(3) for name in ("q_proj", "v_proj")}
    official_layouts.write_icae(tmp_path / "own.safetensors", model.config)
    assert (tmp_path / "own.safetensors").is_file()
