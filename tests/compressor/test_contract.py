"""The promises that every registered compressor keeps, whatever the input."""

import json
import math
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from strategies import any_texts, documents, json_texts, sentences

from kompakt import Budget, BudgetError, Document, Pipeline, load
from kompakt.compressor.base import make_request
from kompakt.compressor.inspection import inspect_result
from kompakt.compressor.models.tokenizers import load_tokenizer
from kompakt.compressor.registry import compressor_class, compressor_names
from kompakt.compressor.results import joined_text
from kompakt.compressor.types import Kind, Status, as_documents
from kompakt.compressor.units.json_tree import is_json

NEED_MODELS = {"extractive", "selective-context"}
TOKENIZER = load_tokenizer("o200k_base")
QUERIES = st.sampled_from([None, "Where does the river Danube flow?", "日本語", "x"])


TEXT = [name for name in compressor_names() if compressor_class(name).emits == "text"]


def registered():
    return [pytest.param(name, marks=pytest.mark.models) if name in NEED_MODELS else name for name in TEXT]


@pytest.fixture(scope="module", params=registered())
def compressor(request, tmp_path_factory):
    if request.param in ("default", "mmr"):
        return load(request.param, model="none")
    if request.param == "selective-context":
        # the promises do not depend on the scorer, and this one costs nothing
        from tiny_models import save_model

        return load("selective-context", model=str(save_model(tmp_path_factory.mktemp("models") / "tiny")))
    if request.param == "gemfilter":
        from soft_parts import save_decoder

        folder = save_decoder(tmp_path_factory.mktemp("models") / "tiny", num_hidden_layers=1)
        return load("gemfilter", model=str(folder), dtype="float32", device="cpu")
    return load(request.param)


def examples(n):
    quiet = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(max_examples=n, suppress_health_check=quiet)


def run(compressor, docs, budget, query=None, **options):
    """The result, or None where the budget cannot hold what it must."""
    request = replace(make_request(docs, budget=budget, query=query, tokenizer=TOKENIZER), **options)
    try:
        return compressor.compress_batch([request])[0]
    except BudgetError:
        return None


@given(docs=documents(), query=QUERIES, max_tokens=st.integers(1, 120), mark=st.booleans())
@examples(60)
def test_result_keeps_every_promise_that_can_be_read_off_it(compressor, docs, query, max_tokens, mark):
    result = run(compressor, docs, Budget(max_tokens=max_tokens), query, mark_omissions=mark)
    assume(result is not None)

    assert result.tokens_after <= max_tokens
    assert result.tokens_after == TOKENIZER.count(result.text)
    assert result.tokens_before == TOKENIZER.count(joined_text(docs))
    assert result.n_bytes == len(result.text.encode())
    assert result.outcome.status in (Status.COMPRESSED, Status.FITS)
    assert bool(result.text) == bool(joined_text(docs))
    assert_text_is_tied_to_its_source(result, docs)
    for document in result.documents:
        source = next(source for source in docs if source.id == document.id)
        assert document.metadata == source.metadata
        if is_json(source.text):
            assert type(json.loads(document.text)) is type(json.loads(source.text))


def assert_text_is_tied_to_its_source(result, docs):
    texts = {document.id: document.text for document in docs}
    covered = {document.id: set() for document in docs}
    for part in result.parts:
        bounds = [*part.starts, len(part.text)]
        assert bounds[0] == 0
        assert bounds == sorted(bounds)
        for span, start, end in zip(part.spans, bounds, bounds[1:], strict=False):
            assert 0 <= span.start <= span.end <= len(texts[span.document_id])
            if span.kind not in (Kind.OMISSION, Kind.SEPARATOR):
                assert part.text[start:end] == texts[span.document_id][span.start : span.end]
                covered[span.document_id].update(range(span.start, span.end))
        assert all(part.source_of(offset) for offset in range(len(part.text)))
    for document in docs:
        for start, end in document.protected:
            assert covered[document.id].issuperset(range(start, end))


@given(docs=documents(), query=QUERIES)
@examples(25)
def test_roomy_budget_is_lossless(compressor, docs, query):
    result = run(compressor, docs, Budget(max_tokens=100_000), query)

    assert result.outcome.status is Status.FITS
    assert result.text == joined_text(docs)
    assert result.documents == tuple(docs)
    assert run(compressor, docs, Budget(keep=1.0), query).text == joined_text(docs)


@given(docs=documents(), query=QUERIES, max_tokens=st.integers(1, 100))
@examples(25)
def test_same_input_gives_same_result(compressor, docs, query, max_tokens):
    budget = Budget(max_tokens=max_tokens)
    first, second = run(compressor, docs, budget, query), run(compressor, docs, budget, query)
    assert (first is None) == (second is None)
    assert first is None or first.parts == second.parts


@given(docs=documents(), query=QUERIES, small=st.integers(1, 80), more=st.integers(1, 60))
@examples(40)
def test_larger_budget_never_keeps_less(compressor, docs, query, small, more):
    few = run(compressor, docs, Budget(max_tokens=small), query)
    many = run(compressor, docs, Budget(max_tokens=small + more), query)
    assume(few is not None)
    assert many is not None
    # what is ordered is the sum of the units' own tokens; the whole can differ by those that merge at their seams
    assert many.tokens_after >= 0.9 * few.tokens_after - 6


@given(parts=st.lists(sentences, min_size=12, max_size=40, unique=True), query=QUERIES, keep=st.floats(0.3, 0.9))
@examples(25)
def test_budget_is_used_where_units_allow(compressor, parts, query, keep):
    text = " ".join(parts)
    result = run(compressor, as_documents(text), Budget(keep=keep), query)
    assume(result is not None and result.outcome.status is Status.COMPRESSED)
    ceiling = int(keep * result.tokens_before)
    longest = max(TOKENIZER.count(f" {part}") for part in parts)
    assert result.tokens_after >= min(0.9 * ceiling, ceiling - longest)


@given(docs=documents(max_size=2), max_tokens=st.integers(5, 60))
@examples(15)
def test_result_ignores_the_query_if_the_class_says_so(compressor, docs, max_tokens):
    if compressor.uses_query:
        return
    budget = Budget(max_tokens=max_tokens)
    without, with_query = run(compressor, docs, budget), run(compressor, docs, budget, "Where is the Danube?")
    assert (without is None) == (with_query is None)
    assert without is None or without.parts == with_query.parts


@given(texts=st.lists(any_texts, min_size=2, max_size=4), max_tokens=st.integers(5, 60))
@examples(15)
def test_batch_equals_one_by_one(compressor, texts, max_tokens):
    requests = [
        make_request(Document(text, id="0"), budget=Budget(max_tokens=max_tokens), tokenizer=TOKENIZER)
        for text in texts
    ]
    alone = [run(compressor, request.documents, request.budget) for request in requests]
    assume(all(alone))
    together = compressor.compress_batch(requests)
    assert [result.parts for result in together] == [result.parts for result in alone]


@given(text=json_texts, max_tokens=st.integers(10, 60))
@examples(15)
def test_pipeline_of_one_stage_equals_the_stage(compressor, text, max_tokens):
    alone = run(compressor, as_documents(text), Budget(max_tokens=max_tokens))
    assume(alone is not None)
    piped = Pipeline([compressor], tokenizer=TOKENIZER).compress(text, max_tokens=max_tokens)
    assert piped.parts == alone.parts
    assert piped.tokens_before == alone.tokens_before


@given(docs=documents(), query=QUERIES, max_tokens=st.integers(1, 80), mark=st.booleans())
@examples(40)
def test_record_says_what_became_of_each_unit_and_changes_nothing(compressor, docs, query, max_tokens, mark):
    budget = Budget(max_tokens=max_tokens)
    result = run(compressor, docs, budget, query, mark_omissions=mark, record=True)
    plain = run(compressor, docs, budget, query, mark_omissions=mark)
    assert (result is None) == (plain is None)
    assume(result is not None)

    def without_cost(made):
        trace = tuple(replace(entry, seconds=0.0, cache_hits=0, cache_misses=0) for entry in made.trace)
        return replace(made, decisions=(), trace=trace)

    assert plain.decisions == ()
    assert without_cost(result) == without_cost(plain)
    if result.outcome.status is Status.FITS:
        assert result.decisions == ()
    else:
        assert_decisions_are_what_happened(result, docs)
        assert {decision.stage for decision in result.decisions} == {compressor.name}


def assert_decisions_are_what_happened(result, docs):
    """Units that were kept stand in the result and the others do not, but for white space."""
    verbatim = verbatim_of(result)
    texts = {document.id: document.text for document in docs}
    seen = set()
    for decision in result.decisions:
        assert math.isfinite(decision.score)
        name, text = decision.span.document_id, texts[decision.span.document_id]
        own = {(name, at) for at in range(decision.span.start, decision.span.end)}
        assert not own & seen
        seen |= own
        words = {(name, at) for _, at in own if not text[at].isspace()}
        assert words <= verbatim if decision.is_kept else not words & verbatim
        assert not decision.span.protected or decision.is_kept
    assert len(seen) > 0


def verbatim_of(result):
    return {
        (span.document_id, at)
        for span in result.spans
        if span.kind not in (Kind.OMISSION, Kind.SEPARATOR)
        for at in range(span.start, span.end)
    }


@given(docs=documents(), query=QUERIES, max_tokens=st.integers(1, 80), is_first=st.booleans())
@examples(25)
def test_pieces_tile_the_sources_and_the_kept_ones_are_the_result(compressor, docs, query, max_tokens, is_first):
    stages = [compressor, "structured"] if is_first else ["dedup", compressor]
    request = make_request(docs, budget=Budget(max_tokens=max_tokens), query=query, tokenizer=TOKENIZER)
    try:
        result = Pipeline(stages).compress_batch([replace(request, record=True)])[0]
    except BudgetError:
        assume(False)
    kept = set()
    for document, source in zip(inspect_result(result, method="x").documents, docs, strict=True):
        bounds = [0, *(piece.end for piece in document.pieces)]
        assert [piece.start for piece in document.pieces] == bounds[:-1]
        assert bounds[-1] == len(source.text)
        assert all(piece.start < piece.end for piece in document.pieces)
        kept.update((source.id, at) for p in document.pieces if p.is_kept for at in range(p.start, p.end))
    assert kept == verbatim_of(result)
    names = {trace.stage for trace in result.trace}
    assert {decision.stage for decision in result.decisions} <= names
    # nothing is decided about text that kompakt wrote
    assert not {decision.span.kind for decision in result.decisions} & {Kind.OMISSION, Kind.SEPARATOR}


def test_to_forget_changes_no_result(compressor):
    docs = as_documents(
        ["Rome is old. A cat sat on the mat. The dog ran away.", "Nobody saw where it went. Rome fell."]
    )
    first = run(compressor, docs, Budget(max_tokens=12), "How old is Rome?")
    compressor.forget()
    compressor.forget()
    assert run(compressor, docs, Budget(max_tokens=12), "How old is Rome?").parts == first.parts


@pytest.mark.parametrize("name", compressor_names())
def test_class_describes_itself(name):
    cls = compressor_class(name)
    assert cls.name == name
    assert cls.emits in ("text", "embeds", "cache")
    assert cls.locality in ("segment", "sequential", "global")
    assert cls.removes in ("redundancy", "content")
    assert cls.__doc__


def test_fingerprint_follows_the_options(compressor):
    assert compressor.fingerprint == compressor.fingerprint
    assert len(compressor.fingerprint) == 64
    assert compressor.fingerprint != load("lexical").fingerprint or compressor.name == "lexical"
