from __future__ import annotations

import base64
import hashlib
import time
import warnings

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kompakt.compressor.errors import InputError, ModelNotFoundError
from kompakt.compressor.models import encodings
from kompakt.compressor.models.encodings import ENCODINGS, encoding_of_model, load_encoding

tiktoken = pytest.importorskip("tiktoken")

with warnings.catch_warnings():
    # the package reads its data with a function that Python 3.11 and 3.12 call deprecated
    warnings.simplefilter("ignore", DeprecationWarning)
    from bpe_openai import registry

BUNDLED = ("o200k_base", "cl100k_base")
DATA = {name: registry.ENCODING_CONSTRUCTORS[name]() for name in BUNDLED}
REFERENCE = {name: tiktoken.Encoding(**DATA[name]) for name in BUNDLED}
TEXTS = [
    "",
    " ",
    "Hello world, it's 2024!",
    "It'S WE'LL don't I'VE",
    "naïve café e\u0301 — 日本語テキスト 한국어 العربية हिन्दी 🎉👩‍👩‍👧 \u200b\ufeff",
    "def f(x):\n    return x ** 2 + 10  # done\r\n\r\n\tpass\n \n  \n",
    "a   1  23\n\n  4567890   ",
    "<|endoftext|> and <|im_start|>",
    '{"a": [1, 2.5e-3, null], "b": "\\u00e9\\n"}',
    "\x00\x01\x7f\x85\u2028\u3000x\u00a0\u00a0y",
    "CamelCaseIDENTIFIER snake_case/path//to///file.txt\n",
]


def as_tiktoken_file(ranks):
    lines = (base64.b64encode(token) + b" %d\n" % rank for token, rank in sorted(ranks.items(), key=lambda x: x[1]))
    return b"".join(lines)


@pytest.mark.parametrize("name", BUNDLED)
def test_the_bundled_data_is_what_tiktoken_pins(name):
    (digest,) = encodings._FILES[name].values()
    assert hashlib.sha256(as_tiktoken_file(DATA[name]["mergeable_ranks"])).hexdigest() == digest


@pytest.mark.parametrize("name", BUNDLED)
def test_the_pattern_and_files_are_tiktokens(name, monkeypatch):
    public = pytest.importorskip("tiktoken_ext.openai_public")
    seen = []
    monkeypatch.setattr(
        public, "load_tiktoken_bpe", lambda url, expected_hash: seen.append((url, expected_hash)) or {}
    )
    assert getattr(public, name)()["pat_str"] == DATA[name]["pat_str"]
    assert seen == [(encodings._BLOBS + file, digest) for file, digest in encodings._FILES[name].items()]


@pytest.mark.parametrize("name", BUNDLED)
@pytest.mark.parametrize("text", TEXTS)
def test_ids_and_counts_equal_tiktokens(name, text):
    tokenizer = load_encoding(name)
    expected = REFERENCE[name].encode_ordinary(text)
    assert tokenizer.encode(text) == expected
    assert tokenizer.count(text) == len(expected)


@pytest.mark.parametrize("name", BUNDLED)
def test_batches_equal_single_counts(name):
    tokenizer = load_encoding(name)
    assert tokenizer.count_batch(TEXTS) == [tokenizer.count(text) for text in TEXTS]
    assert tokenizer.count_batch([]) == []


PIECES = st.sampled_from(
    [
        "\r\n",
        "e\u0301",
        "'s",
        "'LL",
        "Ab",
        "word",
        "WORD",
        "<|endoftext|>",
        *" \n\t\x85\xa0\u3000\u200dAaéßǅ漢😀7½/_ʰﬁİ\u017f",
    ]
)


@pytest.mark.parametrize("name", BUNDLED)
@settings(max_examples=300, deadline=None)
@given(text=st.text() | st.lists(PIECES, max_size=30).map("".join))
@example(text="\r \n  x")
def test_any_text_is_counted_as_by_tiktoken(name, text):
    tokenizer = load_encoding(name)
    expected = REFERENCE[name].encode_ordinary(text)
    assert tokenizer.encode(text) == expected
    assert tokenizer.count(text) == len(expected)


@pytest.mark.parametrize("run", ["a", " ", "\n", "日", "1", "!", "ab ", "\u0301"])
def test_long_runs_are_fast(run):
    tokenizer = load_encoding("o200k_base")
    start = time.perf_counter()
    assert tokenizer.count(run * 300_000) > 0
    assert time.perf_counter() - start < 3


def test_harmony_counts_text_as_o200k():
    harmony, base = load_encoding("o200k_harmony"), load_encoding("o200k_base")
    assert [harmony.encode(text) for text in TEXTS] == [base.encode(text) for text in TEXTS]
    assert harmony.fingerprint == base.fingerprint
    assert harmony.name == "o200k_harmony"


@pytest.mark.parametrize("text", ["a\ud800b", "\udfff", "é" * 10 + "\udc80"])
def test_lone_surrogates_are_refused(text):
    tokenizer = load_encoding("o200k_base")
    for call in (tokenizer.count, tokenizer.encode, lambda one: tokenizer.count_batch(["x", one])):
        with pytest.raises(InputError, match="lone surrogate"):
            call(text)


@pytest.mark.parametrize("name", ["p50k_base", "p50k_edit", "r50k_base", "gpt2"])
@pytest.mark.parametrize("variable", ["TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR"])
@pytest.mark.parametrize("spoiled", [False, True])
def test_without_a_cache_nothing_is_downloaded(name, variable, spoiled, tmp_path, monkeypatch):
    monkeypatch.delenv("TIKTOKEN_CACHE_DIR", raising=False)
    monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: pytest.fail("would use the network"))
    if spoiled:
        for file in encodings._FILES[name]:
            key = hashlib.sha1((encodings._BLOBS + file).encode()).hexdigest()
            (tmp_path / key).write_bytes(b"not what is pinned")
    with pytest.raises(ModelNotFoundError, match="TIKTOKEN_CACHE_DIR"):
        load_encoding(name)


def test_a_cache_turned_off_is_no_cache(monkeypatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")
    with pytest.raises(ModelNotFoundError, match="TIKTOKEN_CACHE_DIR"):
        load_encoding("gpt2")


def test_a_filled_cache_is_used(tmp_path, monkeypatch):
    # the files of an encoding that is at hand stand in for those of the other encodings
    content = as_tiktoken_file(DATA["cl100k_base"]["mergeable_ranks"])
    url = encodings._BLOBS + "encodings/cl100k_base.tiktoken"
    (tmp_path / hashlib.sha1(url.encode()).hexdigest()).write_bytes(content)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(encodings, "_BUNDLED", {})
    monkeypatch.setattr(tiktoken.registry, "ENCODINGS", {})
    tokenizer = load_encoding("cl100k_base")
    assert [tokenizer.encode(text) for text in TEXTS] == [
        REFERENCE["cl100k_base"].encode_ordinary(text) for text in TEXTS
    ]
    assert tokenizer.count_batch(TEXTS) == [len(tokenizer.encode(text)) for text in TEXTS]


@pytest.mark.parametrize(
    ("model", "encoding"),
    [
        ("gpt-5", "o200k_base"),
        ("gpt-4o", "o200k_base"),
        ("gpt-4o-2024-08-06", "o200k_base"),
        ("gpt-4.1-mini", "o200k_base"),
        ("o3-mini", "o200k_base"),
        ("gpt-4", "cl100k_base"),
        ("gpt-4-turbo", "cl100k_base"),
        ("gpt-3.5-turbo-0125", "cl100k_base"),
        ("gpt-oss-20b", "o200k_harmony"),
        ("text-embedding-3-small", "cl100k_base"),
        ("claude-x", None),
        ("", None),
    ],
)
def test_models_have_encodings(model, encoding):
    assert encoding_of_model(model) == encoding


def test_tiktoken_knows_no_other_encoding():
    from tiktoken.model import MODEL_PREFIX_TO_ENCODING, MODEL_TO_ENCODING

    assert {*MODEL_PREFIX_TO_ENCODING.values(), *MODEL_TO_ENCODING.values()} <= set(ENCODINGS)
