"""Damaged files and values: misses and a log line, never wrong values and never an exception."""

import logging

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from kompakt.compressor.store.maintenance import verify
from kompakt.compressor.store.places import open_store
from kompakt.compressor.store.sqlite import SQLiteStore
from kompakt.compressor.store.tiered import TieredStore

ITEMS = {bytes([n]) * 32: bytes([n]) * (n * 37 % 700) for n in range(1, 60)}


@pytest.fixture(scope="module")
def whole_file(tmp_path_factory):
    """A store's file with ``ITEMS``."""
    path = tmp_path_factory.mktemp("whole") / "store.sqlite"
    with TieredStore(SQLiteStore(path)) as store:
        store.put_many(ITEMS)
        store.put_many({bytes(32): b"later"}, expires_at=4e9)
    return path


def assert_damage_is_a_miss(path, caplog):
    """Nothing is raised, nothing is wrong, and what is damaged is said once."""
    caplog.clear()
    with caplog.at_level(logging.WARNING), open_store(path) as store:
        found = store.get_many(list(ITEMS))
        assert all(value in (None, right) for value, right in zip(found, ITEMS.values(), strict=True))
        store.put_many({b"n" * 32: b"new"})
        assert store.get_many([b"n" * 32]) == [b"new"]
    # one of a file that cannot be used or of its pages, and one of a value
    assert len(caplog.records) <= 2, caplog.text
    return found


@given(st.one_of(st.integers(0, 799), st.integers(0, 1 << 23)))
@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_flipped_bit_in_the_file_is_a_miss(whole_file, tmp_path, caplog, position):
    damaged = bytearray(whole_file.read_bytes())
    damaged[position // 8 % len(damaged)] ^= 1 << position % 8
    assert_damage_is_a_miss(fresh(tmp_path, bytes(damaged)), caplog)


@given(st.integers(2, 1 << 20))
@example(2)
@example(100)
@example(4096)
@example(4097)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_file_cut_short_is_a_miss_and_said(whole_file, tmp_path, caplog, length):
    # a single byte is an empty file to SQLite
    content = whole_file.read_bytes()
    found = assert_damage_is_a_miss(fresh(tmp_path, content[: length % len(content) or 2]), caplog)
    assert caplog.records or None not in found


@given(st.integers(0, 1 << 20), st.integers(1, 20_000), st.binary(min_size=1, max_size=8))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_file_that_was_written_over_is_a_miss(whole_file, tmp_path, caplog, start, length, pattern):
    damaged = bytearray(whole_file.read_bytes())
    start %= len(damaged)
    patch = (pattern * length)[: min(length, len(damaged) - start)]
    damaged[start : start + len(patch)] = patch
    assert_damage_is_a_miss(fresh(tmp_path, bytes(damaged)), caplog)


def fresh(folder, content):
    for file in folder.glob("damaged.sqlite*"):
        file.unlink()
    path = folder / "damaged.sqlite"
    path.write_bytes(content)
    return path


@given(st.data())
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_flipped_bit_in_a_value_is_a_miss_and_one_log_line(tmp_path, caplog, data):
    path = fresh(tmp_path, b"")
    bare = SQLiteStore(path)
    with TieredStore(bare) as store:
        store.put_many(ITEMS)
    doomed = data.draw(st.lists(st.sampled_from(list(ITEMS)), min_size=1, max_size=5, unique=True))
    for name, sealed in zip(doomed, bare.get_many(doomed), strict=True):
        position = data.draw(st.integers(0, 8 * len(sealed) - 1))
        damaged = bytearray(sealed)
        damaged[position // 8] ^= 1 << position % 8
        bare.put_many({name: bytes(damaged)})
    assert set(verify(bare).damaged) == set(doomed)
    bare.close()
    found = assert_damage_is_a_miss(path, caplog)
    assert found == [None if name in doomed else value for name, value in ITEMS.items()]
    assert len(caplog.records) == 1
    assert "damaged" in caplog.text
    assert "kompakt store verify" in caplog.text
    # to compute it again mends it
    with TieredStore(SQLiteStore(path)) as store:
        store.put_many({name: ITEMS[name] for name in doomed})
        assert verify(store.back).is_sound


def test_an_empty_file_is_an_empty_store(tmp_path, caplog):
    path = fresh(tmp_path, b"")
    with open_store(path) as store:
        assert store.get_many(list(ITEMS)) == [None] * len(ITEMS)
        store.put_many(ITEMS)
    with open_store(path) as store:
        assert store.get_many(list(ITEMS)) == list(ITEMS.values())
    assert not caplog.records
