"""The store as a sink: what is kept, what is counted, and which document of a batch is at fault."""

import logging
from dataclasses import dataclass

import pytest
from corpus_parts import RAISES, TOKENIZER, Poisonous, compressor_for, sentences
from hypothesis import given
from hypothesis import strategies as st

from kompakt.compressor.errors import ConfigError, InputError, MissingExtraError, ModelNotFoundError, StoreError
from kompakt.compressor.pipeline import Pipeline
from kompakt.compressor.store.memory import MemoryStore
from kompakt.compressor.types import Document
from kompakt.retrieval.chunks import split_chunks
from kompakt.retrieval.compressed import SegmentCompressor
from kompakt.retrieval.corpus.sink import (
    DocumentReport,
    SinkReport,
    StoreSink,
    add_batch,
    open_sink,
    reason_of,
    with_store,
)


def documents(n, start=0):
    return [Document(sentences(index, 30), id=f"d{index}") for index in range(start, start + n)]


def sink_in(store, **options):
    return open_sink(compressor_for(store), tokenizer=TOKENIZER, **options)


def test_documents_are_cut_and_their_chunks_kept(tmp_path):
    batch = documents(3)
    sink = sink_in(tmp_path / "s.sqlite", chunk_tokens=100)
    report = sink.add(batch)
    sink.close()
    chunks = [split_chunks(document, tokenizer=TOKENIZER, max_tokens=100) for document in batch]
    assert [one.document_id for one in report.documents] == ["d0", "d1", "d2"]
    assert [one.n_segments for one in report.documents] == [len(of_one) for of_one in chunks]
    assert report.failures == ()
    found = compressor_for(tmp_path / "s.sqlite").find([chunk for of_one in chunks for chunk in of_one])
    assert report.n_segments == len(found) > 6
    assert report.n_tokens_before == sum(one.tokens_before for one in found)
    assert report.n_tokens_after == sum(one.tokens_after for one in found)
    assert report.n_tokens_after < report.n_tokens_before


def test_what_is_there_is_found_and_counted_alike(tmp_path):
    sink = sink_in(tmp_path / "s.sqlite", chunk_tokens=100)
    first, second = sink.add(documents(3)), sink.add(documents(4))
    assert (first.n_stored, first.n_compressed) == (0, first.n_segments)
    assert second.n_stored == first.n_segments
    assert second.n_compressed == second.documents[3].n_segments > 0
    for before, after in zip(first.documents, second.documents[:3], strict=True):
        assert (before.n_segments, before.n_tokens_after) == (after.n_segments, after.n_tokens_after)


def test_equal_texts_of_a_batch_are_compressed_once(tmp_path):
    text = sentences(1, 30)
    report = sink_in(tmp_path / "s.sqlite").add([Document(text, id="a"), Document(text, id="b")])
    one, other = report.documents
    assert (one.n_stored, other.n_compressed) == (0, 0)
    assert one.n_compressed == other.n_stored == one.n_segments


def test_a_chunk_that_cannot_be_cut_is_a_failure_of_its_document_alone(tmp_path):
    sink = sink_in(tmp_path / "s.sqlite")
    report = sink.add([*documents(1), Document("a\ud800b", id="bad"), *documents(1, start=1)])
    assert [one.document_id for one in report.documents] == ["d0", "d1"]
    [(name, reason)] = report.failures
    assert name == "bad"
    assert reason.startswith("InputError: ")
    assert "U+D800" in reason


@pytest.mark.parametrize("on_error", ["pass_through", "raise"])
def test_a_compressor_that_fails_is_an_error(tmp_path, on_error):
    pipeline = Pipeline([Poisonous()], store=tmp_path / "s.sqlite", on_error=on_error)
    sink = StoreSink(SegmentCompressor(pipeline, keep=0.5), tokenizer=TOKENIZER)
    with pytest.raises(RuntimeError, match="poisoned"):
        sink.add([Document(f"{RAISES} {sentences(1)}", id="bad")])
    # the caller's own pipeline is as it was
    assert pipeline.on_error == on_error


def test_a_batch_without_documents():
    memory = Pipeline(["lexical"], store="memory")
    assert StoreSink(SegmentCompressor(memory, keep=0.5), tokenizer=TOKENIZER).add([]) == SinkReport()


def test_deleting_leaves_what_other_documents_share(tmp_path):
    sink = sink_in(tmp_path / "s.sqlite")
    sink.add(documents(1))
    assert sink.delete(["d0"]) == 0
    assert sink.add(documents(1)).n_compressed == 0


def test_a_pipeline_without_a_store_is_refused():
    with pytest.raises(ConfigError, match="store="):
        StoreSink(SegmentCompressor(Pipeline(["lexical"]), keep=0.5), tokenizer=TOKENIZER)


@pytest.mark.parametrize("chunk_tokens", [0, -1, 2.5, True, None])
def test_chunks_of_no_size_are_refused(tmp_path, chunk_tokens):
    with pytest.raises(ConfigError, match="chunk_tokens"):
        sink_in(tmp_path / "s.sqlite", chunk_tokens=chunk_tokens)


def test_a_store_that_cannot_be_used_is_found_before_the_work(tmp_path):
    (tmp_path / "s.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(StoreError, match=r"s\.sqlite"):
        sink_in(tmp_path / "s.sqlite")


def test_a_store_that_keeps_nothing_is_an_error_with_the_reason(tmp_path, caplog):
    (tmp_path / "folder").write_text("in the way of the store's folder", encoding="utf-8")
    sink = sink_in(tmp_path / "folder" / "s.sqlite")
    with caplog.at_level(logging.CRITICAL), pytest.raises(StoreError, match="folder"):
        sink.add(documents(1))


def test_a_store_that_is_too_small_is_an_error(tmp_path):
    from kompakt.compressor.store.places import open_store

    store = open_store(tmp_path / "s.sqlite", max_bytes=100, memory_bytes=1)
    sink = StoreSink(SegmentCompressor(Pipeline(["lexical"], store=store), keep=0.5), tokenizer=TOKENIZER)
    with pytest.raises(StoreError, match="too small"):
        sink.add(documents(4))
    sink.close()


def test_what_a_store_missed_once_is_put_again(tmp_path):
    sink = sink_in(tmp_path / "s.sqlite")
    back = sink._store.back
    put, calls = back.put_many, []

    def once_broken(items, **options):
        calls.append(len(items))
        if len(calls) == 1:
            raise StoreError("busy")
        put(items, **options)

    back.put_many = once_broken
    report = sink.add(documents(2))
    assert calls[0] == calls[1] == report.n_segments
    assert sink_in(tmp_path / "s.sqlite").add(documents(2)).n_compressed == 0


def test_another_store_leaves_everything_else(tmp_path):
    pipeline = Pipeline(
        ["lexical"], keep={"prose": 0.3}, tenant="t", mark_omissions=True, store=tmp_path / "a.sqlite"
    )
    memory = MemoryStore()
    other = with_store(pipeline, memory, tokenizer="cl100k_base")
    assert other.fingerprint == pipeline.fingerprint
    assert (other.tenant, other.tokenizer, other.artefacts().store) == ("t", "cl100k_base", memory)
    assert with_store(pipeline, None).store is None


@dataclass
class Picky:
    """A sink that takes a batch whole or not at all, and counts how often it was asked."""

    bad: frozenset
    error: Exception
    calls: int = 0

    def add(self, documents):
        self.calls += 1
        if any(document.id in self.bad for document in documents):
            raise self.error
        return SinkReport(tuple(DocumentReport(document.id, 1, 4, 2, 0, 1) for document in documents))


@given(st.integers(0, 70), st.sets(st.integers(0, 69), max_size=4))
def test_the_documents_at_fault_are_found_and_the_others_taken(n, bad):
    names = [str(index) for index in range(n)]
    poisoned = frozenset(map(str, bad))
    sink = Picky(poisoned, ValueError("no"))
    report = add_batch(sink, [Document("text", id=name) for name in names])
    assert [one.document_id for one in report.documents] == [name for name in names if name not in poisoned]
    assert report.failures == tuple((name, "ValueError: no") for name in names if name in poisoned)
    n_bad = len(report.failures)
    # halving asks twice at each level for each document at fault
    assert sink.calls <= 1 + 2 * n_bad * 7


@pytest.mark.parametrize(
    "error", [ConfigError("c"), MissingExtraError("PDF", "corpus"), ModelNotFoundError("m"), StoreError("s")]
)
def test_errors_that_no_document_is_to_blame_for_end_the_batch(error):
    sink = Picky(frozenset("3"), error)
    with pytest.raises(type(error)):
        add_batch(sink, [Document("text", id=str(index)) for index in range(8)])
    assert sink.calls == 1


def test_a_reason_has_type_and_message_and_is_bounded():
    assert reason_of(InputError("no text")) == "InputError: no text"
    assert reason_of(ValueError("\ud800")) == "ValueError: \\ud800"
    assert len(reason_of(ValueError("x" * 10**6))) < 3000
