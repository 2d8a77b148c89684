"""CompLLM, ICAE and Extensible Tokenization against references that were written from their papers."""

import dataclasses

import pytest
import torch
from soft_parts import assert_close
from soft_references import compllm, extensible_tokenization, icae, lora
from tiny_models import save_model

from kompakt import ConfigError, load
from kompakt.compressor.models.tokenizers import load_tokenizer
from kompakt.compressor.parts import EmbedsPart

TEXT = "the treaty of 1492 was signed by the river, and nobody knew why it took so long. " * 3
LENGTHS = [1, 3, 19, 20, 21, 47]


def randomised(encoder):
    generator = torch.Generator().manual_seed(1)
    for name, parameter in encoder.module.trainable().items():
        if not name.startswith("body."):
            parameter.data = (0.3 * torch.randn(parameter.shape, generator=generator)).to(parameter.dtype)
    return encoder


@pytest.fixture
def made(base, small_settings):
    def make(name, **options):
        return randomised(load(name, base=base, dtype="float32", device="cpu", **options))

    return make


def merged(encoder):
    """The base's weights with the adapter in them."""
    adapter = {key.replace("lora.", "model.", 1): value.detach() for key, value in encoder.module.trainable().items()}
    factors = {key: value for key, value in adapter.items() if ".lora_" in key}
    return lora.merged(dict(encoder.lm.model.state_dict()), factors, encoder.settings["lora"]["alpha"])


def vectors(result):
    return torch.cat([part.vectors for part in result.parts if isinstance(part, EmbedsPart)])


def ids_of(encoder, text):
    return encoder.lm.tokenizer.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("rate", [1, 2, 4, 8])
@pytest.mark.parametrize("segment_tokens", [20, 7])
def test_compllm_equals_its_reference(made, rate, segment_tokens):
    encoder = made("compllm", rates=(rate,), segment_tokens=segment_tokens)
    config, linear = encoder.lm.model.config, encoder.module.linear
    weights = merged(encoder)
    texts = [TEXT[:length] for length in LENGTHS]
    for text, run in zip(texts, encode_texts(encoder, texts, rate), strict=True):
        expected = compllm.document_vectors(
            weights, config, ids_of(encoder, text), segment_tokens, rate, 0, linear.weight, linear.bias
        )
        assert_close(run, expected.detach())


def encode_texts(encoder, texts, rate):
    """What the compressor makes of texts in one batch, whatever budget that is."""
    from kompakt.compressor.soft.plan import Segment

    cut = []
    for text in texts:
        tokens = ids_of(encoder, text)
        ids = iter(tokens)
        lengths = [n for piece in encoder.pieces(len(tokens)) for n in encoder.cut(piece, rate)]
        cut.append([Segment(tuple(next(ids) for _ in range(n)), encoder.code_rate(rate)) for n in lengths])
    with torch.no_grad():
        codes = iter(encoder.encode([segment for several in cut for segment in several]))
        return [torch.cat([encoder.place(next(codes), rate) for _ in several]) for several in cut]


@pytest.mark.parametrize("rate", [2, 4])
def test_icae_equals_its_reference(made, rate):
    encoder = made("icae", rates=(rate,))
    n_slots = encoder.settings["n_slots"]
    table = encoder.module.memory_token_embed.weight.detach()
    weights = merged(encoder)
    texts = [TEXT[:length] for length in [*LENGTHS, 150, 200]]
    for text, run in zip(texts, encode_texts(encoder, texts, rate), strict=True):
        expected = icae.memory(weights, encoder.lm.model.config, table, ids_of(encoder, text), n_slots, rate)
        assert_close(run, expected)


@pytest.mark.parametrize("marker", ["ae", "lm", "ft"])
def test_icae_ends_a_context_with_its_marker(made, base, marker):
    plain, marked = made("icae"), made("icae", marker=marker)
    tokenizer = load_tokenizer(base)
    results = [one.compress([TEXT, TEXT[::-1]], keep=0.5, tokenizer=tokenizer) for one in (plain, marked)]
    assert torch.equal(vectors(results[1])[:-1], vectors(results[0]))
    table = marked.module.memory_token_embed.weight.detach()
    assert torch.equal(vectors(results[1])[-1:], icae.marker(table, marker))
    assert results[1].tokens_after == results[0].tokens_after + 1
    with pytest.raises(ConfigError, match="marker must be"):
        made("icae", marker="qa")


@pytest.mark.parametrize("rate", [2, 5, 32])
def test_extensible_tokenization_equals_its_reference(made, rate):
    encoder = made("extensible-tokenization", rates=(rate,))
    settings, lm = encoder.settings, encoder.lm
    texts = [TEXT[:length] for length in [*LENGTHS, 64, 130]]
    for text, run in zip(texts, encode_texts(encoder, texts, rate), strict=True):
        expected = extensible_tokenization.vectors(
            lm.model.state_dict(),
            lm.model.config,
            ids_of(encoder, text),
            rate,
            n_layers=settings["n_layers"],
            chunk_length=settings["chunk_tokens"],
        )
        assert_close(run, expected)


def test_extensible_tokenization_encodes_once_for_every_rate(made, base):
    encoder = made("extensible-tokenization")
    tokenizer = load_tokenizer(base)
    first = encoder.compress(TEXT, keep=0.5, tokenizer=tokenizer)
    second = encoder.compress(TEXT, keep=0.1, tokenizer=tokenizer)
    assert first.trace[0].cache_misses > 0
    assert second.trace[0].cache_misses == 0
    assert second.tokens_after < first.tokens_after / 4


def test_weights_of_their_own_are_not_the_decoders(made, base, tmp_path):
    untrained = made("extensible-tokenization")
    shared = {parameter.data_ptr() for parameter in untrained.lm.model.parameters()}
    assert {parameter.data_ptr() for parameter in untrained.module.parameters()} <= shared
    folder = str(untrained.save(tmp_path / "weights"))
    own = load("extensible-tokenization", checkpoint=folder, dtype="float32", device="cpu")
    assert not {parameter.data_ptr() for parameter in own.module.parameters()} & shared


@pytest.mark.parametrize("name", ["compllm", "icae", "auto-compressor"])
def test_the_base_is_held_once_and_stays_as_it_is(made, name):
    encoder = made(name)
    lm = encoder.lm
    ids = torch.arange(1, 30)[None]
    with torch.no_grad():
        before = lm.model(ids).logits
        encoder.compress(TEXT, keep=0.9, tokenizer=load_tokenizer(encoder.base))
        assert torch.equal(lm.model(ids).logits, before)
    own = {parameter.data_ptr() for parameter in encoder.module.trainable().values()}
    shared = {parameter.data_ptr() for parameter in lm.model.parameters()}
    held = {parameter.data_ptr() for parameter in encoder.module.parameters()}
    assert held <= own | shared
    assert held & shared


@pytest.mark.parametrize("name", ["compllm", "icae", "extensible-tokenization", "auto-compressor"])
def test_bf16_stays_near_fp32(made, base, name):
    exact = made(name)
    rounded = randomised(dataclasses.replace(exact, dtype="bfloat16"))
    tokenizer = load_tokenizer(base)
    one, two = (vectors(item.compress(TEXT, keep=0.6, tokenizer=tokenizer)).float() for item in (exact, rounded))
    assert one.shape == two.shape
    error = float((one - two).pow(2).mean().sqrt() / one.pow(2).mean().sqrt())
    assert 0 < error < 0.05


@pytest.mark.parametrize("kind", ["mistral", "gpt2", "qwen2", "gemma2", "opt"])
@pytest.mark.parametrize("name", ["compllm", "icae"])
def test_other_decoders_serve_too(tmp_path, kind, name, small_settings):
    folder = str(save_model(tmp_path / kind, kind))
    encoder = load(name, base=folder, dtype="float32", device="cpu")
    with torch.no_grad():
        (made,) = encoder.module(torch.randn(1, 8, 32), *([[3]] if name == "compllm" else []))
    assert made.shape == (3 if name == "compllm" else encoder.settings["n_slots"], 32)
    assert made.isfinite().all()
