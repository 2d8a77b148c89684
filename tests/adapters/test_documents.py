"""Lists of documents come out smaller, in their order, with true ranges, within the budget, and never empty."""

import asyncio
import json
import multiprocessing
import threading
import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kompakt import BudgetError, ConfigError, Pipeline
from kompakt.adapters._documents import DocumentCompressor, Source
from kompakt.compressor.base import Compressor
from kompakt.compressor.errors import CompressionError, ModelNotFoundError
from kompakt.compressor.models.tokenizers import load_tokenizer

TOKENIZER = load_tokenizer()
QUESTION = "How many bells did ship 30 carry?"
LOG = " ".join(f"Ship {n} left port {n % 7} with {n * 13} bells on day {n}." for n in range(60))
OTHER = " ".join(f"Cook {n} made {n} soups of fish on the island." for n in range(40))

WORDS = st.sampled_from("ship bells port day Ünïcode 船 left the of 42 7".split())
SENTENCES = st.lists(WORDS, min_size=1, max_size=9).map(lambda words: " ".join(words).capitalize() + ".")
TEXTS = st.one_of(
    st.lists(SENTENCES, max_size=12).map(" ".join),
    st.lists(st.integers(), min_size=4, max_size=30).map(lambda rows: json.dumps([{"n": n} for n in rows])),
    st.sampled_from(["", " ", "\n\n", "x"]),
)


def pipeline(**options):
    return Pipeline(["lexical"], store="memory", **options)


def sources(*texts):
    return [Source(text) for text in texts]


def joined(kept):
    return "\n\n".join(one.text for one in kept if one.report)


def is_in_order(text, pieces):
    at = 0
    for piece in pieces:
        at = text.find(piece, at)
        if at < 0:
            return False
        at += len(piece)
    return True


@given(
    texts=st.lists(st.one_of(st.none(), TEXTS), max_size=6),
    query=st.one_of(st.none(), st.just(""), SENTENCES),
    keep=st.floats(0.05, 1.0),
    mark=st.booleans(),
)
def test_promises(texts, query, keep, mark):
    given_sources = sources(*texts)
    kept = DocumentCompressor(pipeline(mark_omissions=mark), keep=keep).compress(given_sources, query)
    assert [one.position for one in kept] == sorted({one.position for one in kept})
    assert bool(kept) == bool(texts)
    untouched = [one.position for one in kept if one.report is None]
    assert untouched == [position for position, text in enumerate(texts) if not text]
    assert any(one.report for one in kept) == any(texts)
    for one in kept:
        if one.report is not None:
            source = texts[one.position]
            spans = one.report["spans"]
            assert all(0 <= start < end <= len(source) for start, end in spans)
            assert is_in_order(one.text, [source[start:end] for start, end in spans])
            assert all(before[1] <= after[0] for before, after in pairwise(spans))
            assert json.loads(json.dumps(one.report)) == one.report
            assert one.report["tokens_after"] == TOKENIZER.count(one.text)
            assert one.report["tokens_before"] == TOKENIZER.count(source)
            if one.report["outcome"] != "compressed":
                assert (one.text, spans) == (source, [[0, len(source)]])
    if any(one.report and one.report["outcome"] == "compressed" for one in kept):
        n_tokens = TOKENIZER.count("\n\n".join(text for text in texts if text))
        assert TOKENIZER.count(joined(kept)) <= keep * n_tokens


@given(texts=st.lists(TEXTS, min_size=1, max_size=5), max_tokens=st.integers(1, 60))
def test_a_ceiling_holds_or_the_report_says_why_not(texts, max_tokens):
    kept = DocumentCompressor(pipeline(), max_tokens=max_tokens).compress(sources(*texts), QUESTION)
    reports = [one.report for one in kept if one.report]
    if TOKENIZER.count(joined(kept)) > max_tokens:
        assert {report["outcome"] for report in reports} == {"passed_through"}
        assert all(report["reason"] for report in reports)


def test_one_budget_is_spent_where_the_answer_is():
    kept = DocumentCompressor(pipeline(), max_tokens=120).compress(sources(OTHER, LOG), QUESTION)
    assert "Ship 30 left port 2 with 390 bells" in kept[-1].text
    assert kept[-1].report["outcome"] == "compressed"
    assert TOKENIZER.count(joined(kept)) <= 120


def test_what_is_left_out_is_marked_by_default():
    (kept,) = DocumentCompressor(max_tokens=100).compress(sources(LOG), QUESTION)
    assert "[…]" in kept.text
    assert all("…" not in LOG[start:end] for start, end in kept.report["spans"])


def test_a_document_that_would_be_a_mark_alone_is_left_out():
    kept = DocumentCompressor(pipeline(mark_omissions=True), max_tokens=25).compress(sources(OTHER, LOG), QUESTION)
    assert [one.position for one in kept] == [1]


def test_blank_documents_go_only_where_something_must():
    marking = pipeline(mark_omissions=True)
    kept = DocumentCompressor(marking, keep=0.5).compress(sources(LOG, " "), QUESTION)
    assert [one.position for one in kept] == [0]
    kept = DocumentCompressor(marking, max_tokens=10_000).compress(sources(LOG, " "), QUESTION)
    assert [one.text for one in kept] == [LOG, " "]
    (kept,) = DocumentCompressor(pipeline(), keep=0.5).compress(sources(" " * 5000), QUESTION)
    assert kept.report["outcome"] == "passed_through"


def test_nothing_to_do():
    compressor = DocumentCompressor(pipeline(), keep=0.5)
    assert compressor.compress([], QUESTION) == []
    assert [one.report for one in compressor.compress(sources(None, ""), QUESTION)] == [None, None]
    (kept,) = DocumentCompressor(pipeline(), max_tokens=10_000).compress(sources(LOG), QUESTION)
    assert kept.text == LOG
    assert kept.report == {
        "spans": [[0, len(LOG)]],
        "tokens_before": TOKENIZER.count(LOG),
        "tokens_after": TOKENIZER.count(LOG),
        "outcome": "fits",
        "reason": "",
    }


def test_equal_documents_are_told_apart_by_their_places():
    kept = DocumentCompressor(pipeline(), keep=0.6).compress(sources(LOG, None, LOG, LOG), QUESTION)
    assert kept[1].position == 1
    assert kept[1].report is None
    assert len({one.position for one in kept}) == len(kept)


def test_a_budget_that_holds_nothing():
    (kept,) = DocumentCompressor(pipeline(), keep=0.01).compress(sources("Ships sail."), QUESTION)
    assert kept.text == "Ships sail."
    assert kept.report["outcome"] == "passed_through"
    assert "leaves no token" in kept.report["reason"]
    with pytest.raises(BudgetError, match="leaves no token"):
        DocumentCompressor(pipeline(), keep=0.01, on_error="raise").compress(sources("Ships sail."), QUESTION)


def test_half_of_a_surrogate_pair():
    kept = DocumentCompressor(pipeline(), keep=0.5).compress(sources(LOG, "\ud83d " + LOG), QUESTION + "\ud83d")
    assert [one.text for one in kept] == [LOG, "\ud83d " + LOG]
    assert "lone surrogate" in kept[0].report["reason"]
    (kept,) = DocumentCompressor(pipeline(), keep=0.5).compress(sources(LOG), QUESTION + "\ud83d")
    assert kept.report["outcome"] == "compressed"


@pytest.mark.parametrize(
    ("metadata", "is_code"),
    [
        ({"source": "notes/ships.py"}, True),
        ({"file_path": "ships.py"}, True),
        ({"path": "ships.py", "source": "ships.txt"}, True),
        ({"source": "https://docs.rs"}, False),
        ({"source": "java"}, False),
        ({"source": None, "title": 3, "path": None}, False),
        ({}, False),
        (None, False),
    ],
)
def test_files_are_read_by_their_names(metadata, is_code):
    text = "\n".join(f"ships[{n}] = bells({n * 13})" for n in range(60))
    (kept,) = DocumentCompressor(pipeline(), keep=0.3).compress([Source(text, metadata)], QUESTION)
    # a gap in code is always marked, as a comment of its language
    assert ("lines omitted" in kept.text) is is_code


class Failing(Compressor):
    name = "failing"

    def __init__(self, error=None, seconds=0.0):
        self.error, self.seconds = error, seconds
        self.threads = []

    @property
    def options(self):
        return {}

    def compress_batch(self, requests):
        self.threads.append(threading.current_thread())
        time.sleep(self.seconds)
        raise self.error or ValueError("no luck")


def test_failures_pass_everything_through(caplog):
    compressor = DocumentCompressor(Pipeline([Failing()]), keep=0.5)
    kept = compressor.compress(sources(LOG, OTHER, None), QUESTION)
    assert [one.text for one in kept] == [LOG, OTHER, ""]
    assert [one.report and one.report["outcome"] for one in kept] == ["passed_through", "passed_through", None]
    assert kept[1].report["reason"] == "failing failed: ValueError: no luck"
    assert kept[1].report["tokens_before"] == kept[1].report["tokens_after"] == TOKENIZER.count(OTHER)
    assert "documents are passed on as they are: failing failed" in caplog.text


def test_failures_raise_where_that_is_asked_for():
    with pytest.raises(CompressionError, match="no luck"):
        DocumentCompressor(Pipeline([Failing()]), keep=0.5, on_error="raise").compress(sources(LOG), QUESTION)
    with pytest.raises(ValueError, match="no luck"):
        DocumentCompressor(Pipeline([Failing()], on_error="raise"), keep=0.5, on_error="raise").compress(
            sources(LOG), QUESTION
        )


@pytest.mark.parametrize("error", [ModelNotFoundError("no such model"), ConfigError("no such option")])
def test_a_wrong_setup_always_raises(error):
    with pytest.raises(type(error), match="no such"):
        DocumentCompressor(Pipeline([Failing(error)]), keep=0.5).compress(sources(LOG), QUESTION)


def test_a_deadline():
    slow = DocumentCompressor(Pipeline([Failing(seconds=0.6)]), keep=0.5, deadline=0.05)
    began = time.monotonic()
    (kept,) = slow.compress(sources(LOG), QUESTION)
    assert time.monotonic() - began < 0.5
    assert kept.text == LOG
    assert kept.report["reason"] == "not compressed within the deadline of 0.05 s"
    assert kept.report["tokens_before"] is None
    (quick,) = DocumentCompressor(pipeline(), keep=0.5, deadline=60).compress(sources(LOG), QUESTION)
    assert quick.report["outcome"] == "compressed"
    strict = DocumentCompressor(Pipeline([Failing(seconds=0.6)]), keep=0.5, deadline=0.05, on_error="raise")
    with pytest.raises(CompressionError, match="deadline"):
        strict.compress(sources(LOG), QUESTION)
    with pytest.raises(CompressionError, match="deadline"):
        asyncio.run(strict.acompress(sources(LOG), QUESTION))


def test_the_event_loop_goes_on():
    stage = Failing(seconds=0.3)
    compressor = DocumentCompressor(Pipeline([stage]), keep=0.5)
    ticks = []

    async def tick():
        while True:
            ticks.append(time.monotonic())
            await asyncio.sleep(0.01)

    async def main():
        ticking = asyncio.create_task(tick())
        kept = await compressor.acompress(sources(LOG), QUESTION)
        ticking.cancel()
        return kept

    (kept,) = asyncio.run(main())
    assert kept.report["reason"] == "failing failed: ValueError: no luck"
    assert threading.main_thread() not in stage.threads
    assert len(ticks) > 10


def test_async_and_sync_agree():
    compressor = DocumentCompressor(pipeline(), keep=0.4)
    given_sources = sources(LOG, None, OTHER)
    assert asyncio.run(compressor.acompress(given_sources, QUESTION)) == compressor.compress(given_sources, QUESTION)


def _in_child(connection, compressor):
    connection.send([one.report["outcome"] for one in compressor.compress(sources(LOG), QUESTION)])


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")  # what is tested
def test_a_fork_has_threads_of_its_own():
    compressor = DocumentCompressor(pipeline(), keep=0.4, deadline=20)
    assert compressor.compress(sources(LOG), QUESTION)[0].report["outcome"] == "compressed"
    here, there = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=_in_child, args=(there, compressor))
    child.start()
    assert here.poll(30)
    assert here.recv() == ["compressed"]
    child.join()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({}, BudgetError),
        ({"keep": 0.5, "max_tokens": 5}, BudgetError),
        ({"keep": 2.0}, BudgetError),
        ({"max_tokens": 0}, BudgetError),
        ({"keep": 0.5, "deadline": 0}, ConfigError),
        ({"keep": 0.5, "on_error": "ignore"}, ConfigError),
    ],
)
def test_wrong_options(options, error):
    with pytest.raises(error):
        DocumentCompressor(pipeline(), **options)


def test_a_pipeline_with_a_budget_by_kind_needs_no_other():
    kept = DocumentCompressor(pipeline(keep={"prose": 0.4})).compress(sources(LOG, "[1, 2, 3]"), QUESTION)
    assert kept[0].report["outcome"] == "compressed"
    assert kept[1].text == "[1, 2, 3]"
    assert kept[1].report["spans"] == [[0, 9]]
