import json

import pytest
import torch
from command_line import Ran
from official_layouts import INNER, POSITIONS, TEXT, VOCABULARY, WIDTH, random, write_weights
from safetensors.torch import load_file
from soft_references import activation_beacon
from tiny_models import save_tokenizer
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config

import kompakt
from kompakt import ConfigError, ModelError
from kompakt.compressor.models.official.convert import convert
from kompakt.compressor.models.tokenizers import load_tokenizer
from kompakt.compressor.soft.checkpoint import read_checkpoint

KINDS = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config}
HEADS = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "qwen2": "Qwen2ForCausalLM"}
WINDOW, LAYERS = 16, 2

SECOND = {
    "beacon_window": WINDOW,
    "beacon_stride": WINDOW,
    "beacon_attn": "full-coverage",
    "beacon_ratio": [2, 4, 8, 16, 32],
    "beacon_ratio_mix": "adapt-1024",
    "beacon_param": ["q", "k", "v"],
    "beacon_embed_init": "eos",
    "beacon_sink_size": 0,
    "beacon_attend_prev": True,
    "beacon_pos": "interleave",
    "beacon_parallel_window": 1,
}
"""The fields of the current version."""

FIRST = {
    "beacon_window": WINDOW,
    "beacon_stride": [WINDOW],
    "beacon_stride_mix": "step-random",
    "beacon_attn": "step-expansion",
    "beacon_attend_previous": True,
    "beacon_ratio": [0, 2, 4, 8, 16],
    "beacon_ratio_mix": "adapt-1024",
    "beacon_param": ["q", "k", "v", "o"],
    "retrieval_method": None,
    "retrieval_topk": 2,
}
"""Those of the version of January 2024."""

VERSIONS = {"second": SECOND, "first": FIRST}
CASES = [(kind, version) for kind in KINDS for version in VERSIONS]


def write_base(folder, kind, **settings):
    """Write the model that the weights are trained for."""
    folder.mkdir()
    save_tokenizer(folder)
    sizes = {"hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": LAYERS, "vocab_size": VOCABULARY}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": POSITIONS}
    sizes |= {"bos_token_id": 0, "eos_token_id": 0, "dtype": "float32"}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(KINDS[kind](**sizes | settings))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return folder


def beacon_tensors(weights, params):
    """Random beacons, with biases where tokens have them."""
    shapes = {"model.beacon_embed_tokens.weight": (1, WIDTH)}
    for layer in range(LAYERS):
        for param in params:
            for kind in ("weight", "bias"):
                name = f"model.layers.{layer}.self_attn.{param}_proj.{kind}"
                if name in weights:
                    shapes[name.replace(f"{param}_proj", f"beacon_{param}_proj")] = tuple(weights[name].shape)
    return random(shapes, seed=5)


def write_release(folder, base, *, version="second", form="safetensors", change=None, whole=True, **fields):
    """Write a release of a trained base, and return its tensors; ``change`` alters them before they are written."""
    folder.mkdir()
    save_tokenizer(folder)
    raw = json.loads((base / "config.json").read_text())
    kind = raw["model_type"].capitalize()
    own = {"architectures": [f"{kind}ForCausalLM"], "auto_map": {"AutoModelForCausalLM": f"modeling.{kind}"}}
    config = raw | own | {"torch_dtype": "float32"} | VERSIONS[version] | fields
    (folder / "config.json").write_text(json.dumps({key: one for key, one in config.items() if one != "absent"}))
    weights = load_file(base / "model.safetensors")
    tensors = (weights if whole else {}) | beacon_tensors(weights, config["beacon_param"])
    if change:
        change(tensors)
    write_weights(folder, tensors, form)
    return tensors


def own_of(tensors):
    return {name: one for name, one in tensors.items() if "beacon" in name}


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def case(request, tmp_path_factory):
    kind, version = request.param
    folder = tmp_path_factory.mktemp("beacons")
    return write_base(folder / "base", kind), version


def refused(tmp_path, base, **options):
    write_release(tmp_path / "release", base, **options)
    with pytest.raises(ModelError) as caught:
        convert("activation-beacon", tmp_path / "release", tmp_path / "made", base=base)
    assert not (tmp_path / "made").exists()
    return str(caught.value)


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("bases") / "qwen2", "qwen2")


@pytest.mark.parametrize("form", ["safetensors", "bin-shards"])
def test_all_tensors_arrive_and_an_unchanged_base_is_referred_to(tmp_path, case, form):
    base, version = case
    given = write_release(tmp_path / "release", base, version=version, form=form)
    made = convert("activation-beacon", tmp_path / "release", tmp_path / "made", base=base)
    checkpoint = read_checkpoint(made, "activation-beacon")
    expected = own_of(given)
    assert set(checkpoint.tensors) == set(expected)
    assert all(torch.equal(checkpoint.tensors[name], one) for name, one in expected.items())
    assert ("model.layers.1.self_attn.beacon_q_proj.bias" in expected) == ("q_proj.bias" in "".join(given))
    assert ("model.layers.1.self_attn.beacon_o_proj.weight" in expected) == (version == "first")
    assert not (made / "decoder").exists()
    assert checkpoint.resolve("base") == base
    encoder = kompakt.load("activation-beacon", checkpoint=str(made), dtype="float32", device="cpu")
    used = encoder.module.trainable()
    assert set(used) == set(expected)
    assert all(torch.equal(used[name], one) for name, one in expected.items())


def test_settings_are_those_of_the_version(tmp_path, case):
    base, version = case
    write_release(tmp_path / "release", base, version=version)
    settings = read_checkpoint(
        convert("activation-beacon", tmp_path / "release", tmp_path / "made", base=base)
    ).settings
    assert settings["rates"] == [2, 4, 8, 16]
    beacon = settings["beacon"]
    assert (beacon["window"], beacon["stride"], beacon["ratio_mix"]) == (WINDOW, WINDOW, "adapt-1024")
    assert (beacon["sink_size"], beacon["as_released"]) == (0, False)
    if version == "first":
        assert (beacon["placement"], beacon["attention"]) == ("append", "step-expansion")
        assert (beacon["attend_previous"], beacon["params"]) == (False, ["q", "k", "v", "o"])
        assert beacon["ratios"] == [0, 2, 4, 8, 16]
    else:
        assert (beacon["placement"], beacon["attention"]) == ("interleave", "full-coverage")
        assert (beacon["attend_previous"], beacon["params"]) == (True, ["q", "k", "v"])
        # 32 does not divide the window
        assert beacon["ratios"] == [2, 4, 8, 16]


def test_a_changed_decoder_is_written_inside(tmp_path, case):
    base, version = case

    def train(tensors):
        tensors["model.layers.1.mlp.up_proj.weight"] = tensors["model.layers.1.mlp.up_proj.weight"] + 1

    given = write_release(tmp_path / "release", base, version=version, change=train)
    made = convert("activation-beacon", tmp_path / "release", tmp_path / "made", base=base)
    checkpoint = read_checkpoint(made, "activation-beacon")
    assert checkpoint.resolve("base") == made / "decoder"
    arrived = load_file(made / "decoder" / "model.safetensors")
    expected = {name: one for name, one in given.items() if "beacon" not in name}
    assert set(arrived) == set(expected)
    assert all(torch.equal(arrived[name], one) for name, one in expected.items())
    config = json.loads((made / "decoder" / "config.json").read_text())
    assert config["architectures"] == [HEADS[config["model_type"]]]
    assert not [name for name in config if "beacon" in name or name in ("auto_map", "retrieval_topk")]
    encoder = kompakt.load("activation-beacon", checkpoint=str(made), dtype="float32", device="cpu")
    assert type(encoder.lm.model).__name__ == config["architectures"][0]
    assert set(encoder.module.trainable()) == set(own_of(given))


def test_without_a_base_the_decoder_is_written_inside(tmp_path, qwen):
    write_release(tmp_path / "release", qwen)
    made = convert("activation-beacon", tmp_path / "release", tmp_path / "made")
    assert read_checkpoint(made).models["base"].is_inside
    again = convert("activation-beacon", tmp_path / "release", tmp_path / "other", tokenizer=qwen)
    assert (again / "decoder" / "tokenizer.json").is_file()


def test_another_configuration_is_another_base(tmp_path, qwen):
    write_release(tmp_path / "release", qwen, rope_parameters={"rope_type": "default", "rope_theta": 500.0})
    made = convert("activation-beacon", tmp_path / "release", tmp_path / "made", base=qwen)
    assert read_checkpoint(made).models["base"].is_inside
    # what changes no result does not count
    write_release(tmp_path / "same", qwen, use_cache=False, note="trained", torch_dtype="bfloat16")
    made = convert("activation-beacon", tmp_path / "same", tmp_path / "same-made", base=qwen)
    assert not read_checkpoint(made).models["base"].is_inside


def test_beacons_alone_need_their_base(tmp_path, qwen):
    given = write_release(tmp_path / "release", qwen, whole=False)
    with pytest.raises(ConfigError, match=r"beacons alone: name the model .* --base"):
        convert("activation-beacon", tmp_path / "release", tmp_path / "made")
    made = convert("activation-beacon", tmp_path / "release", tmp_path / "made", base=qwen)
    assert set(read_checkpoint(made).tensors) == set(given)
    other = write_base(tmp_path / "llama", "llama")
    with pytest.raises(ModelError, match="trained for another model"):
        convert("activation-beacon", tmp_path / "release", tmp_path / "wrong", base=other)


@pytest.mark.parametrize("rate", [4, 8])
def test_the_checkpoint_compresses_as_the_paper_says(tmp_path, case, rate):
    base, version = case
    given = write_release(tmp_path / "release", base, version=version)
    made = convert("activation-beacon", tmp_path / "release", tmp_path / "made", base=base)
    encoder = kompakt.load("activation-beacon", checkpoint=str(made), dtype="float32", device="cpu", rates=(rate,))
    text = TEXT[: 3 * WINDOW + 6]
    ids = encoder.lm.tokenizer.encode(text, add_special_tokens=False).ids
    (part,) = encoder.compress(text, keep=0.7, tokenizer=load_tokenizer(base)).parts
    reader = activation_beacon.Reader(given, encoder.lm.model.config, encoder.settings["beacon"], [])
    for start in range(0, len(ids), WINDOW):
        reader.compress(ids[start : start + WINDOW], rate)
    assert part.n_positions == len(reader.memory) < len(ids) * 0.7
    for layer in range(LAYERS):
        for found, name in ((part.keys[layer], "keys"), (part.values[layer], "values")):
            expected = torch.stack([getattr(entry, name)[layer] for entry in reader.memory], dim=1)
            torch.testing.assert_close(found, expected.detach(), atol=1e-4, rtol=1e-4)


def test_wrong_tensors_are_named(tmp_path, qwen):
    def spoil(tensors):
        del tensors["model.layers.1.self_attn.beacon_k_proj.bias"]
        del tensors["model.layers.0.mlp.up_proj.weight"]
        tensors["model.layers.0.self_attn.beacon_q_proj.weight"] = torch.ones(WIDTH, WIDTH + 1)
        tensors["model.layers.0.self_attn.beacon_o_proj.weight"] = torch.ones(WIDTH, WIDTH)

    message = refused(tmp_path, qwen, change=spoil)
    assert "missing: model.layers.0.mlp.up_proj.weight, model.layers.1.self_attn.beacon_k_proj.bias;" in message
    assert "not known: model.layers.0.self_attn.beacon_o_proj.weight;" in message
    assert "model.layers.0.self_attn.beacon_q_proj.weight is [32, 33] and should be [32, 32]" in message
    assert str(tmp_path / "release") in message


def test_old_files_repeat_rotary_frequencies_and_tied_heads(tmp_path):
    base = write_base(tmp_path / "base", "llama", tie_word_embeddings=True)

    def repeat(tensors):
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    write_release(tmp_path / "release", base, change=repeat)
    made = convert("activation-beacon", tmp_path / "release", tmp_path / "made", base=base)
    assert not read_checkpoint(made).models["base"].is_inside
    (tmp_path / "in").mkdir()

    def untie(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1

    message = refused(tmp_path / "in", base, change=untie)
    assert "lm_head.weight and model.embed_tokens.weight" in message
    assert "tie_word_embeddings" in message


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"beacon_window": "absent"}, ["beacon_window", "name the folder of an Activation Beacon"]),
        ({"beacon_window": "many"}, ["beacon_window", "many"]),
        ({"beacon_stride": 8}, ["stride must be the window", "8"]),
        ({"beacon_ratio": ["a"]}, ["beacon_ratio", "'a'"]),
        ({"beacon_ratio_mix": "mix-random"}, ["ratio_mix", "mix-random"]),
        ({"beacon_attn": "segmentation", "beacon_pos": "append"}, ["segmentation"]),
        ({"beacon_param": ["q", "x"]}, ["params", "'x'"]),
        ({"beacon_sink_size": "one"}, ["not supported here"]),
        ({"beacon_cache": [1, 2]}, ["beacon_cache", "not known"]),
        ({"retrieval_method": "bm25"}, ["bm25"]),
        ({"model_type": "gpt2"}, ["gpt2", "llama, mistral, qwen2"]),
        ({"version": "first", "beacon_attend_previous": False}, ["beacon_attend_previous"]),
        ({"version": "first", "beacon_attn": "full-coverage"}, ["first version", "full-coverage"]),
        ({"version": "first", "beacon_stride": [8, 16]}, ["stride", "[8, 16]"]),
    ],
    ids=str,
)
def test_other_variants_are_refused(tmp_path, qwen, fields, words):
    message = refused(tmp_path, qwen, **fields)
    assert all(word in message for word in words), message


def test_variants_of_the_fields(tmp_path, qwen):
    for number, (fields, expected) in enumerate(
        [
            ({"beacon_ratio": 4}, {"ratios": [4]}),
            ({"beacon_ratio": [3]}, {"ratios": [3]}),
            ({"beacon_pos": "append"}, {"placement": "append", "attend_previous": True}),
            ({"beacon_sink_size": 1, "beacon_accum": False}, {"sink_size": 1}),
            ({"beacon_embed_init": "bos", "enable_beacon": True}, {"embed_init": "bos"}),
            ({"beacon_param": []}, {"params": []}),
        ]
    ):
        write_release(tmp_path / f"in{number}", qwen, **fields)
        made = convert("activation-beacon", tmp_path / f"in{number}", tmp_path / str(number), base=qwen)
        settings = read_checkpoint(made).settings
        assert {name: settings["beacon"][name] for name in expected} == expected
        assert all(WINDOW % rate == 0 for rate in settings["rates"])
        assert settings["rates"]


def test_the_command_line(tmp_path, qwen):
    write_release(tmp_path / "release", qwen)
    arguments = ["models", "convert", "activation-beacon", tmp_path / "release", tmp_path / "made"]
    ran = Ran([*arguments, "--base", qwen])
    assert (ran.status, ran.out) == (0, f"activation-beacon: converted, {tmp_path / 'made'}\n")
    assert read_checkpoint(tmp_path / "made").method == "activation-beacon"
    with pytest.raises(ConfigError, match="takes no --alpha; it takes --base, --tokenizer"):
        convert("activation-beacon", tmp_path / "release", tmp_path / "other", alpha=1.0)
