"""AutoCompressor against a reference that was written from the paper, and what follows from the paper."""

import dataclasses

import pytest
import torch
from soft_parts import CONTEXT, assert_close
from soft_references import auto_compressor as reference
from soft_references import lora

from kompakt import InputError, load
from kompakt.adapters.transformers import TransformersBackend
from kompakt.compressor.backend import Prompt
from kompakt.compressor.models.tokenizers import load_tokenizer
from kompakt.compressor.soft.auto_compressor import AutoCompressorModule, random_segments
from kompakt.compressor.soft.decoder import load_decoder
from kompakt.compressor.soft.lora import Lora

SLOTS = 3


def randomised(module):
    generator = torch.Generator().manual_seed(1)
    for parameter in module.trainable().values():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return module.eval()


def module_of(folder, *, accumulate=True, rank=0):
    lm = load_decoder(folder, dtype="float32", device="cpu")
    targets = ("q_proj", "v_proj")
    module = AutoCompressorModule(
        lm, summary_length=SLOTS, accumulate=accumulate, lora=Lora(rank=rank, alpha=8.0, targets=targets)
    )
    return randomised(module)


def reference_of(module, family, *arguments, **options):
    lm = module._lm
    weights = dict(lm.model.state_dict())
    prefix = "model.decoder." if family == "opt" else "model."
    adapter = {
        key.replace("lora.", "model.", 1): value
        for key, value in module.trainable().items()
        if key.startswith("lora.")
    }
    assert prefix
    weights = lora.merged(weights, {k: v.detach() for k, v in adapter.items()}, 8.0)
    weights["embed_summary.weight"] = module.embed_summary.weight.detach()
    with torch.no_grad():
        return reference.forward(family, weights, lm.model.config, *arguments, **options)


def ids_of(n_rows, n_tokens, seed=0):
    return torch.randint(1, 250, (n_rows, n_tokens), generator=torch.Generator().manual_seed(seed))


MASKS = {
    "none": None,
    "right": torch.tensor([[1] * 17, [1] * 12 + [0] * 5, [1] * 3 + [0] * 14]),
    "left": torch.tensor([[1] * 17, [0] * 5 + [1] * 12, [0] * 14 + [1] * 3]),
}


@pytest.mark.parametrize("family", ["llama", "opt"])
@pytest.mark.parametrize("accumulate", [True, False])
@pytest.mark.parametrize("segment_lengths", [None, 6, [2, 9, 6]])
@pytest.mark.parametrize("padding", list(MASKS))
@pytest.mark.parametrize("emits", [True, False])
def test_forward_equals_the_reference(base, opt_base, family, accumulate, segment_lengths, padding, emits):
    module = module_of(opt_base if family == "opt" else base, accumulate=accumulate, rank=2)
    ids, mask = ids_of(3, 17), MASKS[padding]
    softprompt = 0.5 * torch.randn(3, 4, 32, generator=torch.Generator().manual_seed(2))
    labels = ids.clone()
    if mask is not None:
        labels[mask == 0] = -100
        # what stands before the first token says nothing
        labels[torch.arange(3), mask.argmax(1)] = -100
    for given in (None, softprompt):
        expected = reference_of(
            module,
            family,
            ids,
            mask,
            segment_lengths,
            softprompt=given,
            accumulate=accumulate,
            output_softprompt=emits,
            labels=labels,
        )
        with torch.no_grad():
            made = module(
                ids,
                attention_mask=mask,
                segment_lengths=segment_lengths,
                softprompt=given,
                output_softprompt=emits,
                labels=labels,
            )
        seen = torch.ones_like(ids).bool() if mask is None else mask.bool()
        assert_close(made.logits[seen], expected[0][seen])
        assert_close(made.softprompt, expected[1])
        assert_close(made.loss, expected[2])


def test_gradients_flow_through_all_segments_to_what_is_trained_alone(base):
    module = module_of(base, rank=2).train()
    ids = ids_of(2, 12)
    module(ids, segment_lengths=4, labels=ids).loss.backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in module.trainable().values())
    assert all(parameter.grad is None for parameter in module._lm.model.parameters())


def test_segments_that_do_not_sum_up_or_fit_are_refused(base, opt_base):
    with pytest.raises(InputError, match="must sum to 12"):
        module_of(base)(ids_of(1, 12), segment_lengths=[4, 4])
    for folder in (base, opt_base):
        with pytest.raises(InputError, match=f"at most {CONTEXT}"):
            module_of(folder)(ids_of(1, CONTEXT + 1))


@pytest.mark.parametrize(("n_tokens", "n_segments", "most", "least"), [(3072, 2, 2048, 1024), (3072, 2, 4096, 2)])
def test_random_segments_are_those_of_the_authors(n_tokens, n_segments, most, least):
    generator = torch.Generator().manual_seed(0)
    drawn = [random_segments(n_tokens, n_segments, max_tokens=most, generator=generator) for _ in range(400)]
    assert all(sum(lengths) == n_tokens and len(lengths) == n_segments for lengths in drawn)
    lengths = [length for several in drawn for length in several]
    assert min(lengths) >= least
    assert max(lengths) <= min(most, n_tokens - least)
    # uniform: the mean of the first length is the middle, and the ends are reached
    assert sum(several[0] for several in drawn) / 400 == pytest.approx(n_tokens / 2, rel=0.05)
    assert min(lengths) < least + 0.05 * n_tokens


def test_random_segments_of_too_short_sequences_are_refused():
    assert sum(random_segments(60, 5, max_tokens=50)) == 60
    for impossible in ((7, 3, 50), (10, 1, 50)):
        with pytest.raises(InputError, match="cannot be cut"):
            random_segments(impossible[0], impossible[1], max_tokens=impossible[2])


@pytest.fixture
def text():
    return "the treaty of 1492 was signed by the river, and nobody knew why it took so long. " * 3


@pytest.fixture(params=["llama", "opt"])
def compressor(request, base, opt_base, tmp_path, small_settings):
    """A compressor with random weights from a checkpoint, with the folder of its decoder."""
    folder = opt_base if request.param == "opt" else base
    untrained = load("auto-compressor", base=folder, dtype="float32", device="cpu")
    randomised(untrained.module)
    checkpoint = str(untrained.save(tmp_path / "weights"))
    return load("auto-compressor", checkpoint=checkpoint, dtype="float32", device="cpu"), folder, request.param


def test_the_compressor_gives_the_vectors_of_the_reference(compressor, text):
    encoder, folder, family = compressor
    tokenizer = load_tokenizer(folder)
    result = encoder.compress(text, keep=0.5, tokenizer=tokenizer)
    ids = torch.tensor([encoder.lm.tokenizer.encode(text).ids])
    lengths = encoder.cut(ids.shape[1], 10)
    weights = {**encoder.lm.model.state_dict(), "embed_summary.weight": encoder.module.embed_summary.weight.detach()}
    adapter = {key.replace("lora.", "model.", 1): value.detach() for key, value in encoder.module.trainable().items()}
    weights = lora.merged(weights, {k: v for k, v in adapter.items() if ".lora_" in k}, 16.0)
    with torch.no_grad():
        _, expected, _ = reference.forward(
            family, weights, encoder.lm.model.config, ids, None, lengths, output_softprompt=True
        )
    assert len(lengths) > 2
    assert_close(result.parts[0].vectors, expected[0])
    assert result.parts[0].placement == ("none" if family == "opt" else "contiguous")


def test_the_adapted_decoder_reads_what_the_reference_reads(compressor, text):
    encoder, folder, family = compressor
    result = encoder.compress(text, keep=0.5, tokenizer=load_tokenizer(folder))
    reader = TransformersBackend(folder, "float32", "cpu", adapter=encoder.checkpoint, begins=False)
    assert reader.space == encoder.space
    tail = "And then"
    with torch.no_grad():
        (logits,) = reader.logits([Prompt(result.parts, after=tail, is_chat=False)])
    ids = torch.tensor([encoder.lm.tokenizer.encode(tail).ids])
    weights = {**encoder.lm.model.state_dict()}
    adapter = {key.replace("lora.", "model.", 1): value.detach() for key, value in encoder.module.trainable().items()}
    weights = lora.merged(weights, {k: v for k, v in adapter.items() if ".lora_" in k}, 16.0)
    with torch.no_grad():
        expected, _, _ = reference.forward(
            family, weights, encoder.lm.model.config, ids, None, None, softprompt=result.parts[0].vectors[None]
        )
    assert_close(logits[-ids.shape[1] :], expected[0])


def test_a_base_without_the_adapter_is_another_decoder(compressor, text):
    encoder, folder, _ = compressor
    result = encoder.compress(text, keep=0.5, tokenizer=load_tokenizer(folder))
    with pytest.raises(InputError, match="made for the decoder"):
        TransformersBackend(folder, "float32", "cpu").generate(Prompt(result.parts, after="a"), max_new_tokens=1)


def test_a_recurrent_memory_keeps_the_last_summary(base, text, small_settings, monkeypatch):
    encoder = load("auto-compressor", base=base, dtype="float32", device="cpu")
    monkeypatch.setattr(type(encoder), "default_settings", {**encoder.default_settings, "accumulate_summary": False})
    recurrent = dataclasses.replace(encoder)
    randomised(recurrent.module)
    tokenizer = load_tokenizer(base)
    result = recurrent.compress([text, text[::-1]], keep=0.5, tokenizer=tokenizer)
    n_slots = recurrent.settings["summary_length"]
    assert result.tokens_after == n_slots
    assert result.parts[0].source.text == f"{text}\n\n{text[::-1]}"
    first = recurrent.compress(text, keep=0.5, tokenizer=tokenizer)
    second = recurrent.compress(text[::-1], keep=0.5, tokenizer=tokenizer, state=first.state)
    assert_close(second.parts[0].vectors, result.parts[0].vectors)


def test_segments_get_shorter_where_the_model_would_not_read_them(base, small_settings):
    encoder = load("auto-compressor", base=base, dtype="float32", device="cpu", rates=(200,))
    n_slots = encoder.settings["summary_length"]
    lengths = encoder.cut(5000, 200)
    assert sum(lengths) == 5000
    assert max(lengths) + len(lengths) * n_slots <= CONTEXT
