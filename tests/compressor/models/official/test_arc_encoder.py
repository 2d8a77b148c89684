import json

import pytest
import torch
import yaml
from official_layouts import (
    ARC_LAYERS,
    HEADS,
    KV_HEADS,
    META_ARGS,
    RANK,
    TEXT,
    THETA,
    TRUNCATED,
    WIDTH,
    random,
    write_arc_release,
    write_arc_run,
    write_decoder,
)
from safetensors.torch import load_file
from tiny_models import save_tokenizer
from torch.nn.functional import rms_norm, silu, softmax
from transformers import AutoModelForCausalLM

import kompakt
from kompakt import ConfigError, ModelError
from kompakt.compressor.models.causal_lm import load_causal_lm
from kompakt.compressor.models.official.convert import convert
from kompakt.compressor.soft.arc_encoder import group_sizes
from kompakt.compressor.soft.checkpoint import read_checkpoint

KEPT = ARC_LAYERS - TRUNCATED
HEAD_DIM = WIDTH // HEADS
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    return write_decoder(tmp_path_factory.mktemp("decoders") / "plain")


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    return write_decoder(tmp_path_factory.mktemp("decoders") / "wide", 40, rope_parameters=LLAMA3)


@pytest.fixture
def config(tmp_path):
    """The configuration of the model behind the encoder, as its authors give it."""
    file = tmp_path / "params.json"
    file.write_text(json.dumps(META_ARGS))
    return file


def refused(tmp_path, decoder, tokenizer, **options):
    write_arc_release(tmp_path / "release", **options)
    with pytest.raises(ModelError) as caught:
        convert("arc-encoder", tmp_path / "release", tmp_path / "made", decoders=[decoder], tokenizer=tokenizer)
    assert [path.name for path in tmp_path.iterdir()] == ["release"]
    return str(caught.value)


def load(made, **options):
    return kompakt.load("arc-encoder", checkpoint=str(made), dtype="float32", device="cpu", **options)


def pairs_rotated(heads):
    """Rotate ``[T, H, D_head]`` as Meta's models do: neighbours are pairs."""
    frequencies = THETA ** (-torch.arange(0, HEAD_DIM, 2).float() / HEAD_DIM)
    angles = torch.outer(torch.arange(len(heads)).float(), frequencies)
    turned = (
        torch.view_as_complex(heads.unflatten(-1, (-1, 2))) * torch.polar(torch.ones_like(angles), angles)[:, None]
    )
    return torch.view_as_real(turned).flatten(-2)


def reference(given, ids, rate):
    """Encode a text as the paper says, from the weights as they were released; pooled vectors ``[m, D]``."""
    hidden = given["embedder.tok_embeddings.weight"][ids]
    for layer in range(KEPT):

        def w(name, prefix=f"embedder.layers.{layer}."):
            return given[f"{prefix}{name}.weight"]

        sizes = group_sizes(len(hidden), -rate) if layer == KEPT - 1 else [1] * len(hidden)
        queries = torch.stack([group.mean(0) for group in hidden.split(sizes)])
        normed, normed_queries = (rms_norm(one, (WIDTH,), w("attention_norm"), 1e-5) for one in (hidden, queries))
        q = pairs_rotated((normed_queries @ w("attention.wq").T).unflatten(-1, (HEADS, HEAD_DIM)))
        k = pairs_rotated((normed @ w("attention.wk").T).unflatten(-1, (KV_HEADS, HEAD_DIM)))
        v = (normed @ w("attention.wv").T).unflatten(-1, (KV_HEADS, HEAD_DIM))
        k, v = (one.repeat_interleave(HEADS // KV_HEADS, dim=1) for one in (k, v))
        weights = softmax(torch.einsum("qhd,khd->hqk", q, k) / HEAD_DIM**0.5, dim=-1)
        hidden = queries + torch.einsum("hqk,khd->qhd", weights, v).flatten(1) @ w("attention.wo").T
        inner = rms_norm(hidden, (WIDTH,), w("ffn_norm"), 1e-5)
        gate = silu(inner @ w("feed_forward.w1").T) * (inner @ w("feed_forward.w3").T)
        hidden = hidden + gate @ w("feed_forward.w2").T
    return hidden


def bridged(given, vectors, prefix="bridge_module."):
    if f"{prefix}norm.weight" in given:
        vectors = rms_norm(vectors, (WIDTH,), given[f"{prefix}norm.weight"], 1e-5)
    vectors = vectors @ given[f"{prefix}layer1.weight"].T
    second = given.get(f"{prefix}layer2.weight")
    return vectors if second is None else vectors @ second.T


@pytest.mark.parametrize("bridge", ["mlp", "linear", "rms"])
def test_the_checkpoint_compresses_as_the_paper_says(tmp_path, decoder, tokenizer, bridge):
    given = write_arc_release(tmp_path / "release", bridge=bridge)
    options = {"decoders": [decoder], "tokenizer": tokenizer}
    made = convert("arc-encoder", tmp_path / "release", tmp_path / "made", **options)
    text = TEXT[:45]
    encoder = load(made, rates=(8,))
    vectors = encoder.compress(text, max_tokens=12, tokenizer=str(decoder)).parts[0].vectors
    ids = encoder.lm.tokenizer.encode(text, add_special_tokens=False).ids
    expected = torch.cat([reference(given, ids, 8), given["embedder.cont_tok.0.weight"]])
    torch.testing.assert_close(vectors, bridged(given, expected), atol=1e-4, rtol=1e-4)
    repeated = load(made, rates=(8,), special="rec").compress(text, max_tokens=12, tokenizer=str(decoder))
    rec = bridged(given, given["embedder.rec_tok.0.weight"])
    torch.testing.assert_close(repeated.parts[0].vectors[-1:], rec, atol=1e-4, rtol=1e-4)


def test_scores_of_rotated_queries_and_keys_stay_the_same(tmp_path, decoder, tokenizer):
    given = write_arc_release(tmp_path / "release")
    options = {"decoders": [decoder], "tokenizer": tokenizer}
    made = convert("arc-encoder", tmp_path / "release", tmp_path / "made", **options)
    body = AutoModelForCausalLM.from_pretrained(made / "encoder").base_model
    hidden = random({"x": (11, WIDTH)}, seed=5)["x"]
    attention = body.layers[0].self_attn
    cos, sin = body.rotary_emb(hidden[None], torch.arange(11)[None])

    def halves_rotated(projection):
        heads = projection(hidden).unflatten(-1, (-1, HEAD_DIM))
        first, second = heads.chunk(2, dim=-1)
        return heads * cos[0, :, None] + torch.cat([-second, first], dim=-1) * sin[0, :, None]

    q, k = halves_rotated(attention.q_proj), halves_rotated(attention.k_proj)
    theirs = [
        pairs_rotated((hidden @ given[f"embedder.layers.0.attention.{name}.weight"].T).unflatten(-1, (-1, HEAD_DIM)))
        for name in ("wq", "wk")
    ]
    scores = [
        torch.einsum("qhd,khd->hqk", one, other.repeat_interleave(HEADS // KV_HEADS, dim=1))
        for one, other in [(q, k), theirs]
    ]
    torch.testing.assert_close(*scores, atol=1e-5, rtol=1e-5)
    # without the permutation they would not
    assert not torch.allclose(q, theirs[0], atol=0.1)


@pytest.mark.parametrize("source", ["release", "run", "old run"])
def test_all_tensors_arrive(tmp_path, decoder, tokenizer, config, source):
    if source == "release":
        given = write_arc_release(tmp_path / "release")
        options = {}
    else:
        write_arc_run(tmp_path / "release", step=9)
        given = write_arc_run(tmp_path / "release", step=100, old_names=source == "old run")
        options = {"encoder_config": config}
    made = convert(
        "arc-encoder", tmp_path / "release", tmp_path / "made", decoders=[decoder], tokenizer=tokenizer, **options
    )
    checkpoint = read_checkpoint(made, "arc-encoder")
    assert set(checkpoint.tensors) == {
        f"heads.0.{name}" for name in ("bridge.layer1.weight", "bridge.layer2.weight", "cont_token", "rec_token")
    }
    for name, one in checkpoint.tensors.items():
        theirs = name.replace("heads.0.bridge.", "bridge_module.").replace("heads.0.", "embedder.")
        assert torch.equal(one, given[theirs.replace("_token", "_tok.0.weight")])
    arrived = load_file(made / "encoder" / "model.safetensors")
    assert len(arrived) == 2 + 9 * KEPT
    assert torch.equal(arrived["model.norm.weight"], torch.ones(WIDTH))
    assert torch.equal(arrived["model.embed_tokens.weight"], given["embedder.tok_embeddings.weight"])
    names = {"wv": "self_attn.v_proj", "wo": "self_attn.o_proj"}
    rest = {f"attention.{one}": other for one, other in names.items()}
    rest |= {"attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
    rest |= {
        f"feed_forward.{one}": f"mlp.{other}_proj" for one, other in (("w1", "gate"), ("w2", "down"), ("w3", "up"))
    }
    for layer in range(KEPT):
        for theirs, ours in rest.items():
            one = arrived[f"model.layers.{layer}.{ours}.weight"]
            assert torch.equal(one, given[f"embedder.layers.{layer}.{theirs}.weight"])
        for theirs, ours in (("wq", "q_proj"), ("wk", "k_proj")):
            one = arrived[f"model.layers.{layer}.self_attn.{ours}.weight"].view(-1, HEAD_DIM, WIDTH)
            other = given[f"embedder.layers.{layer}.attention.{theirs}.weight"].view(-1, HEAD_DIM, WIDTH)
            assert torch.equal(one, torch.cat([other[:, ::2], other[:, 1::2]], dim=1))


def test_what_is_written_beside_the_weights(tmp_path, decoder, tokenizer):
    write_arc_release(tmp_path / "release", compress_rates=[-5])
    made = convert("arc-encoder", tmp_path / "release", tmp_path / "made", decoders=[decoder], tokenizer=tokenizer)
    checkpoint = read_checkpoint(made)
    assert checkpoint.settings == {
        "rates": [2, 4, 5, 8],
        "trained_rate": 5,
        "n_truncated_layers": 0,
        "special": "cont",
        "specials": ["cont", "rec"],
        "heads": [{"d_out": WIDTH, "d_hidden": RANK, "normalise": False}],
    }
    lm = load_causal_lm(made / "encoder", dtype="float32", device="cpu")
    written = lm.model.config
    assert (written.num_hidden_layers, written.rms_norm_eps, written.vocab_size) == (KEPT, 1e-5, 258)
    assert written.rope_parameters == {"rope_type": "default", "rope_theta": THETA}
    assert (written.tie_word_embeddings, written.bos_token_id) == (True, 0)
    assert lm.context_length == 32768
    assert checkpoint.resolve("encoder") == made / "encoder"


def test_several_decoders(tmp_path, decoder, wide, tokenizer):
    given = write_arc_release(tmp_path / "release", widths=(40, WIDTH), bridge="multi_module")
    release, made = tmp_path / "release", tmp_path / "made"
    for wrong in ([wide], [wide, decoder, decoder]):
        with pytest.raises(ConfigError, match="bridges to 2 decoders"):
            convert("arc-encoder", release, made, decoders=wrong, tokenizer=tokenizer)
    with pytest.raises(ModelError, match=r"bridge_module\.0\.layer2\.weight .*\[40, 12\].* is 32"):
        convert("arc-encoder", release, made, decoders=[decoder, wide], tokenizer=tokenizer)
    convert("arc-encoder", release, made, decoders=[wide, decoder], tokenizer=tokenizer)
    checkpoint = read_checkpoint(made)
    assert [(one.plain_rope, one.is_inside) for one in checkpoint.models.values()] == [
        (False, True),
        (True, False),
        (False, False),
    ]
    assert checkpoint.resolve("decoder.1") == decoder
    for number, (width, folder) in enumerate([(40, wide), (WIDTH, decoder)]):
        encoder = load(made, rates=(8,), decoder=number)
        part = encoder.compress(TEXT[:45], max_tokens=12, tokenizer=str(folder)).parts[0]
        ids = encoder.lm.tokenizer.encode(TEXT[:45], add_special_tokens=False).ids
        expected = torch.cat([reference(given, ids, 8), given[f"embedder.cont_tok.{number}.weight"]])
        expected = bridged(given, expected, f"bridge_module.{number}.")
        assert part.vectors.shape[1] == width
        torch.testing.assert_close(part.vectors, expected, atol=1e-4, rtol=1e-4)
        assert part.space.endswith(":plain-rope") == (number == 0)


def test_without_special_vectors(tmp_path, decoder, tokenizer):
    write_arc_release(tmp_path / "release", special=())
    made = convert("arc-encoder", tmp_path / "release", tmp_path / "made", decoders=[decoder], tokenizer=tokenizer)
    assert read_checkpoint(made).settings["special"] == "none"
    assert len(load(made, rates=(8,)).compress(TEXT[:40], max_tokens=9, tokenizer=str(decoder)).parts[0].vectors) == 5


def test_a_promised_special_vector_must_be_there(tmp_path, decoder, tokenizer):
    message = refused(tmp_path, decoder, tokenizer, special=("rec",), cont_tok=True)
    assert "missing: embedder.cont_tok.0.weight" in message


def test_wrong_tensors_are_named(tmp_path, decoder, tokenizer):
    def spoil(tensors):
        del tensors["embedder.layers.1.attention.wq.weight"]
        tensors["embedder.norm.weight"] = torch.ones(WIDTH)
        tensors["embedder.layers.0.attention.wk.weight"] = torch.ones(WIDTH, WIDTH)
        tensors["bridge_module.layer1.weight"] = torch.ones(RANK, WIDTH + 1)

    message = refused(tmp_path, decoder, tokenizer, change=spoil)
    assert "missing: embedder.layers.1.attention.wq.weight" in message
    assert "not known: embedder.norm.weight" in message
    assert "embedder.layers.0.attention.wk.weight is [32, 32] and should be [16, 32]" in message
    assert "bridge_module.layer1.weight is [12, 33] and should be [12, 32]" in message


def test_a_lost_layer_is_named(tmp_path, decoder, tokenizer):
    def lose(tensors):
        for name in [name for name in tensors if ".layers.1." in name]:
            del tensors[name]

    assert "missing: embedder.layers.1.attention.wk.weight" in refused(tmp_path, decoder, tokenizer, change=lose)


@pytest.mark.parametrize("name", ["embedder.tok_embeddings.weight", "embedder.layers.0.feed_forward.w1.weight"])
def test_a_tensor_that_sizes_come_from_is_named(tmp_path, decoder, tokenizer, name):
    assert f"missing: {name}" in refused(tmp_path, decoder, tokenizer, change=lambda tensors: tensors.pop(name))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("compress_rates", [-8, -8]),
        ("compress_rates", [4]),
        ("compress_rates", []),
        ("compress_rates", -8),
        ("causal_embedder", True),
        ("memory_tokens", 8),
        ("pooling_module", {"pool_type": "mean", "where": "before"}),
        ("pooling_module", {"pool_type": "mean_pooled_queries", "where": "between"}),
        ("pooling_module", None),
        ("bridge", "attention"),
        ("n_truncated_layers", "two"),
    ],
)
def test_other_variants_are_refused(tmp_path, decoder, tokenizer, field, value):
    message = refused(tmp_path, decoder, tokenizer, **{field: value})
    inner = (
        [one for one in value.values() if one not in ("before", "mean_pooled_queries")]
        if field[0] == "p" and value
        else [value]
    )
    assert ("bridge_type" if field == "bridge" else field) in message
    assert value is None or all(repr(one) in message for one in inner)
    assert "config.yaml" in message


def test_the_backbone_of_a_run_must_be_named(tmp_path, decoder, tokenizer, config):
    write_arc_run(tmp_path / "run")
    options = {"decoders": [decoder], "tokenizer": tokenizer}
    with pytest.raises(ModelError, match=r"params\.json has no model_args.*--encoder-config"):
        convert("arc-encoder", tmp_path / "run", tmp_path / "made", **options)
    hugging_face = {
        "model_type": "llama",
        "hidden_size": WIDTH,
        "intermediate_size": 48,
        "num_hidden_layers": ARC_LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "rms_norm_eps": 1e-5,
        "vocab_size": 258,
        "max_position_embeddings": 640,
        "rope_parameters": LLAMA3 | {"rope_theta": THETA},
    }
    other = tmp_path / "config.json"
    other.write_text(json.dumps(hugging_face))
    one = convert("arc-encoder", tmp_path / "run", tmp_path / "one", **options, encoder_config=config)
    two = convert("arc-encoder", tmp_path / "run", tmp_path / "two", **options, encoder_config=other)
    written = [json.loads((made / "encoder" / "config.json").read_text()) for made in (one, two)]
    assert written[1].pop("max_position_embeddings") == 640
    assert written[0].pop("max_position_embeddings") == 32768
    assert written[0] == written[1]
    other.write_text(json.dumps(hugging_face | {"num_attention_heads": 0}))
    with pytest.raises(ModelError, match="n_heads"):
        convert("arc-encoder", tmp_path / "run", tmp_path / "three", **options, encoder_config=other)


def test_usual_values_of_what_a_configuration_leaves_out(tmp_path, decoder, tokenizer, config):
    write_arc_run(tmp_path / "run")
    few = {"dim": WIDTH, "n_layers": ARC_LAYERS, "n_heads": HEADS, "n_kv_heads": KV_HEADS, "vocab_size": -1}
    config.write_text(json.dumps(few | {"rope_theta": None}))
    options = {"decoders": [decoder], "tokenizer": tokenizer, "encoder_config": config}
    made = convert("arc-encoder", tmp_path / "run", tmp_path / "made", **options)
    written = json.loads((made / "encoder" / "config.json").read_text())
    assert written["rope_parameters"] == {"rope_type": "default", "rope_theta": 1e6}
    assert (written["vocab_size"], written["intermediate_size"], written["rms_norm_eps"]) == (258, 48, 1e-5)


def test_a_configuration_may_count_the_layers_that_are_left(tmp_path, decoder, tokenizer, config):
    write_arc_release(tmp_path / "release")
    config.write_text(json.dumps(META_ARGS | {"n_layers": KEPT}))
    options = {"decoders": [decoder], "tokenizer": tokenizer, "encoder_config": config}
    made = convert("arc-encoder", tmp_path / "release", tmp_path / "made", **options)
    assert json.loads((made / "encoder" / "config.json").read_text())["num_hidden_layers"] == KEPT


def test_numbers_as_people_write_them_in_yaml(tmp_path, decoder, tokenizer):
    write_arc_release(tmp_path / "release")
    file = tmp_path / "release" / "config.yaml"
    # without a point, yaml takes it for text
    file.write_text(file.read_text().replace("1.0e-05", "1e-5"))
    assert yaml.safe_load(file.read_text())["model_args"]["norm_eps"] == "1e-5"
    made = convert("arc-encoder", tmp_path / "release", tmp_path / "made", decoders=[decoder], tokenizer=tokenizer)
    assert json.loads((made / "encoder" / "config.json").read_text())["rms_norm_eps"] == 1e-5


@pytest.mark.parametrize("content", ["a: [", "- a", "!!python/object/apply:os.system ['true']"])
def test_a_broken_configuration_is_named(tmp_path, decoder, tokenizer, content):
    write_arc_release(tmp_path / "release")
    (tmp_path / "release" / "config.yaml").write_text(content)
    with pytest.raises(ModelError, match=r"config\.yaml"):
        convert("arc-encoder", tmp_path / "release", tmp_path / "made", decoders=[decoder], tokenizer=tokenizer)


def test_what_is_no_release_is_refused(tmp_path, decoder, tokenizer):
    with pytest.raises(ModelError, match="embedder_args"):
        convert("arc-encoder", decoder, tmp_path / "made", decoders=[decoder], tokenizer=tokenizer)
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(ModelError, match="checkpoint_NUMBER"):
        convert("arc-encoder", tmp_path / "run", tmp_path / "made", decoders=[decoder], tokenizer=tokenizer)
    write_arc_run(tmp_path / "run", step=7)
    (tmp_path / "run" / "checkpoints" / "checkpoint_000007" / "bridge_module" / "consolidated.safetensors").unlink()
    with pytest.raises(ModelError, match="bridge_module/consolidated"):
        convert("arc-encoder", tmp_path / "run", tmp_path / "made", decoders=[decoder], tokenizer=tokenizer)


def test_the_tokens_that_begin_and_end_a_text(tmp_path, decoder, tokenizer):
    write_arc_release(tmp_path / "release")
    own = tmp_path / "tokenizer"
    own.mkdir()
    data = json.loads((tokenizer / "tokenizer.json").read_text())
    data["model"]["vocab"] = {
        name.replace("<|endoftext|>", "<begin>"): i for name, i in data["model"]["vocab"].items()
    }
    data["added_tokens"] = []
    (own / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(ModelError, match="bos_token"):
        convert("arc-encoder", tmp_path / "release", tmp_path / "made", decoders=[decoder], tokenizer=own)
    (own / "tokenizer_config.json").write_text(json.dumps({"bos_token": {"content": "<begin>"}}))
    made = convert("arc-encoder", tmp_path / "release", tmp_path / "made", decoders=[decoder], tokenizer=own)
    written = json.loads((made / "encoder" / "config.json").read_text())
    assert (written["bos_token_id"], written["eos_token_id"]) == (0, 0)
    with pytest.raises(ModelError, match="--tokenizer"):
        convert("arc-encoder", tmp_path / "release", tmp_path / "other", decoders=[decoder])
