import json

import pytest
import torch
from official_layouts import POSITIONS, SLOTS, TEXT, WIDTH, write_auto_compressor
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import kompakt
from kompakt import ConfigError, ModelError
from kompakt.compressor.models.official.convert import convert
from kompakt.compressor.models.official.tensors import open_model
from kompakt.compressor.models.tokenizers import load_tokenizer
from kompakt.compressor.soft.checkpoint import read_checkpoint

KINDS = ["llama", "mistral", "opt"]
FORMS = ["safetensors", "bin", "bin-legacy", "safetensors-shards", "bin-shards"]
HEADS = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "opt": "OPTForCausalLM"}


def converted(tmp_path, **options):
    given = write_auto_compressor(tmp_path / "release", **options)
    return given, convert("auto-compressor", tmp_path / "release", tmp_path / "made")


def refused(tmp_path, **options):
    """Convert what cannot be, and return the message."""
    write_auto_compressor(tmp_path / "release", **options)
    with pytest.raises(ModelError) as caught:
        convert("auto-compressor", tmp_path / "release", tmp_path / "made")
    assert [path.name for path in tmp_path.iterdir()] == ["release"]
    return str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMS)
def test_all_tensors_arrive(tmp_path, kind, form):
    given, made = converted(tmp_path, kind=kind, form=form)
    checkpoint = read_checkpoint(made, "auto-compressor")
    assert set(checkpoint.tensors) == {"embed_summary.weight"}
    assert torch.equal(checkpoint.tensors["embed_summary.weight"], given.pop("embed_summary.weight"))
    given.pop("model.layers.0.self_attn.rotary_emb.inv_freq", None)
    if kind == "opt":
        given.pop("lm_head.weight")
    arrived = load_file(made / "decoder" / "model.safetensors")
    assert set(arrived) == set(given)
    assert all(torch.equal(arrived[name], one) for name, one in given.items())


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_beside_the_weights(tmp_path, kind):
    _, made = converted(tmp_path, kind=kind, accumulate_summary=False, auto_map={"AutoModel": "evil.Evil"})
    checkpoint = read_checkpoint(made)
    assert checkpoint.settings["summary_length"] == SLOTS
    assert checkpoint.settings["accumulate_summary"] is False
    assert checkpoint.settings["lora"]["rank"] == 0
    assert checkpoint.settings["rates"] == [10, 20, 40]
    assert checkpoint.made_from == "the authors' release release"
    assert set(checkpoint.models) == {"base"}
    assert checkpoint.resolve("base") == made / "decoder"
    config = json.loads((made / "decoder" / "config.json").read_text())
    assert config["architectures"] == [HEADS[kind]]
    assert not {"summary_length", "accumulate_summary", "segment_gradient_checkpointing", "auto_map"} & set(config)
    model = AutoModelForCausalLM.from_pretrained(made / "decoder")
    assert type(model).__name__ == HEADS[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_the_checkpoint_compresses_as_the_paper_says(tmp_path, kind):
    given, made = converted(tmp_path, kind=kind)
    encoder = kompakt.load("auto-compressor", checkpoint=str(made), dtype="float32", device="cpu")
    text = TEXT[:28]
    result = encoder.compress(text, max_tokens=SLOTS, tokenizer=str(made / "decoder"))
    vectors = result.parts[0].vectors
    assert vectors.shape == (SLOTS, WIDTH)
    # one segment: the final states of the summary embeddings behind the tokens, without positions where learned
    body = AutoModelForCausalLM.from_pretrained(made / "decoder").base_model
    ids = torch.tensor(encoder.lm.tokenizer.encode(text, add_special_tokens=False).ids)
    rows = torch.cat([body.get_input_embeddings()(ids), given["embed_summary.weight"]])[None]
    numbers = torch.arange(rows.shape[1])
    positions = torch.where(numbers < len(ids), numbers, -1) if kind == "opt" else numbers
    mask = torch.ones(1, rows.shape[1], dtype=torch.long)
    with torch.no_grad():
        states = body(inputs_embeds=rows, position_ids=positions[None], attention_mask=mask).last_hidden_state[0]
    torch.testing.assert_close(vectors, states[-SLOTS:], atol=1e-4, rtol=1e-4)


def test_only_rates_that_the_decoder_can_read(tmp_path):
    given, made = converted(tmp_path, max_position_embeddings=65)
    assert read_checkpoint(made).settings["rates"] == [10, 20]
    assert POSITIONS > 40 * SLOTS
    del given


def test_a_tied_head_may_be_absent_but_not_another(tmp_path):
    _, made = converted(tmp_path, kind="opt", change=lambda tensors: tensors.pop("lm_head.weight"))
    assert "lm_head.weight" not in open_model(made / "decoder")
    (tmp_path / "b").mkdir()
    message = refused(tmp_path / "b", kind="opt", change=lambda tensors: tensors["lm_head.weight"].add_(1))
    assert "lm_head.weight and model.decoder.embed_tokens.weight" in message
    assert "tie_word_embeddings" in message


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["safetensors", "bin-shards"])
def test_wrong_tensors_are_named(tmp_path, kind, form):
    def spoil(tensors):
        tensors["model.extra.weight"] = torch.ones(1)
        del tensors[layer]
        tensors["embed_summary.weight"] = torch.ones(SLOTS, WIDTH + 1)

    layer = ("model.decoder." if kind == "opt" else "model.") + "layers.1.self_attn.k_proj.weight"
    message = refused(tmp_path, kind=kind, form=form, change=spoil)
    assert f"missing: {layer}" in message
    assert "not known: model.extra.weight" in message
    assert f"embed_summary.weight is [{SLOTS}, {WIDTH + 1}] and should be [{SLOTS}, {WIDTH}]" in message
    assert str(tmp_path / "release") in message


def test_an_untied_head_must_be_there(tmp_path):
    message = refused(tmp_path, change=lambda tensors: tensors.pop("lm_head.weight"))
    assert "missing: lm_head.weight" in message


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"summary_length": 0}, ["summary_length 0", "no summary vectors"]),
        ({"summary_length": True}, ["summary_length", "True"]),
        ({"summary_length": None}, ["summary_length", "None"]),
        ({"summary_length": -3}, ["summary_length", "-3"]),
        ({"accumulate_summary": None}, ["accumulate_summary", "None"]),
        ({"architectures": ["LlamaForCausalLM"]}, ["LlamaForCausalLM", "AutoCompressor"]),
        ({"architectures": None}, ["architectures None"]),
        ({"model_type": "gpt2"}, ["model_type 'gpt2'", "llama, mistral, opt"]),
        ({"hidden_size": "many"}, ["config.json", "describes no causal language model"]),
    ],
)
def test_other_models_are_refused(tmp_path, config, words):
    message = refused(tmp_path, **config)
    assert all(word in message for word in words), message


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_broken_configuration_is_named(tmp_path, content):
    write_auto_compressor(tmp_path / "release")
    (tmp_path / "release" / "config.json").write_text(content)
    with pytest.raises(ModelError, match=r"config\.json"):
        convert("auto-compressor", tmp_path / "release", tmp_path / "made")


def as_slow(folder):
    """Put the two files of older tokenizers in place of the one."""
    file = folder / "tokenizer.json"
    model = json.loads(file.read_text())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    file.unlink()


def test_slow_tokenizers_are_converted(tmp_path):
    write_auto_compressor(tmp_path / "release", kind="opt")
    before = (tmp_path / "release" / "tokenizer.json").read_bytes()
    as_slow(tmp_path / "release")
    special = {"tokenizer_class": "GPT2Tokenizer"} | dict.fromkeys(
        ("bos_token", "eos_token", "unk_token", "pad_token"), "<|endoftext|>"
    )
    (tmp_path / "release" / "tokenizer_config.json").write_text(json.dumps(special))
    made = convert("auto-compressor", tmp_path / "release", tmp_path / "made")
    (tmp_path / "before.json").write_bytes(before)
    one, other = (
        load_tokenizer(str(path)) for path in (tmp_path / "before.json", made / "decoder" / "tokenizer.json")
    )
    assert one.encode(TEXT) == other.encode(TEXT)
    encoder = kompakt.load("auto-compressor", checkpoint=str(made), dtype="float32", device="cpu")
    assert encoder.compress(TEXT, keep=0.5, tokenizer=str(made / "decoder")).parts[0].vectors.shape[1] == WIDTH


def test_a_tokenizer_that_cannot_be_converted(tmp_path):
    write_auto_compressor(tmp_path / "release")
    (tmp_path / "release" / "tokenizer.json").unlink()
    (tmp_path / "release" / "tokenizer.model").write_bytes(b"not sentencepiece")
    with pytest.raises(ModelError, match="--tokenizer"):
        convert("auto-compressor", tmp_path / "release", tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_a_tokenizer_from_elsewhere(tmp_path):
    write_auto_compressor(tmp_path / "release")
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "release" / "tokenizer.json").rename(tmp_path / "tokenizer" / "tokenizer.json")
    with pytest.raises(ModelError, match="--tokenizer"):
        convert("auto-compressor", tmp_path / "release", tmp_path / "made")
    made = convert("auto-compressor", tmp_path / "release", tmp_path / "made", tokenizer=tmp_path / "tokenizer")
    assert (made / "decoder" / "tokenizer.json").is_file()


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    def fewer(tensors):
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            tensors[name] = tensors[name][:100].clone()

    assert "ids up to 257" in refused(tmp_path, change=fewer, vocab_size=100)


def test_the_target_must_be_empty(tmp_path):
    write_auto_compressor(tmp_path / "release")
    (tmp_path / "made").mkdir()
    convert("auto-compressor", tmp_path / "release", tmp_path / "made")
    for target in ("made", "release/config.json"):
        with pytest.raises(ConfigError, match="holds something"):
            convert("auto-compressor", tmp_path / "release", tmp_path / target)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, RuntimeError])
def test_an_interrupted_conversion_leaves_nothing(tmp_path, monkeypatch, error):
    from kompakt.compressor.soft import checkpoint

    def fail(*args):
        raise error("now")

    write_auto_compressor(tmp_path / "release")
    monkeypatch.setattr(checkpoint, "write_checkpoint", fail)
    with pytest.raises(ModelError if error is OSError else error):
        convert("auto-compressor", tmp_path / "release", tmp_path / "new" / "made")
    assert {path.name for path in tmp_path.iterdir()} <= {"release", "new"}
    assert not any((tmp_path / "new").iterdir())


def test_options_are_checked_before_anything_is_read(tmp_path):
    for method, options, words in [
        ("compllm", {}, "auto-compressor, icae"),
        ("auto-compressor", {"base": "x", "decoders": ["y"]}, "takes no --base, --decoder"),
        ("arc-encoder", {}, "needs --decoder"),
        ("arc-encoder", {"decoders": ["y"], "alpha": 3.0}, "takes no --alpha"),
        ("icae", {}, "needs --base"),
    ]:
        with pytest.raises(ConfigError, match=words):
            convert(method, tmp_path / "nothing", tmp_path / "made", **options)
    with pytest.raises(kompakt.ModelNotFoundError, match="nothing"):
        convert("auto-compressor", tmp_path / "nothing", tmp_path / "made")
