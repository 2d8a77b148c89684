import pytest
import torch
from official_layouts import ICAE_RANK, SLOTS, TEXT, WIDTH, icae_tensors, write_decoder
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

import kompakt
from kompakt import ConfigError, ModelError
from kompakt.compressor.models.official.convert import convert
from kompakt.compressor.soft.checkpoint import read_checkpoint


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_decoder(tmp_path_factory.mktemp("base") / "llama")


def refused(tmp_path, base, tensors):
    save_file(tensors, tmp_path / "release.safetensors")
    with pytest.raises(ModelError) as caught:
        convert("icae", tmp_path / "release.safetensors", tmp_path / "made", base=base)
    assert [path.name for path in tmp_path.iterdir()] == ["release.safetensors"]
    return str(caught.value)


@pytest.mark.parametrize("with_base", [False, True])
@pytest.mark.parametrize("name", ["release.safetensors", "release.pt", "release.bin", "folder"])
def test_all_tensors_arrive(tmp_path, base, name, with_base):
    given = icae_tensors(with_base)
    source = tmp_path / name
    if name == "folder":
        source.mkdir()
        (source / "README.md").write_text("weights")
        save_file(given, source / "icae.safetensors")
    elif name.endswith(".safetensors"):
        save_file(given, source)
    else:
        torch.save(given, source)
    made = convert("icae", source, tmp_path / "made", base=base)
    checkpoint = read_checkpoint(made, "icae")
    expected = {"memory_token_embed.weight": given["memory_token_embed.weight"]} | {
        "lora." + key.removeprefix("icae.base_model.model.model.").replace(".default.", "."): one
        for key, one in given.items()
        if ".lora_" in key
    }
    assert set(checkpoint.tensors) == set(expected)
    assert "lora.layers.1.self_attn.v_proj.lora_B.weight" in expected
    assert all(torch.equal(checkpoint.tensors[key], one) for key, one in expected.items())
    assert checkpoint.settings == {
        "rates": [4],
        "n_slots": SLOTS,
        "marker": "none",
        "lora": {"rank": ICAE_RANK, "alpha": 32.0, "targets": ["q_proj", "v_proj"], "dropout": 0.05},
    }
    assert checkpoint.resolve("base") == base


def test_the_checkpoint_compresses_as_the_paper_says(tmp_path, base):
    given = icae_tensors()
    save_file(given, tmp_path / "release.safetensors")
    options = {"base": base, "alpha": 3.0, "marker": "ft"}
    made = convert("icae", tmp_path / "release.safetensors", tmp_path / "made", **options)
    encoder = kompakt.load("icae", checkpoint=str(made), dtype="float32", device="cpu")
    text = TEXT[:12]
    vectors = encoder.compress(text, max_tokens=SLOTS + 1, tokenizer=str(base)).parts[0].vectors
    model = AutoModelForCausalLM.from_pretrained(base)
    ids = torch.tensor(encoder.lm.tokenizer.encode(text, add_special_tokens=False).ids)
    table = given["memory_token_embed.weight"]
    rows = torch.cat([model.get_input_embeddings()(ids), table[:SLOTS]])[None]
    with torch.no_grad():
        for name, layer in model.base_model.named_modules():
            pair = [given.get(f"icae.base_model.model.model.{name}.lora_{side}.default.weight") for side in "AB"]
            if pair[0] is not None:
                layer.weight += 3.0 / ICAE_RANK * pair[1] @ pair[0]
        states = model.base_model(inputs_embeds=rows).last_hidden_state[0, -SLOTS:]
    # the marker of fine-tuning is the last row of the table
    torch.testing.assert_close(vectors, torch.cat([states, table[-1:]]), atol=1e-4, rtol=1e-4)


def test_wrong_tensors_are_named(tmp_path, base):
    tensors = icae_tensors()
    root = "icae.base_model.model.model.layers."
    del tensors[f"{root}1.self_attn.v_proj.lora_B.default.weight"]
    tensors[f"{root}0.self_attn.q_proj.lora_A.default.weight"] = torch.ones(ICAE_RANK, WIDTH + 1)
    tensors[f"{root}2.self_attn.q_proj.lora_A.default.weight"] = torch.ones(ICAE_RANK, WIDTH)
    tensors["icae.other"] = torch.ones(1)
    # neither of the base nor under a name of it
    tensors[f"{root}0.self_attn.q_proj.base_layer.extra"] = torch.ones(1)
    message = refused(tmp_path, base, tensors)
    assert f"missing: {root}1.self_attn.v_proj.lora_B.default.weight;" in message
    for name in ("icae.other", f"{root}2.self_attn.q_proj.lora_A", f"{root}0.self_attn.q_proj.base_layer.extra"):
        assert name in message.partition("not known: ")[2]
    assert f"{root}0.self_attn.q_proj.lora_A.default.weight is [5, 33] and should be [5, 32]" in message
    assert str(tmp_path / "release.safetensors") in message


def test_the_table_must_be_there_and_hold_slots(tmp_path, base):
    tensors = icae_tensors()
    table = tensors.pop("memory_token_embed.weight")
    assert "missing: memory_token_embed.weight" in refused(tmp_path, base, tensors)
    assert "no slot is left" in refused(tmp_path, base, tensors | {"memory_token_embed.weight": table[:3].clone()})


def test_weights_without_an_adapter(tmp_path, base):
    table = {"memory_token_embed.weight": torch.ones(SLOTS + 3, WIDTH)}
    assert "lora_A.default.weight" in refused(tmp_path, base, table)


def test_weights_for_another_base(tmp_path):
    other = write_decoder(tmp_path / "wide", 40)
    (tmp_path / "in").mkdir()
    message = refused(tmp_path / "in", other, icae_tensors())
    assert f"is [{ICAE_RANK}, 32] and should be [{ICAE_RANK}, 40]" in message
    assert "the model that it was trained for as the base" in message


def test_code_in_a_torch_file_never_runs(tmp_path, base):
    class Thief:
        def __reduce__(self):
            return (open, (str(tmp_path / "trace"), "w"))

    torch.save(icae_tensors() | {"x": Thief()}, tmp_path / "release.pt")
    with pytest.raises(ModelError, match=r"release\.pt .*never unpickled"):
        convert("icae", tmp_path / "release.pt", tmp_path / "made", base=base)
    assert [path.name for path in tmp_path.iterdir()] == ["release.pt"]


def test_options_and_sources(tmp_path, base):
    (tmp_path / "several").mkdir()
    with pytest.raises(ModelError, match="got none"):
        convert("icae", tmp_path / "several", tmp_path / "made", base=base)
    for name in ("a", "b"):
        save_file(icae_tensors(), tmp_path / "several" / f"{name}.safetensors")
    with pytest.raises(ModelError, match=r"got a\.safetensors, b\.safetensors"):
        convert("icae", tmp_path / "several", tmp_path / "made", base=base)
    source = tmp_path / "several" / "a.safetensors"
    with pytest.raises(ConfigError, match="'xx'"):
        convert("icae", source, tmp_path / "made", base=base, marker="xx")
    with pytest.raises(ConfigError, match="alpha"):
        convert("icae", source, tmp_path / "made", base=base, alpha=0.0)
    with pytest.raises(kompakt.ModelNotFoundError, match="no-such"):
        convert("icae", source, tmp_path / "made", base="no-such")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ModelError, match=r"notes\.txt"):
        convert("icae", tmp_path / "notes.txt", tmp_path / "made", base=base)
    assert not (tmp_path / "made").exists()
