"""The tables of the file: other programs' files, newer ones, and tables that were tampered with."""

import logging
import sqlite3
from contextlib import suppress

import pytest

from kompakt.compressor.errors import ConfigError, StoreError


def key(n):
    return n.to_bytes(32, "big")


def other_database(path, *, application_id=0, tables=True, version=0):
    with sqlite3.connect(path) as made:
        made.execute(f"PRAGMA application_id = {application_id}")
        made.execute(f"PRAGMA user_version = {version}")
        if tables:
            made.execute("CREATE TABLE entries (key TEXT, value TEXT)")
            made.execute("INSERT INTO entries VALUES ('their', 'data')")
    made.close()
    return path.read_bytes()


@pytest.mark.parametrize("options", [{}, {"application_id": 7}, {"application_id": 7, "tables": False}])
def test_the_database_of_another_program_is_refused_and_untouched(path, open_at, options):
    before = other_database(path, **options)
    store = open_at()
    for use in (
        lambda: store.get_many([key(1)]),
        lambda: store.put_many({key(1): b"x"}),
        lambda: store.delete_many([key(1)]),
        lambda: list(store.keys()),
        store.stats,
        store.collect_garbage,
        store.check,
    ):
        with pytest.raises(ConfigError, match="database of another program"):
            use()
    store.close()
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def set_header(path, offset, value):
    data = bytearray(path.read_bytes())
    data[offset : offset + len(value)] = value
    path.write_bytes(data)


def test_the_file_of_a_newer_kompakt_is_refused_and_untouched(path, open_at):
    open_at().put_many({key(1): b"x"})
    with open_at() as store:
        store.get_many([key(1)])
    for store in (open_at(), open_at()):
        store.close()
    checkpoint(path)
    set_header(path, 60, (2).to_bytes(4, "big"))
    before = path.read_bytes()
    store = open_at()
    for use in (store.stats, store.check, lambda: store.get_many([key(1)]), lambda: store.put_many({key(1): b""})):
        with pytest.raises(StoreError, match="newer kompakt"):
            use()
    assert path.read_bytes() == before


def checkpoint(path):
    with sqlite3.connect(path) as found:
        found.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    found.close()


def test_a_damaged_number_of_the_program_does_not_hide_the_store(path, open_at):
    with open_at() as store:
        store.put_many({key(1): b"x"})
    set_header(path, 68, b"\xff")
    assert open_at().get_many([key(1)]) == [b"x"]


def test_a_file_that_is_no_database_cannot_be_used(path, open_at):
    path.write_text("notes, and not a database at all. " * 100)
    store = open_at()
    with pytest.raises(StoreError, match=r"store\.sqlite cannot be used"):
        store.get_many([key(1)])
    with pytest.raises(StoreError, match=r"store\.sqlite cannot be used"):
        store.put_many({key(1): b"x"})
    assert store.check() == ["file is not a database"]


def test_one_bad_page_costs_its_own_entries_only(path, open_at, caplog):
    with open_at() as store:
        store.put_many({key(n): bytes([n]) * 3000 for n in range(100)})
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size // 2 // 4096 * 4096)
        file.write(bytes(4096))
    store = open_at()
    with caplog.at_level(logging.WARNING):
        found = store.get_many([key(n) for n in range(100)])
        again = store.get_many([key(n) for n in range(100)])
    assert found == again
    assert all(value in (None, bytes([n]) * 3000) for n, value in enumerate(found))
    assert 0 < found.count(None) < 20
    assert len(caplog.records) == 1
    assert "kompakt store verify --repair" in caplog.text
    assert store.check() != []


@pytest.mark.parametrize("damage", [
    "UPDATE totals SET n_bytes = 'many'", "UPDATE totals SET n_entries = NULL", "DELETE FROM totals",
    "UPDATE totals SET n_bytes = -5", "UPDATE totals SET n_bytes = n_bytes + 1", "UPDATE totals SET n_entries = 0",
    "DROP TABLE totals", "ALTER TABLE entries RENAME TO enteries", "DROP INDEX entries_by_use",
    "DROP TRIGGER entries_added", "ALTER TABLE entries RENAME COLUMN value TO valve",
])  # fmt: skip
def test_tables_that_were_tampered_with_never_break_a_reader_and_are_found(path, open_at, damage):
    with open_at() as store:
        store.put_many({key(1): b"x"})
    with sqlite3.connect(path) as other:
        other.execute(damage)
    other.close()
    store = open_at()
    for use in (
        lambda: store.get_many([key(1)]),
        lambda: store.put_many({key(2): b"y"}),
        store.stats,
        store.collect_garbage,
    ):
        with suppress(StoreError):
            use()
    store.close()
    assert open_at().check() != []


@pytest.mark.parametrize("value", ["NULL", "'text'", "17", "2.5", "CAST(x'ff00ff' AS TEXT)"])
def test_values_of_other_types_are_bytes_to_be_judged_by_their_checksum(path, open_at, value):
    with open_at() as store:
        store.put_many({key(1): b"x", key(2): b"y"})
    with sqlite3.connect(path) as other:
        other.execute("PRAGMA ignore_check_constraints = ON")
        other.execute("PRAGMA writable_schema = ON")
        other.execute("UPDATE sqlite_master SET sql = replace(sql, 'value BLOB NOT NULL', 'value BLOB')")
        other.commit()
    other.close()
    with sqlite3.connect(path) as other:
        other.execute(f"UPDATE entries SET value = {value} WHERE key = ?", [key(1)])
    other.close()
    found, whole = open_at().get_many([key(1), key(2)])
    assert isinstance(found, bytes)
    assert found != b"x"
    assert whole == b"y"
