"""The store on a Redis server: beside other programs, after failures, and without telling passwords."""

import socket
import sys
import threading
import time

import pytest

from kompakt.compressor.errors import ConfigError, MissingExtraError, StoreError

pytest.importorskip("redis")

from kompakt.compressor.store.redis import RedisStore

A, B = bytes(32), b"b" * 32


@pytest.fixture
def store(redis_server):
    with RedisStore(redis_server.url) as opened:
        yield opened


def test_no_connection_is_made_before_the_first_call():
    RedisStore("redis://127.0.0.1:1/0").close()


def test_two_clients_share_what_is_there(store, redis_server):
    with RedisStore(redis_server.url) as other:
        store.put_many({A: b"x"})
        assert other.get_many([A]) == [b"x"]
        other.delete_many([A])
    assert store.get_many([A]) == [None]


def test_what_others_keep_on_the_server_is_neither_seen_nor_touched(store, redis_server):
    with redis_server.client() as client:
        client.set(b"kompakt", b"theirs")
        client.set(A, b"theirs")
        client.lpush(b"kompakt:" + B, "a list")
        store.put_many({A: b"ours"})
        assert store.get_many([A, B]) == [b"ours", None]
        store.delete_many([A, b"", b"kompakt"])
        assert client.get(b"kompakt") == client.get(A) == b"theirs"


def test_databases_of_one_server_are_apart(redis_server):
    with RedisStore(f"{redis_server.url}?db=1") as first, RedisStore(f"{redis_server.url}?db=2") as second:
        first.put_many({A: b"x"})
        assert second.get_many([A]) == [None]
        assert list(second.keys()) == []
        first.delete_many([A])


@pytest.mark.parametrize("option", ["decode_responses=True", "encoding=latin-1&decode_responses=yes"])
def test_values_are_bytes_whatever_the_url_asks_for(redis_server, option):
    with RedisStore(f"{redis_server.url}?{option}") as store:
        store.put_many({A: b"\xff\xfe\x00", bytes(range(224, 256)): b""})
        assert store.get_many([A]) == [b"\xff\xfe\x00"]
        assert set(store.keys()) == {A, bytes(range(224, 256))}
        assert store.stats().n_bytes == 3


def test_the_server_removes_what_has_expired(store, redis_server):
    soon = time.time() + 0.1
    store.put_many({A: b"x"}, expires_at=soon)
    store.put_many({B: b"y"}, expires_at=soon + 1000)
    with redis_server.client() as client:
        assert 990_000 < client.pttl(b"kompakt:" + B) <= 1_000_200
    time.sleep(0.15)
    assert list(store.keys()) == [B]
    assert store.collect_garbage() == 0


@pytest.mark.parametrize("expires_at", [1e11, 1e18, 1e300])
def test_times_that_never_come_are_kept(store, expires_at):
    store.put_many({A: b"x"}, expires_at=expires_at)
    assert store.get_many([A]) == [b"x"]


def test_each_key_is_named_once_though_the_server_may_name_it_twice(store, monkeypatch):
    import redis

    items = {n.to_bytes(32, "big"): b"xy" for n in range(30)}
    store.put_many(items)
    scan = redis.Redis.scan_iter
    # as it does while its table grows or shrinks
    monkeypatch.setattr(redis.Redis, "scan_iter", lambda *given, **options: 2 * list(scan(*given, **options)))
    assert sorted(store.keys()) == sorted(items)
    assert (store.stats().n_entries, store.stats().n_bytes) == (30, 60)


def test_a_large_batch_goes_in_parts(store):
    items = {n.to_bytes(32, "big"): bytes([n]) * 3_000_000 for n in range(20)}
    store.put_many(items)
    assert store.get_many(list(items)) == list(items.values())
    assert store.stats().n_bytes == 60_000_000


def test_the_bound_is_the_servers(store, redis_server):
    assert store.stats().max_bytes is None
    with redis_server.client() as client:
        client.config_set("maxmemory", "500mb")
        try:
            assert store.stats().max_bytes == 500 * 2**20
        finally:
            client.config_set("maxmemory", "0")


def test_a_server_that_takes_no_more_is_an_error(store, redis_server):
    with redis_server.client() as client:
        client.config_set("maxmemory", "1mb")
        try:
            with pytest.raises(StoreError, match="OutOfMemory"):
                store.put_many({A: bytes(2_000_000), B: bytes(2_000_000)})
        finally:
            client.config_set("maxmemory", "0")
    store.put_many({A: b"x"})
    assert store.get_many([A]) == [b"x"]


def test_closing_gives_connections_back(store, redis_server):
    with redis_server.client() as client:
        before = len(client.client_list())
        with RedisStore(redis_server.url) as other:
            other.put_many({A: b"x"})
            assert len(client.client_list()) == before + 1
        deadline = time.monotonic() + 5
        while len(client.client_list()) > before:
            assert time.monotonic() < deadline
            time.sleep(0.01)


class Interrupting(dict):
    """Items whose reading meets an event in the middle."""

    def __init__(self, items, event):
        super().__init__(items)
        self._event = event

    def items(self):
        for number, item in enumerate(super().items()):
            if number == len(self) // 2:
                self._event()
            yield item


def test_a_server_that_dies_in_the_middle_of_a_batch(mortal_redis):
    with RedisStore(mortal_redis.url) as store:
        items = {n.to_bytes(32, "big"): bytes(3_000_000) for n in range(20)}
        with pytest.raises(StoreError, match="cannot be used"):
            store.put_many(Interrupting(items, mortal_redis.kill))
        for use in (lambda: store.get_many([A]), lambda: list(store.keys()), store.stats, store.collect_garbage):
            with pytest.raises(StoreError, match=r"mortal.redis\.sock cannot be used: ConnectionError"):
                use()
        mortal_redis.start()
        assert store.get_many([A]) == [None]
        store.put_many({A: b"x"})
        assert store.get_many([A]) == [b"x"]


def test_a_server_that_was_started_anew_between_two_calls_is_no_failure(mortal_redis):
    with RedisStore(mortal_redis.url) as store:
        store.put_many({A: b"x"})
        mortal_redis.stop()
        mortal_redis.start()
        store.put_many({A: b"y"})
        assert store.get_many([A]) == [b"y"]


def test_a_server_that_never_answers_costs_a_few_seconds():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        accepted = []
        threading.Thread(target=lambda: accepted.append(silent.accept()[0]), daemon=True).start()
        with RedisStore(f"redis://127.0.0.1:{silent.getsockname()[1]}") as store:
            began = time.monotonic()
            with pytest.raises(StoreError, match="TimeoutError"):
                store.get_many([A])
            assert time.monotonic() - began < 5
        for connection in accepted:
            connection.close()


SECRETS = [
    "redis://user:geheim@localhost:1/0",
    "redis://:geheim@localhost:1",
    "rediss://:geh%40eim@localhost:1",
    "redis://localhost:1/0?password=geheim",
    "redis://localhost:1/0?db=1&password=geheim&health_check_interval=2",
    "unix://user:geheim@/tmp/none.sock",
    "unix:///tmp/none.sock?db=2&password=geheim",
]


@pytest.mark.parametrize("url", SECRETS)
def test_passwords_are_told_nowhere(url):
    with RedisStore(url) as store:
        with pytest.raises(StoreError) as caught:
            store.get_many([A])
        for told in (store.location, str(caught.value)):
            assert "eim" not in told
            assert "***" in told
            assert told.count("localhost:1") + told.count("none.sock") >= 1


@pytest.mark.parametrize(
    "url", ["redis://[::1", "redis://u:geheim@h:port/0", "redis://:ge/he@im@h", "redis://h?db=x&password=geheim"]
)
def test_urls_that_make_no_sense_are_refused_without_their_password(url):
    with pytest.raises(ConfigError, match="not the URL of a Redis server") as caught:
        RedisStore(url)
    assert "im" not in str(caught.value)


@pytest.mark.parametrize("url", ["redis://localhost:6379/0", "redis://user@h/1", "unix:///a/b.sock?db=1"])
def test_a_url_without_a_password_is_its_location(url):
    with RedisStore(url) as store:
        assert store.location == url


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(MissingExtraError, match=r"kompakt\[redis\]"):
        RedisStore("redis://localhost")
