import dataclasses
import json
import math

import pytest

from kompakt.compressor.errors import ConfigError, InputError
from kompakt.compressor.evaluation.rows import ResultRow, RunFolder
from kompakt.compressor.inspection import InspectedDocument, Piece, View
from kompakt.compressor.types import Kind

STAMP = {"time": "now", "processor": "a", "commit": "1"}
PIECES = (Piece(0, 3, True, "lexical", 0.5, Kind.CODE), Piece(3, 5, False, "dedup", None, Kind.PROSE))
VIEW = View(
    "lexical", "q?", "compressed", 9, 4, (InspectedDocument("d", "T", "abc\u2028d", PIECES),), "abc", keep=0.5,
    has_answer=True, reader_answer="x", seconds=0.1,
)  # fmt: skip


def row(number=1, **changes):
    made = ResultRow(
        "t", f"e{number}", "d1", "set", "g", {"length": 10.0}, "lexical", 0.5, 5, 10, 4, 12, "compressed"
    )
    return dataclasses.replace(made, **changes)


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path / "deep" / "run")


def again(folder):
    return RunFolder(folder.path)


def test_a_new_folder_has_nothing(folder):
    assert folder.path.is_dir()
    assert (list(folder.rows()), list(folder.views())) == ([], [])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"seconds": 0.1, "metrics": {"f1": 1 / 3, "log_likelihood": -2.5}, "is_valid": False, "stamp": 3},
        {"answer": 'lines\r\nand\u2028"quotes"\u0085\x00', "reason": "雪", "not_read": "too long"},
        {"answer": "half of a pair \ud83d", "example": "\udcff"},
        {"metrics": {"log_likelihood": -math.inf}, "axes": {}},
    ],
)
def test_rows_come_back_as_they_were(folder, changes):
    rows = [row(1, **changes), row(2, **changes, task="other")]
    for one in rows:
        folder.append(one)
    assert list(again(folder).rows()) == rows


def test_views_come_back_as_they_were(folder):
    folder.append(row(), VIEW)
    folder.append(row(2), dataclasses.replace(VIEW, documents=(), has_answer=None))
    assert list(again(folder).views()) == [
        (row().key, VIEW),
        (row(2).key, dataclasses.replace(VIEW, documents=(), has_answer=None)),
    ]
    assert len(list(folder.rows())) == 2


@pytest.mark.parametrize("n_lost", [1, 2, 40])
def test_a_torn_last_line_is_dropped_and_written_anew(folder, n_lost):
    for number in (1, 2, 3):
        folder.append(row(number, answer="雪"), VIEW)
    for name in ("rows.jsonl", "views.jsonl"):
        file = folder.path / name
        file.write_bytes(file.read_bytes()[:-n_lost])
    found = again(folder)
    assert [one.example for one in found.rows()] == ["e1", "e2"]
    assert [key[1] for key, _ in found.views()] == ["e1", "e2"]
    found.append(row(3, answer="雪"), VIEW)
    assert list(found.rows()) == [row(number, answer="雪") for number in (1, 2, 3)]
    assert len(list(found.views())) == 3


def test_a_file_that_is_one_torn_line_becomes_empty(folder):
    (folder.path / "rows.jsonl").write_bytes(b'{"task": "t", ')
    assert list(again(folder).rows()) == []
    assert (folder.path / "rows.jsonl").read_bytes() == b""


def test_each_row_is_read_once_the_first_wins(folder):
    folder.append(row(tokens_after=4))
    folder.append(row(tokens_after=3))
    folder.append(row(keep=0.25))
    assert [(one.keep, one.tokens_after) for one in folder.rows()] == [(0.5, 4), (0.25, 4)]


def test_a_damaged_line_is_named(folder):
    folder.append(row())
    with (folder.path / "rows.jsonl").open("a", encoding="utf-8") as file:
        file.write("{oops}\n")
    with pytest.raises(InputError, match=r"rows\.jsonl, line 2 is damaged"):
        list(again(folder).rows())


def test_the_same_settings_go_on(folder):
    folder.settle({"seed": 1, "reader": None, "keeps": (1, 2)}, STAMP)
    again(folder).settle({"seed": 1, "reader": None, "keeps": (1, 2)}, STAMP)
    assert json.loads((folder.path / "run.json").read_text(encoding="utf-8"))["settings"]["keeps"] == [1, 2]


@pytest.mark.parametrize(("name", "value"), [("seed", 2), ("reader", None), ("method lexical", "def")])
def test_what_differs_is_named(folder, name, value):
    settings = {"seed": 1, "reader": {"fingerprint": "x"}, "method lexical": "abc"}
    folder.settle(settings, STAMP)
    before = (folder.path / "run.json").read_bytes()
    with pytest.raises(ConfigError, match=f"{name} = .*not {value!r}; give another folder"):
        again(folder).settle(settings | {name: value}, STAMP)
    assert (folder.path / "run.json").read_bytes() == before


def test_further_methods_may_come_and_none_is_forgotten(folder):
    folder.settle({"method a": "1"}, STAMP)
    again(folder).settle({"method b": "2"}, STAMP)
    with pytest.raises(ConfigError, match="method a = '1'"):
        again(folder).settle({"method a": "3"}, STAMP)


def test_a_stamp_is_added_if_more_than_the_time_differs(folder):
    folder.settle({}, STAMP)
    numbers = []
    for stamp in (STAMP | {"time": "later"}, STAMP | {"commit": "2"}, STAMP | {"commit": "2", "time": "x"}, STAMP):
        found = again(folder)
        found.settle({}, stamp)
        numbers.append(found.stamp)
    assert numbers == [0, 1, 1, 2]
    stamps = json.loads((folder.path / "run.json").read_text(encoding="utf-8"))["stamps"]
    assert [(one["commit"], one["time"]) for one in stamps] == [("1", "now"), ("2", "now"), ("1", "now")]


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"settings": 3, "stamps": []}'])
def test_a_damaged_record_is_named(folder, content):
    (folder.path / "run.json").write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=r"run\.json is not the record of a run"):
        folder.settle({}, STAMP)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot use .*file"):
        RunFolder(tmp_path / "file")
