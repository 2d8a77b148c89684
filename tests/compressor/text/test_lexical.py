"""BM25 over units."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

import kompakt
from kompakt.compressor.text.bm25 import (
    _ASCII_IDENTIFIER,
    _ASCII_WORD,
    _IDENTIFIER,
    _WORD,
    bm25,
    query_terms,
    terms,
)
from kompakt.compressor.units.segment import segment

STORY = (
    "The harbour of Varna was busy that morning. A grey cat slept on the quay. "
    "Captain Petrova signed the cargo list at nine. Gulls cried. "
    "The ship Aurora left for Odessa with 340 crates of glass."
)


@pytest.mark.parametrize(
    ("query", "answer"),
    [
        ("Who signed the cargo list?", "Captain Petrova"),
        ("How many crates did the Aurora carry?", "340 crates"),
        ("Where did the cat sleep?", "on the quay"),
    ],
)
def test_the_sentence_with_the_answer_is_kept(query, answer):
    small = kompakt.compress(STORY, query=query, max_tokens=16, compressor="lexical")
    assert answer in small.text


def test_order_is_that_of_the_source():
    small = kompakt.compress(STORY, query="Aurora crates and the busy harbour", max_tokens=28, compressor="lexical")
    assert small.text.index("harbour") < small.text.index("Aurora")


def test_titles_and_headings_count_for_the_text_below_them():
    documents = [
        kompakt.Document("It opened in 1902. It has two spans.", metadata={"title": "Steel bridge of Ruse"}),
        kompakt.Document("It opened in 1954. It has six spans.", metadata={"title": "Friendship bridge"}),
    ]
    small = kompakt.compress(
        documents, query="When did the Friendship bridge open?", max_tokens=8, compressor="lexical"
    )
    assert small.text == "It opened in 1954."


def test_identifiers_count_whole_and_by_part():
    assert {"http/server.py", "http", "server"} <= set(terms("see http/server.py"))
    assert "2024-05-20" in terms("on 2024-05-20")


def test_scripts_without_spaces_are_indexed_by_character():
    assert terms("多瑙河") == ["多", "瑙", "河"]
    small = kompakt.compress(
        "今天下雨了。多瑙河流入黑海。猫在睡觉。", query="多瑙河流入哪里？", max_tokens=12, compressor="lexical"
    )
    assert small.text == "多瑙河流入黑海。"


def test_a_query_of_function_words_still_counts():
    assert query_terms("who is it") != []


@given(
    st.lists(st.lists(st.sampled_from("abcde"), max_size=6), min_size=1, max_size=8),
    st.lists(st.sampled_from("abcdz"), min_size=1, max_size=4, unique=True),
)
def test_bm25_is_that_of_a_slow_twin(corpus, query):
    average = sum(map(len, corpus)) / len(corpus)

    def score(bag, term):
        n = bag.count(term)
        n_with = sum(term in other for other in corpus)
        rarity = math.log(1 + (len(corpus) - n_with + 0.5) / (n_with + 0.5))
        return rarity * n / (n + 1.2 * (0.25 + 0.75 * len(bag) / average)) if n else 0.0

    assert bm25(corpus, query) == pytest.approx([sum(score(bag, term) for term in query) for bag in corpus], abs=1e-5)


def test_no_match_gives_zero():
    assert bm25([["a", "b"], ["c"]], ["z"]).tolist() == [0.0, 0.0]
    assert bm25([[], []], ["z"]).tolist() == [0.0, 0.0]


def test_without_a_query_repeats_go_first():
    text = "The dam holds back the river. Snow melts in spring. The dam holds back the river."
    small = kompakt.compress(text, keep=0.75, compressor="lexical")
    assert small.text.count("The dam holds") == 1


@given(st.text(st.sampled_from("aZ09_-.:/@+ \n,"), max_size=40))
def test_the_patterns_for_ascii_find_what_the_general_ones_do(text):
    lowered = text.lower()
    assert _ASCII_WORD.findall(lowered) == _WORD.findall(lowered)
    assert _ASCII_IDENTIFIER.findall(lowered) == _IDENTIFIER.findall(lowered)


def test_keys_that_all_rows_share_make_none_of_them_relevant():
    rows = [{"approved_by": None, "service": "search", "summary": f"release {n}"} for n in range(20)]
    rows[11]["summary"] = "pool size raised"
    text = json.dumps(rows)
    small = kompakt.compress(text, query="Who approved the pool of the service?", keep=0.15, compressor="lexical")
    kept = [row for row in json.loads(small.text) if isinstance(row, dict)]
    assert rows[11] in kept
    scores = kompakt.load("lexical").score(segment([kompakt.Document(text, id="0")]), "approved service")
    assert max(scores) == 0
