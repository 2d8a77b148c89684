"""Scores of single results, against examples and slow twins."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sources import SOURCES

import kompakt
from kompakt import Document
from kompakt.compressor.evaluation.controls import Full, Nothing
from kompakt.compressor.evaluation.metrics import (
    answer_recall,
    exact_match,
    is_valid,
    normalise,
    token_f1,
    verbatim_text,
)
from kompakt.compressor.types import Compressed, Kind, Outcome, Span, Status, TextPart

ROWS = json.dumps([{"id": n, "text": f"row {n}"} for n in range(9)])
LINES = "\n".join(json.dumps({"id": n}) for n in range(9))
CODE = SOURCES["python"]
words = st.lists(st.sampled_from(["ship", "The", "a", "glass!", "9", "Glass", "of"]), max_size=6).map(" ".join)


def result_of(text, *sources, documents=None):
    """A result with that text; without documents unless some are given."""
    return Compressed(
        parts=(TextPart(text, (), ()),) if text else (),
        documents=tuple(documents or ()),
        outcome=Outcome(Status.COMPRESSED),
        tokens_before=1,
        tokens_after=1,
        n_bytes=len(text),
        sources=sources,
    )


@pytest.mark.parametrize(
    ("text", "answers", "recall"),
    [
        ("It sank in 1912.", ["1912"], 1.0),
        ("It sank in 1912.", ["1913", "sank in"], 1.0),
        ("It sank in 1912.", ["Sank in"], 0.0),
        ("It sank in 1912.", ["sank  in"], 0.0),
        ("It sank in 1912.", [], 0.0),
        ("", ["1912"], 0.0),
    ],
)
def test_answer_recall_is_literal(text, answers, recall):
    assert answer_recall(text, answers) == recall


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("  The Cat,\n a  dog & an owl. ", "cat dog owl"),
        ("Athens", "athens"),
        ("A.B.C.", "abc"),
        ("the-end", "theend"),
        ("a", ""),
        ("Über-Ship", "übership"),
    ],
)
def test_normalisation(text, normal):
    assert normalise(text) == normal


@pytest.mark.parametrize(
    ("prediction", "answers", "match", "f1"),
    [
        ("The Cat.", ["cat"], 1.0, 1.0),
        ("cat and dog", ["cat", "a dog and cat"], 0.0, 1.0),
        ("a black cat", ["cat"], 0.0, 2 / 3),
        ("cat cat", ["cat"], 0.0, 2 / 3),
        ("cat cat", ["cat cat cat"], 0.0, 4 / 5),
        ("owl", ["cat", "dog"], 0.0, 0.0),
        ("owl and bat", ["cat", "bat mouse", "owl bat"], 0.0, 4 / 5),
        ("", ["cat"], 0.0, 0.0),
        ("cat", ["the"], 0.0, 0.0),
        ("the", ["a"], 1.0, 1.0),
        ("cat", [], 0.0, 0.0),
    ],
)
def test_match_and_f1(prediction, answers, match, f1):
    assert exact_match(prediction, answers) == match
    assert token_f1(prediction, answers) == pytest.approx(f1)


@given(prediction=words, answer=words)
def test_f1_is_that_of_a_slow_twin(prediction, answer):
    told, wanted = normalise(prediction).split(), normalise(answer).split()
    left, n_common = list(wanted), 0
    for word in told:
        if word in left:
            left.remove(word)
            n_common += 1
    if not told or not wanted:
        expected = float(not told and not wanted)
    elif not n_common:
        expected = 0.0
    else:
        precision, recall = n_common / len(told), n_common / len(wanted)
        expected = 2 * precision * recall / (precision + recall)
    assert token_f1(prediction, [answer]) == pytest.approx(expected)
    assert token_f1(answer, [prediction]) == pytest.approx(expected)
    assert token_f1(prediction, ["mouse", answer]) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("source", "text", "valid"),
    [
        (ROWS, ROWS[:-1], False),
        (ROWS, '[{"id": 3}]', True),
        (LINES, '{"id": 1}\n\n{"id": 3}\n', True),
        (LINES, '{"id": 1}\n{"id": 3', False),
        (CODE, "x = 1\n", True),
        (CODE, "def f(:\n", False),
        ("One sentence. And another.", "[", None),
    ],
)
def test_foreign_text_is_judged_by_its_one_source(source, text, valid):
    assert is_valid(result_of(text, Document(source, "a"))) is valid
    # with documents, each is judged by its own source
    document = Document(text, "a")
    assert is_valid(result_of(text, Document(source, "a"), documents=[document])) is valid


def test_one_broken_document_is_enough():
    sources = Document(ROWS, "a"), Document("Some prose.", "b"), Document(CODE, "c")
    good, bad = Document("[]", "a"), Document("def f(:", "c")
    assert is_valid(result_of("x", *sources, documents=[good, Document("[", "b")])) is True
    assert is_valid(result_of("x", *sources, documents=[good, bad])) is False
    assert is_valid(result_of("x", *sources, documents=[bad])) is False


def test_foreign_text_of_several_sources_cannot_be_told_apart():
    assert is_valid(result_of("[", Document(ROWS, "a"), Document("Some prose.", "b"))) is None
    assert is_valid(result_of("[", Document("Some.", "a"), Document("Some prose.", "b"))) is None


def test_code_with_an_error_of_its_own_cannot_be_broken():
    broken = Document("def f(:\n    pass\n", "a", {"language": "python"})
    assert is_valid(result_of("def g(:", broken)) is True


def test_what_kompakt_and_the_references_make_is_valid():
    for text in (ROWS, LINES, CODE):
        assert is_valid(kompakt.compress(text, keep=0.5, compressor="structured")) is True
        assert is_valid(Full().compress(text, keep=0.5)) is True
    assert is_valid(Nothing().compress("Some prose.", keep=0.5)) is None


def test_verbatim_text_is_without_marks_and_separators():
    spans = (
        Span("a", 0, 3),
        Span("a", 3, 9, Kind.OMISSION),
        Span("a", 9, 12, Kind.CODE),
        Span("a", 12, 12, Kind.SEPARATOR),
        Span("b", 0, 3),
    )
    first = TextPart("One […]twosepsix", spans, (0, 3, 7, 10, 13))
    result = Compressed(
        parts=(first, TextPart(" foreign", (), ())),
        documents=(),
        outcome=Outcome(Status.COMPRESSED),
        tokens_before=9,
        tokens_after=9,
        n_bytes=9,
    )
    assert verbatim_text(result) == "One\ntwo\nsix foreign"
    assert verbatim_text(Nothing().compress("Some prose.", keep=0.5)) == ""


def test_verbatim_text_of_an_end_mark():
    spans = (Span("a", 0, 3), Span("a", 3, 9, Kind.OMISSION))
    assert verbatim_text(result_of("")) == ""
    result = result_of("One […]", Document("One two."))
    marked = TextPart("One […]", spans, (0, 3))
    assert verbatim_text(Compressed((marked,), (), result.outcome, 9, 9, 9)) == "One\n"
