"""500xCompressor against a reference written from its paper, and as a compressor."""

import pytest
import torch
from reader_parts import ask, reader_of
from soft_parts import assert_close
from soft_references import five_hundred_x, lora

from kompakt import Document, Pipeline, load
from kompakt.compressor.base import Budget, make_request
from kompakt.compressor.cache.five_hundred_x_compressor import FiveHundredXCompressor, last_keys_and_values
from kompakt.compressor.cache.slot_caches import unflattened
from kompakt.compressor.errors import InputError
from kompakt.compressor.models.tokenizers import load_tokenizer
from kompakt.compressor.parts import CachePart, TextPart
from kompakt.compressor.soft.plan import Segment
from kompakt.compressor.store.places import open_store

SLOTS = 5
TEXT = "the treaty of 1492 was signed by the river, and nobody knew why it took so long. " * 3
LENGTHS = [1, 2, 29, 30, 31, 47, 200]


def made(base, monkeypatch, **settings):
    """An encoder whose adapter and memory are random."""
    small = {**FiveHundredXCompressor.default_settings, "n_slots": SLOTS, "rates": [4, 6, 8], **settings}
    monkeypatch.setattr(FiveHundredXCompressor, "default_settings", small)
    encoder = load("500x-compressor", base=base, dtype="float32", device="cpu")
    generator = torch.Generator().manual_seed(1)
    for parameter in encoder.module.trainable().values():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return encoder


@pytest.fixture
def encoder(base, monkeypatch):
    return made(base, monkeypatch)


@pytest.fixture(scope="module")
def tokenizer(base):
    return load_tokenizer(base)


def weights_of(encoder):
    """The base's weights, and those with the adapter in them."""
    own = dict(encoder.lm.model.state_dict())
    adapter = {key.replace("lora.", "model.", 1): value.detach() for key, value in encoder.module.trainable().items()}
    factors = {key: value for key, value in adapter.items() if ".lora_" in key}
    return own, lora.merged(own, factors, encoder.settings["lora"]["alpha"])


def ids_of(encoder, text):
    return encoder.lm.tokenizer.encode(text, add_special_tokens=False).ids


def encode_texts(encoder, texts, rate):
    """The codes of texts of which each is cut at a rate, all of them in one batch."""
    cut = []
    for text in texts:
        tokens = ids_of(encoder, text)
        ids = iter(tokens)
        cut.append([Segment(tuple(next(ids) for _ in range(n)), rate) for n in encoder.cut(len(tokens), rate)])
    with torch.no_grad():
        codes = iter(encoder.encode([segment for several in cut for segment in several]))
        return [[next(codes) for _ in several] for several in cut]


def assert_is(code, expected, lm):
    keys, values = unflattened(code, lm)
    for layer, (one, two) in enumerate(expected):
        assert_close(keys[layer].transpose(0, 1), one)
        assert_close(values[layer].transpose(0, 1), two)


@pytest.mark.parametrize("pad_to", [0, 40])
@pytest.mark.parametrize("rate", [6, 8])
def test_it_equals_its_reference_alone_and_in_a_ragged_batch(base, monkeypatch, rate, pad_to):
    encoder = made(base, monkeypatch, pad_to=pad_to)
    _, merged = weights_of(encoder)
    memory = encoder.module.memory_embeddings.detach()
    texts = [TEXT[:length] for length in LENGTHS]
    for text, codes in zip(texts, encode_texts(encoder, texts, rate), strict=True):
        segments = five_hundred_x.segments(ids_of(encoder, text), rate * SLOTS)
        for code, ids in zip(codes, segments, strict=True):
            expected = five_hundred_x.compressed(merged, encoder.lm.model.config, memory, ids, pad_to, pad_id=0)
            assert_is(code, expected, encoder.lm)
    alone = encode_texts(encoder, texts[3:4], rate)[0][0]
    assert_close(encode_texts(encoder, texts, rate)[3][0], alone)


def test_segments_are_no_longer_than_the_authors_allow(base, monkeypatch):
    encoder = load("500x-compressor", base=base, dtype="float32", device="cpu")
    assert encoder.levels == (6, 12, 30)
    assert [encoder.cut(480, rate) for rate in encoder.levels] == [[96] * 5, [160] * 3, [480]]
    assert encoder.cut(1000, 64) == [500, 500]
    assert encoder.cut(0, 6) == []
    assert {encoder.n_vectors(n, 30) for n in (1, 480)} == {16}
    padded = made(base, monkeypatch, pad_to=24)
    assert padded.cut(50, 8) == [17, 17, 16]


def test_a_reader_sees_the_memory_as_past_keys_and_values(encoder, base, tokenizer):
    reader = reader_of(base, begins=False)
    result = encoder.compress(TEXT[:60], max_tokens=2 * SLOTS, tokenizer=tokenizer)
    (part,) = result.parts
    assert isinstance(part, CachePart)
    assert (part.rope, part.n_positions, part.space) == ("as-is", 2 * SLOTS, reader.space)
    own, merged = weights_of(encoder)
    config, memory = encoder.lm.model.config, encoder.module.memory_embeddings.detach()
    several = [
        five_hundred_x.compressed(merged, config, memory, ids)
        for ids in five_hundred_x.segments(ids_of(encoder, TEXT[:60]), 30)
    ]
    past = [
        tuple(torch.cat([one[layer][which] for one in several]) for which in (0, 1))
        for layer in range(config.num_hidden_layers)
    ]
    tail = ids_of(encoder, " Who signed?")
    expected = five_hundred_x.decoder_logits(own, config, past, tail)
    assert_close(reader.logits([ask(part, " Who signed?")])[0], expected.detach())
    # behind other text the keys stay as they are
    moved = reader.logits([ask("So: ", part, " Who signed?")])[0]
    assert moved.shape == expected.shape
    assert not torch.allclose(moved, expected, atol=1e-2)


def test_a_batch_and_an_order_change_nothing(encoder, tokenizer):
    texts = [TEXT[:80], TEXT[20:150], TEXT[::-1]]
    requests = [make_request(text, budget=Budget(keep=0.3), tokenizer=tokenizer) for text in texts]
    together = encoder.compress_batch(requests)
    encoder.forget()
    alone = [encoder.compress(text, keep=0.3, tokenizer=tokenizer) for text in texts]
    for one, two in zip(together, alone, strict=True):
        assert one.tokens_after == two.tokens_after <= 0.3 * one.tokens_before
        for key, other in zip(one.parts[0].keys, two.parts[0].keys, strict=True):
            assert_close(key, other)
    turned = encoder.compress(texts[::-1], keep=0.3, tokenizer=tokenizer).parts
    for part, result in zip(turned[::-1], alone, strict=True):
        assert_close(part.values[1], result.parts[0].values[1])
        assert part.source.text == result.parts[0].source.text


@pytest.mark.parametrize("precision", ["full", "int8"])
def test_the_store_gives_back_what_was_made(encoder, base, tokenizer, tmp_path, precision):
    encoder = load("500x-compressor", **encoder.options | {"precision": precision})
    with open_store(tmp_path / "caches.sqlite") as store:
        pipeline = Pipeline([encoder], tokenizer=tokenizer, store=store)
        fresh = pipeline.compress(TEXT, keep=0.3)
        encoder.forget()
        stored = pipeline.compress(TEXT, keep=0.3)
    assert fresh.trace[0].cache_misses > 0
    assert stored.trace[0].cache_misses == 0
    assert fresh.parts == stored.parts
    reader = reader_of(base)
    answers = [reader.generate(ask(*one.parts, " Who?"), max_new_tokens=4) for one in (fresh, stored)]
    assert answers[0].token_ids == answers[1].token_ids


def test_a_saved_checkpoint_encodes_as_the_original(encoder, tokenizer, tmp_path):
    folder = str(encoder.save(tmp_path / "weights"))
    again = load("500x-compressor", checkpoint=folder, dtype="float32", device="cpu")
    one, two = (item.compress(TEXT, keep=0.3, tokenizer=tokenizer) for item in (encoder, again))
    assert one.parts == two.parts
    assert again.settings["n_slots"] == SLOTS
    assert (one.trace[0].note, two.trace[0].note) == ("untrained weights", "")


def test_protected_text_stays_text_in_its_place(encoder, base, tokenizer):
    start, end = TEXT.index("was signed"), TEXT.index("river")
    document = Document(TEXT, id="d", protected=((start, end),))
    result = encoder.compress(document, keep=0.6, tokenizer=tokenizer)
    assert [type(part) for part in result.parts] == [TextPart, TextPart, CachePart] or [
        type(part) for part in result.parts
    ] == [CachePart, TextPart, CachePart]
    assert "".join(part.source.text for part in result.parts) == TEXT
    assert any(isinstance(part, TextPart) and TEXT[start:end] in part.text for part in result.parts)
    assert result.tokens_after <= 0.6 * result.tokens_before
    answer = reader_of(base).generate(ask(*result.parts, " Who?"), max_new_tokens=3)
    assert answer.n_positions == result.tokens_after + 1 + len(" Who?")


def test_the_adapter_is_the_encoders_alone_and_gradients_reach_it(encoder):
    ids = torch.arange(1, 30)[None]
    before = encoder.lm.model(ids).logits
    codes = encoder.module([encoder.lm.model.get_input_embeddings()(ids[0])])
    codes[0].square().sum().backward()
    assert torch.equal(encoder.lm.model(ids).logits, before)
    gradients = {name: parameter.grad for name, parameter in encoder.module.trainable().items()}
    # the last layer's queries have no part in its keys and values
    without = {name for name, gradient in gradients.items() if gradient is None or not gradient.any()}
    last = encoder.lm.model.config.num_hidden_layers - 1
    assert without == {f"lora.layers.{last}.self_attn.q_proj.lora_{side}.weight" for side in "AB"}


def test_a_row_that_is_too_long_is_refused(encoder):
    rows = [torch.zeros(9, 32)]
    with pytest.raises(InputError, match="takes 9 positions and the model reads at most 8"):
        last_keys_and_values(encoder.module.body, rows, 2, max_positions=8)
    assert last_keys_and_values(encoder.module.body, [], 2, max_positions=8) == []


@pytest.mark.parametrize("kind", ["opt", "gpt2"])
def test_decoders_with_learned_positions_read_it(tmp_path, monkeypatch, kind):
    from soft_parts import save_decoder
    from tiny_models import save_model

    folder = str(save_decoder(tmp_path / kind, kind) if kind == "opt" else save_model(tmp_path / kind, kind))
    encoder = made(folder, monkeypatch, n_slots=3, rates=[4])
    result = encoder.compress(TEXT[:36], max_tokens=9, tokenizer=load_tokenizer(folder))
    assert result.parts[0].rope == "as-is"
    answer = reader_of(folder).generate(ask(*result.parts, "Who?"), max_new_tokens=3)
    assert answer.n_positions == 9 + 1 + 4
