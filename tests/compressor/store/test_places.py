"""Stores by their location."""

import os
from pathlib import Path

import pytest

from kompakt.compressor.errors import ConfigError
from kompakt.compressor.store.memory import MemoryStore
from kompakt.compressor.store.places import default_path, open_backing, open_store
from kompakt.compressor.store.sqlite import SQLiteStore
from kompakt.compressor.store.tiered import TieredStore


def test_a_path_is_a_file_behind_memory_and_nothing_is_made(tmp_path):
    for location in (tmp_path / "folder" / "a.sqlite", str(tmp_path / "folder" / "a.sqlite")):
        store = open_store(location, max_bytes=5000, memory_bytes=700)
        assert isinstance(store, TieredStore)
        assert isinstance(store.back, SQLiteStore)
        assert store.location == str(tmp_path / "folder" / "a.sqlite")
        assert store.stats().max_bytes == 5000
        assert store.front.stats().max_bytes == 700
    assert list(tmp_path.iterdir()) == []


def test_the_default_is_a_file_in_the_cache(empty_cache):
    assert default_path() == empty_cache / "segments.sqlite"
    with open_store("default") as store:
        assert store.location == str(empty_cache / "segments.sqlite")
        assert not empty_cache.exists()
        store.put_many({bytes(32): b"x"})
    assert (empty_cache / "segments.sqlite").is_file()
    assert store.stats().max_bytes == 10 * 2**30


def test_memory_is_memory():
    store = open_store("memory", memory_bytes=1234, ttl=5)
    assert isinstance(store, MemoryStore)
    assert store.stats().max_bytes == 1234


def test_a_store_is_itself():
    store = MemoryStore()
    assert open_store(store) is store


def test_a_url_is_a_server_behind_memory():
    pytest.importorskip("redis")
    from kompakt.compressor.store.redis import RedisStore

    for url in ("redis://localhost:1", "rediss://localhost:1/2", "unix:///tmp/none.sock"):
        with open_store(url) as store:
            assert isinstance(store.back, RedisStore)
            assert store.location == url
    with pytest.raises(ConfigError, match="maxmemory"):
        open_store("redis://localhost:1", max_bytes=5)


@pytest.mark.parametrize("location", ["", None, 3, b"bytes", ["a"]])
def test_what_is_no_location(location):
    with pytest.raises(ConfigError, match="must be a path, a URL or a store"):
        open_store(location)


@pytest.mark.parametrize("location", ["http://a.org/b", "postgres://x", "REDIS://h", "file:///tmp/a"])
def test_other_urls_are_no_paths(location):
    with pytest.raises(ConfigError, match="no store at"):
        open_store(location)


@pytest.mark.parametrize("options", [{"max_bytes": 0}, {"memory_bytes": 0}, {"ttl": 0}, {"max_bytes": -1}])
def test_options_that_make_no_sense(tmp_path, options):
    with pytest.raises(ConfigError, match=next(iter(options)).removeprefix("memory_")):
        open_store(tmp_path / "a.sqlite", **options)


def test_a_folder_is_no_file(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for location in (tmp_path, str(tmp_path), "~"):
        with pytest.raises(ConfigError, match=r"is a folder; name a file in it, such as .*segments\.sqlite"):
            open_store(location)


def test_the_home_folder_may_be_written_short(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_store("~/a.sqlite").location == str(tmp_path / "a.sqlite")
    # a user who is not there is a name like any other
    assert open_store("~nobody-of-that-name/a.sqlite").location.endswith("~nobody-of-that-name/a.sqlite")


def test_a_relative_path_stays_where_it_was_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = open_store(Path("a.sqlite"))
    monkeypatch.chdir(os.sep)
    assert store.location == str(tmp_path / "a.sqlite")


def test_a_zero_byte_is_refused():
    with pytest.raises(ConfigError, match="zero byte"):
        open_store("a\0b")


def test_for_maintenance_there_is_nothing_in_front(tmp_path):
    assert isinstance(open_backing(str(tmp_path / "a.sqlite")), SQLiteStore)
    assert open_backing("default").location == str(default_path())
