"""The reference of AutoCompressor, against stock models and against the words of the paper."""

import json

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from reference_parts import (  # noqa: E402
    N_SUMMARY,
    TOLERANCE,
    distance,
    in_float64,
    mask_of_padding,
    one_thread,  # noqa: F401 (a fixture)
    random_ids,
    random_vectors,
    stock_model,
)
from soft_references import auto_compressor, official_layouts  # noqa: E402


def auto_compressor_model(family):
    model, weights = stock_model(family, **({} if family == "opt" else {"num_key_value_heads": 4}))
    weights["embed_summary.weight"] = random_vectors(N_SUMMARY, 32, seed=1)
    return model, weights


def batched_auto_compressor(model, weights, ids, mask, lengths, softprompt, accumulate, output_softprompt):
    """The same with a stock model: padding stays in the batch, hidden from attention and skipped by positions."""
    family = model.config.model_type
    batch = len(ids)
    logits = []
    start = 0
    for number, length in enumerate(lengths):
        emits = output_softprompt or number < len(lengths) - 1
        n_soft, n_summary = softprompt.shape[1], N_SUMMARY if emits else 0
        segment = model.get_input_embeddings()(ids[:, start : start + length])
        summary_tokens = weights["embed_summary.weight"][:n_summary].expand(batch, -1, -1)
        segment_mask = mask[:, start : start + length]
        ones_before, ones_after = mask.new_ones(batch, n_soft), mask.new_ones(batch, n_summary)
        whole_mask = torch.cat([ones_before, segment_mask, ones_after], 1)
        if family == "opt":
            counted = segment_mask.cumsum(1) * segment_mask - 1
            positions = torch.cat([-ones_before, counted, -ones_after], 1)
        else:
            positions = (whole_mask.cumsum(1) - 1).clamp(min=0)
        output = model(
            inputs_embeds=torch.cat([softprompt, segment, summary_tokens], 1),
            attention_mask=whole_mask,
            position_ids=positions,
            output_hidden_states=True,
            use_cache=False,
        )
        logits.append(output.logits[:, n_soft : n_soft + length])
        summary = output.hidden_states[-1][:, n_soft + length :]
        if accumulate:
            softprompt = torch.cat([softprompt, summary], 1)
        elif n_summary:
            softprompt = summary
        start += length
    return torch.cat(logits, 1), softprompt


@pytest.mark.parametrize("family", ["llama", "opt"])
@pytest.mark.parametrize("accumulate", [True, False])
@pytest.mark.parametrize(
    ("segment_lengths", "lengths", "output_softprompt", "n_given"),
    [
        (None, [16], False, 0),
        (None, [16], True, 2),
        (6, [6, 6, 4], False, 2),
        (6, [6, 6, 4], True, 0),
        ([7, 2, 7], [7, 2, 7], True, 2),
    ],
)
def test_auto_compressor_is_a_stock_model_on_a_padded_batch(
    family, accumulate, segment_lengths, lengths, output_softprompt, n_given
):
    model, weights = auto_compressor_model(family)
    ids, mask = random_ids(3, 16), mask_of_padding(16)
    given = random_vectors(3, n_given, 32, seed=2)
    labels = torch.where(mask.bool(), ids, -100)
    # what comes before it is padding, about which implementations differ
    labels[1, 4] = -100
    logits, softprompt, loss = auto_compressor.forward(
        family,
        weights,
        model.config,
        ids,
        mask,
        segment_lengths,
        given if n_given else None,
        accumulate,
        output_softprompt,
        labels,
    )
    with torch.no_grad():
        expected_logits, expected_softprompt = batched_auto_compressor(
            model, weights, ids, mask, lengths, given, accumulate, output_softprompt
        )
    real = mask.bool()
    assert distance(logits[real], expected_logits[real]) < 3 * TOLERANCE
    assert logits[~real].count_nonzero() == 0
    assert distance(softprompt, expected_softprompt) < 3 * TOLERANCE
    expected_loss = torch.nn.functional.cross_entropy(expected_logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    assert distance(loss, expected_loss) < TOLERANCE


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_auto_compressor_with_one_segment_is_the_plain_model(family):
    model, weights = auto_compressor_model(family)
    ids = random_ids(2, 10)
    logits, softprompt, loss = auto_compressor.forward(family, weights, model.config, ids, None, None)
    with torch.no_grad():
        assert distance(logits, model(input_ids=ids).logits) < TOLERANCE
    assert softprompt.shape == (2, 0, 32)
    assert loss is None


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_auto_compressor_continues_from_a_given_soft_prompt(family):
    model, weights = auto_compressor_model(family)
    ids = random_ids(1, 14)
    logits, softprompt, _ = auto_compressor.forward(
        family, weights, model.config, ids, None, [5, 5, 4], output_softprompt=True
    )
    _, first, _ = auto_compressor.forward(
        family, weights, model.config, ids[:, :5], None, None, output_softprompt=True
    )
    later_logits, later, _ = auto_compressor.forward(
        family, weights, model.config, ids[:, 5:], None, 5, softprompt=first, output_softprompt=True
    )
    assert first.shape[1] == N_SUMMARY
    assert torch.equal(later, softprompt)
    assert torch.equal(later_logits, logits[:, 5:])


def test_auto_compressor_replaces_only_by_what_was_emitted():
    model, weights = auto_compressor_model("llama")
    given = random_vectors(1, 5, 32)
    ids = random_ids(1, 8)
    settings = {"softprompt": given, "accumulate": False}
    _, unchanged, _ = auto_compressor.forward("llama", weights, model.config, ids, None, None, **settings)
    assert torch.equal(unchanged, given)
    _, replaced, _ = auto_compressor.forward("llama", weights, model.config, ids, None, 4, **settings)
    assert replaced.shape[1] == N_SUMMARY


def test_auto_compressor_refuses_segments_of_another_length():
    with pytest.raises(ValueError, match="9 tokens for a text of 8"):
        auto_compressor.lengths_of_segments(8, [5, 4])


def test_auto_compressor_without_summary_tokens_reads_segments_apart():
    model, weights = stock_model("llama")
    ids = random_ids(1, 8)
    logits, softprompt, _ = auto_compressor.forward(
        "llama", weights, model.config, ids, None, 4, output_softprompt=True
    )
    with torch.no_grad():
        assert distance(logits[:, 4:], model(input_ids=ids[:, 4:]).logits) < TOLERANCE
    assert softprompt.shape[1] == 0


def test_auto_compressor_passes_gradients_through_summaries():
    model, weights = auto_compressor_model("opt")
    weights = in_float64(weights)
    table = weights["embed_summary.weight"].clone().requires_grad_()
    ids = random_ids(1, 8)
    _, _, loss = auto_compressor.forward(
        "opt", weights | {"embed_summary.weight": table}, model.config, ids, None, 4, labels=ids
    )
    loss.backward()

    step = torch.zeros_like(table)
    step[1, 3] = 1e-5
    losses = [
        auto_compressor.forward(
            "opt", weights | {"embed_summary.weight": moved.detach()}, model.config, ids, None, 4, labels=ids
        )[2]
        for moved in (table + step, table - step)
    ]
    assert table.grad[1, 3].item() == pytest.approx(((losses[0] - losses[1]) / 2e-5).item(), rel=1e-5)


@pytest.mark.parametrize("family", ["llama", "opt"])
@pytest.mark.parametrize(("as_torch", "shards"), [(False, 1), (False, 3), (True, 1), (True, 2)])
def test_auto_compressor_checkpoint_is_one_of_its_base_and_a_table(tmp_path, family, as_torch, shards):
    weights = official_layouts.write_auto_compressor(
        tmp_path, family, as_torch, shards, inverse_frequencies=family == "llama", summary_length=4
    )
    written = json.loads((tmp_path / "config.json").read_text())
    assert (written["summary_length"], written["accumulate_summary"]) == (4, True)
    assert weights["embed_summary.weight"].shape == (4, 32)
    assert len(list(tmp_path.glob("*.bin"))) == (shards if as_torch else 0)
    assert len(list(tmp_path.glob("*.safetensors"))) == (0 if as_torch else shards)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert len(transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)) == model.config.vocab_size
    ids = random_ids(1, 9, vocabulary=model.config.vocab_size)
    logits, _, _ = auto_compressor.forward(family, weights, model.config, ids, None, None)
    with torch.no_grad():
        assert distance(logits, model(input_ids=ids).logits) < 1e-4


def test_auto_compressor_checkpoint_takes_settings(tmp_path):
    weights = official_layouts.write_auto_compressor(
        tmp_path, summary_length=0, accumulate=False, dtype=torch.bfloat16, num_key_value_heads=2
    )
    assert "embed_summary.weight" not in weights
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert model.dtype == torch.bfloat16
    assert model.config.num_key_value_heads == 2
    assert model.config.accumulate_summary is False
