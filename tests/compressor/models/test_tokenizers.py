from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kompakt.compressor.errors import InputError, ModelError, ModelNotFoundError
from kompakt.compressor.models.catalog import CATALOG
from kompakt.compressor.models.tokenizers import DEFAULT_TOKENIZER, FileTokenizer, Tokenizer, load_tokenizer

hf = pytest.importorskip("tokenizers")


def words_json(**changes):
    vocab = {"[UNK]": 0, "<s>": 1, "a": 2, "b": 3, "<": 4, "s": 5, ">": 6}
    tokenizer = hf.Tokenizer(hf.models.WordLevel(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = hf.pre_tokenizers.Split(hf.Regex("."), "isolated")
    tokenizer.post_processor = hf.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.add_special_tokens(["<s>"])
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=8)
    return json.dumps(json.loads(tokenizer.to_str()) | changes)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "tokenizer.json").write_text(words_json())
    return tmp_path


class WordCounter:
    name = "words"
    fingerprint = "0" * 64

    def count(self, text):
        return len(text.split())

    def count_batch(self, texts):
        return [self.count(text) for text in texts]

    def encode(self, text):
        return list(range(self.count(text)))


def test_the_default():
    assert load_tokenizer() is load_tokenizer(None) is load_tokenizer(DEFAULT_TOKENIZER)
    assert load_tokenizer().name == "o200k_base"


def test_a_tokenizer_is_returned_as_it_is(folder):
    for tokenizer in (WordCounter(), load_tokenizer(), load_tokenizer(folder)):
        assert load_tokenizer(tokenizer) is tokenizer
        assert isinstance(tokenizer, Tokenizer)


def test_models_share_the_tokenizer_of_their_encoding():
    assert load_tokenizer("gpt-5") is load_tokenizer("gpt-4o-2024-08-06") is load_tokenizer("o200k_base")
    assert load_tokenizer("gpt-4") is load_tokenizer("cl100k_base")
    assert load_tokenizer("gpt-4").fingerprint != load_tokenizer("gpt-5").fingerprint


def test_a_folder_and_its_file(folder):
    by_folder, by_file = load_tokenizer(folder), load_tokenizer(str(folder / "tokenizer.json"))
    assert by_folder.fingerprint == by_file.fingerprint
    assert by_folder.count("abc") == by_file.count("abc") == 3
    assert load_tokenizer(folder) is by_folder


def test_special_tokens_padding_and_truncation_do_not_count(folder):
    tokenizer = load_tokenizer(folder)
    assert tokenizer.count("") == 0
    assert tokenizer.encode("a") == [2]
    assert tokenizer.encode("ab" * 10) == [2, 3] * 10
    assert tokenizer.encode("<s>") == [4, 5, 6]
    assert tokenizer.count_batch(["", "a", "ab" * 10, "<s>"]) == [0, 1, 20, 3]


@settings(max_examples=50, deadline=None)
@given(texts=st.lists(st.text(), max_size=4))
def test_counts_are_lengths(texts):
    tokenizer = FileTokenizer("words", words_json().encode())
    lengths = [len(tokenizer.encode(text)) for text in texts]
    assert [tokenizer.count(text) for text in texts] == lengths
    assert tokenizer.count_batch(texts) == lengths


def test_lone_surrogates_are_refused(folder):
    tokenizer = load_tokenizer(folder)
    for call in (tokenizer.count, tokenizer.encode, lambda one: tokenizer.count_batch(["a", one])):
        with pytest.raises(InputError, match="lone surrogate"):
            call("a\ud800b")


def test_a_changed_file_is_read_again(folder):
    before = load_tokenizer(folder)
    (folder / "tokenizer.json").write_text(words_json(version="1.0", normalizer={"type": "Lowercase"}))
    assert load_tokenizer(folder).encode("A") == [2]
    assert before.encode("A") == [0]


@pytest.mark.parametrize("content", ["", "{", "{}", "[]", '{"model": {"type": "Magic"}}', "\x00\xff"])
def test_a_broken_file(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ModelError, match=r"tokenizer\.json of .* is broken"):
        load_tokenizer(tmp_path)


def test_a_folder_without_a_tokenizer(tmp_path):
    with pytest.raises(ModelNotFoundError, match=r"has no tokenizer\.json"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["", "claude-x", "no/such/folder", Path("missing"), "nul\0", "x" * 5000, 5])
def test_unknown_names_say_what_is_accepted(name):
    with pytest.raises(ModelNotFoundError, match=r"o200k_base.*gpt-4o.*smollm2-135m.*folder"):
        load_tokenizer(name)


def test_a_named_model_that_is_not_here(tmp_path, monkeypatch):
    monkeypatch.setenv("KOMPAKT_CACHE", str(tmp_path))
    monkeypatch.delenv(CATALOG["minilm-l6"].env_var, raising=False)
    with pytest.raises(ModelNotFoundError, match="`kompakt models pull minilm-l6`"):
        load_tokenizer("minilm-l6")


def test_a_named_model_has_the_tokenizer_of_its_folder(folder, monkeypatch):
    monkeypatch.setenv(CATALOG["minilm-l6"].env_var, str(folder))
    tokenizer = load_tokenizer("minilm-l6")
    assert tokenizer.name == "minilm-l6"
    assert tokenizer.fingerprint == load_tokenizer(folder).fingerprint


def test_a_name_wins_over_a_folder_of_the_working_directory(folder, monkeypatch):
    (folder / "gpt-4").mkdir()
    (folder / "gpt-4" / "tokenizer.json").write_text(words_json())
    monkeypatch.chdir(folder)
    assert load_tokenizer("gpt-4").name == "cl100k_base"
    assert load_tokenizer("./gpt-4").name == "./gpt-4"


@pytest.mark.models
@pytest.mark.parametrize("name", ["smollm2-135m", "minilm-l6"])
def test_the_named_models_count(name):
    tokenizer = load_tokenizer(name)
    texts = ["", "Hello world", "日本語 🎉 in 1999", "x" * 200_000]
    assert tokenizer.count_batch(texts) == [len(tokenizer.encode(text)) for text in texts]
    assert tokenizer.count("") == 0
    assert tokenizer.count("Hello world") == 2
