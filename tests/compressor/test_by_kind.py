"""A budget for each kind of document: each kind is compressed by itself, and the whole keeps its order."""

import json
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from sources import SOURCES
from strategies import documents

import kompakt
from kompakt import Budget, BudgetError, CompressionError, Document, Pipeline, load
from kompakt.compressor.base import ScoringCompressor, make_request
from kompakt.compressor.by_kind import join_kinds, split_by_kind
from kompakt.compressor.results import fits, fragments_of, joined_text
from kompakt.compressor.types import WHOLE_KINDS, Kind, Outcome, Status
from kompakt.compressor.units.segment import recognise

PROSE = " ".join(f"Sentence number {n} tells of ship {n * 7} and its cargo of glass." for n in range(30))
ROWS = json.dumps([{"id": n, "text": f"row {n} of the harbour"} for n in range(30)])
TABLE = "name,city,age\n" + "\n".join(f"Ada {n},Ulm,{n}" for n in range(30))
LOG = "\n".join(f"2026-05-09 07:29:{n:02} INFO ship {n} left" for n in range(30))
MIXED = (
    Document(PROSE, "p1"),
    Document(ROWS, "j", {"source": 3}),
    Document(PROSE.replace("ship", "boat"), "p2"),
    Document(TABLE, "t"),
    Document(LOG, "l"),
    Document(SOURCES["python"], "c"),
)
KINDS = [Kind.PROSE, Kind.JSON, Kind.PROSE, Kind.TABLE, Kind.LOG, Kind.CODE]


@dataclass(frozen=True)
class Failing(ScoringCompressor):
    """Fails on texts of one sort."""

    marker: str = "row 3"
    name: ClassVar[str] = "failing"

    def score(self, units, query):
        if any(self.marker in document.text for document in units.documents):
            raise RuntimeError("no rows today")
        return [0.0] * len(units)


def request_of(docs, by_kind, **options):
    return replace(make_request(docs, budget=Budget(by_kind=by_kind), tokenizer="o200k_base"), **options)


def texts_of(result):
    return {document.id: document.text for document in result.documents}


def test_the_samples_are_of_every_kind():
    assert [recognise(document).kind for document in MIXED] == KINDS
    assert set(KINDS) == set(WHOLE_KINDS)


def test_each_kind_becomes_a_request_of_its_own():
    request = request_of(
        MIXED, {Kind.PROSE: 0.3, Kind.LOG: 0.5}, query="Which ship?", record=True, mark_omissions=True
    )
    parts = split_by_kind(request)
    assert {kind: [document.id for document in part.documents] for kind, part in parts.items()} == {
        Kind.PROSE: ["p1", "p2"],
        Kind.LOG: ["l"],
    }
    assert {kind: part.budget for kind, part in parts.items()} == {
        Kind.PROSE: Budget(keep=0.3),
        Kind.LOG: Budget(keep=0.5),
    }
    for part in parts.values():
        assert replace(part, documents=request.documents, budget=request.budget) == request


def test_kinds_meet_their_own_budgets_and_others_stay_whole():
    pipeline = Pipeline(["lexical"], keep={"prose": 0.2, "json": 0.6})
    result = pipeline.compress(MIXED, query="ship 77")
    sources, found = {document.id: document.text for document in MIXED}, texts_of(result)
    count = make_request("", budget=Budget(1)).tokenizer.count

    assert list(found) == [name for name in sources if name in found]
    for name in ("t", "l", "c"):
        assert found[name] == sources[name]
    assert result.documents[list(found).index("j")].metadata == {"source": 3}
    share = count(found["j"]) / count(sources["j"])
    assert 0.4 < share <= 0.6
    prose = count(f"{found.get('p1', '')}\n\n{found.get('p2', '')}")
    assert 0.1 < prose / count(f"{sources['p1']}\n\n{sources['p2']}") <= 0.2
    assert "ship 77 " in found["p1"]
    assert result.outcome == Outcome(Status.COMPRESSED)
    assert result.tokens_before == count(joined_text(MIXED))
    assert result.tokens_after == count(result.text)
    assert result.sources == MIXED


@pytest.mark.parametrize("stages", [["lexical"], ["dedup", "lexical"]])
def test_documents_of_one_kind_are_compressed_together(stages):
    pipeline = Pipeline(stages, keep={"prose": 0.5})
    result = pipeline.compress(MIXED, query="ship 77 and boat 77")
    alone = pipeline.compress([MIXED[0], MIXED[2]], keep=0.5, query="ship 77 and boat 77")
    assert list(texts_of(alone)) == ["p1", "p2"]
    assert texts_of(result) == {document.id: document.text for document in MIXED} | texts_of(alone)


@given(docs=documents(max_size=4), keeps=st.dictionaries(st.sampled_from(WHOLE_KINDS), st.floats(0.2, 1), min_size=1))
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_the_whole_is_what_became_of_each_kind_alone(docs, keeps):
    pipeline = Pipeline(["dedup", "structured"])
    request = request_of(docs, keeps, record=True)
    expected = {}
    decisions = []
    try:
        result = pipeline.compress_batch([request])[0]
        for kind in WHOLE_KINDS:
            same = tuple(document for document in docs if recognise(document).kind is kind)
            if same and kind in keeps:
                (alone,) = pipeline.compress_batch(
                    [replace(request, documents=same, budget=Budget(keep=keeps[kind]))]
                )
                expected |= texts_of(alone)
                decisions.extend(alone.decisions)
            else:
                expected |= {document.id: document.text for document in same}
    except BudgetError:
        assume(False)

    assert texts_of(result) == expected
    assert result.text == joined_text(result.documents)
    assert sorted(map(repr, result.decisions)) == sorted(map(repr, decisions))
    assert [document.id for document in result.documents] == [doc.id for doc in docs if doc.id in expected]
    sources = {document.id: document.text for document in docs}
    for piece in (piece for part in result.parts for piece in fragments_of(part)):
        if piece.span.kind not in (Kind.OMISSION, Kind.SEPARATOR):
            assert piece.text == sources[piece.span.document_id][piece.span.start : piece.span.end]


def test_traces_and_decisions_of_all_kinds_are_kept():
    pipeline = Pipeline(["dedup", "lexical"], keep={"prose": 0.2, "json": 0.6})
    result = kompakt.compress(MIXED, compressor=pipeline, record=True)
    assert [trace.stage for trace in result.trace] == ["dedup", "lexical"] * 2
    assert {(decision.span.document_id, decision.stage) for decision in result.decisions} == {
        (name, stage) for name in ("p1", "p2", "j") for stage in ("dedup", "lexical")
    }
    assert kompakt.compress(MIXED, compressor=pipeline).decisions == ()


def test_a_call_with_a_budget_spends_that():
    pipeline = Pipeline(["lexical"], keep={"json": 0.6})
    plain = Pipeline(["lexical"])
    for budget in ({"keep": 0.3}, {"max_tokens": 200}):
        assert pipeline.compress(MIXED, **budget).parts == plain.compress(MIXED, **budget).parts
        assert kompakt.compress(MIXED, compressor=pipeline, **budget).parts == plain.compress(MIXED, **budget).parts
    with pytest.raises(BudgetError, match="exactly one"):
        pipeline.compress(MIXED, keep=0.3, max_tokens=5)
    with pytest.raises(BudgetError, match="exactly one"):
        plain.compress(MIXED)
    with pytest.raises(BudgetError, match="exactly one"):
        kompakt.compress(MIXED, compressor=plain)


def test_a_batch_may_mix_both_sorts_of_budget():
    pipeline = Pipeline(["structured"])
    requests = [
        make_request(PROSE, budget=Budget(keep=0.3)),
        request_of(MIXED, {Kind.PROSE: 0.2, Kind.JSON: 0.6}),
        make_request(ROWS, budget=Budget(max_tokens=100)),
        request_of(MIXED[:1], {Kind.JSON: 0.5}),
        request_of(MIXED[::-1], {Kind.LOG: 0.5, Kind.TABLE: 0.2}),
    ]
    together = pipeline.compress_batch(requests)
    alone = [pipeline.compress_batch([request])[0] for request in requests]
    assert [result.parts for result in together] == [result.parts for result in alone]
    assert [result.sources for result in together] == [request.documents for request in requests]


@pytest.mark.parametrize("keep", [{"code": 0.1}, {"prose": 1.0}])
def test_nothing_to_do(keep):
    result = Pipeline(["lexical"], keep=keep).compress([PROSE, ROWS])
    assert result.outcome.status is Status.FITS
    assert result.text == f"{PROSE}\n\n{ROWS}"
    assert [(trace.stage, trace.tokens_after) for trace in result.trace] == [("pipeline", result.tokens_before)]


def test_empty_documents_do_not_disturb():
    pipeline = Pipeline(["lexical"], keep={"json": 0.5})
    result = pipeline.compress([Document("", "a"), Document(ROWS, "j"), Document("", "b")])
    assert result.text == joined_text(result.documents)
    assert [document.id for document in result.documents] == ["a", "j", "b"]
    assert pipeline.compress([]).text == ""
    # an empty document of a kind that fits stays as well
    fitting = Pipeline(["lexical"], keep={"json": 0.5, "prose": 1.0}).compress(
        [Document("", "a"), Document(ROWS, "j")]
    )
    assert [document.id for document in fitting.documents] == ["a", "j"]


def test_one_kind_that_fails_passes_through_by_itself():
    pipeline = Pipeline([Failing()], keep={"prose": 0.3, "json": 0.3})
    result = pipeline.compress([PROSE, ROWS])
    assert result.outcome.status is Status.COMPRESSED
    assert result.outcome.reason == "json: failing failed: RuntimeError: no rows today"
    assert texts_of(result)["1"] == ROWS
    assert len(texts_of(result)["0"]) < 0.4 * len(PROSE)


def test_if_every_kind_fails_the_whole_passes_through():
    pipeline = Pipeline([Failing("s")], keep={"prose": 0.3, "json": 0.3})
    result = pipeline.compress([PROSE, ROWS.replace("row", "rows")])
    reason = "failing failed: RuntimeError: no rows today"
    assert result.outcome.status is Status.PASSED_THROUGH
    assert result.outcome.reason == f"prose: {reason}; json: {reason}"
    assert result.tokens_after == result.tokens_before
    with pytest.raises(CompressionError, match="no rows today"):
        Pipeline([Failing()], strict=True, keep={"json": 0.3}).compress([PROSE, ROWS])


def test_protected_text_and_marks_go_along():
    pipeline = Pipeline(["lexical"], keep={"prose": 0.2}, mark_omissions=True)
    result = kompakt.compress([PROSE, TABLE], compressor=pipeline, protect=["ship 203", "Ada 29"])
    assert "ship 203" in result.text
    assert result.text.endswith(TABLE)
    assert "[…]" in result.text


def test_results_are_joined_in_the_order_of_the_documents():
    request = request_of(MIXED, {Kind.PROSE: 0.3, Kind.LOG: 0.5})
    whole = {kind: fits(part.documents, 7, "x", 0.0) for kind, part in split_by_kind(request).items()}
    joined = join_kinds(request, whole, "x")
    assert joined.text == joined_text(MIXED)
    assert joined.outcome.status is Status.FITS
    assert joined.documents == MIXED


def test_only_pipelines_can_spend_it():
    with pytest.raises(BudgetError, match="for pipelines"):
        load("lexical").compress_batch([request_of([PROSE], {Kind.PROSE: 0.5})])
    with pytest.raises(BudgetError, match="for pipelines"):
        Budget(by_kind={Kind.PROSE: 0.5}).resolve(10)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_tokens": 3, "by_kind": {Kind.PROSE: 0.5}}, "exactly one.*by_kind"),
        ({"keep": 0.5, "by_kind": {}}, "exactly one.*by_kind"),
        ({"by_kind": {Kind.PROSE: 0.5, Kind.JSON: 0}}, "keep of json must be above 0"),
        ({"by_kind": {Kind.PROSE: 1.01}}, "keep of prose must be above 0 and at most 1"),
        ({"by_kind": {Kind.PROSE: float("nan")}}, "keep of prose"),
        ({"by_kind": {Kind.PROSE: True}}, "keep of prose must be a number"),
        ({"by_kind": {Kind.PROSE: "0.5"}}, "keep of prose must be a number"),
    ],
)
def test_budgets_that_make_no_sense(options, words):
    with pytest.raises(BudgetError, match=words):
        Budget(**options)
