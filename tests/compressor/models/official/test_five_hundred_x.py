import pytest
import torch
from command_line import Ran
from official_layouts import HEADS, LAYERS, TEXT, VOCABULARY, WIDTH, random, write_decoder
from safetensors.torch import save_file
from soft_references import five_hundred_x, lora
from transformers import AutoModelForCausalLM

import kompakt
from kompakt import ConfigError, ModelError
from kompakt.compressor.models.official.convert import convert
from kompakt.compressor.soft.checkpoint import read_checkpoint

RANK, SLOTS = 5, 4
ROOT = "llama.base_model.model.model.layers."


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_decoder(tmp_path_factory.mktemp("base") / "llama")


def tensors_of(with_base=False, slots=SLOTS):
    """What the authors' code saves: the parameters of a module that calls the adapted model ``llama``."""
    shapes = {"memory_embeddings": (1, slots, WIDTH)}
    for layer in range(LAYERS):
        for name, width in (("q_proj", WIDTH), ("v_proj", WIDTH // HEADS * 2)):
            prefix = f"{ROOT}{layer}.self_attn.{name}."
            shapes |= {
                f"{prefix}lora_A.default.weight": (RANK, WIDTH),
                f"{prefix}lora_B.default.weight": (width, RANK),
            }
            if with_base:
                shapes[f"{prefix}base_layer.weight"] = (width, WIDTH)
    if with_base:
        shapes |= {
            "llama.base_model.model.model.embed_tokens.weight": (VOCABULARY, WIDTH),
            "llama.base_model.model.lm_head.weight": (VOCABULARY, WIDTH),
        }
    return random(shapes)


def refused(tmp_path, base, tensors):
    save_file(tensors, tmp_path / "release.safetensors")
    with pytest.raises(ModelError) as caught:
        convert("500x-compressor", tmp_path / "release.safetensors", tmp_path / "made", base=base)
    assert [path.name for path in tmp_path.iterdir()] == ["release.safetensors"]
    return str(caught.value)


@pytest.mark.parametrize("with_base", [False, True])
@pytest.mark.parametrize("name", ["release.safetensors", "release.pt", "folder"])
def test_all_tensors_arrive(tmp_path, base, name, with_base):
    given = tensors_of(with_base)
    source = tmp_path / name
    if name == "folder":
        source.mkdir()
        torch.save(given, source / "pytorch_model.bin")
    elif name.endswith(".safetensors"):
        save_file(given, source)
    else:
        torch.save(given, source)
    made = convert("500x-compressor", source, tmp_path / "made", base=base)
    checkpoint = read_checkpoint(made, "500x-compressor")
    expected = {"memory_embeddings": given["memory_embeddings"][0]} | {
        "lora." + key.removeprefix("llama.base_model.model.model.").replace(".default.", "."): one
        for key, one in given.items()
        if ".lora_" in key
    }
    assert set(checkpoint.tensors) == set(expected)
    assert all(torch.equal(checkpoint.tensors[key], one) for key, one in expected.items())
    assert checkpoint.settings == {
        "rates": [24, 48, 120],
        "n_slots": SLOTS,
        "pad_to": 0,
        "lora": {"rank": RANK, "alpha": 32.0, "targets": ["q_proj", "v_proj"], "dropout": 0.05},
    }
    assert checkpoint.resolve("base") == base


def test_the_checkpoint_compresses_as_the_paper_says(tmp_path, base):
    given = tensors_of()
    torch.save(given, tmp_path / "release.pt")
    made = convert("500x-compressor", tmp_path / "release.pt", tmp_path / "made", base=base, alpha=3.0)
    encoder = kompakt.load("500x-compressor", checkpoint=str(made), dtype="float32", device="cpu")
    (part,) = encoder.compress(TEXT[:60], max_tokens=SLOTS, tokenizer=str(base)).parts
    model = AutoModelForCausalLM.from_pretrained(base)
    factors = {name.removeprefix("llama."): one for name, one in given.items() if ".lora_" in name}
    weights = lora.merged(dict(model.state_dict()), factors, 3.0)
    ids = encoder.lm.tokenizer.encode(TEXT[:60], add_special_tokens=False).ids
    expected = five_hundred_x.compressed(weights, model.config, given["memory_embeddings"][0], ids)
    for layer, (keys, values) in enumerate(expected):
        torch.testing.assert_close(part.keys[layer].transpose(0, 1), keys, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(part.values[layer].transpose(0, 1), values, atol=1e-4, rtol=1e-4)


def test_wrong_tensors_are_named(tmp_path, base):
    tensors = tensors_of()
    del tensors[f"{ROOT}1.self_attn.v_proj.lora_B.default.weight"]
    tensors[f"{ROOT}0.self_attn.q_proj.lora_A.default.weight"] = torch.ones(RANK, WIDTH + 1)
    tensors["llama.other"] = torch.ones(1)
    tensors["memory_embeddings"] = torch.ones(1, SLOTS, WIDTH - 1)
    message = refused(tmp_path, base, tensors)
    assert f"missing: {ROOT}1.self_attn.v_proj.lora_B.default.weight;" in message
    assert "not known: llama.other" in message
    assert f"{ROOT}0.self_attn.q_proj.lora_A.default.weight is [5, 33] and should be [5, 32]" in message
    assert f"memory_embeddings is [1, {SLOTS}, 31] and should be [1, {SLOTS}, 32]" in message


def test_there_must_be_memory_and_an_adapter(tmp_path, base):
    tensors = tensors_of()
    memory = tensors.pop("memory_embeddings")
    assert "missing: memory_embeddings" in refused(tmp_path, base, tensors)
    none = tensors | {"memory_embeddings": memory[:, :0].clone()}
    assert "holds no memory token" in refused(tmp_path, base, none)
    assert "holds no adapter" in refused(tmp_path, base, {"memory_embeddings": memory})


def test_rates_are_those_of_the_authors_lengths(tmp_path, base):
    for slots, rates in ((16, [6, 12, 30]), (1, [96, 192, 480]), (500, [1])):
        save_file(tensors_of(slots=slots), tmp_path / "release.safetensors")
        made = convert("500x-compressor", tmp_path / "release.safetensors", tmp_path / str(slots), base=base)
        assert read_checkpoint(made).settings["rates"] == rates


def test_options_and_the_command_line(tmp_path, base):
    torch.save(tensors_of(), tmp_path / "release.pt")
    with pytest.raises(ConfigError, match="needs --base"):
        convert("500x-compressor", tmp_path / "release.pt", tmp_path / "made")
    with pytest.raises(ConfigError, match=r"takes no --marker; it takes --base, --alpha"):
        convert("500x-compressor", tmp_path / "release.pt", tmp_path / "made", base=base, marker="ft")
    arguments = ["models", "convert", "500x-compressor", tmp_path / "release.pt", tmp_path / "made"]
    ran = Ran([*arguments, "--base", base, "--alpha", 16])
    assert (ran.status, ran.out) == (0, f"500x-compressor: converted, {tmp_path / 'made'}\n")
    assert read_checkpoint(tmp_path / "made").settings["lora"]["alpha"] == 16.0
