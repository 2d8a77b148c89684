"""What every store does, by examples and against a dictionary."""

import os
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kompakt.compressor.errors import ConfigError
from kompakt.compressor.store.base import checked_ttl
from kompakt.compressor.store.memory import MemoryStore

KEYS = [bytes([index]) * 32 for index in range(6)]
A, B, C = KEYS[:3]
LONG_AGO = 1.0


def test_get_returns_what_was_put_in_the_order_of_the_keys(store):
    store.put_many({A: b"first", B: b"", C: bytes(range(256)) * 4096})
    assert store.get_many([C, KEYS[5], A, B]) == [bytes(range(256)) * 4096, None, b"first", b""]


def test_a_store_that_was_never_written_is_empty(store):
    assert store.get_many([A, B]) == [None, None]
    assert list(store.keys()) == []
    store.delete_many([A])
    assert store.collect_garbage() == 0
    found = store.stats()
    assert (found.n_entries, found.n_bytes) == (0, 0)


def test_empty_batches_do_nothing(store):
    store.put_many({A: b"x"})
    store.put_many({})
    store.delete_many([])
    assert store.get_many([]) == []
    assert store.get_many([A]) == [b"x"]


def test_a_key_that_is_asked_for_twice_is_answered_twice(store):
    store.put_many({A: b"x"})
    assert store.get_many([A, B, A, A, B]) == [b"x", None, b"x", b"x", None]


def test_the_last_value_counts(store):
    store.put_many({A: b"old", B: b"other"})
    store.put_many({A: b"new and longer"})
    assert store.get_many([A, B]) == [b"new and longer", b"other"]
    assert store.stats().n_entries == 2


def test_what_was_deleted_is_gone_and_the_rest_stays(store):
    store.put_many(dict.fromkeys(KEYS, b"x"))
    store.delete_many([A, C, A])
    assert store.get_many(KEYS) == [None, b"x", None, b"x", b"x", b"x"]
    assert set(store.keys()) == {B, *KEYS[3:]}
    store.delete_many([A])
    store.put_many({A: b"again"})
    assert store.get_many([A]) == [b"again"]


def test_many_more_keys_than_one_question_to_the_backend_holds(store):
    items = {index.to_bytes(32, "big"): str(index).encode() for index in range(1701)}
    store.put_many(items)
    assert store.get_many(list(items)) == list(items.values())
    assert sorted(store.keys()) == sorted(items)
    assert store.stats().n_entries == 1701
    store.delete_many(list(items)[:1700])
    assert list(store.keys()) == [list(items)[1700]]


def test_a_value_is_gone_once_its_time_is_over(store):
    soon = time.time() + 0.4
    store.put_many({A: b"short"}, expires_at=soon)
    store.put_many({B: b"long"}, expires_at=soon + 3600)
    store.put_many({C: b"for ever"})
    assert store.get_many([A, B, C]) == [b"short", b"long", b"for ever"]
    time.sleep(max(0.0, soon - time.time()) + 0.05)
    assert store.get_many([A, B, C]) == [None, b"long", b"for ever"]


@pytest.mark.parametrize("over", [0.0, LONG_AGO])
def test_a_value_whose_time_is_over_already_is_not_found(store, over):
    store.put_many({A: b"before"})
    store.put_many({A: b"late", B: b"late"}, expires_at=over)
    assert store.get_many([A, B]) == [None, None]
    store.put_many({A: b"after"})
    assert store.get_many([A, B]) == [b"after", None]


def test_garbage_is_what_has_expired(store):
    store.put_many({A: b"x", B: b"y"}, expires_at=time.time() + 0.2)
    store.put_many({C: b"z"})
    time.sleep(0.25)
    n_removed = store.collect_garbage()
    # a server removes it by itself
    assert n_removed == 2 or "redis" in type(getattr(store, "back", store)).__name__.lower()
    assert list(store.keys()) == [C]
    assert store.stats().n_entries == 1
    assert store.collect_garbage() == 0
    assert store.get_many([A, B, C]) == [None, None, b"z"]


def test_stats_count_what_is_there(store):
    values = [os.urandom(1000), os.urandom(3000)]
    store.put_many({A: values[0], B: values[1]})
    found = store.stats()
    assert found.n_entries == 2
    assert 4000 <= found.n_bytes <= 4500
    store.put_many({A: b""})
    assert 3000 <= store.stats().n_bytes <= 3500
    store.delete_many([A, B])
    assert (store.stats().n_entries, store.stats().n_bytes) == (0, 0)
    assert found.location == store.location != ""


def test_a_closed_store_opens_again(store):
    store.put_many({A: b"x"})
    store.close()
    store.close()
    assert store.get_many([A]) == [b"x"]
    with store as entered:
        assert entered is store
        entered.put_many({B: b"y"})
    assert store.get_many([A, B]) == [b"x", b"y"]


def test_threads_may_share_a_store(store):
    def work(thread):
        for turn in range(8):
            own = {bytes([thread, n]) * 16: bytes([thread, turn, n]) * 50 for n in range(5)}
            store.put_many(own | {A: b"shared" * 100})
            assert store.get_many(list(own)) == list(own.values())
            assert store.get_many([A]) == [b"shared" * 100]
            store.delete_many(list(own)[:1])
            assert store.get_many(list(own)[:1]) == [None]
            store.stats()
            store.collect_garbage()
        return list(own)[1:]

    with ThreadPoolExecutor(8) as pool:
        left = [key for keys in pool.map(work, range(100, 108)) for key in keys]
    assert set(store.keys()) == {A, *left}
    assert None not in store.get_many(left)


some_keys = st.lists(st.sampled_from(KEYS), max_size=8)
values = st.one_of(st.binary(max_size=40), st.binary(min_size=1, max_size=4).map(lambda part: part * 300))
items = st.dictionaries(st.sampled_from(KEYS), values, max_size=4)
operations = st.lists(
    st.one_of(
        st.tuples(st.just("put"), items, st.sampled_from([None, None, LONG_AGO, 1e11])),
        st.tuples(st.just("get"), some_keys),
        st.tuples(st.just("delete"), some_keys),
        st.tuples(st.sampled_from(["keys", "collect", "close"])),
    ),
    max_size=25,
)


@given(operations=operations)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_a_store_is_a_dictionary_that_forgets_what_is_over(store, operations):
    store.delete_many(KEYS)
    twin = {}
    over = set()
    for name, *arguments in operations:
        if name == "put":
            written, expires_at = arguments
            store.put_many(written, expires_at=expires_at)
            for key, value in written.items():
                twin[key] = value
                over.discard(key)
                if expires_at == LONG_AGO:
                    del twin[key]
                    over.add(key)
        elif name == "get":
            assert store.get_many(arguments[0]) == [twin.get(key) for key in arguments[0]]
        elif name == "delete":
            store.delete_many(arguments[0])
            for key in arguments[0]:
                twin.pop(key, None)
                over.discard(key)
        elif name == "keys":
            found = list(store.keys())
            assert len(found) == len(set(found))
            assert twin.keys() <= set(found) <= twin.keys() | over
        elif name == "collect":
            store.collect_garbage()
            over.clear()
            assert set(store.keys()) == twin.keys()
            assert store.stats().n_entries == len(twin)
        else:
            store.close()
    assert store.get_many(KEYS) == [twin.get(key) for key in KEYS]


@pytest.mark.parametrize("ttl", [0, -1, float("nan"), float("inf")])
def test_a_time_to_live_that_makes_no_sense(ttl):
    with pytest.raises(ConfigError, match="ttl must be above 0 seconds"):
        checked_ttl(ttl)
    with pytest.raises(ConfigError, match="ttl"):
        MemoryStore(ttl=ttl)


def test_a_time_to_live_that_does():
    assert checked_ttl(None) is None
    assert checked_ttl(0.5) == 0.5
