"""What providers count is found in each form of answer, whole or in pieces, packed or not."""

import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kompakt.adapters._usage import Usage, UsageReader, find_usage, watched_stream

httpx2 = pytest.importorskip("httpx2")

CHAT = {"choices": [], "usage": {"prompt_tokens": 90, "completion_tokens": 7, "total_tokens": 97}}
CACHED = {"prompt_tokens": 90, "completion_tokens": 7, "prompt_tokens_details": {"cached_tokens": 64}}
RESPONSE = {"input_tokens": 90, "output_tokens": 7, "input_tokens_details": {"cached_tokens": 64}}
MESSAGE = {"input_tokens": 10, "cache_read_input_tokens": 64, "cache_creation_input_tokens": 16, "output_tokens": 7}


def events(*bodies):
    return "".join(f"data: {json.dumps(body)}\n\n" for body in bodies)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (json.dumps(CHAT), Usage(90, 0, 7)),
        (json.dumps({"usage": CACHED}, indent=2), Usage(90, 64, 7)),
        (events({"usage": None}, {"choices": [], "usage": CACHED}) + "data: [DONE]\n\n", Usage(90, 64, 7)),
        (json.dumps({"usage": RESPONSE}), Usage(90, 64, 7)),
        (events({"response": {"usage": None}}, {"response": {"usage": RESPONSE}}), Usage(90, 64, 7)),
        (json.dumps({"usage": MESSAGE}), Usage(90, 64, 7)),
        (
            events({"message": {"usage": {**MESSAGE, "output_tokens": 1}}}, {"usage": {"output_tokens": 7}}),
            Usage(90, 64, 7),
        ),
        (json.dumps({"content": '"usage": {"prompt_tokens": 5}'}), None),
        (json.dumps({"usage": {"prompt_tokens": "many"}}), None),
        ('{"usage": {"prompt_tok', None),
        ("", None),
    ],
)
def test_each_form(answer, expected):
    assert find_usage(answer) == expected


def passed(data, sizes, encoding=""):
    """Return what a reader says of data that comes in pieces, once the stream has passed them on unchanged."""
    told, pieces, rest = [], [], data
    for size in [*sizes, len(data)]:
        pieces.append(rest[:size])
        rest = rest[size:]

    class Source(httpx2.SyncByteStream):
        def __iter__(self):
            yield from pieces

    stream = watched_stream(httpx2, Source(), UsageReader(httpx2, encoding, told.append))
    assert list(stream) == pieces
    stream.close()
    assert len(told) <= 1
    return told


LONG = (events(*({"choices": [{"delta": {"content": "x" * 50}}]} for _ in range(3000)), CHAT)).encode()


@given(sizes=st.lists(st.integers(0, 200_000), max_size=20))
def test_pieces_of_any_size(sizes):
    assert passed(LONG, sizes) == [Usage(90, 0, 7)]
    assert passed(json.dumps(CHAT).encode(), sizes) == [Usage(90, 0, 7)]


@given(sizes=st.lists(st.integers(0, 5000), max_size=9))
def test_a_packed_answer(sizes):
    assert passed(gzip.compress(LONG, mtime=0), sizes, "gzip") == [Usage(90, 0, 7)]


def test_what_cannot_be_unpacked_says_nothing():
    packed = gzip.compress(LONG, mtime=0)
    assert passed(b"no gzip" + packed, [], "gzip") == []
    assert passed(packed + bytes(2 << 20), [], "gzip") == []


def test_little_is_kept_of_a_long_answer():
    reader = UsageReader(httpx2, "", lambda _: None)
    for _ in range(50):
        reader.add(bytes(100_000))
    assert len(reader._begin) + len(reader._end) == 2 << 16
