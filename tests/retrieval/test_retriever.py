"""Retrieval over compressed segments, with real models."""

import pytest

import kompakt
from kompakt.compressor.errors import BudgetError, ConfigError, InputError
from kompakt.retrieval.retriever import Retriever

pytestmark = pytest.mark.models

RIVERS = """# Rivers

The Danube rises in the Black Forest and flows through ten countries. It reaches the Black Sea after 2,850 kilometres.
Ships use it between Kelheim and Sulina. In hard winters it freezes for some days.

# Bridges

The chain bridge in Budapest was opened in 1849 after nine years of work. Its engineer was Adam Clark, a Scot.
Two stone lions guard each end. It was blown up in January 1945 and opened again in November 1949.
"""
KITCHEN = """The canteen opens at half past eleven. Soup costs two euros and bread is free.
On Fridays there is fish. Vegetarians find a dish of the day at the second counter. Trays go back to the trolley."""
RELEASES = """Emergency changes are approved by the duty manager alone. Normal changes wait for the board on Tuesday.
A release is frozen during the last week of the quarter. Rollbacks need no approval at all."""
COPY = "The bridge of chains at Budapest was opened in 1849, after nine years of work by the engineer Adam Clark."


def library():
    return [
        kompakt.Document(RIVERS, id="rivers.md", metadata={"year": 2020}),
        kompakt.Document(KITCHEN, id="kitchen.txt", metadata={"year": 2024}),
        kompakt.Document(RELEASES, id="releases.txt", metadata={"year": 2024}),
        kompakt.Document(COPY, id="copy.txt", metadata={"year": 2021}),
    ]


def pipeline_at(path):
    return kompakt.Pipeline(["extractive"], tokenizer="o200k_base", store=path / "store.sqlite")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("retriever")


@pytest.fixture(scope="module")
def retriever(place):
    with Retriever.create(place / "index", pipeline=pipeline_at(place), keep=0.5, chunk_tokens=64) as made:
        report = made.add(library())
        assert report.n_added == 4
        made.index.save()
        yield made


def source(name):
    return next(document.text for document in library() if document.id == name)


def test_what_is_found_is_compressed_and_cites_its_document(retriever):
    found = retriever.search("Who built the bridge in Budapest?", k=3)
    assert {"rivers.md", "copy.txt"} <= {one.hit.segment.document_id for one in found}
    for one in found:
        assert one.compressed.tokens_after <= one.compressed.tokens_before
        kept = [source(span.document_id)[span.start : span.end] for span in one.citations]
        assert kept
        assert all(piece in one.text for piece in kept)


def test_nothing_is_computed_for_what_was_added(retriever, place):
    opened = Retriever.open(place / "index", pipeline=pipeline_at(place), keep=0.5)
    found = opened.search("When does the canteen open?", k=4)
    assert [one.compressed.trace[-1].cache_misses for one in found] == [0] * len(found)
    context = opened.retrieve_and_compress("When does the canteen open?", 40)
    # the question alone is new
    assert context.compressed.trace[-1].cache_misses <= 1
    assert context.compressed.trace[-1].cache_hits > 5


@pytest.mark.parametrize("select", ["marginal", "equal", "clusters", "search"])
def test_a_context_stays_within_its_budget_and_cites(retriever, select):
    context = retriever.retrieve_and_compress("Who approves emergency changes?", 60, select=select)
    assert 0 < context.compressed.tokens_after <= 60
    for span in context.citations:
        assert source(span.document_id)[span.start : span.end] in context.text
    at = context.text.index(context.text.strip()[:10])
    cited = context.source_of(at)
    assert source(cited.document_id)[cited.start] == context.text[at]


def test_the_answer_is_kept_by_marginal_benefit(retriever):
    context = retriever.retrieve_and_compress("Who approves emergency changes?", 30)
    assert "approved by the duty manager" in context.text


def test_the_budget_is_not_spent_equally(retriever):
    context = retriever.retrieve_and_compress("Who approves emergency changes?", 45)
    kept = {document.id for document in context.compressed.documents}
    assert len(kept) < len(context.hits)


def test_filters_apply(retriever):
    context = retriever.retrieve_and_compress("Budapest bridge", 60, where={"year": 2021})
    assert {span.document_id for span in context.citations} == {"copy.txt"}
    nothing = retriever.retrieve_and_compress("Budapest bridge", 60, where={"year": 1900})
    assert nothing.text == ""
    assert nothing.hits == ()


def test_bad_input_is_named(retriever):
    with pytest.raises(InputError, match="query"):
        retriever.retrieve_and_compress(" ", 60)
    with pytest.raises(ConfigError, match="select"):
        retriever.retrieve_and_compress("bridge", 60, select="best")
    with pytest.raises(BudgetError):
        retriever.retrieve_and_compress("bridge", 0)
    with pytest.raises(BudgetError, match="marginal"):
        retriever.retrieve_and_compress("bridge", 2, select="equal")


def test_a_replaced_document_is_found_as_it_is_now(place, retriever):
    retriever.add(kompakt.Document("The canteen opens at noon. There is no soup.", id="kitchen.txt"))
    (first, *_) = retriever.search("When does the canteen open?", k=1)
    assert "noon" in first.hit.segment.text
    retriever.add(library())
