"""Segments as bytes: what was written is read, and nothing else is believed."""

import json
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_parts import assert_spans_hold, hits, without_trace
from strategies import documents

import kompakt
from kompakt import Budget, BudgetError, Document
from kompakt.compressor.base import make_request
from kompakt.compressor.store.artefacts import Artefacts
from kompakt.compressor.store.memory import MemoryStore
from kompakt.compressor.store.segments import SegmentKeys, compress_each, decode_segment, encode_segment

PROSE = " ".join(f"Sentence number {n} tells of ship {n * 7} and its cargo of glass." for n in range(30))


def like(docs, store, *, mark_omissions=False, **budget):
    request = make_request(docs, budget=Budget(**budget), mark_omissions=mark_omissions)
    return replace(request, artefacts=Artefacts(store))


@pytest.fixture
def store():
    return MemoryStore()


SEGMENT_OF = Document(PROSE, "a")


def stored_segment(**changes):
    (result,) = compress_each(kompakt.load("lexical"), like(SEGMENT_OF, MemoryStore(), keep=0.3))
    return json.dumps(json.loads(encode_segment(result)) | changes).encode()


@pytest.mark.parametrize("data", [
    b"", b"[", b"[]", b"3", b"null", b"{}", b"\xff\xfe", b'"text"',
    stored_segment(text=5), stored_segment(text=None), stored_segment(text=["a"]), stored_segment(text="Rome."),
    stored_segment(text=""), stored_segment(starts=[]), stored_segment(starts=None), stored_segment(starts=["a"]),
    stored_segment(**{"from": []}), stored_segment(**{"from": [0], "to": [5], "kinds": ["prose"], "starts": [3]}),
    stored_segment(kinds=["poem"]), stored_segment(kinds=[[]]), stored_segment(protected=5),
    stored_segment(protected=[[]]), stored_segment(tokens=[1]), stored_segment(tokens=["1", "2"]),
    stored_segment(tokens=[1.5, 2]), stored_segment(tokens=None), stored_segment(kept=5),
    stored_segment(kept=[[[1]]]), stored_segment(**{"from": [], "to": [], "kinds": [], "starts": []}),
])  # fmt: skip
def test_wrong_bytes_are_a_miss_and_are_replaced(store, data):
    with pytest.raises(ValueError, match=r".") as caught:
        decode_segment(data, SEGMENT_OF)
    assert type(caught.value) is not IndexError
    compressor = kompakt.load("lexical")
    request = like(SEGMENT_OF, store, keep=0.3)
    right = without_trace(compress_each(compressor, request))
    (key,) = store.keys()
    good = store.get_many([key])
    store.put_many({key: data})
    found = compress_each(compressor, request)
    assert hits(found) == [0]
    assert without_trace(found) == right
    assert store.get_many([key]) == good


@given(position=st.integers(0, 10_000), replacement=st.binary(max_size=3))
@settings(max_examples=200)
def test_damaged_bytes_never_put_words_into_a_document(position, replacement):
    data = stored_segment()
    position %= len(data)
    try:
        found = decode_segment(data[:position] + replacement + data[position + len(replacement) :], SEGMENT_OF)
    except ValueError:
        return
    assert_spans_hold(found, SEGMENT_OF)


def test_the_segment_of_another_document_is_a_miss(store):
    compressor = kompakt.load("lexical")
    first, second = Document(PROSE, "a"), Document(PROSE.replace("glass", "grain"), "b")
    compress_each(compressor, like([first, second], store, keep=0.3))
    one, other = SegmentKeys(compressor, like(first, store, keep=0.3)).keys([first, second])
    store.put_many({one: store.get_many([other])[0]})
    (found,) = compress_each(compressor, like(first, store, keep=0.3))
    assert hits([found]) == [0]
    assert_spans_hold(found, first)


@given(documents(max_size=4), st.integers(1, 100), st.booleans())
@settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_segments_survive_their_bytes(docs, max_tokens, mark):
    for document in docs:
        request = like(document, MemoryStore(), max_tokens=max_tokens, mark_omissions=mark)
        try:
            result = kompakt.load("structured").compress_batch([request])[0]
        except BudgetError:
            continue
        found = decode_segment(encode_segment(result), document)
        assert without_trace([found]) == without_trace([result])
