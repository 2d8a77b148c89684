"""BERT over packed rows, against its definition and against transformers."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from bert_reference import VOCABULARY, bert, bert_model  # noqa: E402

from kompakt.compressor.models.packed_bert import (  # noqa: E402
    PackedBert,
    _groups,
    _in_groups,
    _in_kernel,
    packed_bert,
    why_not_packed,
)

LENGTHS = [(1,), (5,), (16, 16), (33, 17, 16, 1), (7, 7, 7, 3), (2, 40, 2), (64,)]


def rows(lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, VOCABULARY, (length,), generator=generator) for length in lengths]


@pytest.fixture(scope="module")
def model():
    return bert_model()


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@torch.inference_mode()
def test_each_row_is_what_the_definition_says(model, lengths):
    texts = rows(lengths)
    states = PackedBert(model)(torch.cat(texts), lengths).split(lengths)
    for text, found in zip(texts, states, strict=True):
        torch.testing.assert_close(found.double(), bert(model, text), atol=1e-5, rtol=0)


@torch.inference_mode()
def test_the_definition_is_that_of_transformers(model):
    (text,) = rows([19])
    expected = model(text[None]).last_hidden_state[0].double()
    torch.testing.assert_close(bert(model, text), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@torch.inference_mode()
def test_in_bf16_rows_differ_from_the_definition_no_more_than_those_of_transformers(lengths):
    model = bert_model(dtype=torch.bfloat16)
    texts = rows(lengths)
    packed = PackedBert(model)(torch.cat(texts), lengths).double()
    plain = torch.cat([model(text[None]).last_hidden_state[0] for text in texts]).double()
    exact = torch.cat([bert(model, text) for text in texts])
    error, usual = torch.linalg.norm(packed - exact), torch.linalg.norm(plain - exact)
    assert error < max(1.25 * usual, 0.01 * torch.linalg.norm(exact))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@torch.inference_mode()
def test_a_row_is_the_same_beside_others(dtype):
    packed = PackedBert(bert_model(dtype=dtype))
    lengths = (40, 33, 18, 18, 16, 9, 2)
    texts = rows(lengths)
    together = packed(torch.cat(texts), lengths).split(lengths)
    for text, found in zip(texts, together, strict=True):
        torch.testing.assert_close(
            found, packed(text, [len(text)]), atol=2e-5 if dtype == torch.float32 else 0.1, rtol=0
        )


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("setting", ["auto", "reference"])
def test_both_ways_to_attend_give_the_same(lengths, setting, monkeypatch):
    monkeypatch.setenv("KOMPAKT_KERNELS", setting)
    heads = torch.randn(sum(lengths), 3, 4, 8, generator=torch.Generator().manual_seed(1))
    found = _in_groups(heads, _groups(lengths, heads.dtype))
    torch.testing.assert_close(found, _in_kernel(heads, lengths), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"hidden_act": "gelu_new"}, "gelu_new"),
        ({"is_decoder": True}, "decoder"),
        ({"position_embedding_type": "relative_key"}, "relative_key"),
        ({"model_type": "roberta"}, "roberta"),
    ],
)
def test_other_architectures_are_left_to_transformers(model, settings, reason, monkeypatch):
    for name, value in settings.items():
        monkeypatch.setattr(model.config, name, value, raising=False)
    assert reason in why_not_packed(model)
    assert packed_bert(model) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_bert_is_packed(dtype):
    assert packed_bert(bert_model(dtype=dtype)) is not None
    assert packed_bert(bert_model(dtype=dtype, max_position_embeddings=8)) is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_bert_whose_layers_do_something_else_is_not(dtype):
    model = bert_model(dtype=dtype)
    model.encoder.layer[1].output.register_forward_hook(lambda module, given, made: made + 0.2 * given[1])
    assert packed_bert(model) is None


def test_a_bert_whose_layers_have_other_parts_is_not():
    model = bert_model()
    model.encoder.layer[0].attention.self.query = torch.nn.Identity()
    assert packed_bert(model) is None
