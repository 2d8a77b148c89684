"""Memory in front of a store: what is read from where, and what a failing store behind costs."""

import logging
import threading
import time

import pytest

from kompakt.compressor.errors import ConfigError, StoreError
from kompakt.compressor.store import tiered as module
from kompakt.compressor.store.envelope import seal, unseal
from kompakt.compressor.store.memory import MemoryStore
from kompakt.compressor.store.sqlite import SQLiteStore
from kompakt.compressor.store.tiered import TieredStore

A, B, C = (bytes([n]) * 32 for n in range(3))
PAUSE = 0.1


class Failing(MemoryStore):
    """Fails while told to, and counts how often it is asked."""

    def __init__(self):
        super().__init__()
        self.reads_fail = self.writes_fail = False
        self.n_calls = 0

    location = "here"

    def get_many(self, keys):
        self.n_calls += 1
        if self.reads_fail:
            raise StoreError("the store here cannot be read")
        return super().get_many(keys)

    def put_many(self, items, *, expires_at=None):
        self.n_calls += 1
        if self.writes_fail:
            raise StoreError("the store here cannot be written")
        super().put_many(items, expires_at=expires_at)

    def delete_many(self, keys):
        if self.writes_fail:
            raise StoreError("the store here cannot be written")
        super().delete_many(keys)


@pytest.fixture
def back():
    return Failing()


@pytest.fixture
def store(back):
    return TieredStore(back)


@pytest.fixture
def short_pause(monkeypatch):
    monkeypatch.setattr(module, "_PAUSE_SECONDS", PAUSE)


def fresh(store):
    """The same store behind, in front of which nothing is known."""
    return TieredStore(store.back)


def test_values_are_sealed_behind_and_plain_in_front(store, back):
    value = b"the same again and again " * 100
    store.put_many({A: value})
    assert store.front.get_many([A]) == [value]
    (sealed,) = back.get_many([A])
    assert unseal(A, sealed).payload == value
    assert len(sealed) < len(value) / 10


def test_what_was_read_once_is_not_read_again(store, back):
    store.put_many({A: b"x"})
    other = fresh(store)
    assert other.get_many([A, A]) == [b"x", b"x"]
    n_calls = back.n_calls
    assert other.get_many([A]) == [b"x"]
    assert back.n_calls == n_calls
    assert other.get_many([A, B]) == [b"x", None]
    assert back.n_calls == n_calls + 1


def test_only_what_is_missing_in_front_is_asked_for_behind(store, back):
    back.put_many({A: seal(A, b"behind"), B: seal(B, b"behind")})
    store.front.put_many({A: b"in front"})
    assert store.get_many([B, A, C]) == [b"behind", b"in front", None]


def test_a_small_memory_in_front_loses_nothing(back):
    store = TieredStore(back, front=MemoryStore(1))
    store.put_many({A: b"x", B: b"y"})
    assert store.get_many([B, A]) == [b"y", b"x"]
    assert store.front.stats().n_entries == 0


def test_times_are_kept_behind_and_in_front(store, back):
    soon = time.time() + 0.2
    store.put_many({A: b"x"}, expires_at=soon)
    store.put_many({B: b"y"})
    other = fresh(store)
    assert other.get_many([A, B]) == [b"x", b"y"]
    assert unseal(A, back.get_many([A])[0]).expires_at == soon
    time.sleep(0.25)
    # also where it was read from behind in the meantime
    assert other.get_many([A, B]) == store.get_many([A, B]) == fresh(store).get_many([A, B]) == [None, b"y"]


def test_the_envelope_alone_knows_when_a_value_is_over(store, back):
    # as after an import into a store that lost the times
    back.put_many({A: seal(A, b"x", 1.0), B: seal(B, b"y", time.time() + 1000)})
    assert store.get_many([A, B]) == [None, b"y"]


def test_the_time_to_live_is_the_stores_unless_told_otherwise(back):
    store = TieredStore(back, ttl=100)
    store.put_many({A: b"x"})
    store.put_many({B: b"x"}, expires_at=5e9)
    first, second = back.get_many([A, B])
    assert 99 < unseal(A, first).expires_at - time.time() <= 100
    assert unseal(B, second).expires_at == 5e9
    with pytest.raises(ConfigError, match="ttl"):
        TieredStore(back, ttl=0)


@pytest.mark.parametrize("damaged", [b"", b"KS", seal(B, b"of another key"), b"x" * 100, seal(A, b"x")[:-1]])
def test_a_damaged_value_is_a_miss_and_one_log_line(store, back, caplog, damaged):
    back.put_many({A: damaged, C: damaged, B: seal(B, b"whole")})
    for _ in range(3):
        assert store.get_many([A, B, C]) == [None, b"whole", None]
    assert len(caplog.records) == 1
    assert "computed again" in caplog.text
    store.put_many({A: b"again"})
    assert fresh(store).get_many([A, B]) == [b"again", b"whole"]


def test_a_store_that_fails_is_left_alone_and_memory_goes_on_with_one_warning(store, back, caplog):
    store.put_many({A: b"x"})
    back.reads_fail = back.writes_fail = True
    n_calls = back.n_calls
    for number in range(5):
        key = bytes([9, number]) * 16
        assert store.get_many([key, A]) == [None, b"x"]
        store.put_many({key: b"new"})
        assert store.get_many([key]) == [b"new"]
    assert back.n_calls == n_calls + 1
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "the store here cannot be read; going on in memory" in caplog.text


def test_a_store_that_cannot_be_written_is_still_read(store, back, caplog):
    back.put_many({B: seal(B, b"behind")})
    back.writes_fail = True
    store.put_many({A: b"x"})
    store.put_many({C: b"x"})
    assert store.get_many([A, B]) == [b"x", b"behind"]
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_it_is_tried_again_after_a_while_and_recovers(store, back, caplog, short_pause):
    caplog.set_level(logging.INFO, logger="kompakt")
    back.reads_fail = back.writes_fail = True
    for turn in range(3):
        assert store.get_many([A]) == [None]
        store.put_many({B: bytes([turn])})
        time.sleep(1.5 * PAUSE)
    # one warning for as long as it lasts
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert back.n_calls >= 3
    back.reads_fail = back.writes_fail = False
    caplog.clear()
    store.put_many({C: b"later"})
    assert store.get_many([A]) == [None]
    assert [record.levelname for record in caplog.records] == ["INFO", "INFO"]
    assert fresh(store).get_many([B, C]) == [None, b"later"]
    caplog.clear()
    back.writes_fail = True
    store.put_many({A: b"x"})
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_what_must_be_deleted_and_cannot_be_is_an_error(store, back):
    store.put_many({A: b"x"})
    back.writes_fail = True
    with pytest.raises(StoreError):
        store.delete_many([A])


def test_another_programs_database_is_no_failure_to_be_passed_over(tmp_path):
    import sqlite3

    path = tmp_path / "theirs.sqlite"
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE theirs (x)")
    other.close()
    store = TieredStore(SQLiteStore(path))
    with pytest.raises(ConfigError, match="another program"):
        store.get_many([A])
    with pytest.raises(ConfigError, match="another program"):
        store.put_many({A: b"x"})


def test_looking_after_it_means_both(store, back):
    store.put_many({A: b"x"}, expires_at=time.time() + 0.05)
    store.put_many({B: b"y"})
    time.sleep(0.1)
    assert store.collect_garbage() == 1
    assert list(store.front.keys()) == list(store.keys()) == [B]
    assert store.stats() == back.stats()
    assert store.location == "here"


def test_a_redis_that_dies_in_the_middle_of_a_batch_and_comes_back(mortal_redis, caplog, short_pause):
    from kompakt.compressor.store.redis import RedisStore

    items = {n.to_bytes(32, "big"): bytes([n % 256, n // 256] * 20_000) for n in range(1000, 2000)}
    with TieredStore(RedisStore(mortal_redis.url)) as store:
        store.put_many({A: b"early"})
        killer = threading.Timer(0.05, mortal_redis.kill)
        killer.start()
        for n in range(0, 1000, 50):
            store.put_many(dict(list(items.items())[n : n + 50]))
        killer.join()
        with TieredStore(store.back) as other:
            assert other.get_many([A, B]) == [None, None]
            assert other.get_many([C]) == [None]
        store.put_many({B: b"meanwhile"})
        assert store.get_many([A, B, *items]) == [b"early", b"meanwhile", *items.values()]
        assert 1 <= len(caplog.records) <= 2, caplog.text
        mortal_redis.start()
        time.sleep(2 * PAUSE)
        store.put_many({C: b"late"})
        with TieredStore(store.back) as other:
            assert other.get_many([B, C]) == [None, b"late"]
        assert 1 <= len(caplog.records) <= 2, caplog.text


def test_a_redis_that_is_not_there_costs_one_warning(tmp_path, caplog):
    pytest.importorskip("redis")
    from kompakt.compressor.store.redis import RedisStore

    with TieredStore(RedisStore(f"unix://{tmp_path}/none.sock")) as store:
        for n in range(20):
            assert store.get_many([bytes([n])]) == [None]
            store.put_many({bytes([n]): b"x"})
            assert store.get_many([bytes([n])]) == [b"x"]
    assert len(caplog.records) == 1
