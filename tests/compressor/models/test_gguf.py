from __future__ import annotations

import json
import warnings

import pytest

from kompakt.compressor.errors import MissingExtraError, ModelError
from kompakt.compressor.models import gguf as converter
from kompakt.compressor.models.gguf import convert_gguf

gguf = pytest.importorskip("gguf")
np = pytest.importorskip("numpy")
torch = pytest.importorskip("torch")
safetensors_torch = pytest.importorskip("safetensors.torch")

HIDDEN, HEADS, KV_HEADS, FEED = 8, 2, 1, 16
TOKENS = ["<|endoftext|>", "<|im_start|>", "a", "b", "Ġ", "1", "2", "ab", "ĠĠ"]
MERGES = ["a b", "Ġ Ġ"]


def interleave(weight, heads):
    """What the writer of GGUF files does to the rows of query and key."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def make_weights():
    random = np.random.default_rng(0)
    shapes = {
        "model.embed_tokens": (len(TOKENS), HIDDEN),
        "model.norm": (HIDDEN,),
        "model.layers.0.input_layernorm": (HIDDEN,),
        "model.layers.0.post_attention_layernorm": (HIDDEN,),
        "model.layers.0.self_attn.q_proj": (HIDDEN, HIDDEN),
        "model.layers.0.self_attn.k_proj": (HIDDEN * KV_HEADS // HEADS, HIDDEN),
        "model.layers.0.self_attn.v_proj": (HIDDEN * KV_HEADS // HEADS, HIDDEN),
        "model.layers.0.self_attn.o_proj": (HIDDEN, HIDDEN),
        "model.layers.0.mlp.gate_proj": (FEED, HIDDEN),
        "model.layers.0.mlp.up_proj": (FEED, HIDDEN),
        "model.layers.0.mlp.down_proj": (HIDDEN, FEED),
    }
    return {f"{name}.weight": random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def gguf_name(name):
    for ours, theirs in ((v, k) for k, v in converter._WHOLE.items()):
        if name == ours:
            return theirs
    layer, part = name.removeprefix("model.layers.").removesuffix(".weight").split(".", 1)
    return f"blk.{layer}.{ {v: k for k, v in converter._PER_LAYER.items()}[part] }.weight"


def write_gguf(path, weights, *, architecture="llama", pre="smollm", extra=None):
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(1)
    writer.add_context_length(32)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FEED)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3] + [1] * (len(TOKENS) - 2))
    writer.add_token_merges(MERGES)
    for add in (writer.add_bos_token_id, writer.add_eos_token_id, writer.add_pad_token_id, writer.add_unk_token_id):
        add(0)
    writer.add_chat_template("{{ messages }}")
    for name, weight in weights.items():
        heads = HEADS if "q_proj" in name else KV_HEADS
        value = interleave(weight, heads) if "q_proj" in name or "k_proj" in name else weight
        writer.add_tensor(gguf_name(name), value)
    for name, weight in (extra or {}).items():
        writer.add_tensor(name, weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_weights_come_back_in_the_order_of_transformers(tmp_path):
    weights = make_weights()
    convert_gguf(write_gguf(tmp_path / "m.gguf", weights), tmp_path / "out")
    converted = safetensors_torch.load_file(tmp_path / "out" / "model.safetensors")
    assert converted.keys() == weights.keys()
    for name, weight in weights.items():
        assert torch.equal(converted[name], torch.from_numpy(weight).to(torch.bfloat16)), name


def test_configuration_and_record(tmp_path):
    convert_gguf(write_gguf(tmp_path / "m.gguf", make_weights()), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["tie_word_embeddings"] is True
    assert config["vocab_size"] == len(TOKENS)
    assert config["head_dim"] == HIDDEN // HEADS
    assert "quantization_config" not in config
    record = json.loads((tmp_path / "out" / "kompakt.json").read_text())
    assert record["schema_version"] == 1
    assert len(record["converted_from_sha256"]) == 64
    assert json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())["chat_template"] == "{{ messages }}"


def test_digits_stand_alone_in_the_tokenizer(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    convert_gguf(write_gguf(tmp_path / "m.gguf", make_weights()), tmp_path / "out")
    tokenizer = tokenizers.Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    assert tokenizer.encode("ab  12").tokens == ["ab", "ĠĠ", "1", "2"]
    assert tokenizer.encode("<|im_start|>a").ids == [1, 2]
    assert tokenizer.decode(tokenizer.encode("ab  12").ids) == "ab  12"


def test_the_conversion_is_deterministic(tmp_path):
    source = write_gguf(tmp_path / "m.gguf", make_weights())
    for out in ("one", "two"):
        convert_gguf(source, tmp_path / out)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"architecture": "mamba"}, "architecture 'mamba'"),
        ({"pre": "qwen2"}, "qwen2"),
        ({"extra": {"rope_freqs.weight": np.ones(4, np.float32)}}, "rope_freqs"),
    ],
)
def test_what_cannot_be_converted_is_refused(tmp_path, options, message):
    with pytest.raises(ModelError, match=message):
        convert_gguf(write_gguf(tmp_path / "m.gguf", make_weights(), **options), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [b"", b"no GGUF at all, but long enough to be read"])
def test_a_broken_file(tmp_path, content):
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(ModelError, match=r"m\.gguf is not a readable GGUF file"):
        convert_gguf(tmp_path / "m.gguf", tmp_path / "out")


def test_a_missing_package_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(MissingExtraError, match=r"kompakt\[local\]"):
        convert_gguf(tmp_path / "m.gguf", tmp_path / "out")


@pytest.mark.models
def test_the_pulled_model_loads_and_predicts():
    from kompakt.compressor.models.locate import model_path

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from transformers import AutoModelForCausalLM, AutoTokenizer
    folder = model_path("smollm2-135m")
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    ids = tokenizer("The capital of France is", return_tensors="pt", add_special_tokens=False).input_ids
    with torch.no_grad():
        best = int(model(ids).logits[0, -1].argmax())
    assert tokenizer.decode([best]).strip() == "Paris"
