"""The references of CompLLM, ICAE and Extensible Tokenization, against the words of the papers."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from reference_parts import (  # noqa: E402
    TOLERANCE,
    distance,
    one_thread,  # noqa: F401 (a fixture)
    random_ids,
    random_vectors,
    stock_model,
)
from soft_references import compllm, extensible_tokenization, icae, lora, official_layouts  # noqa: E402


def test_compllm_reads_copies_of_the_end_token():
    model, weights = stock_model("qwen2")
    ids = random_ids(7).tolist()
    matrix, bias = random_vectors(32, 32), random_vectors(32, seed=1)
    found = compllm.segment_vectors(weights, model.config, ids, 4, 5, matrix, bias)
    with torch.no_grad():
        hidden = model.model(input_ids=torch.tensor([ids + [5] * 4])).last_hidden_state[0]
    assert distance(found, torch.nn.functional.linear(hidden[7:], matrix, bias)) < TOLERANCE


def test_compllm_segments_do_not_know_each_other():
    model, weights = stock_model("llama")
    identity = torch.eye(32)
    first, second, rest = random_ids(6).tolist(), random_ids(6, seed=1).tolist(), random_ids(3, seed=2).tolist()
    vectors = compllm.document_vectors(weights, model.config, first + second + rest, 6, 2, 5, identity)
    swapped = compllm.document_vectors(weights, model.config, second + first + rest, 6, 2, 5, identity)
    assert vectors.shape == (3 + 3 + 2, 32)
    assert torch.equal(vectors, torch.cat([swapped[3:6], swapped[:3], swapped[6:]]))
    own = compllm.document_vectors(weights, model.config, None, None, 2, 5, identity, segments=[first, second, rest])
    assert torch.equal(own, vectors)
    assert compllm.document_vectors(weights, model.config, [], 6, 2, 5, identity).shape == (0, 32)


@pytest.mark.parametrize(
    ("length", "sizes"), [(0, []), (1, [1]), (8, [8]), (9, [5, 4]), (17, [6, 6, 5]), (24, [8, 8, 8])]
)
def test_icae_segments_are_equal(length, sizes):
    parts = icae.segments(list(range(length)), slots=2, rate=4)
    assert [len(part) for part in parts] == sizes
    assert [i for part in parts for i in part] == list(range(length))


def test_icae_segments_are_never_empty():
    assert all(all(icae.segments(range(length), slots, 1)) for length in range(1, 80) for slots in range(1, 12))


def test_icae_memory_is_read_at_the_memory_tokens():
    model, weights = stock_model("mistral", sliding_window=None)
    table = random_vectors(2 + 3, 32)
    ids = random_ids(9).tolist()
    found = icae.memory(weights, model.config, table, ids, slots=2, rate=4)
    for number, segment in enumerate((ids[:5], ids[5:])):
        embeds = torch.cat([model.get_input_embeddings()(torch.tensor(segment)), table[:2]])
        with torch.no_grad():
            hidden = model.model(inputs_embeds=embeds[None]).last_hidden_state[0]
        assert distance(found[2 * number : 2 * number + 2], hidden[-2:]) < TOLERANCE
    assert icae.memory(weights, model.config, table, []).shape == (0, 32)


def test_icae_markers_follow_the_memory_rows():
    table = random_vectors(128 + 3, 4)
    ids = {"ae": 32129, "lm": 32130, "ft": 32131}
    for name, token_id in ids.items():
        assert torch.equal(icae.marker(table, name)[0], table[icae.row_of_id(token_id, 32000)])
    assert icae.row_of_id(32001, 32000) == 0


def test_icae_decoder_inputs():
    model, weights = stock_model("mistral", sliding_window=None)
    table, memory = random_vectors(5, 32), random_vectors(4, 32, seed=1)
    embeds = model.get_input_embeddings()
    prompt = [7, 8]
    mixed = icae.instruction_embeds(weights, table, memory, prompt, start=[2, 3], end=[4])
    start, rest = embeds(torch.tensor([2, 3])), embeds(torch.tensor([*prompt, 4]))
    assert torch.equal(mixed, torch.cat([start, memory, table[4:5], rest]))
    assert torch.equal(icae.auto_encoding_embeds(table, memory), torch.cat([memory, table[2:3]]))
    assert torch.equal(icae.continuation_embeds(table, memory), memory)
    assert torch.equal(icae.continuation_embeds(table, memory, True), torch.cat([memory, table[3:4]]))
    with torch.no_grad():
        expected = model(inputs_embeds=mixed[None]).logits[0]
    assert distance(icae.decoder_logits(weights, model.config, mixed), expected) < TOLERANCE


@pytest.mark.parametrize(
    ("length", "stride", "kept"), [(8, 4, [3, 7]), (9, 4, [3, 7, 8]), (3, 4, [2]), (3, 1, [0, 1, 2]), (0, 4, [])]
)
def test_extensible_tokenization_keeps_the_last_of_each_stride(length, stride, kept):
    numbers = torch.arange(length)
    assert extensible_tokenization.strided(numbers, stride).tolist() == kept


def test_extensible_tokenization_is_the_first_layers_of_its_base():
    model, weights = stock_model("llama")
    ids = random_ids(10)
    with torch.no_grad():
        expected = model(input_ids=ids[None], output_hidden_states=True)
        apart = model(input_ids=ids[None, 7:], output_hidden_states=True).hidden_states[2][0]
    outputs = extensible_tokenization.outputs(weights, model.config, ids, n_layers=2)
    assert distance(outputs, expected.hidden_states[2][0]) < TOLERANCE
    normed = extensible_tokenization.outputs(weights, model.config, ids, n_layers=3, final_norm=True)
    assert distance(normed, expected.hidden_states[3][0]) < TOLERANCE
    vectors = extensible_tokenization.vectors(weights, model.config, ids, 4, n_layers=2, chunk_length=7)
    assert distance(vectors, torch.cat([expected.hidden_states[2][0, [3, 6]], apart[[2]]])) < TOLERANCE


def test_extensible_tokenization_decoder_reads_vectors_then_tokens():
    model, weights = stock_model("llama")
    vectors, ids = random_vectors(3, 32), random_ids(5)
    with torch.no_grad():
        mixed = torch.cat([vectors, model.get_input_embeddings()(ids)])
        expected = model(inputs_embeds=mixed[None]).logits[0, 3:]
    found = extensible_tokenization.decoder_logits(weights, model.config, vectors, ids)
    assert distance(found, expected) < TOLERANCE


@pytest.mark.parametrize("as_torch", [False, True])
def test_icae_checkpoint_is_an_adapter_and_a_table(tmp_path, as_torch):
    model, base = stock_model("mistral", sliding_window=None)
    adapter = official_layouts.write_icae(tmp_path, model.config, as_torch)
    suffix = "pt" if as_torch else "safetensors"
    assert [path.name for path in tmp_path.iterdir()] == [f"mistral_7b_ft_icae.{suffix}"]
    merged = lora.merged(base, adapter, 32)
    changed = {name for name in base if not torch.equal(base[name], merged[name])}
    assert changed == {f"model.layers.{i}.self_attn.{name}.weight" for i in range(3) for name in ("q_proj", "v_proj")}
    official_layouts.write_icae(tmp_path / "own.safetensors", model.config)
    assert (tmp_path / "own.safetensors").is_file()
