"""Decoders that are not the stock model: with plain rotations, and with the adapter of a checkpoint."""

import json
import re

import pytest
from tiny_models import SCALED_ROPE, save_model

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("peft")

from reader_parts import Twin, ask, part, reader_of  # noqa: E402 (needs torch)
from safetensors.torch import load_file, save_file  # noqa: E402

import kompakt  # noqa: E402
from kompakt.compressor.errors import InputError, ModelError, ModelNotFoundError  # noqa: E402
from kompakt.compressor.types import EmbedsPart  # noqa: E402

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "out_proj")


def logits(reader, text="abcdefgh"):
    return reader.logits([ask(text)])[0]


@pytest.fixture(scope="module")
def scaled(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("models") / "scaled", rope_parameters=SCALED_ROPE)


def plain_config(folder):
    config = transformers.AutoConfig.from_pretrained(folder)
    config.rope_parameters = {"rope_type": "default", "rope_theta": 10000.0}
    return config


def test_plain_rotations_are_those_of_a_configuration_without_scaling(scaled):
    plain, stock = reader_of(scaled, plain_rope=True), reader_of(scaled)
    twin = Twin(scaled, config=plain_config(scaled))
    ids = [0, *twin.ids("abcdefgh")]
    torch.testing.assert_close(logits(plain), twin.logits(ids), **CLOSE)
    torch.testing.assert_close(logits(stock), Twin(scaled).logits(ids), **CLOSE)
    assert not torch.allclose(logits(plain), logits(stock), atol=1e-2)
    made = plain.generate(ask("abcdefgh"), max_new_tokens=6)
    assert list(made.token_ids) == twin.greedy(ids, n=6)


def test_plain_rotations_are_another_decoder_to_its_parts(scaled):
    plain, stock = reader_of(scaled, plain_rope=True), reader_of(scaled)
    assert plain.space == f"{stock.space}:plain-rope"
    assert plain.fingerprint != stock.fingerprint
    vectors = torch.ones(2, 32)
    for own, other in ((plain, stock), (stock, plain)):
        prompt = ask(EmbedsPart(vectors, own.space, part("s")), "a")
        assert own.generate(prompt, max_new_tokens=1).n_positions == 4
        with pytest.raises(
            InputError, match=f"made for the decoder {own.space[:12]}.*this one is {other.space[:12]}"
        ):
            other.generate(prompt, max_new_tokens=1)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt", "gemma3"])
def test_plain_rotations_are_nothing_new_to_a_model_without_scaling(tmp_path, kind):
    folder = save_model(tmp_path / kind, kind)
    plain, stock = reader_of(folder, plain_rope=True), reader_of(folder)
    assert (plain.space, plain.fingerprint) == (stock.space, stock.fingerprint)
    torch.testing.assert_close(logits(plain), logits(stock), **CLOSE)


def save_checkpoint(folder, base, *, seed=0, method="auto-compressor", **options):
    """Write a checkpoint of a method whose adapter changes something."""
    kompakt.load(method, base=str(base), dtype="float32", device="cpu", **options).save(folder)
    tensors = load_file(folder / "weights.safetensors")
    generator = torch.Generator().manual_seed(seed)
    for name in sorted(tensors):
        if name.startswith("lora."):
            tensors[name] = 0.1 * torch.randn(tensors[name].shape, generator=generator)
    save_file(tensors, folder / "weights.safetensors")
    return folder


def merged(folder, checkpoint, **options):
    """The twin of a model whose weights are the sum of its own and the adapter's."""
    twin = Twin(folder, **options)
    tensors = load_file(checkpoint / "weights.safetensors")
    lora = json.loads((checkpoint / "checkpoint.json").read_text(encoding="utf-8"))["settings"]["lora"]
    n_changed = 0
    for name, module in twin.model.base_model.named_modules():
        if name.rpartition(".")[2] in TARGETS:
            down, up = (tensors.pop(f"lora.{name}.lora_{which}.weight") for which in "AB")
            module.weight.data += lora["alpha"] / lora["rank"] * up @ down
            n_changed += 1
    assert n_changed == 8
    assert not [name for name in tensors if name.startswith("lora.")]
    return twin


@pytest.fixture(scope="module", params=["llama", "opt"])
def base(request, tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("models") / request.param, request.param)


@pytest.fixture(scope="module")
def checkpoint(base, tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("checkpoints") / "c", base)


def test_an_adapter_is_as_if_it_were_part_of_the_weights(base, checkpoint):
    adapted, twin = reader_of(base, adapter=checkpoint), merged(base, checkpoint)
    ids = [0, *twin.ids("abcdefgh")]
    torch.testing.assert_close(logits(adapted), twin.logits(ids), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(logits(adapted), logits(reader_of(base)), atol=1e-2)
    made = adapted.generate(ask("abcdefgh"), max_new_tokens=6)
    assert list(made.token_ids) == twin.greedy(ids, n=6)
    vectors = twin.embeds([5, 6])
    (found,) = adapted.logits([ask(EmbedsPart(vectors, adapted.space, part("s")), "a")])
    torch.testing.assert_close(found, twin.logits([0], vectors, twin.ids("a")), atol=1e-4, rtol=1e-4)


def test_the_stock_model_stays_as_it_is_and_lends_its_weights(base, checkpoint):
    stock = reader_of(base)
    before, state = logits(stock), {name: value.clone() for name, value in stock._lm.model.state_dict().items()}
    adapted = reader_of(base, adapter=checkpoint)
    assert torch.equal(logits(stock), before)
    assert not torch.allclose(logits(adapted), before, atol=1e-2)
    after = stock._lm.model.state_dict()
    assert after.keys() == state.keys()
    assert all(torch.equal(after[name], value) for name, value in state.items())
    theirs = {parameter.data_ptr() for parameter in stock._lm.model.parameters()}
    own = {
        name: parameter.data_ptr()
        for name, parameter in adapted._lm.model.named_parameters()
        if ".lora_" not in name
    }  # fmt: skip
    assert set(own.values()) == theirs
    assert adapted._lm.model.get_input_embeddings().weight is stock._lm.model.get_input_embeddings().weight


def test_an_adapter_is_not_trained_by_reading(base, checkpoint):
    adapted = reader_of(base, adapter=checkpoint)
    assert not logits(adapted).requires_grad
    vectors = torch.ones(2, 32, requires_grad=True)
    adapted.logits([ask(EmbedsPart(vectors, adapted.space, part("s")), "a")])[0][-1, 5].backward()
    assert vectors.grad.abs().max() > 0
    assert all(parameter.grad is None for parameter in adapted._lm.model.parameters())
    assert not adapted._lm.model.training


def test_parts_of_a_checkpoints_compressor_are_read_with_its_adapter_alone(base, checkpoint):
    adapted, stock = reader_of(base, adapter=checkpoint), reader_of(base)
    compressor = kompakt.load("auto-compressor", checkpoint=str(checkpoint), dtype="float32", device="cpu")
    assert adapted.space == compressor.space != stock.space
    assert adapted.fingerprint != stock.fingerprint
    theirs = EmbedsPart(torch.ones(2, 32), compressor.space, part("s"))
    assert adapted.generate(ask(theirs, "a"), max_new_tokens=1).n_positions == 4
    with pytest.raises(InputError, match="was made for the decoder"):
        stock.generate(ask(theirs, "a"), max_new_tokens=1)
    plain = EmbedsPart(torch.ones(2, 32), stock.space, part("s"))
    with pytest.raises(InputError, match="was made for the decoder"):
        adapted.generate(ask(plain, "a"), max_new_tokens=1)


def test_other_weights_are_another_decoder(tmp_path):
    base = save_model(tmp_path / "llama")
    one, two = (reader_of(base, adapter=save_checkpoint(tmp_path / str(n), base, seed=n)) for n in range(2))
    assert one.space != two.space
    assert not torch.allclose(logits(one), logits(two), atol=1e-2)


def test_an_adapter_over_plain_rotations(tmp_path, scaled):
    checkpoint = save_checkpoint(tmp_path / "c", scaled)
    adapted = reader_of(scaled, adapter=checkpoint, plain_rope=True)
    twin = merged(scaled, checkpoint, config=plain_config(scaled))
    torch.testing.assert_close(logits(adapted), twin.logits([0, *twin.ids("abcdefgh")]), atol=1e-4, rtol=1e-4)
    assert ":plain-rope:" in adapted.space


def test_an_adapter_of_another_base_is_refused_and_the_right_one_named(tmp_path):
    base, other = save_model(tmp_path / "llama"), save_model(tmp_path / "other", "qwen2")
    checkpoint = save_checkpoint(tmp_path / "c", base)
    theirs, own = (reader_of(model).space[:12] for model in (base, other))
    said = f"made for the decoder {theirs}, and this one is {own}. Its decoder was called '{base}'"
    with pytest.raises(ModelError, match=re.escape(said)):
        reader_of(other, adapter=checkpoint)


@pytest.mark.parametrize("method", ["icae", "compllm"])
def test_an_adapter_of_an_encoder_alone_is_refused(tmp_path, method):
    base = save_model(tmp_path / "llama")
    checkpoint = save_checkpoint(tmp_path / "c", base, method=method)
    with pytest.raises(ModelError, match=f"'{method}' leaves its decoder as it is"):
        reader_of(base, adapter=checkpoint)


def test_a_checkpoint_without_an_adapter_is_refused(tmp_path):
    base = save_model(tmp_path / "llama")
    checkpoint = save_checkpoint(tmp_path / "c", base)
    settings = json.loads((checkpoint / "checkpoint.json").read_text(encoding="utf-8"))
    settings["settings"]["lora"]["rank"] = 0
    (checkpoint / "checkpoint.json").write_text(json.dumps(settings), encoding="utf-8")
    with pytest.raises(ModelError, match="has no adapter: name its decoder as the model"):
        reader_of(base, adapter=checkpoint)
    with pytest.raises(ModelNotFoundError, match="is no checkpoint"):
        reader_of(base, adapter=tmp_path)


def test_a_damaged_adapter_is_refused(tmp_path):
    base = save_model(tmp_path / "llama")
    checkpoint = save_checkpoint(tmp_path / "c", base)
    tensors = load_file(checkpoint / "weights.safetensors")
    name = "lora.layers.0.self_attn.q_proj.lora_A.weight"
    save_file(tensors | {name: tensors[name][:3].contiguous()}, checkpoint / "weights.safetensors")
    with pytest.raises(ModelError, match=rf"of another shape: {name} is \[3, 32\] and should be \[16, 32\]"):
        reader_of(base, adapter=checkpoint)
    save_file({key: value for key, value in tensors.items() if key != name}, checkpoint / "weights.safetensors")
    with pytest.raises(ModelError, match=f"missing: {name}"):
        reader_of(base, adapter=checkpoint)
