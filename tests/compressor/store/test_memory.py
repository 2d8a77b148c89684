"""The store in memory: its bound, its order, and its life across forks."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kompakt.compressor.errors import ConfigError
from kompakt.compressor.store import memory as module
from kompakt.compressor.store.memory import MemoryStore

ENTRY = 200


def key(n):
    return bytes([n]) * 32


class Clock:
    """A time that the test sets."""

    def __init__(self):
        self.now = 1e9

    def time(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    found = Clock()
    monkeypatch.setattr(module, "time", found)
    return found


def test_the_least_recently_used_goes_first():
    store = MemoryStore(3 * (ENTRY + 10))
    for n in (1, 2, 3):
        store.put_many({key(n): bytes(10)})
    store.get_many([key(1)])
    store.put_many({key(4): bytes(10)})
    assert set(store.keys()) == {key(1), key(3), key(4)}
    store.put_many({key(3): b"new"})
    store.put_many({key(5): bytes(10)})
    assert set(store.keys()) == {key(3), key(4), key(5)}


def test_looking_after_it_is_no_use_of_an_entry():
    store = MemoryStore(3 * (ENTRY + 10))
    for n in (1, 2, 3):
        store.put_many({key(n): bytes(10)})
    store.get_many([key(1)])
    store.collect_garbage()
    store.stats()
    list(store.keys())
    store.put_many({key(4): bytes(10)})
    assert key(2) not in set(store.keys())


@given(st.integers(1, 3000), st.lists(st.tuples(st.integers(0, 8), st.integers(0, 900), st.booleans()), max_size=40))
def test_it_stays_within_its_bytes_and_keeps_what_was_used_last(max_bytes, steps):
    store = MemoryStore(max_bytes)
    twin = {}
    for n, size, is_put in steps:
        if is_put:
            store.put_many({key(n): bytes(size)})
            twin.pop(n, None)
            if size + ENTRY <= max_bytes:
                twin[n] = size
            while sum(twin.values()) + ENTRY * len(twin) > max_bytes:
                del twin[next(iter(twin))]
        elif store.get_many([key(n)]) != [None]:
            twin[n] = twin.pop(n)
        assert set(store.keys()) == {key(n) for n in twin}
        assert store.stats().n_bytes == sum(twin.values()) + ENTRY * len(twin) <= max_bytes
    assert store.stats().max_bytes == max_bytes


def test_a_value_larger_than_the_bound_is_not_kept_and_takes_the_old_one_along():
    store = MemoryStore(1000)
    store.put_many({key(1): b"old", key(2): b"other"})
    store.put_many({key(1): bytes(801)})
    assert store.get_many([key(1), key(2)]) == [None, b"other"]
    store.put_many({key(1): bytes(800)})
    assert store.get_many([key(1), key(2)]) == [bytes(800), None]


def test_expired_entries_are_collected_and_not_counted_as_used(clock):
    store = MemoryStore()
    store.put_many({key(1): b"x"}, expires_at=clock.now + 10)
    store.put_many({key(2): b"y"}, expires_at=0.0)
    store.put_many({key(3): b"z"})
    assert store.collect_garbage() == 1
    clock.now += 9.9
    assert store.get_many([key(1)]) == [b"x"]
    clock.now += 0.1
    assert store.collect_garbage() == 1
    assert list(store.keys()) == [key(3)]
    assert store.stats().n_bytes == ENTRY + 1


def test_the_time_to_live_counts_from_each_put_unless_told_otherwise(clock):
    store = MemoryStore(ttl=60)
    store.put_many({key(1): b"x", key(2): b"y"})
    store.put_many({key(3): b"z"}, expires_at=clock.now + 1000)
    clock.now += 50
    store.put_many({key(2): b"y"})
    clock.now += 50
    assert store.get_many([key(1), key(2), key(3)]) == [None, b"y", b"z"]


def test_clear_empties_it():
    store = MemoryStore()
    store.put_many({key(1): b"x"})
    store.clear()
    assert store.get_many([key(1)]) == [None]
    assert store.stats().n_bytes == 0


@pytest.mark.parametrize("max_bytes", [0, -1])
def test_a_bound_that_makes_no_sense(max_bytes):
    with pytest.raises(ConfigError, match="max_bytes must be at least 1"):
        MemoryStore(max_bytes)


def test_many_threads_stay_within_the_bound():
    store = MemoryStore(20_000)
    failed = []

    def work(thread):
        try:
            for turn in range(300):
                name = bytes([thread, turn % 40]) * 16
                store.put_many({name: bytes([thread]) * (turn % 700)})
                found = store.get_many([name])[0]
                assert found is None or set(found) <= {thread}
                store.collect_garbage()
                assert store.stats().n_bytes <= 20_000
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    entries = store.get_many(list(store.keys()))
    assert store.stats().n_bytes == sum(len(value) + ENTRY for value in entries)
