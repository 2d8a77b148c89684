"""Looking after a store: what verification finds, what repair saves, and how content moves."""

import os
import sqlite3
import time

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from kompakt.compressor.errors import ConfigError, StoreError
from kompakt.compressor.store.envelope import seal
from kompakt.compressor.store.maintenance import VerifyReport, copy_entries, export, repair, verify
from kompakt.compressor.store.memory import MemoryStore
from kompakt.compressor.store.sqlite import SQLiteStore
from kompakt.compressor.store.tiered import TieredStore

LATER = time.time() + 10_000


def key(n):
    return n.to_bytes(32, "big")


ITEMS = {key(n): bytes([n % 256]) + n.to_bytes(3, "big") * (n % 60) for n in range(700)}


def fill(store, items=ITEMS, *, expires_at=None):
    store.put_many({name: seal(name, value, expires_at) for name, value in items.items()}, expires_at=expires_at)


def content(store):
    names = sorted(store.keys())
    return dict(zip(names, store.get_many(names), strict=True))


def values(store):
    """What a user of the store would get."""
    return dict(zip(ITEMS, TieredStore(store).get_many(list(ITEMS)), strict=True))


@pytest.fixture
def opened(tmp_path):
    """Opens files by name, and closes them at the end."""
    stores = []

    def make(name="store.sqlite", **options):
        stores.append(SQLiteStore(tmp_path / name, **options))
        return stores[-1]

    yield make
    for store in stores:
        store.close()


def spoil(store, n):
    (value,) = store.get_many([key(n)])
    store.put_many({key(n): value[:-1] + bytes([value[-1] ^ 1])})


def test_a_sound_store_is_sound(opened):
    store = opened()
    fill(store)
    seen = []
    assert verify(store, on_entries=seen.append) == VerifyReport(700, 0, (), ())
    assert verify(store).is_sound
    assert seen == [200, 400, 600, 700]


def test_an_empty_store_is_sound(opened, tmp_path):
    assert verify(opened()) == VerifyReport(0, 0, (), ())
    assert list(tmp_path.iterdir()) == []


def test_what_has_expired_is_counted_and_no_damage(opened):
    store = opened()
    fill(store)
    fill(store, {key(n): b"x" for n in range(800, 805)}, expires_at=time.time() - 5)
    fill(store, {key(n): b"x" for n in range(900, 907)}, expires_at=LATER)
    # the time in the envelope counts where the store has lost it
    name = key(999)
    store.put_many({name: seal(name, b"x", time.time() - 5)})
    assert verify(store) == VerifyReport(713, 6, (), ())


def test_damaged_entries_are_found_and_removed(opened):
    store = opened()
    fill(store)
    for n in (3, 300, 699):
        spoil(store, n)
    store.put_many({key(5): store.get_many([key(6)])[0], key(7): b""})
    report = verify(store)
    assert report == VerifyReport(700, 0, tuple(map(key, (3, 5, 7, 300, 699))), ())
    assert not report.is_sound
    assert repair(store, report) == "5 damaged entries removed"
    assert verify(store) == VerifyReport(695, 0, (), ())
    left = values(store)
    assert left == ITEMS | dict.fromkeys(report.damaged)


def test_redis_is_verified_and_repaired(redis_server):
    from kompakt.compressor.store.redis import RedisStore

    with RedisStore(redis_server.url) as store:
        fill(store)
        fill(store, {key(800): b"x"}, expires_at=LATER)
        spoil(store, 300)
        report = verify(store)
        assert report == VerifyReport(701, 0, (key(300),), ())
        repair(store, report)
        assert verify(store).is_sound
        assert values(store) == ITEMS | {key(300): None}


def zero_pages(path, first, count):
    with path.open("r+b") as file:
        file.seek(4096 * first)
        file.write(bytes(4096 * count))


def test_a_file_with_zeros_in_the_middle_is_salvaged(opened, tmp_path):
    with opened() as store:
        fill(store)
    path = tmp_path / "store.sqlite"
    n_pages = path.stat().st_size // 4096
    zero_pages(path, n_pages // 2, 3)
    report = verify(store)
    assert report.structure
    told = repair(store, report)
    aside = tmp_path / told.rpartition(" is ")[2]
    assert told.startswith(f"{store.stats().n_entries} entries were readable")
    assert aside.stat().st_size == 4096 * n_pages
    left = values(store)
    assert all(value in (None, ITEMS[name]) for name, value in left.items())
    # three pages of entries; what has lost its page in the index is found in the table
    assert list(left.values()).count(None) < 150
    again = verify(store)
    assert again.is_sound
    assert again.n_entries == 700 - list(left.values()).count(None)
    assert sorted(file.name for file in tmp_path.iterdir() if not file.name.endswith(("-wal", "-shm"))) == [
        "store.sqlite", aside.name
    ]  # fmt: skip
    # and it is a store as before
    fill(store)
    assert values(store) == ITEMS


@given(st.integers(1, 400), st.integers(1, 30))
@example(3, 1)
@settings(max_examples=7, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_pages_are_lost_repair_leaves_a_sound_store(tmp_path, first, count):
    for file in tmp_path.iterdir():
        file.unlink()
    path = tmp_path / "store.sqlite"
    with SQLiteStore(path) as store:
        fill(store)
    n_pages = path.stat().st_size // 4096
    first = first % (n_pages - 1) + 1
    zero_pages(path, first, min(count, n_pages - first))
    report = verify(store)
    assert not report.is_sound
    repair(store, report)
    assert verify(store).is_sound
    assert all(value in (None, ITEMS[name]) for name, value in values(store).items())
    fill(store)
    assert values(store) == ITEMS
    store.close()


@given(st.integers(2, 10**6))
@settings(max_examples=7, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_file_cut_short_is_salvaged_or_made_anew(tmp_path, length):
    for file in tmp_path.iterdir():
        file.unlink()
    path = tmp_path / "store.sqlite"
    with SQLiteStore(path) as store:
        fill(store)
    os.truncate(path, max(2, length % path.stat().st_size))
    report = verify(store)
    assert not report.is_sound
    repair(store, report)
    assert verify(store).is_sound
    assert all(value in (None, ITEMS[name]) for name, value in values(store).items())
    store.close()


def test_a_file_that_is_no_database_is_put_aside(opened, tmp_path):
    path = tmp_path / "store.sqlite"
    path.write_bytes(b"garbage " * 1000)
    store = opened()
    report = verify(store)
    assert report == VerifyReport(0, 0, (), ("file is not a database",))
    told = repair(store, report)
    assert told.startswith("0 entries were readable")
    (aside,) = tmp_path.glob("*.damaged-*")
    assert aside.read_bytes() == b"garbage " * 1000
    assert verify(store) == VerifyReport(0, 0, (), ())


def test_counts_that_do_not_hold_are_found_and_mended(opened, tmp_path):
    with opened() as store:
        fill(store)
    with sqlite3.connect(tmp_path / "store.sqlite") as other:
        other.execute("UPDATE totals SET n_bytes = n_bytes + 10")
    other.close()
    report = verify(store)
    assert report.n_entries == 700
    assert not report.is_sound
    repair(store, report)
    assert verify(store) == VerifyReport(700, 0, (), ())
    assert values(store) == ITEMS


def test_what_an_interrupted_repair_left_is_no_obstacle(opened, tmp_path):
    with opened() as store:
        fill(store)
    for name in ("store.sqlite.mended", "store.sqlite.mended-wal", "store.sqlite.mended-shm"):
        (tmp_path / name).write_bytes(b"left behind " * 500)
    zero_pages(tmp_path / "store.sqlite", 5, 2)
    repair(store, verify(store))
    assert verify(store).is_sound
    assert store.stats().n_entries > 300


def test_other_processes_go_on_with_the_mended_file(opened, tmp_path):
    with opened() as store:
        fill(store)
    zero_pages(tmp_path / "store.sqlite", 8, 2)
    reader = opened()
    reader.get_many([key(1)])
    repair(store, verify(store))
    reader.put_many({key(1000): b"new"})
    assert store.get_many([key(1000)]) == [b"new"]
    assert content(reader) == content(store)


# the third page is the root of the table, without which nothing is found
@pytest.mark.parametrize("page", [1, *range(3, 40, 4)])
def test_a_page_that_is_lost_costs_its_own_entries_only(opened, tmp_path, page):
    with opened() as store:
        fill(store)
    n_pages = (tmp_path / "store.sqlite").stat().st_size // 4096
    assert n_pages > 45
    zero_pages(tmp_path / "store.sqlite", page, 1)
    if (report := verify(store)).is_sound:
        return  # of the list of free pages
    repair(store, report)
    assert verify(store).is_sound
    left = values(store)
    assert all(value in (None, ITEMS[name]) for name, value in left.items())
    assert list(left.values()).count(None) < 700 // 2
    store.close()


def test_another_programs_database_is_refused_and_untouched(opened, tmp_path):
    path = tmp_path / "store.sqlite"
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE theirs (x)")
    other.close()
    before = path.read_bytes()
    store = opened()
    sound = VerifyReport(0, 0, (), ())
    damaged = VerifyReport(0, 0, (), ("something",))
    for use in (
        lambda: verify(store),
        lambda: repair(store, VerifyReport(1, 0, (key(1),), ())),
        lambda: repair(store, damaged),
        lambda: copy_entries(store, MemoryStore()),
        lambda: copy_entries(MemoryStore(), store) if fill_memory() else None,
        lambda: export(store, tmp_path / "out.sqlite"),
    ):
        with pytest.raises(ConfigError, match="another program"):
            use()
    assert sound.is_sound
    assert path.read_bytes() == before
    assert "out.sqlite" not in [file.name for file in tmp_path.iterdir()]
    memory = MemoryStore()
    fill(memory, {key(1): b"x"})
    with pytest.raises(ConfigError, match="another program"):
        copy_entries(memory, store)
    assert path.read_bytes() == before


def fill_memory():
    raise ConfigError("another program")


def test_a_newer_kompakts_file_is_not_mended(opened, tmp_path):
    with opened() as store:
        fill(store)
    with sqlite3.connect(tmp_path / "store.sqlite") as other:
        other.execute("PRAGMA user_version = 2")
    other.close()
    before = (tmp_path / "store.sqlite").read_bytes()
    with pytest.raises(StoreError, match="newer kompakt"):
        verify(store)
    assert (tmp_path / "store.sqlite").read_bytes() == before


def test_a_store_in_use_is_not_taken_for_damaged(opened, tmp_path, monkeypatch):
    monkeypatch.setattr("kompakt.compressor.store.sqlite._BUSY_SECONDS", 0.1)
    with opened() as store:
        fill(store)
    with sqlite3.connect(tmp_path / "store.sqlite", isolation_level=None) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        other.execute("DELETE FROM entries")
        with pytest.raises(StoreError, match="locked"):
            verify(store)
        other.execute("ROLLBACK")
    other.close()


def test_copies_hold_what_is_sound_and_has_time_left(opened):
    source, target = opened(), opened("target.sqlite")
    fill(source)
    fill(source, {key(800): b"over"}, expires_at=time.time() - 5)
    fill(source, {key(801): b"short"}, expires_at=LATER)
    fill(source, {key(802): b"longer"}, expires_at=LATER + 10)
    spoil(source, 17)
    source.put_many({b"no key": seal(b"no key", b"x"), key(803): seal(key(803), b"over", time.time() - 5)})
    target.put_many({key(1): b"something older", key(5000): seal(key(5000), b"stays")})
    seen = []
    assert copy_entries(source, target, on_entries=seen.append) == 701
    assert seen[-1] == 705
    assert values(target) == ITEMS | {key(17): None}
    assert TieredStore(target).get_many([key(801), key(802), key(5000)]) == [b"short", b"longer", b"stays"]
    assert verify(target) == VerifyReport(702, 0, (), ())
    assert not {key(800), key(803)} & content(target).keys()
    # with their times
    assert target.collect_garbage() == 0
    with sqlite3.connect(target.location) as other:
        found = other.execute("SELECT expires_at FROM entries WHERE expires_at IS NOT NULL ORDER BY 1").fetchall()
    other.close()
    assert found == [(LATER,), (LATER + 10,)]


def test_an_export_is_one_file_with_everything(opened, tmp_path):
    source = opened()
    fill(source)
    fill(source, {key(801): b"short"}, expires_at=LATER)
    for leftover in ("out.sqlite.unfinished", "out.sqlite.unfinished-wal"):
        (tmp_path / leftover).write_bytes(b"of an export that was interrupted")
    assert export(source, tmp_path / "out.sqlite") == 701
    assert [file.name for file in tmp_path.glob("out*")] == ["out.sqlite"]
    with opened("out.sqlite") as copy:
        assert content(copy) == content(source)
    with pytest.raises(ConfigError, match="exists; name a new file"):
        export(source, tmp_path / "out.sqlite")
    with pytest.raises(ConfigError, match="exists"):
        export(source, source.location)


def test_an_export_of_nothing_is_an_empty_store(opened, tmp_path):
    assert export(MemoryStore(), str(tmp_path / "out.sqlite")) == 0
    assert verify(opened("out.sqlite")) == VerifyReport(0, 0, (), ())


def test_an_export_leaves_no_file_behind_that_looks_whole_but_is_not(opened, tmp_path):
    def fail(n_entries):
        if n_entries > 300:
            raise KeyboardInterrupt

    source = opened()
    fill(source)
    with pytest.raises(KeyboardInterrupt):
        export(source, tmp_path / "out.sqlite", on_entries=fail)
    assert not (tmp_path / "out.sqlite").exists()
    assert export(source, tmp_path / "out.sqlite") == 700


def test_redis_to_a_file_to_another_redis(redis_server, opened, tmp_path):
    from kompakt.compressor.store.redis import RedisStore

    with RedisStore(f"{redis_server.url}?db=1") as first, RedisStore(f"{redis_server.url}?db=2") as second:
        fill(first)
        fill(first, {key(801): b"short"}, expires_at=LATER)
        spoil(first, 100)
        assert export(first, tmp_path / "out.sqlite") == 700
        assert copy_entries(opened("out.sqlite"), second) == 700
        assert values(second) == ITEMS | {key(100): None}
        assert verify(second) == VerifyReport(700, 0, (), ())
        with redis_server.client() as client:
            client.select(2)
            assert abs(client.pexpiretime(b"kompakt:" + key(801)) / 1000 - LATER) < 0.01
            assert client.pexpiretime(b"kompakt:" + key(1)) == -1
