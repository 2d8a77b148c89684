"""The state: what is read again, what is live, what was in work at a death, and files that are torn or foreign."""

import os
import sqlite3
from pathlib import Path

import pytest

from kompakt.compressor.errors import InputError, StoreError
from kompakt.retrieval.corpus.ledger import DocumentRow, Failure, FileProgress, PassedOver, Work
from kompakt.retrieval.corpus.readers import SourceFile
from kompakt.retrieval.corpus.state import STATE_FILE, State


@pytest.fixture
def folder(tmp_path):
    return tmp_path


@pytest.fixture
def state(folder):
    made = State.open(folder, create=True)
    made.begin_run()
    yield made
    made.close()


def source(name, n_bytes=10, modified_ns=1):
    return SourceFile(Path("/corpus") / name, name, n_bytes, modified_ns)


def row(name, file="a.jsonl", position=0, *, reading=1, status="ok", text=b"t", n=2):
    reason = "" if status == "ok" else f"{name} is bad"
    return DocumentRow(name, file, position, reading, b"h" + text, text, status, reason, n, 100, 40, 20)


def done(n_records=1, digest="sha"):
    return FileProgress(n_records, n_records, 5, digest, is_done=True)


def pending(state):
    found, after = [], -1
    while (file := state.pending(after)) is not None:
        found.append(file.file.name)
        after = file.ordinal
    return found


def test_files_are_read_in_the_order_of_the_corpus(state):
    state.scan(source(name) for name in ("b.txt", "a.txt", "c.txt"))
    assert pending(state) == ["b.txt", "a.txt", "c.txt"]
    state.scan(source(name) for name in ("c.txt", "b.txt", "a.txt"))
    assert pending(state) == ["c.txt", "b.txt", "a.txt"]


def test_a_file_that_was_read_is_read_again_if_size_or_time_differ(state):
    names = ["a.txt", "b.txt", "c.txt"]
    state.scan(map(source, names))
    state.checkpoint(Work(files={name: done() for name in names}), 1.0)
    assert pending(state) == []
    assert state.files() == (3, 30)
    state.scan([source("a.txt"), source("b.txt", n_bytes=11), source("c.txt", modified_ns=2)])
    assert pending(state) == ["b.txt", "c.txt"]
    again = state.pending(-1)
    assert again.is_known
    assert again.progress == FileProgress(0, 0, 0, "sha")
    assert again.reading == 2


def test_a_file_that_was_read_in_part_is_read_on_unless_it_changed(state):
    state.scan([source("a.jsonl")])
    state.checkpoint(Work(files={"a.jsonl": FileProgress(7, 5, 6, "sha")}), 1.0)
    state.scan([source("a.jsonl")])
    assert state.pending(-1).progress == FileProgress(7, 5, 6, "sha")
    assert state.pending(-1).reading == 1
    assert state.bytes_of_run() == (6, 10)
    state.scan([source("a.jsonl", modified_ns=2)])
    assert state.pending(-1).progress == FileProgress(0, 0, 0, "sha")
    assert state.pending(-1).reading == 3
    assert not state.pending(-1).is_known


def test_names_and_paths_need_not_be_ascii(state):
    path = Path(os.fsdecode(b"/corpus/\xff.txt"))
    state.scan([SourceFile(path, "Ä\\xff.txt", 1, 1)])
    assert state.pending(-1).file == SourceFile(path, "Ä\\xff.txt", 1, 1)


def test_an_empty_corpus_is_an_error_and_changes_nothing(state):
    state.scan([source("a.txt")])
    state.checkpoint(Work(documents=[row("d", "a.txt")], files={"a.txt": done()}), 1.0)
    with pytest.raises(InputError, match="no file"):
        state.scan([])
    assert state.find("d").is_live


def test_a_document_is_live_until_its_file_is_gone_or_read_anew(state):
    state.scan([source("a.jsonl"), source("b.jsonl")])
    work = Work(documents=[row("d", "a.jsonl", 3), row("e", "b.jsonl")])
    work.files = {"a.jsonl": done(), "b.jsonl": done()}
    state.checkpoint(work, 1.0)
    assert state.find("d") == (b"ht", "ok", "a.jsonl", 3, True)
    assert state.find("x") is None
    state.scan([source("a.jsonl", modified_ns=2)])
    assert not state.find("d").is_live
    assert not state.find("e").is_live
    assert sorted(state.vanished(9)) == ["d", "e"]
    # found again, at another place
    state.checkpoint(Work(unchanged=[("a.jsonl", 0, 2, "d")], files={"a.jsonl": done()}), 1.0)
    assert state.find("d") == (b"ht", "ok", "a.jsonl", 0, True)
    assert state.vanished(9) == ["e"]
    state.forget(["e"])
    state.forget_files()
    assert (state.vanished(9), state.run()["n_deleted"]) == ([], 1)


def test_equal_content_makes_the_documents_of_a_touched_file_live_again(state):
    state.scan([source("a.jsonl")])
    state.checkpoint(Work(documents=[row("d")], files={"a.jsonl": done()}), 1.0)
    state.scan([source("a.jsonl", modified_ns=2)])
    state.keep_reading("a.jsonl")
    assert state.find("d").is_live
    assert pending(state) == []
    state.scan([source("a.jsonl", modified_ns=2)])
    assert pending(state) == []


def test_a_file_that_lost_a_document_to_another_is_not_left_alone(state):
    state.scan([source("a.jsonl"), source("b.jsonl")])
    state.checkpoint(Work(files={"a.jsonl": done(), "b.jsonl": done()}), 1.0)
    state.scan([source("a.jsonl", modified_ns=2), source("b.jsonl", modified_ns=2)])
    state.checkpoint(Work(files={"a.jsonl": done()}, robbed={"b.jsonl"}), 1.0)
    assert not state.pending(-1).is_known


def test_totals_follow_every_change(state):
    state.scan([source("a.jsonl")])
    over = [PassedOver("a.jsonl", 5, 1, "a", ""), PassedOver("a.jsonl", 6, 1, "", "broken")]
    state.checkpoint(Work(documents=[row("a"), row("b", position=1)], passed_over=over), 1.0)
    assert state.totals()["ok"] == {
        "n": 2,
        "n_segments": 4,
        "n_bytes": 200,
        "tokens_before": 80,
        "tokens_after": 40,
    }
    assert (state.totals()["duplicate"]["n"], state.totals()["unreadable"]["n"]) == (1, 1)
    over = [PassedOver("a.jsonl", 5, 1, "a", "conflict")]
    state.checkpoint(Work(documents=[row("a", n=7), row("b", position=1, status="quarantined")], passed_over=over), 1)
    assert (state.totals()["ok"]["n"], state.totals()["ok"]["n_segments"]) == (1, 7)
    assert state.totals()["quarantined"]["n"] == 1
    assert (state.totals()["duplicate"]["n"], state.totals()["unreadable"]["n"]) == (0, 2)
    state.forget(["a", "b"])
    assert {sums["n"] for status, sums in state.totals().items() if status in ("ok", "quarantined")} == {0}


def test_failures_come_in_the_order_of_the_corpus(state):
    over = [PassedOver("a.jsonl", 6, 1, "", "broken"), PassedOver("a.jsonl", 1, 1, "x", "")]
    work = Work(documents=[row("d", "b.jsonl", 2, status="quarantined"), row("e")], passed_over=over)
    work.documents.append(row("c", "a.jsonl", 10, status="quarantined"))
    state.checkpoint(work, 1.0)
    assert list(state.failures()) == [
        Failure("a.jsonl", 6, "", "broken"),
        Failure("a.jsonl", 10, "c", "c is bad"),
        Failure("b.jsonl", 2, "d", "d is bad"),
    ]


def test_runs_are_numbered_and_say_what_they_changed(state):
    state.scan([source("a.jsonl")])
    state.begin_run()
    state.checkpoint(Work(documents=[row("a"), row("b"), row("c")], n_stored=1, n_compressed=5), 1.5)
    state.checkpoint(Work(n_compressed=5), 2.0)
    run = state.run()
    assert (run["number"], run["seconds"], run["n_stored"], run["n_compressed"]) == (1, 3.5, 1, 10)
    assert run["finished"] is None
    state.finish_run()
    assert state.run()["finished"] >= run["started"]
    assert state.changes() == {"added": 3, "changed": 0, "unchanged": 0}
    state.begin_run()
    state.checkpoint(Work(documents=[row("a", text=b"u"), row("d")]), 1.0)
    assert state.run()["number"] == 2
    assert state.changes() == {"added": 1, "changed": 1, "unchanged": 2}
    assert state.n_equal_texts() == 2  # of b, c and d


def test_the_digest_tells_documents_hashes_and_segments_apart(tmp_path):
    def digest(name, documents):
        (tmp_path / name).mkdir()
        state = State.open(tmp_path / name, create=True)
        for document in documents:
            state.checkpoint(Work(documents=[document]), 1.0)
        found = state.digest()
        state.close()
        return found

    one = digest("1", [row("a"), row("b", "b.jsonl", 7)])
    assert digest("2", [row("b", "x.jsonl", 1), row("a", reading=9)]) == one
    others = [[row("a")], [row("a"), row("c")], [row("a"), row("b", n=3)], [row("a"), row("b", text=b"z")]]
    digests = {digest(f"other{index}", other) for index, other in enumerate(others)}
    assert len(digests | {one}) == 5


def test_what_was_in_work_is_known_after_a_death(state, folder):
    state.begin(["a", "b"], is_alone=False, survived=[])
    state.begin(["c"], is_alone=True, survived=["a"])
    state.begin(["c"], is_alone=True, survived=[])
    # another connection sees what a process that died had written
    other = State.open(folder)
    assert other.attempts() == {"b": 0, "c": 2}
    other.close()
    state.withdraw(["c"], is_alone=True)
    assert state.attempts() == {"b": 0, "c": 1}
    state.withdraw(["b"], is_alone=False)
    state.withdraw(["c"], is_alone=True)
    assert state.attempts() == {}


def test_a_checkpoint_clears_what_survived(state):
    state.begin(["a", "b"], is_alone=False, survived=[])
    state.checkpoint(Work(survived=["a"]), 1.0)
    assert state.attempts() == {"b": 0}
    state.finish_run()
    assert state.attempts() == {}


def test_files_with_another_copy_are_read_again(state):
    names = ("a.jsonl", "b.jsonl", "c.jsonl")
    state.scan(map(source, names))
    work = Work(documents=[row("d"), row("e", position=1)], files={name: done() for name in names})
    work.passed_over = [PassedOver("b.jsonl", 0, 1, "d", ""), PassedOver("c.jsonl", 0, 1, "e", "")]
    state.checkpoint(work, 1.0)
    assert state.read_again() == 0
    state.finish_run()
    state.begin_run()
    state.scan([source("a.jsonl", modified_ns=2), *map(source, names[1:])])
    state.checkpoint(Work(unchanged=[("a.jsonl", 0, 2, "e")], files={"a.jsonl": done()}), 1.0)
    # d is no longer in a.jsonl
    assert state.read_again() == 1
    assert pending(state) == ["b.jsonl"]
    assert state.read_again() == 0


def test_retrying_forgets_failures_and_reads_their_files(state):
    names = ("a.jsonl", "b.jsonl", "c.jsonl")
    state.scan(map(source, names))
    work = Work(documents=[row("d", status="quarantined"), row("e", "b.jsonl"), row("f", "c.jsonl")])
    work.passed_over = [PassedOver("c.jsonl", 1, 1, "", "broken"), PassedOver("b.jsonl", 1, 1, "d", "")]
    work.files = {name: done() for name in names}
    state.checkpoint(work, 1.0)
    assert state.retry() == 2
    assert pending(state) == ["a.jsonl", "c.jsonl"]
    assert list(state.failures()) == []
    assert state.find("d") is None


def test_a_change_that_fails_is_undone(state):
    state.scan([source("a.jsonl")])
    bad = row("b")._replace(n_segments=None)
    with pytest.raises(StoreError, match=STATE_FILE):
        state.checkpoint(Work(documents=[row("a"), bad], files={"a.jsonl": done()}), 1.0)
    assert state.find("a") is None
    assert pending(state) == ["a.jsonl"]
    assert state.totals()["ok"]["n"] == 0


@pytest.mark.parametrize("n_bytes", [0, 100, 4096])
def test_what_a_kill_leaves_of_a_state_that_is_made_does_no_harm(folder, n_bytes):
    State.open(folder, create=True).close()
    whole = (folder / STATE_FILE).read_bytes()
    (folder / STATE_FILE).unlink()
    (folder / f".{STATE_FILE}.new").write_bytes(whole[:n_bytes])
    (folder / f".{STATE_FILE}.new-wal").write_bytes(b"torn")
    with pytest.raises(StoreError, match="no corpus job"):
        State.open(folder)
    made = State.open(folder, create=True)
    assert made.settings() == {}
    made.close()
    assert [path.name for path in folder.iterdir()] == [STATE_FILE]


def test_there_must_be_a_state_to_open(folder):
    with pytest.raises(StoreError, match="no corpus job"):
        State.open(folder)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"torn" * 1000, b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_torn_state_is_an_error(folder, content):
    (folder / STATE_FILE).write_bytes(content)
    with pytest.raises(StoreError, match=STATE_FILE):
        State.open(folder)


def test_the_database_of_another_program_is_an_error(folder):
    other = sqlite3.connect(folder / STATE_FILE)
    other.execute("CREATE TABLE t (x)")
    other.close()
    for create in (False, True):
        with pytest.raises(StoreError, match="not the state"):
            State.open(folder, create=create)


def test_the_state_of_a_newer_kompakt_is_an_error(state, folder):
    state._rows("PRAGMA user_version = 99")
    with pytest.raises(StoreError, match="schema 99"):
        State.open(folder)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 0.95])
def test_a_torn_log_costs_the_last_changes_alone(folder, tmp_path, share):
    state = State.open(folder, create=True)
    state.begin_run()
    state.scan([source("a.jsonl")])
    for index in range(50):
        files = {"a.jsonl": FileProgress(index + 1, index + 1, 0, "")}
        state.checkpoint(Work(documents=[row(f"d{index:02}", position=index)], files=files), 1.0)
    torn = tmp_path / "torn"
    torn.mkdir()
    log = (folder / f"{STATE_FILE}-wal").read_bytes()
    (torn / STATE_FILE).write_bytes((folder / STATE_FILE).read_bytes())
    (torn / f"{STATE_FILE}-wal").write_bytes(log[: int(len(log) * share)])
    state.close()
    copied = State.open(torn, create=True)
    rows = copied._rows("SELECT id FROM documents ORDER BY id")
    assert rows == [(f"d{index:02}",) for index in range(len(rows))]
    assert len(rows) < 50
    position = copied._rows("SELECT position FROM files")
    assert position in ([], [(len(rows),)])
    assert copied.totals()["ok"]["n"] == len(rows)
    copied.close()
