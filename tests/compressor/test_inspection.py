"""Every character of the sources has one fate, and it is the one that the result shows."""

import json
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from strategies import documents

import kompakt
from kompakt import BudgetError, Document, Pipeline
from kompakt.compressor.base import ScoringCompressor
from kompakt.compressor.evaluation.controls import Nothing, RandomUnits
from kompakt.compressor.inspection import Piece, inspect_result, title_of
from kompakt.compressor.types import Compressed, Kind, Outcome, Span, Status, TextPart

TEXT = "Keep 9 ships. Drop 1 ship. Keep 8 boats. Drop 2 boats."
ROWS = json.dumps([{"id": n, "text": f"row {n} of the harbour"} for n in range(8)])


@dataclass(frozen=True)
class Digits(ScoringCompressor):
    """Scores a unit by its first digit."""

    name: ClassVar[str] = "digits"

    def score(self, units, query):
        return [float(next((letter for letter in unit.text if letter.isdigit()), "0")) for unit in units]


class Odd(Digits):
    """Puts odd digits first."""

    name: ClassVar[str] = "odd"

    def score(self, units, query):
        return [value + 10 * (value % 2) for value in super().score(units, query)]


class Second(RandomUnits):
    name: ClassVar[str] = "second"


def inspected(context, compressor, **budget):
    result = kompakt.compress(context, compressor=compressor, record=True, **budget)
    return inspect_result(result, method="x").documents


def pieces_of(document):
    return [
        (document.text[piece.start : piece.end], piece.is_kept, piece.stage, piece.score) for piece in document.pieces
    ]


def test_one_stage():
    (document,) = inspected(Document(TEXT, "a", {"title": "Ships"}), Digits(), max_tokens=11)
    assert (document.id, document.title, document.text) == ("a", "Ships", TEXT)
    assert pieces_of(document) == [
        ("Keep 9 ships.", True, "digits", 9.0),
        (" Drop 1 ship.", False, "digits", 1.0),
        (" Keep 8 boats.", True, "digits", 8.0),
        (" Drop 2 boats.", False, "digits", 2.0),
    ]


def test_the_stage_that_dropped_it_and_the_stage_that_kept_it_last():
    (document,) = inspected(TEXT, Pipeline([Digits(), Odd()]), max_tokens=5)
    assert pieces_of(document) == [
        ("Keep 9 ships.", True, "odd", 19.0),
        (" Drop 1 ship.", False, "digits", 1.0),
        (" Keep 8 boats.", False, "odd", 8.0),
        (" Drop 2 boats.", False, "digits", 2.0),
    ]


def test_what_is_trimmed_off_a_kept_unit_is_dropped():
    (document,) = inspected("Keep 9 ships.\n\nDrop 1 ship.\n", Digits(), max_tokens=5)
    assert pieces_of(document)[:2] == [
        ("Keep 9 ships.", True, "digits", 9.0),
        ("\n\n", False, "digits", 9.0),
    ]


def test_glue_between_units_has_no_score():
    (document,) = inspected(ROWS, Digits(), keep=0.4)
    pieces = pieces_of(document)
    assert {piece.kind for piece in document.pieces} == {Kind.JSON}
    assert {stage for _, _, stage, _ in pieces} == {"digits"}
    assert pieces[-1] == ("]", True, "digits", None)
    dropped = {text for text, is_kept, _, score in pieces if score is None and not is_kept}
    assert dropped == {", "}


def test_glue_that_either_of_two_stages_may_have_dropped_names_none():
    (document,) = inspected(ROWS, Pipeline([Digits(), Odd()]), keep=0.3)
    pieces = pieces_of(document)
    assert {stage for text, is_kept, stage, _ in pieces if text == ", " and not is_kept} == {""}
    assert pieces[-1] == ("]", True, "odd", None)


@given(docs=documents(), seeds=st.tuples(st.integers(0, 9), st.integers(0, 9)), max_tokens=st.integers(3, 60))
@settings(max_examples=60)
def test_fates_are_those_of_a_slow_twin(docs, seeds, max_tokens):
    pipeline = Pipeline([RandomUnits(seeds[0]), Second(seeds[1])])
    try:
        result = kompakt.compress(docs, compressor=pipeline, max_tokens=max_tokens, record=True)
    except BudgetError:
        assume(False)
    last, verbatim = {}, set()
    for decision in result.decisions:
        for at in range(decision.span.start, decision.span.end):
            last[decision.span.document_id, at] = decision
    for span in result.spans:
        if span.kind not in (Kind.OMISSION, Kind.SEPARATOR):
            verbatim.update((span.document_id, at) for at in range(span.start, span.end))

    for source, document in zip(docs, inspect_result(result, method="x").documents, strict=True):
        assert (document.id, document.text) == (source.id, source.text)
        assert "".join(document.text[piece.start : piece.end] for piece in document.pieces) == source.text
        for piece in document.pieces:
            for at in range(piece.start, piece.end):
                decision = last.get((source.id, at))
                assert piece.is_kept == ((source.id, at) in verbatim)
                assert piece.score == (decision.score if decision else None)
                if decision:
                    assert (piece.stage, piece.kind) == (decision.stage, decision.span.kind)


@pytest.mark.parametrize(("text", "kind"), [(ROWS, Kind.JSON), (TEXT, Kind.PROSE)])
def test_what_fits_is_kept_by_no_stage(text, kind):
    (document,) = inspected(text, Digits(), max_tokens=1000)
    assert document.pieces == (Piece(0, len(text), True, kind=kind),)


def test_without_a_record_only_what_was_kept_is_known():
    view = inspect_result(kompakt.compress(TEXT, compressor=Digits(), max_tokens=11), method="x")
    assert pieces_of(view.documents[0]) == [
        ("Keep 9 ships.", True, "", None),
        (" Drop 1 ship.", False, "", None),
        (" Keep 8 boats.", True, "", None),
        (" Drop 2 boats.", False, "", None),
    ]


def test_documents_that_no_stage_saw_have_no_stage():
    pipeline = Pipeline([Digits()], keep={"json": 0.4})
    prose, rows = inspected([Document(TEXT, "p"), Document(ROWS, "j")], pipeline)
    assert pieces_of(prose) == [(TEXT, True, "", None)]
    assert {piece.is_kept for piece in rows.pieces} == {True, False}
    assert {piece.stage for piece in rows.pieces} == {"digits"}


def test_text_without_provenance_has_no_pieces_and_no_text_has_dropped_ones():
    foreign = Compressed(
        parts=(TextPart("Ships.", (), ()),),
        documents=(),
        outcome=Outcome(Status.COMPRESSED),
        tokens_before=9,
        tokens_after=2,
        n_bytes=6,
        sources=(Document(TEXT, "a"), Document("", "b")),
    )
    assert [document.pieces for document in inspect_result(foreign, method="x").documents] == [(), ()]
    empty = inspect_result(replace(foreign, parts=()), method="x").documents
    assert [document.pieces for document in empty] == [(Piece(0, len(TEXT), False),), ()]


def test_text_that_kompakt_wrote_is_not_kept():
    spans = (Span("a", 0, 13), Span("a", 13, 40, Kind.OMISSION), Span("a", 40, 40, Kind.SEPARATOR))
    result = Compressed(
        parts=(TextPart("Keep 9 ships. […]\n", spans, (0, 13, 17)),),
        documents=(Document("Keep 9 ships. […]\n", "a"),),
        outcome=Outcome(Status.COMPRESSED),
        tokens_before=9,
        tokens_after=2,
        n_bytes=6,
        sources=(Document(TEXT, "a"),),
    )
    (document,) = inspect_result(result, method="x").documents
    assert [(piece.start, piece.end, piece.is_kept) for piece in document.pieces] == [
        (0, 13, True),
        (13, len(TEXT), False),
    ]


def test_a_result_of_marks_alone_has_dropped_everything():
    rows = "\n".join(json.dumps({"id": n}) for n in range(9))
    mark = '{"…": "9 of 9 rows omitted"}\n'
    result = Compressed(
        parts=(TextPart(mark, (Span("a", 0, len(rows), Kind.OMISSION),), (0,)),),
        documents=(Document(mark, "a"),),
        outcome=Outcome(Status.COMPRESSED),
        tokens_before=90,
        tokens_after=9,
        n_bytes=len(mark.encode()),
        sources=(Document(rows, "a"),),
    )
    (document,) = inspect_result(result, method="x").documents
    assert document.pieces == (Piece(0, len(rows), False, kind=Kind.JSON),)


def test_a_view_says_what_was_asked_and_how_it_ended():
    result = kompakt.compress(TEXT, compressor=Pipeline([Digits(), Odd()]), max_tokens=5)
    view = inspect_result(result, method="mine", query="Ships?", keep=0.2, max_tokens=5)
    assert (view.method, view.query, view.keep, view.max_tokens) == ("mine", "Ships?", 0.2, 5)
    assert (view.outcome, view.text) == ("compressed", "Keep 9 ships.")
    assert (view.tokens_before, view.tokens_after) == (result.tokens_before, result.tokens_after)
    assert view.seconds == pytest.approx(sum(trace.seconds for trace in result.trace))
    assert (view.has_answer, view.reader_answer) == (None, None)
    passed = replace(result, outcome=Outcome(Status.PASSED_THROUGH, "odd failed"))
    assert inspect_result(passed, method="mine").outcome == "passed through: odd failed"
    assert inspect_result(passed, method="mine").query == ""
    nothing = inspect_result(Nothing().compress(TEXT, keep=0.5), method="none")
    assert (nothing.text, nothing.seconds) == ("", 0)


def test_a_title_is_a_string():
    assert title_of(Document("", metadata={"title": "Ships"})) == "Ships"
    assert title_of(Document("", metadata={"title": 3})) == title_of(Document("")) == ""
