"""Relevance, novelty and cost: against a slow and obvious definition, and what they do to texts."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import documents

import kompakt
from kompakt import ConfigError, Document
from kompakt.compressor.text import mmr
from kompakt.compressor.text.mmr import greedy_order, tf_idf_similarity, unit_similarity
from kompakt.compressor.units.segment import segment
from kompakt.compressor.units.unit import Units

QUESTION = "Why did the bridge close?"


def by_words(**options):
    return kompakt.load("mmr", model="none", **options)


def slow_order(relevance, vectors, costs, novelty):
    """The definition, word by word."""
    chosen, left = [], list(range(len(relevance)))
    while left:

        def gain(i):
            closest = max((max(0.0, float(vectors[i] @ vectors[j])) for j in chosen), default=0.0)
            return float(relevance[i]) * (1 - novelty * min(1.0, closest)) / float(costs[i])

        best = max(left, key=lambda i: (gain(i), -i))
        chosen.append(best)
        left.remove(best)
    return chosen


@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(0, 25),
    n_repeats=st.integers(0, 10),
    novelty=st.floats(0, 1),
    cost_exponent=st.floats(0, 1),
)
def test_order_is_that_of_the_definition(seed, n, n_repeats, novelty, cost_exponent):
    random = np.random.default_rng(seed)
    vectors = random.normal(size=(n, 5))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors = np.concatenate([vectors, vectors[:n_repeats]])
    relevance = random.random(len(vectors)) + 1e-3
    costs = random.integers(10, 200, size=len(vectors)) ** cost_exponent
    # one product a pair, as the definition takes it: a matrix product may differ in the last digit
    similarity = np.array([[float(a @ b) for b in vectors] for a in vectors]).reshape(len(vectors), len(vectors))
    order = greedy_order(relevance, np.clip(similarity, 0, 1), costs, novelty=novelty)
    assert order == slow_order(relevance, vectors, costs, novelty)


@given(docs=documents(), query=st.sampled_from([None, QUESTION, "日本語"]))
def test_without_novelty_and_cost_the_order_is_that_of_default(docs, query):
    units = segment(docs)
    plain, default = by_words(novelty=0, cost_exponent=0), kompakt.load("default", model="none")
    scores = default.score(units, query)
    assert list(plain.score(units, query)) == list(scores)
    assert plain.rank(units, scores) == default.rank(units, scores)


@given(docs=documents(), query=st.sampled_from([None, QUESTION]))
def test_every_unit_is_ranked_once_and_those_without_relevance_last(docs, query):
    units = segment(docs)
    scores = by_words().score(units, query)
    order = by_words().rank(units, scores)
    assert sorted(order) == list(range(len(units)))
    is_relevant = [scores[index] > 0 for index in order]
    assert is_relevant == sorted(is_relevant, reverse=True)


REPORTS = [
    Document("The bridge was closed because inspectors found cracks in two cables.", id="a"),
    Document("The bridge was closed when inspectors found cracks in the two cables.", id="b"),
    Document("Inspectors had found cracks in two cables, so the bridge was closed.", id="c"),
    Document("Lorries above the permitted weight had used the bridge for years.", id="d"),
]


def rank_of(compressor, docs, query):
    units = segment(docs)
    return [units[index].document for index in compressor.rank(units, compressor.score(units, query))]


def test_what_other_documents_said_comes_late():
    units = segment(REPORTS)
    scores = [1.0, 0.95, 0.97, 0.7]
    assert by_words(novelty=0).rank(units, scores)[-1] == 3
    assert by_words(novelty=0.9).rank(units, scores)[:2] == [0, 3]


def test_the_budget_goes_to_what_is_new():
    texts = ["The valve failed on Monday.", "On Monday the main valve failed.", "In May a valve failed, too."]

    def kept(compressor):
        small = kompakt.compress(texts, query="When did the valve fail?", max_tokens=15, compressor=compressor)
        return [document.text for document in small.documents]

    assert kept(kompakt.load("default", model="none")) == texts[:2]
    assert kept(by_words()) == [texts[0], texts[2]]


@pytest.mark.models
def test_what_other_documents_said_in_other_words_comes_late():
    query = "Why was the bridge closed?"
    docs = [
        Document("The bridge was closed because inspectors found cracks in two cables.", id="a"),
        Document("Engineers shut the crossing after they discovered fractures in a pair of its ropes.", id="b"),
        Document("A fracture in the bridge's cables made inspectors close it.", id="c"),
        Document("Heavy lorries had been crossing the bridge for years against the rules.", id="d"),
    ]
    order = rank_of(kompakt.load("mmr", model="minilm-l6", novelty=0.9, cost_exponent=0), docs, query)
    assert order.index(3) == 1
    plain = rank_of(kompakt.load("mmr", model="minilm-l6", novelty=0, cost_exponent=0), docs, query)
    assert plain.index(3) > 1


@pytest.mark.models
def test_embeddings_are_counted_once():
    compressor = kompakt.load("mmr", model="minilm-l6")
    compressor.forget()
    text = "Rome is old. A cat sat on the mat. The dog ran away. Nobody saw where it went."
    trace = kompakt.compress(text, query="How old is Rome?", max_tokens=12, compressor=compressor).trace[0]
    again = kompakt.compress(text, query="How old is Rome?", max_tokens=12, compressor=compressor).trace[0]
    assert trace.cache_hits + trace.cache_misses == again.cache_hits + again.cache_misses
    assert again.cache_misses == 0


def test_length_counts_as_much_as_asked():
    short = "Cracks closed the bridge in May, the inspectors said."
    long = f"{short[:-1]}, while the mayor, who had come back from a journey, had other matters on his mind."
    docs = [Document(long, id="0"), Document(short, id="1")]
    compressor = by_words(novelty=0, cost_exponent=1)
    units = segment(docs)
    assert compressor.rank(units, [1.0, 0.6]) == [1, 0]
    assert replace(compressor, cost_exponent=0.1).rank(units, [1.0, 0.6]) == [0, 1]


def test_a_fragment_does_not_win_by_its_length():
    units = segment([Document("Bridge!", id="0"), Document("It was closed since May or so.", id="1")])
    assert by_words(novelty=0, cost_exponent=1).rank(units, [0.5, 0.51]) == [1, 0]


def test_beyond_the_most_relevant_units_score_decides(monkeypatch):
    monkeypatch.setattr(mmr, "_MOST", 3)
    units = segment([Document(f"Cable {n} has cracks.", id=str(n)) for n in range(6)])
    order = by_words(novelty=1, cost_exponent=0).rank(units, [0.5, 0.9, 0.8, 0.3, 0.7, 0.6])
    assert sorted(order[:3]) == [1, 2, 4]
    assert order[3:] == [5, 0, 3]


def test_tf_idf_similarity_is_a_cosine():
    texts = ["red apple", "red apple", "green pear", "red pear", "..."]
    similarity = tf_idf_similarity(texts)
    assert np.allclose(similarity, similarity.T)
    assert np.allclose(np.diag(similarity), [1, 1, 1, 1, 0])
    assert similarity[0, 1] == pytest.approx(1)
    assert similarity[0, 2] == 0
    assert 0 < similarity[0, 3] < 1
    # red is in three texts and pear in two: the rarer word ties more closely
    assert similarity[2, 3] > similarity[0, 3]


class Letters:
    """Embeds a text by its letters; enough to tell an embedding's cosine from that of words."""

    def encode(self, texts, **_):
        vectors = np.array([[1.0 + text.count(letter) for letter in "aeiou"] for text in texts], dtype=np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_sentences_are_compared_by_meaning_and_the_rest_by_words():
    docs = [Document("The cable broke. Nothing else happened.", id="0"), Document('{"cable": "broke"}', id="1")]
    units = segment(docs)
    prose = [index for index, unit in enumerate(units) if unit.document == 0]
    chosen = list(range(len(units)))
    similarity = unit_similarity(units, chosen, Letters())
    words = unit_similarity(units, chosen, None)
    vectors = Letters().encode([units[index].text for index in prose])
    assert len(prose) == 2
    assert similarity[np.ix_(prose, prose)] == pytest.approx(vectors @ vectors.T)
    assert similarity[prose[0], prose[1]] != pytest.approx(words[prose[0], prose[1]])
    others = [index for index in chosen if index not in prose]
    assert np.array_equal(similarity[others], words[others])
    assert words[prose[0], others].max() > 0


def test_same_input_gives_same_order():
    docs = [Document("The bridge shook. The bridge shook! Cables broke. Cables broke.", id=str(n)) for n in range(3)]
    units = segment(docs)
    scores = by_words().score(units, QUESTION)
    assert by_words().rank(units, scores) == by_words().rank(Units(docs, list(units)), scores)


@pytest.mark.parametrize("option", ["novelty", "cost_exponent"])
@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_bad_options_are_named(option, value):
    with pytest.raises(ConfigError, match=option):
        kompakt.load("mmr", **{option: value})
