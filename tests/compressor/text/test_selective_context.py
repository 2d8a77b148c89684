from __future__ import annotations

import dataclasses
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kompakt.compressor.errors import BudgetError, ConfigError, ModelNotFoundError
from kompakt.compressor.models.locate import model_path
from kompakt.compressor.models.noun_chunks import noun_chunks, split_phrases
from kompakt.compressor.registry import load
from kompakt.compressor.store.artefacts import Artefacts
from kompakt.compressor.store.memory import MemoryStore
from kompakt.compressor.text import selective_context as module
from kompakt.compressor.text.selective_context import (
    Information,
    SelectiveContext,
    information_recipe,
    unit_information,
)
from kompakt.compressor.text.selective_context_paper import align, paper_filter, paper_sentences, reduce_units
from kompakt.compressor.types import Status
from kompakt.compressor.units.segment import segment
from kompakt.compressor.units.sentences import split_words

np = pytest.importorskip("numpy")
torch = pytest.importorskip("torch")


class TestPaper:
    def test_a_token_across_units_goes_to_the_one_that_it_completes(self):
        # (a) inside, (c) completes "abc" and only enters "def", (b) ends exactly
        assert align(["ab", "cd", "ef"], [1.0, 2.0, 3.0], ["abc", "def"]) == [[1.0, 2.0], [3.0]]

    def test_a_token_that_completes_several_units_is_shared(self):
        assert align(["abcd", "e"], [6.0, 1.0], ["a", "b", "cd", "e"]) == [[2.0], [2.0], [2.0], [1.0]]
        assert align(["abc", "d"], [6.0, 1.0], ["a", "b", "cd"]) == [[3.0], [3.0], [1.0]]

    def test_a_single_space_counts_only_where_it_ends_a_unit(self):
        assert align(["a", " ", "b"], [1.0, 9.0, 2.0], ["a b"]) == [[1.0, 2.0]]
        assert align(["a", " ", "b"], [1.0, 9.0, 2.0], ["a ", "b"]) == [[1.0, 9.0], [2.0]]

    def test_a_unit_that_no_token_completes_has_no_score_and_stays(self):
        scores = reduce_units(align(["ab"], [4.0], ["ab", "c"]))
        assert scores[0] == 4.0
        assert math.isnan(scores[1])
        assert paper_filter([*scores, 5.0], drop=1.0) == [False, True, True]

    def test_mean_and_sum(self):
        assert reduce_units([[1.0, 3.0], [2.0]]) == [2.0, 2.0]
        assert reduce_units([[1.0, 3.0], [2.0]], how="sum") == [4.0, 2.0]

    def test_the_percentile_is_linear_and_ties_stay(self):
        # the 35th percentile of 1, 2, 3, 4 is 1 + 3 * 0.35 = 2.05
        assert paper_filter([1.0, 2.0, 3.0, 4.0], drop=0.35) == [False, False, True, True]
        assert paper_filter([2.0, 2.0, 2.0], drop=0.9) == [True, True, True]
        assert paper_filter([1.0, 2.0], drop=0.0) == [True, True]
        assert paper_filter([], drop=0.5) == []
        assert paper_filter([math.nan, math.nan], drop=0.5) == [True, True]

    def test_sentences(self):
        assert paper_sentences("One.  Two?\nThree! Four... five, e.g. six. Mr. Seven. No. 8.") == [
            "One.",
            "Two?",
            "Three! Four...",
            "five, e.g. six.",
            "Mr. Seven.",
            "No. 8.",
        ]


def make(ends, nats):
    return Information(np.array(ends, dtype=np.int64), np.array(nats, dtype=np.float32))


class TestUnitInformation:
    def test_tokens_go_to_the_units_that_they_complete(self):
        scores = unit_information("abcdef", [(0, 3), (3, 6)], make([2, 4, 6], [1, 2, 3]))
        assert scores.tolist() == [1.5, 3.0]
        assert unit_information("abcdef", [(0, 3), (3, 6)], make([2, 4, 6], [1, 2, 3]), reduce="sum").tolist() == [
            3,
            3,
        ]

    def test_white_space_between_units_counts_for_none(self):
        # "ab.", "\n\n", "cd"
        assert unit_information("ab.\n\ncd", [(0, 5), (5, 7)], make([3, 5, 7], [1, 50, 2])).tolist() == [1, 2]
        # a token of text and white space belongs to the text
        assert unit_information("ab.\n\ncd", [(0, 5), (5, 7)], make([5, 7], [1, 2])).tolist() == [1, 2]

    def test_text_between_units_is_no_units_own(self):
        assert unit_information("{a, b}", [(1, 2), (4, 5)], make([1, 2, 3, 5, 6], [9, 1, 9, 2, 9])).tolist() == [1, 2]

    def test_pieces_of_one_character_count_together(self):
        assert unit_information("😀 b", [(0, 1), (1, 3)], make([1, 1, 1, 3], [1, 2, 6, 4])).tolist() == [3, 4]

    def test_a_token_over_several_units_is_shared(self):
        assert unit_information("abcd", [(0, 1), (1, 2), (2, 4)], make([4], [6])).tolist() == [2, 2, 2]

    @pytest.mark.parametrize("text", ["", "  \n", "a"])
    def test_units_without_tokens_come_last(self, text):
        ranges = [(0, len(text))] if text else []
        assert unit_information(text, ranges, make([], [])).tolist() == [0.0] * len(ranges)

    def test_empty_ranges_have_no_information(self):
        assert unit_information("ab", [(0, 0), (0, 2)], make([2], [3])).tolist() == [0, 3]

    @given(st.lists(st.integers(1, 4), min_size=1, max_size=12), st.lists(st.integers(1, 4), min_size=1, max_size=12))
    def test_without_white_space_it_is_the_walk_of_the_authors(self, unit_lengths, token_lengths):
        length = min(sum(unit_lengths), sum(token_lengths))
        text = "x" * length
        ends = [sorted({min(int(end), length) for end in np.cumsum(x)}) for x in (unit_lengths, token_lengths)]
        units, tokens = ([(a, b) for a, b in zip([0, *cuts], cuts, strict=False)] for cuts in ends)
        nats = [float(1 + i) for i in range(len(tokens))]
        received = align([text[a:b] for a, b in tokens], nats, [text[a:b] for a, b in units])
        information = make([b for _, b in tokens], nats)
        for how in ("mean", "sum"):
            scores = unit_information(text, units, information, reduce=how)
            np.testing.assert_allclose(scores, reduce_units(received, how=how), rtol=1e-6)


class TestPhrases:
    def test_a_noun_chunk_is_one_phrase_and_takes_whole_words(self):
        text = 'He saw "the old man", then left.'
        phrases = split_phrases(text, [(0, 2), (8, 19)])
        assert [text[a:b] for a, b in phrases] == ["He", " saw", ' "the old man",', " then", " left."]

    @given(st.text(alphabet="ab .,\n\t日😀\0", max_size=40), st.lists(st.integers(0, 40), max_size=6))
    def test_phrases_tile_the_text_between_words(self, text, cuts):
        cuts = sorted({min(cut, len(text)) for cut in cuts})
        chunks = [(a, b) for a, b in zip(cuts[::2], cuts[1::2], strict=False) if a < b]
        phrases = split_phrases(text, chunks)
        assert "".join(text[a:b] for a, b in phrases) == text
        words = {start for start, _ in split_words(text)}
        assert all(start in words for start, _ in phrases)


def test_options_are_checked():
    with pytest.raises(ConfigError, match="granularity must be one of 'phrase'"):
        SelectiveContext(granularity="word")
    with pytest.raises(ConfigError, match="context"):
        SelectiveContext(context="window")
    with pytest.raises(ConfigError, match="reduce"):
        SelectiveContext(reduce="max")
    assert load("selective-context", reduce="sum").options["reduce"] == "sum"


def test_a_missing_pipeline_names_the_command(monkeypatch, tmp_path):
    monkeypatch.delenv("KOMPAKT_MODEL_EN_CORE_WEB_SM", raising=False)
    monkeypatch.setenv("KOMPAKT_CACHE", str(tmp_path))
    with pytest.raises(ModelNotFoundError, match="kompakt models pull en-core-web-sm"):
        SelectiveContext().compress("one two three four five six", max_tokens=3)
    with pytest.raises(ModelNotFoundError, match="kompakt models pull smollm2-135m"):
        SelectiveContext(granularity="token").compress("one two three four five six", max_tokens=3)


@pytest.fixture(scope="module")
def models():
    pytest.importorskip("torch")
    for name in ("smollm2-135m", "en-core-web-sm"):
        try:
            model_path(name)
        except ModelNotFoundError as error:
            pytest.skip(str(error))


PROSE = (
    "The Peace of Westphalia was signed in October 1648 in the Westphalian cities of Osnabrück and Münster. "
    "It ended the Thirty Years' War (1618-1648), and it brought peace to the Holy Roman Empire. "
    "As you know, it is of course very important to say that it was a good thing.\n\n"
    "Close to eight million people had died; Mr. Smith's “account” — see p. 12 — counts 😀 more."
)
STRANGE = [
    "",
    " \n\t ",
    "😀😀 🇩🇪 👩‍👩‍👧 é ñ",
    "a\0b \0 c\0",
    "x" * 3000 + " end",
    "日本語のテキストです。これは二番目の文です。",
    "هذا نص عربي قصير. وهذه جملة ثانية.",
    "word\u00a0with\u2028odd\u3000spaces \r\n here",
    "<|endoftext|> <|im_start|>user hello",
]
ALL = [(g, c) for g in ("phrase", "sentence", "token") for c in ("document", "sentence")]


@pytest.mark.models
@pytest.mark.usefixtures("models")
class TestWithModels:
    @pytest.mark.parametrize(("granularity", "context"), ALL)
    @pytest.mark.parametrize("tokenizer", ["smollm2-135m", "o200k_base"])
    def test_budget_whole_words_and_use_of_the_budget(self, granularity, context, tokenizer):
        compressor = SelectiveContext(granularity=granularity, context=context)
        result = compressor.compress(PROSE, max_tokens=50, tokenizer=tokenizer)
        assert result.outcome.status is Status.COMPRESSED
        assert result.tokens_after <= 50
        if granularity != "sentence":
            assert result.tokens_after >= 45
        source = iter(PROSE.split())
        assert all(word in source for word in result.text.split())

    def test_what_was_said_before_goes_first(self):
        compressor = SelectiveContext(granularity="sentence")
        result = compressor.compress(f"{PROSE}\n\n{PROSE}", keep=0.51, tokenizer="smollm2-135m")
        assert result.text.count("Peace of Westphalia") == 1
        units = segment_of([f"{PROSE}\n\n{PROSE}"])
        scores = list(compressor.score(units, None))
        assert max(scores[4:]) < min(scores[:4])

    @pytest.mark.parametrize("text", STRANGE)
    @pytest.mark.parametrize(("granularity", "context"), ALL)
    def test_strange_texts(self, text, granularity, context):
        compressor = SelectiveContext(granularity=granularity, context=context)
        try:
            result = compressor.compress(text, keep=0.5, tokenizer="smollm2-135m")
        except BudgetError:
            return
        assert result.tokens_after <= max(1, result.tokens_before // 2) or result.outcome.status is Status.FITS

    def test_a_very_long_word(self):
        text = "Names: " + "qxz" * 33_000 + " and that is all of it."
        phrases = [text[a:b] for a, b in split_phrases(text, noun_chunks([text])[0])]
        assert "".join(phrases) == text
        assert phrases[-1] == " it."
        (ids,) = module.tokenize(module.recent_scorer("smollm2-135m").lm, [text])
        assert ids.ends[-1] == len(text)

    @pytest.mark.parametrize("granularity", ["phrase", "sentence", "token"])
    def test_the_query_changes_nothing_and_runs_agree(self, granularity):
        compressor = SelectiveContext(granularity=granularity)
        first = compressor.compress(PROSE, keep=0.5)
        assert compressor.compress(PROSE, query="Who died?", keep=0.5).text == first.text
        compressor.forget()
        assert compressor.compress(PROSE, keep=0.5).text == first.text

    def test_what_else_is_compressed_changes_no_scores(self):
        recipe = information_recipe(module.recent_scorer("smollm2-135m"), context="document")
        (alone,) = Artefacts(MemoryStore()).fetch(recipe, [PROSE])
        SelectiveContext().forget()
        units = segment_of([STRANGE[5], PROSE, PROSE[:80]])
        SelectiveContext(granularity="token").score(units, None)
        artefacts = units.artefacts
        (among_others,) = artefacts.fetch(recipe, [PROSE])
        assert artefacts.hits > 0
        # products of long rows in bf16 with AMX depend in their last bits on how many rows there are
        atol = 0.5 if torch.cpu._is_amx_tile_supported() else 0
        np.testing.assert_allclose(among_others.nats, alone.nats, atol=atol, rtol=0)

    def test_a_text_is_scored_once(self, monkeypatch):
        calls = []
        real = module.self_information
        monkeypatch.setattr(module, "self_information", lambda *a, **k: calls.append(1) or real(*a, **k))
        compressor = SelectiveContext()
        compressor.forget()
        small, large = (compressor.compress(PROSE, max_tokens=n, tokenizer="smollm2-135m") for n in (20, 60))
        assert len(calls) == 1
        assert set(small.text.split()) <= set(large.text.split())

    def test_json_and_code_stay_valid(self):
        rows = json.dumps([{"id": i, "name": f"row {i}", "note": "as before"} for i in range(30)])
        result = SelectiveContext().compress(rows, keep=0.4, tokenizer="smollm2-135m")
        json.loads(result.text)
        code = "\n\n".join(f"def f{i}(x):\n    y = x + {i}\n    return y * {i}" for i in range(12)) + "\n"
        compile(SelectiveContext().compress(code, keep=0.5, tokenizer="smollm2-135m").text, "code", "exec")

    def test_sum_and_mean_differ_and_so_do_fingerprints(self):
        mean = SelectiveContext(granularity="sentence")
        total = dataclasses.replace(mean, reduce="sum")
        units = segment_of([PROSE])
        assert max(total.score(units, None)) > max(mean.score(units, None))
        assert len({mean.fingerprint, total.fingerprint, SelectiveContext().fingerprint}) == 3
        assert SelectiveContext().weights_fingerprint != mean.weights_fingerprint != ""

    def test_noun_chunks_of_several_texts(self):
        long = " ".join(["The old man saw a small boat."] * 400)
        short, none, many = noun_chunks(["The old man sleeps.", "日本語のテキスト", long])
        assert short == [(0, 11)]
        assert none == []
        assert len(many) == 800
        assert {long[a:b] for a, b in many} == {"The old man", "a small boat"}


def segment_of(texts):
    from kompakt.compressor.types import as_documents

    return segment(as_documents(texts))
