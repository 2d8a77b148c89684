"""ARC-Encoder against a reference that was written from the paper and reads the authors' layout."""

import json
import math
import shutil

import pytest
import torch
from soft_parts import assert_close, save_decoder
from soft_references import arc_encoder as reference
from soft_references.official_layouts import arc_encoder_args, write_arc_encoder

from kompakt import ConfigError, ModelError, load
from kompakt.adapters.transformers import TransformersBackend
from kompakt.compressor.backend import Prompt
from kompakt.compressor.models.official.convert import convert
from kompakt.compressor.models.tokenizers import load_tokenizer
from kompakt.compressor.soft.arc_encoder import group_sizes
from kompakt.compressor.soft.plan import Segment

TEXT = "the treaty of 1492 was signed by the river, and nobody knew why it took so long. " * 3
LENGTHS = [1, 2, 7, 8, 9, 30, 64]


@pytest.fixture(scope="module")
def decoders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("decoders")
    return [str(save_decoder(folder / name, seed=seed)) for name, seed in (("one", 1), ("two", 2))]


@pytest.fixture(scope="module")
def released(tmp_path_factory, decoders):
    """A release with two decoders in the authors' layout: its weights, its configuration and the checkpoint."""
    folder = tmp_path_factory.mktemp("arc")
    args = arc_encoder_args(n_decoders=2, out_dim=32)
    weights = write_arc_encoder(folder / "release", n_decoders=2, args=args)
    checkpoint = convert(
        "arc-encoder", folder / "release", folder / "checkpoint", decoders=decoders, tokenizer=decoders[0]
    )
    return weights, args, str(checkpoint)


def loaded(checkpoint, **options):
    return load("arc-encoder", checkpoint=checkpoint, dtype="float32", device="cpu", **options)


def ids_of(encoder, text):
    return tuple(encoder.lm.tokenizer.encode(text, add_special_tokens=False).ids)


@pytest.mark.parametrize("rate", [1, 2, 4, 8])
@pytest.mark.parametrize("special", ["cont", "rec", None])
def test_vectors_equal_the_reference_for_each_decoder(released, rate, special):
    weights, args, checkpoint = released
    args = {**args, "embedder_args": {**args["embedder_args"], "compress_rates": [-rate]}}
    for number in (0, 1):
        encoder = loaded(checkpoint, decoder=number, special=special or "none")
        texts = [ids_of(encoder, TEXT)[:length] for length in LENGTHS]
        with torch.no_grad():
            # packed together, as a batch is
            codes = encoder.encode([Segment(ids, rate) for ids in texts])
            expected = reference.vectors(weights, args, texts, special=special, decoder_index=number)
            end = encoder.after_text()
            for code, vectors in zip(codes, expected, strict=True):
                placed = encoder.place(code, rate)
                made = placed if end is None else torch.cat([placed, end])
                assert_close(made, vectors)


def test_one_encoding_serves_both_decoders(released, decoders):
    _, _, checkpoint = released
    first, second = loaded(checkpoint), loaded(checkpoint, decoder=1)
    tokenizer = load_tokenizer(decoders[0])
    first.forget()
    one = first.compress(TEXT, keep=0.5, tokenizer=tokenizer)
    two = second.compress(TEXT, keep=0.5, tokenizer=tokenizer)
    assert one.trace[0].cache_misses > 0
    assert two.trace[0].cache_misses == 0
    assert not torch.allclose(one.parts[0].vectors, two.parts[0].vectors)
    for result, folder in ((one, decoders[0]), (two, decoders[1])):
        reader = TransformersBackend(folder, "float32", "cpu")
        assert reader.generate(Prompt(result.parts, after="x"), max_new_tokens=1).n_positions > result.tokens_after


def test_the_decoder_says_what_the_reference_says(released, decoders):
    weights, args, checkpoint = released
    args = {**args, "embedder_args": {**args["embedder_args"], "compress_rates": [-2]}}
    encoder = loaded(checkpoint, rates=(2,))
    reader = TransformersBackend(decoders[0], "float32", "cpu", begins=False)
    results = [encoder.compress(TEXT[:60], keep=0.9, tokenizer=reader.tokenizer) for _ in range(2)]
    parts = (*results[0].parts, *results[1].parts)
    prompt = Prompt(parts, before="Once upon a time ", after=" and so on", is_chat=False)
    with torch.no_grad():
        (logits,) = reader.logits([prompt])
        spans = reference.vectors(weights, args, [ids_of(encoder, TEXT[:60])] * 2, special="cont")
        before, after = (ids_of(encoder, text) for text in (prompt.before, prompt.after))
        state = reader._lm.model.state_dict()
        expected = reference.decoder_logits(
            state, reader._lm.model.config, torch.tensor([*before, *after]), spans, [len(before), 0]
        )
    is_text = [True] * len(before) + [False] * sum(map(len, spans)) + [True] * len(after)
    assert logits.shape[0] == len(is_text)
    assert_close(logits[torch.tensor(is_text)], expected)


@pytest.mark.parametrize("rate", [2, 3, 4, 8])
def test_groups_are_those_of_the_reference(rate):
    for n in range(1, 60):
        assert group_sizes(n, -rate) == reference.group_sizes(n, -rate)
        assert group_sizes(n, rate) == reference.group_sizes(n, rate)
        assert group_sizes(n, 0) == [n]
    for n in range(1, 60):
        for between in (1.3, 2.2, 5.7):
            sizes = group_sizes(n, -between)
            assert sum(sizes) == n
            assert len(sizes) == max(1, math.ceil(n / between))
            assert max(sizes) - min(sizes) <= 1


def test_layers_pool_one_after_another(released):
    weights, args, checkpoint = released
    encoder = loaded(checkpoint)
    ids = ids_of(encoder, TEXT)[:41]
    for rates in ([-2, -3], [0], [5]):
        with torch.no_grad():
            tokens = weights["embedder.tok_embeddings.weight"][torch.tensor(ids)]
            (made,) = encoder.module([tokens], rates)
            changed = {**args, "embedder_args": {**args["embedder_args"], "compress_rates": rates}}
            assert_close(made, reference.encode(weights, changed, ids))


def test_texts_longer_than_a_chunk_are_cut_and_end_once(released, tmp_path, decoders):
    weights, args, checkpoint = released
    folder = tmp_path / "short"
    shutil.copytree(checkpoint, folder)
    data = json.loads((folder / "checkpoint.json").read_text(encoding="utf-8"))
    data["settings"]["chunk_tokens"] = 50
    (folder / "checkpoint.json").write_text(json.dumps(data), encoding="utf-8")
    encoder = loaded(str(folder), rates=(4,))
    text = TEXT[:150]
    ids = ids_of(encoder, text)
    result = encoder.compress(text, keep=0.5, tokenizer=load_tokenizer(decoders[0]))
    changed = {**args, "embedder_args": {**args["embedder_args"], "compress_rates": [-4]}}
    with torch.no_grad():
        chunks = [ids[start : start + 50] for start in range(0, len(ids), 50)]
        expected = reference.span_vectors(weights, changed, chunks, special="cont")
    assert_close(result.parts[0].vectors, expected)


def test_decoders_and_vectors_that_are_not_there_are_named(released, opt_base):
    _, _, checkpoint = released
    with pytest.raises(ConfigError, match="2 decoders"):
        _ = loaded(checkpoint, decoder=2).space
    with pytest.raises(ConfigError, match="special must be"):
        loaded(checkpoint, special="go")
    with pytest.raises(ModelError, match="type 'opt'"):
        load("arc-encoder", base=opt_base).compress(TEXT, keep=0.5)


def test_bf16_stays_near_fp32(released, decoders):
    _, _, checkpoint = released
    tokenizer = load_tokenizer(decoders[0])
    exact, rounded = (
        load("arc-encoder", checkpoint=checkpoint, dtype=dtype, device="cpu")
        .compress(TEXT, keep=0.5, tokenizer=tokenizer)
        .parts[0]
        .vectors.float()
        for dtype in ("float32", "bfloat16")
    )
    error = (exact - rounded).pow(2).mean().sqrt() / exact.pow(2).mean().sqrt()
    assert 0 < float(error) < 0.05
