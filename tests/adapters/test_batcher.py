"""What many callers ask for at once is compressed together, and each gets its own."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

import kompakt
from kompakt import Budget, Pipeline
from kompakt.adapters import _batcher
from kompakt.adapters._batcher import Batcher
from kompakt.compressor.base import make_request
from kompakt.compressor.errors import BackendError


def request(text):
    return make_request(text, budget=Budget(max_tokens=1))


class Echo:
    """Returns the texts it is asked to compress, and notes its batches."""

    def __init__(self, seconds=0.0):
        self.batches, self.seconds = [], seconds
        self.may_begin = threading.Event()
        self.may_begin.set()

    def __call__(self, requests):
        self.may_begin.wait(10)
        texts = [one.documents[0].text for one in requests]
        self.batches.append(texts)
        time.sleep(self.seconds)
        if "boom" in texts:
            raise RuntimeError("boom")
        return texts


@pytest.fixture
def batcher():
    made = []

    def make(echo, **options):
        made.append(Batcher(echo, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_each_gets_its_own_of_one_batch(batcher):
    echo = Echo()
    echo.may_begin.clear()
    one = batcher(echo)
    futures = [one.submit([request(f"{n}a"), request(f"{n}b")]) for n in range(20)]
    echo.may_begin.set()
    assert [[future.result(10) for future in some] for some in futures] == [[f"{n}a", f"{n}b"] for n in range(20)]
    assert len(echo.batches) <= 2


def test_a_failure_is_of_whoever_asked(batcher):
    echo = Echo()
    echo.may_begin.clear()
    one = batcher(echo)
    futures = one.submit([request(text) for text in ("a", "boom", "b")])
    echo.may_begin.set()
    assert futures[0].result(10) == "a"
    assert futures[2].result(10) == "b"
    with pytest.raises(RuntimeError, match="boom"):
        futures[1].result(10)


def test_what_was_cancelled_before_its_turn_is_not_done(batcher):
    echo = Echo()
    echo.may_begin.clear()
    one = batcher(echo)
    [first] = one.submit([request("first")])
    time.sleep(0.1)
    [late] = one.submit([request("late")])
    assert late.cancel()
    echo.may_begin.set()
    assert first.result(10) == "first"
    one.close()
    assert ["late"] not in echo.batches


def test_a_batch_is_bounded(batcher, monkeypatch):
    monkeypatch.setattr(_batcher, "_BATCH_CHARACTERS", 10)
    echo = Echo()
    echo.may_begin.clear()
    one = batcher(echo)
    futures = one.submit([request("four") for _ in range(9)])
    echo.may_begin.set()
    assert all(future.result(10) == "four" for future in futures)
    assert max(map(len, echo.batches)) <= 3


def test_more_than_may_wait_are_refused(batcher):
    echo = Echo()
    echo.may_begin.clear()
    one = batcher(echo, max_waiting=2)
    futures = one.submit([request("a")])
    time.sleep(0.1)
    futures += one.submit([request("b"), request("c")])
    with pytest.raises(BackendError, match="2 texts wait"):
        one.submit([request("d")])
    echo.may_begin.set()
    assert [future.result(10) for future in futures] == ["a", "b", "c"]


def test_what_waits_is_done_before_it_closes():
    one = Batcher(Echo(0.01))
    futures = one.submit([request(str(n)) for n in range(5)])
    one.close()
    assert [future.result(0) for future in futures] == [str(n) for n in range(5)]
    with pytest.raises(BackendError, match="closed"):
        one.submit([request("x")])
    Batcher(Echo()).close()


def test_an_idle_thread_ends_and_another_takes_over(batcher, monkeypatch):
    monkeypatch.setattr(_batcher, "_IDLE_SECONDS", 0.1)
    one = batcher(Echo())
    for text in "ab":
        [future] = one.submit([request(text)])
        assert future.result(10) == text
        thread = one._thread
        thread.join(10)
        assert not thread.is_alive()


def test_many_threads_get_what_a_pipeline_gives_them(batcher):
    pipeline = Pipeline(["lexical"])
    texts = [f"Ship {n} sank. It carried {n} bells. Nobody saw it. The sea was calm." for n in range(64)]
    requests = [make_request(text, budget=Budget(keep=0.5), query="What did it carry?") for text in texts]
    one = batcher(pipeline.compress_batch)
    with ThreadPoolExecutor(16) as pool:
        results = list(pool.map(lambda asked: one.submit([asked])[0].result(30).text, requests))
    expected = [kompakt.compress(text, keep=0.5, query="What did it carry?", compressor="lexical") for text in texts]
    assert results == [result.text for result in expected]
