"""Sentence encoders from folders, packed or not, against pooling that is written out."""

import json

import pytest

np = pytest.importorskip("numpy")
torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import tokenizers  # noqa: E402
from bert_reference import VOCABULARY, bert, bert_model  # noqa: E402

from kompakt.compressor.models import sentence_encoder  # noqa: E402
from kompakt.compressor.models.sentence_encoder import load_sentence_encoder  # noqa: E402
from kompakt.compressor.store.artefacts import Artefacts  # noqa: E402
from kompakt.compressor.store.memory import MemoryStore  # noqa: E402

WINDOW = 24
TEXTS = [
    "w5",
    "w6 w7 w8",
    "w9 " * 15,
    "w10 w11 " * 20,
    "w12 w5 w40",
    " ".join(f"w{n}" for n in range(5, 25)),
    "w6 w7 w8",
]


def save(folder, pooling, **settings):
    """A folder in the layout of sentence-transformers, with words w5, w6 and so on."""
    bert_model(**settings).save_pretrained(folder)
    vocabulary = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4}
    vocabulary |= {f"w{n}": n for n in range(5, VOCABULARY)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": WINDOW}))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_cls_token": pooling == "cls"}))
    return folder


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=str)
def dtype(request, monkeypatch):
    monkeypatch.setattr(sentence_encoder, "best_dtype", lambda device: request.param)
    return request.param


def expected_vector(encoder, text, pooling):
    ids = torch.tensor(encoder.tokenizer.encode(text).ids)
    assert len(ids) <= WINDOW
    if encoder.packed is None:
        states = encoder.model(ids[None]).last_hidden_state[0].double()
    else:
        states = bert(encoder.model, ids)
    pooled = states[0] if pooling == "cls" else states.mean(0)
    return (pooled / pooled.norm()).numpy()


def fresh():
    return Artefacts(MemoryStore())


@pytest.mark.parametrize("activation", ["gelu", "relu"])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
@torch.inference_mode()
def test_vectors_are_pooled_states_of_length_1(tmp_path, dtype, pooling, activation, monkeypatch):
    encoder = load_sentence_encoder(save(tmp_path, pooling, hidden_act=activation))
    assert (encoder.packed is None) == (activation == "relu")
    assert encoder.pooling == pooling
    expected = np.stack([expected_vector(encoder, text, pooling) for text in TEXTS])
    for limit in (1, 40, 2048):
        for name in ("_TOKENS_PER_BATCH", "_PADDED_TOKENS_PER_BATCH"):
            monkeypatch.setattr(sentence_encoder, name, limit)
        found = encoder.encode(TEXTS, artefacts=fresh())
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=1e-5 if dtype == torch.float32 else 0.03)


def test_a_text_has_the_same_vector_alone(tmp_path, dtype):
    encoder = load_sentence_encoder(save(tmp_path, "mean"))
    together = encoder.encode(TEXTS, artefacts=fresh())
    alone = np.concatenate([encoder.encode([text], artefacts=fresh()) for text in TEXTS])
    np.testing.assert_allclose(together, alone, atol=1e-6 if dtype == torch.float32 else 0.02)


def test_no_texts_have_no_vectors(tmp_path, dtype):
    assert load_sentence_encoder(save(tmp_path, "mean")).encode([], artefacts=fresh()).shape == (0, 32)


@pytest.mark.models
def test_a_released_encoder_is_packed_and_gives_what_transformers_does():
    encoder = load_sentence_encoder("minilm-l6")
    assert encoder.packed is not None
    texts = [
        "A river.",
        "The bridge was closed for repairs in May, and ferries carried passengers meanwhile.",
        "snow " * 400,
    ]
    found = encoder.encode(texts, artefacts=fresh())
    for text, vector in zip(texts, found, strict=True):
        ids = torch.tensor([encoder.tokenizer.encode(text).ids])
        with torch.inference_mode():
            pooled = encoder.model(ids).last_hidden_state[0].float().mean(0)
        assert float(vector @ (pooled / pooled.norm()).numpy()) > 0.999
