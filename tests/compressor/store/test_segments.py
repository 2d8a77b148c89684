"""Compressed segments: what is found is what would have been made."""

import dataclasses
import json
import logging
import random
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_parts import assert_spans_hold, hits, without_trace
from strategies import documents

import kompakt
from kompakt import Budget, BudgetError, ConfigError, Document, Pipeline
from kompakt.compressor.base import ScoringCompressor, make_request
from kompakt.compressor.models.tokenizers import load_tokenizer
from kompakt.compressor.store import segments as module
from kompakt.compressor.store.artefacts import Artefacts
from kompakt.compressor.store.memory import MemoryStore
from kompakt.compressor.store.places import open_store
from kompakt.compressor.store.segments import (
    DecodedSegments,
    SegmentKeys,
    compress_each,
    find_segments,
)
from kompakt.compressor.types import Kind, Status

TOKENIZER = load_tokenizer("o200k_base")
PROSE = " ".join(f"Sentence number {n} tells of ship {n * 7} and its cargo of glass." for n in range(30))
ROWS = json.dumps([{"id": n, "name": f"row {n}", "note": "as before"} for n in range(30)])
CODE = "\n\n".join(f"def f{n}(x):\n    y = x + {n}\n    return y * {n}" for n in range(10)) + "\n"
LOG = "\n".join(f"2026-05-09 07:29:{n:02} INFO ship {n} arrived with glass" for n in range(30))
VARIED = (
    Document(PROSE, "prose", {"title": "Ships"}, ((0, 15),)),
    Document(ROWS, "rows"),
    Document(CODE, "code", {"path": "a.py"}),
    Document(LOG, "log"),
    Document("Überall fließt Wasser. 日本語の文です。 😀 Ende.\r\n" * 9, "unicode"),
)


@dataclass(frozen=True)
class Counting(ScoringCompressor):
    """Keeps the beginnings, and counts what it was asked; fails on documents that say so."""

    asked: list = dataclasses.field(default_factory=list, compare=False, repr=False)
    error: type[Exception] = RuntimeError
    uses_query: bool = True
    name: ClassVar[str] = "counting"

    @property
    def options(self):
        return {"uses_query": self.uses_query}

    def score(self, units, query):
        texts = [document.text for document in units.documents]
        self.asked.extend(texts)
        if any("boom" in text for text in texts):
            raise self.error("the scorer broke")
        return [-float(index) for index in range(len(units))]


def like(docs, store, *, tenant="", **budget):
    query = budget.pop("query", None)
    options = {name: budget.pop(name) for name in ("mark_omissions", "tokenizer") if name in budget}
    request = make_request(docs, budget=Budget(**budget), query=query, **({"tokenizer": TOKENIZER} | options))
    return replace(request, artefacts=Artefacts(store, tenant=tenant))


@pytest.fixture
def store():
    return MemoryStore()


@pytest.fixture(params=["lexical", "structured", "dedup", "default", "pipeline"])
def compressor(request):
    if request.param == "pipeline":
        return Pipeline(["dedup", "lexical"], mark_omissions=True)
    return kompakt.load(request.param, **({"model": "none"} if request.param == "default" else {}))


quick = settings(
    max_examples=12,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)


@given(docs=documents(max_size=5), max_tokens=st.integers(1, 80), query=st.sampled_from([None, "ship 77"]))
@quick
def test_segments_are_what_each_document_alone_gives_and_are_found_in_any_order(compressor, docs, max_tokens, query):
    store = MemoryStore()
    request = like(docs, store, max_tokens=max_tokens, query=query)
    first = compress_each(compressor, request)
    assert len(first) == len(docs)
    for document, result in zip(docs, first, strict=True):
        alone = compressed_alone(compressor, replace(request, documents=(document,)))
        if isinstance(alone, BudgetError):
            assert result.outcome.status is Status.PASSED_THROUGH
            assert result.outcome.reason == str(alone)
            assert result.text == document.text
            assert result.tokens_after == result.tokens_before == TOKENIZER.count(document.text)
        else:
            assert without_trace([result]) == without_trace([alone])
            assert result.trace[:-1] == tuple(
                replace(entry, seconds=made.seconds) for entry, made in zip(alone.trace, result.trace, strict=False)
            )
        assert result.sources == (document,)
        assert_spans_hold(result, document)
    order = random.Random(max_tokens).sample(range(len(docs)), len(docs))
    again = compress_each(compressor, replace(request, documents=tuple(docs[index] for index in order)))
    assert without_trace(again) == without_trace([first[index] for index in order])
    assert hits(again) == [int(result.outcome.status is not Status.PASSED_THROUGH) for result in again]


def compressed_alone(compressor, request):
    try:
        return compressor.compress_batch([request])[0]
    except BudgetError as error:
        return error


@pytest.mark.parametrize("place", ["memory", "file"])
def test_a_second_run_in_another_order_finds_all_and_says_the_same(compressor, place, tmp_path):
    def opened():
        return shared if place == "memory" else open_store(tmp_path / "a.sqlite")

    shared = MemoryStore()
    with opened() as store:
        first = compress_each(compressor, like(VARIED, store, keep=0.5))
        assert hits(first) == [0] * len(VARIED)
        assert [result.trace[-1].cache_misses for result in first] == [1] * len(VARIED)
    with opened() as store:
        second = compress_each(compressor, like(VARIED[::-1], store, keep=0.5))
    assert hits(second) == [1] * len(VARIED)
    assert [result.trace[-1].cache_misses for result in second] == [0] * len(VARIED)
    assert without_trace(second[::-1]) == without_trace(first)
    assert {result.outcome.status for result in second} <= {Status.COMPRESSED, Status.FITS}


def test_ids_do_not_count_and_come_back_as_they_are(store):
    compressor = Counting()
    compress_each(compressor, like(Document(PROSE, "first", {"page": 1}), store, keep=0.3))
    again = Document(PROSE, "second", {"page": 2})
    (found,) = compress_each(compressor, like(again, store, keep=0.3))
    assert hits([found]) == [1]
    assert len(compressor.asked) == 1
    assert {span.document_id for span in found.spans} == {"second"}
    assert found.sources == (again,)
    assert [(kept.id, kept.metadata) for kept in found.documents] == [("second", {"page": 2})]
    assert_spans_hold(found, again)


def test_equal_texts_of_one_call_are_compressed_once(store):
    compressor = Counting()
    docs = [Document(PROSE, name, {"n": name}) for name in "abc"] + [Document(LOG, "d")]
    found = compress_each(compressor, like(docs, store, keep=0.3))
    assert sorted(compressor.asked) == sorted([PROSE, LOG])
    assert [result.sources for result in found] == [(document,) for document in docs]
    for document, result in zip(docs, found, strict=True):
        assert {span.document_id for span in result.spans} == {document.id}
        assert [(kept.id, kept.metadata) for kept in result.documents] == [(document.id, document.metadata)]
        assert_spans_hold(result, document)
    assert without_trace(compress_each(compressor, like(docs, store, keep=0.3))) == without_trace(found)


LINES = PROSE.replace(". ", ".\n")
BASE = {"docs": Document(LINES, "a"), "keep": 0.3}


@pytest.mark.parametrize("change", [
    {"docs": Document(LINES + " ", "a")},
    {"docs": Document(LINES, "a", {"title": "Ships"})},
    {"docs": Document(LINES, "a", {"language": "python"})},
    {"docs": Document(LINES, "a", {"path": "a.py"})},
    {"docs": Document(LINES, "a", protected=((0, 8),))},
    {"keep": 0.31},
    {"keep": None, "max_tokens": 100},
    {"tokenizer": "cl100k_base"},
    {"mark_omissions": True},
    {"query": "Where is ship 77?"},
    {"tenant": "other"},
])  # fmt: skip
def test_whatever_decides_the_result_is_part_of_the_key(store, change):
    compressor = Counting()
    compress_each(compressor, like(store=store, **BASE))
    changed = {name: value for name, value in (BASE | change).items() if value is not None}
    first = compress_each(compressor, like(store=store, **changed))
    second = compress_each(compressor, like(store=store, **changed))
    assert (hits(first), hits(second)) == ([0], [1])
    assert without_trace(first) == without_trace(second)
    assert hits(compress_each(compressor, like(store=store, **BASE))) == [1]


@pytest.mark.parametrize("change", [
    {"docs": Document(LINES, "b")},
    {"docs": Document(LINES, "a", {"page": 3, "title": 5, "language": None})},
    {"docs": Document(LINES, "a", {"path": "a.txt"})},
    {"keep": np.float64(0.3)},
    {"query": "   "},
])  # fmt: skip
def test_whatever_does_not_is_not(store, change):
    compressor = Counting()
    compress_each(compressor, like(store=store, **BASE))
    assert hits(compress_each(compressor, like(store=store, **(BASE | change)))) == [1]


def test_numbers_of_other_libraries_are_budgets_like_any_other(store):
    first = compress_each(Counting(), like(Document(PROSE, "a"), store, max_tokens=np.int64(50)))
    second = compress_each(Counting(), like(Document(PROSE, "a"), store, max_tokens=50))
    assert (hits(first), hits(second)) == ([0], [1])


def test_the_query_counts_only_for_those_who_use_it(store):
    blind = Counting(uses_query=False)
    compress_each(blind, like(Document(PROSE, "a"), store, keep=0.3))
    assert hits(compress_each(blind, like(Document(PROSE, "a"), store, keep=0.3, query="ship 77"))) == [1]


def test_options_of_a_compressor_count(store):
    for options, is_hit in (({}, 0), ({"similarity": 0.5}, 0), ({}, 1), ({"similarity": 0.5}, 1)):
        found = compress_each(kompakt.load("dedup", **options), like(Document(PROSE, "a"), store, keep=0.3))
        assert hits(found) == [is_hit]


def test_stages_and_shares_of_a_pipeline_count(store):
    from kompakt.compressor.pipeline import Stage

    pipelines = [
        Pipeline(["lexical"]),
        Pipeline(["dedup", "lexical"]),
        Pipeline(["lexical", "structured"]),
        Pipeline([Stage(kompakt.load("lexical"), share=2), "structured"]),
        Pipeline(["lexical"], mark_omissions=True),
        Pipeline(["lexical"], keep={"prose": 0.5}),
    ]
    assert len({pipeline.fingerprint for pipeline in pipelines}) == len(pipelines)
    for turn in (0, 1):
        for pipeline in pipelines:
            request = like(Document(PROSE, "a"), store, keep=0.3)
            assert hits(compress_each(pipeline, request)) == [turn]


def test_budgets_by_kind_are_kept_apart_and_the_same_in_any_order(store):
    pipeline = Pipeline(["lexical"])

    def found(**keep):
        request = make_request(VARIED, budget=Budget(by_kind={Kind(name): value for name, value in keep.items()}))
        return compress_each(pipeline, replace(request, artefacts=Artefacts(store)))

    first = found(prose=0.3, log=0.5)
    assert hits(first) == [0] * 5
    assert hits(found(log=0.5, prose=0.3)) == [1] * 5
    assert without_trace(found(prose=np.float64(0.3), log=0.5)) == without_trace(first)
    assert hits(found(prose=0.3)) == [0] * 5
    # what has no budget stays whole
    assert first[1].text == ROWS
    assert first[1].outcome.status is Status.FITS


def test_a_document_too_small_for_its_budget_passes_through_and_is_not_stored(store):
    request = like([Document("Rome.", "tiny"), Document(PROSE, "large")], store, keep=0.1)
    for turn in (0, 1):
        tiny, large = compress_each(Counting(), request)
        assert tiny.outcome.status is Status.PASSED_THROUGH
        assert "leaves no token" in tiny.outcome.reason
        assert tiny.text == "Rome."
        assert (hits([tiny]), hits([large])) == ([0], [turn])
    assert len(list(store.keys())) == 1


def test_what_protected_text_does_not_fit_passes_through(store):
    document = Document(PROSE, "a", protected=((0, len(PROSE)),))
    (found,) = compress_each(Pipeline([Counting()]), like(document, store, keep=0.1))
    assert found.outcome.status is Status.PASSED_THROUGH
    assert found.text == PROSE
    assert list(store.keys()) == []


def test_what_failed_is_not_stored_and_is_tried_again(store, caplog):
    compressor = Counting()
    docs = [Document(PROSE, "good"), Document(f"{PROSE} boom", "bad"), Document(LOG, "also")]
    for turn in (0, 1):
        asked = len(compressor.asked)
        good, bad, also = compress_each(Pipeline([compressor]), like(docs, store, keep=0.3))
        assert bad.outcome.status is Status.PASSED_THROUGH
        assert bad.outcome.reason == "counting failed: RuntimeError: the scorer broke"
        assert bad.text == f"{PROSE} boom"
        assert hits([good, bad, also]) == [turn, 0, turn]
        assert f"{PROSE} boom" in compressor.asked[asked:]
    assert len(list(store.keys())) == 2


def test_what_was_made_while_the_model_changed_is_not_stored(store, caplog):
    weights = ["old"]

    class Replaced(Counting):
        @property
        def weights_fingerprint(self):
            return weights[0]

        def score(self, units, query):
            weights[0] = "new"
            return super().score(units, query)

    request = like([Document(PROSE, "a")], store, keep=0.5)
    compressor = Replaced()
    with caplog.at_level(logging.WARNING):
        [result] = compress_each(compressor, request)
    assert result.outcome.status is Status.COMPRESSED
    assert "a model changed while 1 segments were compressed" in caplog.text
    assert [compress_each(compressor, request)[0].trace[-1].cache_hits for _ in range(2)] == [0, 1]


def test_what_is_the_callers_to_mend_is_raised(store):
    docs = [Document(PROSE, "good"), Document(f"{PROSE} boom", "bad")]
    with pytest.raises(ConfigError, match="the scorer broke"):
        compress_each(Pipeline([Counting(error=ConfigError)]), like(docs, store, keep=0.3))
    with pytest.raises(RuntimeError, match="the scorer broke"):
        compress_each(Counting(), like(docs, store, keep=0.3))
    with pytest.raises(kompakt.CompressionError):
        compress_each(Pipeline([Counting()], strict=True), like(docs, store, keep=0.3))


def test_no_documents_give_no_results(store):
    assert compress_each(Counting(), like([], store, keep=0.3)) == []


@pytest.mark.parametrize("text", ["", " ", "\n\n", "Rome."])
def test_what_fits_is_found_as_it_was(store, text):
    document = Document(text, "a", {"page": 1}, ((0, len(text)),))
    first = compress_each(Pipeline(["lexical"]), like(document, store, max_tokens=1000))
    second = compress_each(Pipeline(["lexical"]), like(document, store, max_tokens=1000))
    assert (hits(first), hits(second)) == ([0], [1])
    assert without_trace(first) == without_trace(second)
    assert second[0].outcome.status is Status.FITS
    assert second[0].documents == (document,)


def test_to_look_is_not_to_compress(store):
    compressor = Counting()
    docs = (Document(PROSE, "a"), Document(LOG, "b"))
    request = like(docs[:1], store, keep=0.3)
    keys = SegmentKeys(compressor, request).keys(docs)
    assert len(set(keys)) == 2
    assert find_segments(request.artefacts, keys, docs) == [None, None]
    compress_each(compressor, request)
    first, second = find_segments(request.artefacts, keys, docs)
    assert second is None
    assert first.text
    assert len(compressor.asked) == 1


def test_what_was_decoded_once_is_not_decoded_again_but_the_store_decides(store, monkeypatch):
    compressor, decoded = Counting(), DecodedSegments()
    request = like(Document(PROSE, "a"), store, keep=0.3)
    n_decoded = []
    real = module.decode_segment
    monkeypatch.setattr(module, "decode_segment", lambda *given: n_decoded.append(1) or real(*given))
    compress_each(compressor, request, decoded=decoded)
    first = compress_each(compressor, request, decoded=decoded)
    assert compress_each(compressor, request, decoded=decoded) == first
    assert len(n_decoded) == 1
    # the id and what else the caller wrote beside the text are always this call's
    other = like(Document(PROSE, "b", {"page": 2}), store, keep=0.3)
    (found,) = compress_each(compressor, other, decoded=decoded)
    assert found.documents[0].metadata == {"page": 2}
    assert {span.document_id for span in found.spans} == {"b"}
    assert len(n_decoded) == 2
    assert hits(compress_each(compressor, request, decoded=decoded)) == [1]
    (key,) = store.keys()
    store.put_many({key: b"damaged"})
    assert hits(compress_each(compressor, request, decoded=decoded)) == [0]
    assert hits(compress_each(compressor, request, decoded=decoded)) == [1]
    store.delete_many([key])
    assert hits(compress_each(compressor, request, decoded=decoded)) == [0]


def test_metadata_that_cannot_be_compared_is_no_obstacle(store):
    decoded = DecodedSegments()
    for turn in range(3):
        document = Document(PROSE, "a", {"vector": np.arange(3) + turn})
        found = compress_each(Counting(), like([document, Document(PROSE, "b")], store, keep=0.3), decoded=decoded)
        assert hits(found) == [min(turn, 1)] * 2
        assert found[0].documents[0].metadata["vector"][0] == turn


def test_what_is_kept_decoded_is_bounded_with_the_texts_that_it_holds(store, monkeypatch):
    monkeypatch.setattr(module, "_DECODED_BYTES", 10_000)
    decoded = DecodedSegments()
    compressor = Counting()
    docs = [Document(f"{n} {PROSE}", str(n)) for n in range(30)]
    compress_each(compressor, like(docs, store, max_tokens=10), decoded=decoded)
    compress_each(compressor, like(docs, store, max_tokens=10), decoded=decoded)
    held = [result for _, result in decoded._results.values()]
    assert 0 < sum(len(source.text) for result in held for source in result.sources) <= 10_000
