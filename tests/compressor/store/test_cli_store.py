"""``kompakt store``."""

import json
import sqlite3
import time

import pytest
from command_line import Ran, assert_one_error

from kompakt.compressor.store.envelope import seal
from kompakt.compressor.store.sqlite import SQLiteStore
from kompakt.compressor.store.tiered import TieredStore

ITEMS = {n.to_bytes(32, "big"): n.to_bytes(2, "big") * (n % 90) for n in range(500)}
KEYS = list(ITEMS)


@pytest.fixture
def path(tmp_path):
    found = tmp_path / "store.sqlite"
    with TieredStore(SQLiteStore(found)) as store:
        store.put_many(ITEMS)
        store.put_many({b"o" * 32: b"over"}, expires_at=time.time() - 10)
    return found


def values(path):
    with TieredStore(SQLiteStore(path)) as store:
        return dict(zip(ITEMS, store.get_many(KEYS), strict=True))


def spoil(path, *numbers):
    with SQLiteStore(path) as store:
        store.put_many({KEYS[n]: b"damaged and long enough for a header" for n in numbers})


def test_stats(path):
    ran = Ran(["store", "stats", path])
    assert ran.status == 0
    assert ran.err == ""
    assert all(word in ran.out for word in (path.name, "501", "10,737,418,240"))
    found = json.loads(Ran(["store", "stats", path, "--json"]).out)
    assert found.keys() == {"location", "n_entries", "n_bytes", "max_bytes"}
    assert found["location"] == str(path)
    assert found["n_entries"] == 501
    assert found["max_bytes"] == 10 * 2**30
    assert 0 < found["n_bytes"] < path.stat().st_size


def test_the_default_store_is_the_one_in_the_cache(path, empty_cache):
    ran = Ran(["store", "stats"])
    assert_one_error(ran, 2, "there is no store", str(empty_cache / "segments.sqlite"))
    assert not empty_cache.exists()
    assert Ran(["store", "import", path]).out.startswith("500 entries read into")
    assert json.loads(Ran(["store", "stats", "--json"]).out)["n_entries"] == 500
    assert "500 entries" in Ran(["store", "verify"]).out


def test_verify_a_sound_store(path):
    ran = Ran(["store", "verify", path])
    assert (ran.status, ran.out, ran.err) == (0, "501 entries, 1 expired, 0 damaged\n", "")
    assert Ran(["store", "verify", "--repair", path]).out == ran.out


def test_damaged_entries_are_an_error_until_they_are_removed(path):
    spoil(path, 3, 100)
    ran = Ran(["store", "verify", path])
    assert ran.status == 2
    assert ran.out == "501 entries, 1 expired, 2 damaged\n"
    assert ran.err == f"error: {path} is damaged; mend it with: kompakt store verify --repair {path}\n"
    ran = Ran(["store", "verify", "--repair", path])
    assert (ran.status, ran.err) == (0, "")
    assert ran.out.endswith("2 damaged entries removed\n")
    assert Ran(["store", "verify", path]).out == "499 entries, 1 expired, 0 damaged\n"
    assert values(path) == ITEMS | {KEYS[3]: None, KEYS[100]: None}


def test_a_file_with_zeros_in_the_middle_is_salvaged(path, tmp_path):
    n_pages = path.stat().st_size // 4096
    with path.open("r+b") as file:
        file.seek(n_pages // 2 * 4096)
        file.write(bytes(2 * 4096))
    ran = Ran(["store", "verify", path])
    assert ran.status == 2
    assert "the file: " in ran.out
    ran = Ran(["store", "verify", "--repair", path])
    assert (ran.status, ran.err) == (0, "")
    assert "entries were readable and are in the new file; the damaged one is" in ran.out
    assert len(list(tmp_path.glob("store.sqlite.damaged-*"))) == 1
    ran = Ran(["store", "verify", path])
    assert (ran.status, ran.err) == (0, "")
    left = values(path)
    assert all(value in (None, ITEMS[key]) for key, value in left.items())
    assert list(left.values()).count(None) < 150


def test_gc(path, tmp_path):
    ran = Ran(["store", "gc", path])
    assert (ran.status, ran.out, ran.err) == (0, "1 entries removed\n", "")
    assert Ran(["store", "gc", path]).out == "0 entries removed\n"
    assert values(path) == ITEMS
    with SQLiteStore(path) as store:
        store.delete_many(KEYS[10:])
    large = path.stat().st_size
    Ran(["store", "gc", path])
    assert path.stat().st_size < large


def test_export_and_import(path, tmp_path):
    spoil(path, 7)
    out, other = tmp_path / "out.sqlite", tmp_path / "other" / "new.sqlite"
    ran = Ran(["store", "export", out, path])
    assert (ran.status, ran.out, ran.err) == (0, f"499 entries written to {out}\n", "")
    assert_one_error(Ran(["store", "export", out, path]), 2, "exists")
    ran = Ran(["store", "import", out, other])
    assert (ran.status, ran.out, ran.err) == (0, f"499 entries read into {other}\n", "")
    assert values(other) == ITEMS | {KEYS[7]: None}


def test_import_leaves_out_what_is_damaged_or_over(path, tmp_path):
    spoil(path, 1, 2, 3)
    other = tmp_path / "new.sqlite"
    assert Ran(["store", "import", path, other]).out == f"497 entries read into {other}\n"
    assert Ran(["store", "verify", other]).out == "497 entries, 0 expired, 0 damaged\n"


@pytest.mark.parametrize("command", ["stats", "verify", "gc", "export"])
def test_a_store_that_is_not_there_is_an_error_and_is_not_made(tmp_path, command):
    arguments = [tmp_path / "out.sqlite"] if command == "export" else []
    ran = Ran(["store", command, *arguments, tmp_path / "none.sqlite"])
    assert_one_error(ran, 2, "there is no store", "none.sqlite")
    assert list(tmp_path.iterdir()) == []


def test_a_file_to_import_that_is_not_there(tmp_path):
    assert_one_error(Ran(["store", "import", tmp_path / "none", tmp_path / "a.sqlite"]), 2, "there is no file")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [["stats"], ["verify"], ["verify", "--repair"], ["gc"], ["export", "OUT"]])
def test_the_database_of_another_program_is_refused_and_untouched(tmp_path, arguments):
    theirs = tmp_path / "theirs.sqlite"
    with sqlite3.connect(theirs) as other:
        other.execute("CREATE TABLE entries (key, value)")
    other.close()
    before = theirs.read_bytes()
    given = [str(tmp_path / "out.sqlite") if word == "OUT" else word for word in arguments]
    assert_one_error(Ran(["store", *given, theirs]), 2, "another program")
    assert theirs.read_bytes() == before
    assert not (tmp_path / "out.sqlite").exists()


def test_the_database_of_another_program_is_neither_source_nor_target(path, tmp_path):
    theirs = tmp_path / "theirs.sqlite"
    with sqlite3.connect(theirs) as other:
        other.execute("CREATE TABLE entries (key, value)")
    other.close()
    before = theirs.read_bytes()
    assert_one_error(Ran(["store", "import", theirs, path]), 2, "another program")
    assert_one_error(Ran(["store", "import", path, theirs]), 2, "another program")
    assert theirs.read_bytes() == before
    assert values(path) == ITEMS


def test_a_file_that_is_no_database(tmp_path):
    notes = tmp_path / "notes.md"
    notes.write_text("notes " * 1000)
    for command in ("stats", "gc"):
        assert_one_error(Ran(["store", command, notes]), 2, "cannot be used")
    ran = Ran(["store", "verify", notes])
    assert ran.status == 2
    assert "the file: file is not a database" in ran.out
    assert_one_error(Ran(["store", "import", notes, tmp_path / "new.sqlite"]), 2, "cannot be used")
    assert notes.read_text() == "notes " * 1000


@pytest.mark.parametrize(("location", "words"), [
    ("memory", "ends with its process"), ("http://a.org", "no store at"), ("", "is a folder"),
])  # fmt: skip
def test_what_is_no_place_for_a_store(path, location, words):
    for arguments in (["stats", location], ["import", path, location]):
        assert_one_error(Ran(["store", *arguments]), 2, words)


def test_a_folder_is_no_store(tmp_path):
    assert_one_error(Ran(["store", "stats", tmp_path]), 2, "is a folder")


def test_redis_to_a_file_to_another_redis(redis_server, tmp_path):
    from kompakt.compressor.store.redis import RedisStore

    first, second = (f"{redis_server.url}?db={number}" for number in (1, 2))
    with TieredStore(RedisStore(first)) as store:
        store.put_many(ITEMS)
    out = tmp_path / "out.sqlite"
    assert Ran(["store", "export", out, first]).out == f"500 entries written to {out}\n"
    assert Ran(["store", "import", out, second]).out == f"500 entries read into {second}\n"
    with TieredStore(RedisStore(second)) as store:
        assert store.get_many(KEYS) == list(ITEMS.values())
        store.back.put_many({KEYS[0]: seal(KEYS[1], b"of another")})
    assert Ran(["store", "verify", second]).status == 2
    assert Ran(["store", "verify", "--repair", second]).status == 0
    assert Ran(["store", "gc", second]).out == "0 entries removed\n"
    found = json.loads(Ran(["store", "stats", "--json", second]).out)
    assert (found["n_entries"], found["max_bytes"]) == (499, None)
    assert "as the server is set" in Ran(["store", "stats", second], width=200).out


def test_a_redis_that_is_not_there(tmp_path):
    pytest.importorskip("redis")
    ran = Ran(["store", "stats", f"unix://:geheim@{tmp_path}/none.sock"])
    assert_one_error(ran, 2, "cannot be used", "***")
    assert "geheim" not in ran.err


def test_help_names_the_commands():
    ran = Ran(["store", "--help"])
    assert all(command in ran.out for command in ("stats", "verify", "gc", "export", "import"))
