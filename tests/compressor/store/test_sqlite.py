"""The store in a file: its bound and order, its size, damage, other programs' files, and other processes."""

import os
import shutil
import sqlite3
import threading
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kompakt.compressor.errors import ConfigError, StoreError
from kompakt.compressor.store import sqlite as module
from kompakt.compressor.store.sqlite import SQLiteStore


def key(n):
    return n.to_bytes(32, "big")


def keys_of(store):
    return sorted(int.from_bytes(found, "big") for found in list(store.keys()))


class Clock:
    """A time that the test sets."""

    def __init__(self):
        self.now = 1e9

    def time(self):
        return self.now

    def time_ns(self):
        return int(self.now * 1e9)

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    found = Clock()
    monkeypatch.setattr(module, "time", found)
    monkeypatch.setattr("kompakt.compressor.store.sqlite_schema.time", found)
    return found


def put_in_turn(store, clock, numbers, size=100):
    for n in numbers:
        clock.now += 1
        store.put_many({key(n): bytes(size)})


def test_nothing_is_made_before_the_first_write(tmp_path):
    store = SQLiteStore(tmp_path / "a" / "b" / "store.sqlite")
    store.get_many([key(1)])
    store.stats()
    store.collect_garbage()
    store.delete_many([key(1)])
    store.put_many({})
    assert store.check() == []
    assert not (tmp_path / "a").exists()
    store.put_many({key(1): b"x"})
    assert os.path.isfile(store.location)
    store.close()


def test_what_one_wrote_another_reads(open_at):
    first, second = open_at(), open_at()
    first.put_many({key(1): b"x"})
    assert second.get_many([key(1)]) == [b"x"]
    second.put_many({key(1): b"y", key(2): b"z"})
    second.delete_many([key(2)])
    assert first.get_many([key(1), key(2)]) == [b"y", None]


def test_the_least_recently_used_go_first(open_at, clock):
    store = open_at(max_bytes=1000)
    put_in_turn(store, clock, range(10))
    clock.now += 1
    store.get_many([key(0), key(2)])
    clock.now += 1
    store.put_many({key(10): bytes(100)})
    # down to nine tenths, so that not every write evicts
    assert keys_of(store) == [0, 2, 4, 5, 6, 7, 8, 9, 10]


def test_the_order_of_use_survives_the_process_and_counts_for_others(open_at, clock):
    store = open_at(max_bytes=1000)
    put_in_turn(store, clock, range(10))
    clock.now += 1
    store.get_many([key(0)])
    store.close()
    other = open_at(max_bytes=1000)
    put_in_turn(other, clock, [10])
    assert 0 in keys_of(other)
    assert 1 not in keys_of(other)


def test_to_write_again_is_a_use(open_at, clock):
    store = open_at(max_bytes=1000)
    put_in_turn(store, clock, [*range(10), 0, 10])
    assert keys_of(store) == [0, 3, 4, 5, 6, 7, 8, 9, 10]


def test_the_expired_go_before_the_others_do(open_at, clock):
    store = open_at(max_bytes=1000)
    put_in_turn(store, clock, range(8))
    clock.now += 1
    store.put_many({key(8): bytes(100), key(9): bytes(100)}, expires_at=clock.now + 5)
    clock.now += 10
    store.put_many({key(10): bytes(100)})
    assert keys_of(store) == [*range(8), 10]


@given(
    st.integers(1, 2000),
    st.lists(st.dictionaries(st.integers(0, 9), st.integers(0, 1100), max_size=4), min_size=1, max_size=12),
)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_it_stays_within_its_bytes(tmp_path, max_bytes, batches):
    (tmp_path / "bounded.sqlite").unlink(missing_ok=True)
    store = SQLiteStore(tmp_path / "bounded.sqlite", max_bytes=max_bytes)
    for batch in batches:
        store.put_many({key(n): bytes(size) for n, size in batch.items()})
        left = store.get_many(keys := list(store.keys()))
        found = store.stats()
        assert found.n_bytes == sum(map(len, left)) <= max_bytes
        assert found.n_entries == len(keys)
        assert found.max_bytes == max_bytes
        # what was just written is there as long as it fits
        if sum(batch.values()) <= int(0.9 * max_bytes):
            assert store.get_many([key(n) for n in batch]) == [bytes(size) for size in batch.values()]
    assert store.check() == []
    store.close()


def test_a_value_too_large_is_not_kept_and_drives_out_none_but_its_own(open_at):
    store = open_at(max_bytes=1000)
    store.put_many({key(n): bytes(100) for n in range(8)})
    store.put_many({key(1): bytes(901), key(8): b"small"})
    assert keys_of(store) == [0, *range(2, 9)]
    store.put_many({key(9): bytes(10**6)})
    assert keys_of(store) == [0, *range(2, 9)]
    store.put_many({key(9): bytes(900)})
    assert store.get_many([key(9)]) == [bytes(900)]
    assert store.stats().n_bytes <= 1000


def test_a_smaller_bound_takes_hold_at_the_next_write_or_collection(open_at):
    open_at().put_many({key(n): bytes(100) for n in range(50)})
    small = open_at(max_bytes=1000)
    assert len(keys_of(small)) == 50
    assert small.collect_garbage() == 41
    assert small.stats().n_bytes == 900


def test_garbage_collection_gives_the_space_back(open_at, path):
    store = open_at()
    store.put_many({key(n): os.urandom(5000) for n in range(200)})
    store.collect_garbage()
    large = path.stat().st_size
    assert large > 10**6
    store.delete_many([key(n) for n in range(190)])
    store.collect_garbage()
    assert path.stat().st_size < large / 5
    assert not any(file.stat().st_size for file in path.parent.glob("*-wal"))
    assert store.check() == []
    assert all(len(value) == 5000 for value in store.get_many([key(n) for n in range(190, 200)]))


def test_a_reader_waits_for_no_writer(open_at, path):
    store = open_at()
    store.put_many({key(n): b"x" for n in range(3000)})
    with sqlite3.connect(path, isolation_level=None) as writer:
        writer.execute("BEGIN IMMEDIATE")
        writer.execute("DELETE FROM entries")
        began = time.monotonic()
        # enough uses to be written down, which cannot be done now
        assert store.get_many([key(n) for n in range(3000)]) == [b"x"] * 3000
        assert time.monotonic() - began < 10
        writer.execute("ROLLBACK")
    writer.close()
    wait_for_another(store, path, lambda: store.put_many({key(1): b"y"}))
    assert store.get_many([key(1)]) == [b"y"]


def wait_for_another(store, path, write):
    """Write while another process does."""
    writer = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    writer.execute("BEGIN IMMEDIATE")
    writer.execute("UPDATE entries SET used_at = used_at + 1")
    timer = threading.Timer(0.3, writer.execute, ["COMMIT"])
    timer.start()
    write()
    timer.join()
    writer.close()


@pytest.mark.parametrize("write", ["put", "delete", "collect"])
def test_a_writer_waits_for_its_turn(open_at, path, write):
    store = open_at()
    store.put_many({key(1): b"x"})
    uses = {
        "put": lambda: store.put_many({key(2): b"y"}),
        "delete": lambda: store.delete_many([key(1)]),
        "collect": store.collect_garbage,
    }
    wait_for_another(store, path, uses[write])
    assert keys_of(store) == {"put": [1, 2], "delete": [], "collect": [1]}[write]


def test_uses_are_written_in_time(open_at, clock, path):
    store = open_at()
    put_in_turn(store, clock, [1, 2])

    def used_at(n):
        with sqlite3.connect(path) as other:
            (found,) = other.execute("SELECT used_at FROM entries WHERE key = ?", [key(n)]).fetchone()
        other.close()
        return found / 1e9 - 1e9

    clock.now = 1e9 + 20
    store.get_many([key(1)])
    assert used_at(1) == 1
    clock.now = 1e9 + 100
    store.get_many([key(2)])
    assert (used_at(1), used_at(2)) == (20, 100)


@pytest.mark.parametrize("leave_the_journal", [False, True])
def test_a_file_that_is_removed_while_it_is_open_is_made_anew(open_at, path, leave_the_journal):
    store = open_at()
    store.put_many({key(1): b"old"})
    for file in path.parent.glob("store.sqlite*"):
        if file == path or not leave_the_journal:
            file.unlink()
    assert store.get_many([key(1)]) == [None]
    store.put_many({key(2): b"new"})
    assert store.get_many([key(1), key(2)]) == [None, b"new"]
    assert open_at().get_many([key(1), key(2)]) == [None, b"new"]
    assert store.check() == []


def test_a_file_that_is_replaced_while_it_is_open_is_read(open_at, path, tmp_path):
    store = open_at()
    store.put_many({key(1): b"old"})
    other = SQLiteStore(tmp_path / "other.sqlite")
    other.put_many({key(2): b"new"})
    other.close()
    for file in path.parent.glob("store.sqlite-*"):
        file.unlink()
    os.replace(other.location, path)
    # somebody else uses the new one already, and has not moved it all into the file yet
    with open_at() as new:
        new.put_many({key(3): b"newer"})
        assert store.get_many([key(1), key(2), key(3)]) == [None, b"new", b"newer"]
        store.put_many({key(4): b"newest"})
    assert sorted(keys_of(open_at())) == [2, 3, 4]
    assert store.check() == []


@pytest.mark.parametrize("max_bytes", [0, -5])
def test_a_bound_that_makes_no_sense(path, max_bytes):
    with pytest.raises(ConfigError, match="max_bytes must be at least 1"):
        SQLiteStore(path, max_bytes=max_bytes)


def test_paths_that_make_no_sense():
    with pytest.raises(ConfigError, match="zero byte"):
        SQLiteStore("a\0b")


def test_the_home_folder_may_be_written_short(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert SQLiteStore("~/store.sqlite").location == str(tmp_path / "store.sqlite")


@pytest.mark.parametrize("name", ["a b.sqlite", "what?.sqlite", "50%41.sqlite", "a#b;c'd.sqlite", "日本.sqlite"])
def test_odd_names_are_names(tmp_path, name):
    with SQLiteStore(tmp_path / name) as store:
        store.put_many({key(1): b"x"})
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_a_folder_in_its_place_cannot_be_used(path, open_at):
    path.mkdir()
    store = open_at()
    with pytest.raises(StoreError, match="cannot be used"):
        store.put_many({key(1): b"x"})
    with pytest.raises(StoreError, match="cannot be used"):
        store.get_many([key(1)])


def test_a_file_in_place_of_its_folder_cannot_be_used(path):
    path.write_bytes(b"")
    store = SQLiteStore(path / "inner.sqlite")
    assert store.get_many([key(1)]) == [None]
    with pytest.raises(StoreError, match="cannot be"):
        store.put_many({key(1): b"x"})


def test_a_copy_taken_after_closing_is_whole(open_at, path, tmp_path):
    with open_at() as store:
        store.put_many({key(n): os.urandom(500) for n in range(100)})
    copy = tmp_path / "copy.sqlite"
    shutil.copy(path, copy)
    with SQLiteStore(copy) as opened:
        assert len(list(opened.keys())) == 100
        assert opened.check() == []
