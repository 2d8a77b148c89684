"""What providers count is found in each form of answer, whole or in pieces, packed or not."""

import asyncio
import gzip
import json
import tracemalloc
import zlib

import pytest
import zstandard
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
        (json.dumps({"content": [{"input": {"usage": {"prompt_tokens": 5}}}]}), None),
        (json.dumps({"content": [{"input": {"usage": {"prompt_tokens": 5}}}], "usage": MESSAGE}), Usage(90, 64, 7)),
        (events({"delta": {"usage": {"prompt_tokens": 5}}}), None),
        (json.dumps({"usage": {"prompt_tokens": "many"}}), None),
        (json.dumps({"usage": {"prompt_tokens": True}}), None),
        (json.dumps({"usage": {"prompt_tokens": -1}}), None),
        (json.dumps({"usage": {"prompt_tokens": 10**400}}), None),
        (json.dumps({"usage": {"prompt_tokens": 90, "completion_tokens": 10**400}}), Usage(90, 0, 0)),
        ('{"usage": ' + "[" * 5000 + "]" * 5000 + "}", None),
        ('{"usage": ' + '{"a": ' * 100_000, None),
        ('["usage"]', None),
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

    stream = watched_stream(httpx2, Source(), UsageReader(encoding, told.append))
    assert list(stream) == pieces
    stream.close()
    assert len(told) <= 1
    return told


LONG = (events(*({"choices": [{"delta": {"content": "x" * 50}}]} for _ in range(3000)), CHAT)).encode()


@given(sizes=st.lists(st.integers(0, 200_000), max_size=20))
def test_pieces_of_any_size(sizes):
    assert passed(LONG, sizes) == [Usage(90, 0, 7)]
    assert passed(json.dumps(CHAT).encode(), sizes) == [Usage(90, 0, 7)]


PACKERS = {
    "gzip": lambda data: gzip.compress(data, mtime=0),
    "deflate": zlib.compress,
    "zstd": zstandard.compress,
}


@pytest.mark.parametrize("encoding", PACKERS)
@given(sizes=st.lists(st.integers(0, 5000), max_size=9))
def test_a_packed_answer(encoding, sizes):
    assert passed(PACKERS[encoding](LONG), sizes, encoding) == [Usage(90, 0, 7)]


@pytest.mark.parametrize("encoding", [*PACKERS, "br", "what?"])
def test_what_cannot_be_unpacked_says_nothing(encoding):
    assert passed(b"not packed " + LONG[:2000], [], encoding) == []
    assert passed(bytes(2 << 20), [], encoding) == []


@pytest.mark.parametrize("encoding", PACKERS)
def test_an_answer_that_is_packed_to_be_large_is_not_unpacked_whole(encoding):
    packed = PACKERS[encoding](b'{"a": "' + bytes(200_000_000) + b'", "usage": {"prompt_tokens": 1}}')
    tracemalloc.start()
    assert passed(packed, [], encoding) == []
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 60_000_000


def test_little_is_kept_of_a_long_answer():
    reader = UsageReader("", lambda _: None)
    for _ in range(50):
        reader.add(bytes(100_000))
    assert len(reader._begin) + len(reader._end) < 400_000


class Broken(httpx2.SyncByteStream, httpx2.AsyncByteStream):
    """A stream that ends too early, and knows whether it was closed."""

    def __init__(self, error=None):
        self.error, self.is_closed = error, False

    def __iter__(self):
        yield b'{"usage": {"prompt_tokens": 3}}'
        if self.error:
            raise self.error

    async def __aiter__(self):
        for piece in self:
            yield piece

    def close(self):
        self.is_closed = True

    async def aclose(self):
        self.is_closed = True


def failing(_):
    raise OSError("a callback of somebody")


def test_what_fails_in_a_callback_is_nobodys_trouble(caplog):
    inner = Broken()
    stream = watched_stream(httpx2, inner, UsageReader("", failing))
    assert list(stream) == [b'{"usage": {"prompt_tokens": 3}}']
    stream.close()
    assert inner.is_closed
    assert "OSError: a callback of somebody" in caplog.text


def test_an_answer_that_breaks_off_does_so_for_its_reader_too():
    told = []

    async def read():
        inner = Broken(httpx2.ReadError("gone"))
        stream = watched_stream(httpx2, inner, UsageReader("", told.append))
        with pytest.raises(httpx2.ReadError, match="gone"):
            assert [piece async for piece in stream]
        await stream.aclose()
        assert inner.is_closed

    asyncio.run(read())
    assert told == [Usage(3)]
