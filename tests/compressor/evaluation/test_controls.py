"""The references and controls do what their names say, and no more."""

from dataclasses import replace
from itertools import takewhile

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from strategies import documents

import kompakt
from kompakt import Budget, Document
from kompakt.compressor.base import Request
from kompakt.compressor.evaluation.controls import Full, Nothing, RandomUnits, Truncation
from kompakt.compressor.results import fragments_of, joined_text
from kompakt.compressor.types import Kind, Status
from kompakt.compressor.units.segment import segment
from kompakt.compressor.units.sentences import split_words

TEXT = " ".join(f"Sentence number {n} tells of ship {n * 7} and its cargo of glass." for n in range(40))


class Characters:
    """Every character is a token, so that one word more is never fewer tokens."""

    name = "characters"

    def count(self, text):
        return len(text)

    def count_batch(self, texts):
        return [len(text) for text in texts]


def run(compressor, docs, **budget):
    return compressor.compress_batch([Request(tuple(docs), Budget(**budget), Characters())])[0]


@given(docs=documents(), keep=st.floats(0.01, 1))
@settings(max_examples=30)
def test_the_references_take_no_budget(docs, keep):
    full, nothing = run(Full(), docs, keep=keep), run(Nothing(), docs, keep=keep)
    assert (full.text, full.documents, full.sources) == (joined_text(docs), docs, docs)
    assert full.tokens_before == full.tokens_after == nothing.tokens_before == len(joined_text(docs))
    assert (nothing.text, nothing.parts, nothing.documents, nothing.sources) == ("", (), (), docs)
    assert (nothing.tokens_after, nothing.n_bytes) == (0, 0)


def ends_of(docs, words, n):
    """The first and last words, ``n`` in all, by building the text."""
    head, tail = words[: n - n // 2], words[len(words) - n // 2 :]
    texts = []
    for index, doc in enumerate(docs):
        first, last = (
            "".join(doc.text[start:end] for at, (start, end) in part if at == index) for part in (head, tail)
        )
        if any(at == index for at, _ in [*head, *tail]):
            texts.append(f"{first}\n{last}" if first and last else first + last)
    return "\n\n".join(texts)


@given(docs=documents(), max_tokens=st.integers(1, 150))
@settings(max_examples=40)
def test_truncation_keeps_the_most_words_of_both_ends(docs, max_tokens):
    result = run(Truncation(), docs, max_tokens=max_tokens)
    assert result.tokens_after == len(result.text) <= max(max_tokens, len(joined_text(docs)))
    if len(joined_text(docs)) <= max_tokens:
        assert (result.outcome.status, result.text) == (Status.FITS, joined_text(docs))
        return
    words = [(index, word) for index, doc in enumerate(docs) for word in split_words(doc.text)]
    # all words fit where what is too much is the empty lines around empty documents
    texts = (ends_of(docs, words, n) for n in range(len(words) + 1))
    # every word adds to the text, so that none fits once one does not
    fitting = list(takewhile(lambda text: len(text) <= max_tokens, texts))
    assert result.text == fitting[-1]
    assert result.outcome.status is Status.COMPRESSED
    assert [(trace.stage, trace.tokens_after) for trace in result.trace] == [("truncate", result.tokens_after)]
    sources = {doc.id: doc.text for doc in docs}
    for piece in (piece for part in result.parts for piece in fragments_of(part)):
        if piece.span.kind is not Kind.SEPARATOR:
            assert piece.text == sources[piece.span.document_id][piece.span.start : piece.span.end]


@pytest.mark.parametrize(
    ("texts", "max_tokens", "text"),
    [
        (["one two three four five"], 14, "one two\n five"),
        (["one two three four five"], 13, "one two\n five"),
        (["one two three four five"], 12, "one\n five"),
        (["one two three four five"], 7, "one"),
        (["one two three four five"], 2, ""),
        (["one two", "three four", "five six"], 13, "one two\n\n six"),
        (["one two", "three four", "five six"], 17, "one two\n\nfive six"),
    ],
)
def test_truncation_by_example(texts, max_tokens, text):
    assert run(Truncation(), map(Document, texts, "abc"), max_tokens=max_tokens).text == text


def test_truncation_meets_the_budget_of_real_tokens():
    result = Truncation().compress(TEXT, keep=0.2)
    assert 0.19 * result.tokens_before < result.tokens_after <= 0.2 * result.tokens_before
    assert result.text.startswith("Sentence number 0 tells")
    assert result.text.endswith("its cargo of glass.")
    assert result.text == Truncation().compress(TEXT, keep=0.2, query="ship 77").text


@given(docs=documents(), seed=st.integers(0, 99))
@settings(max_examples=20)
def test_lots_are_decided_by_the_texts_and_the_seed(docs, seed):
    units = segment(docs)
    assume(len(units))
    scores = RandomUnits(seed).score(units, None)
    others = segment([replace(doc, id=f"other {doc.id}", metadata={"title": "other"}) for doc in docs])
    assert scores == RandomUnits(seed).score(others, "another query")
    assert all(0 <= score < 1 for score in scores)
    assert len(set(scores)) == len(units)
    assert not set(scores) & set(RandomUnits(seed + 1).score(units, None))
    assert not set(scores) & set(RandomUnits(seed).score(segment([*docs, Document("more")]), None))


def test_lots_are_spread_evenly():
    scores = RandomUnits(3).score(segment([Document("\n".join(f"Line {n}." for n in range(4000)))]), None)
    counts = [sum(low / 10 <= score < (low + 1) / 10 for score in scores) for low in range(10)]
    assert sum(counts) == len(scores) == 4000
    # five standard deviations of a bin that holds a tenth
    assert all(abs(count - 400) < 95 for count in counts)


def test_random_units_differ_by_seed_and_not_by_query():
    texts = {kompakt.compress(TEXT, keep=0.3, compressor=RandomUnits(seed)).text for seed in range(5)}
    assert len(texts) == 5
    assert kompakt.compress(TEXT, keep=0.3, query="ship 77", compressor=RandomUnits(0)).text in texts
    assert RandomUnits(1).fingerprint != RandomUnits(2).fingerprint


def test_what_takes_no_query_says_so():
    assert not any(control.uses_query for control in (Full, Nothing, Truncation, RandomUnits))
    assert [control.name for control in (Full, Nothing, Truncation, RandomUnits)] == [
        "full", "none", "truncate", "random"
    ]  # fmt: skip
