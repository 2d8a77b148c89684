import csv
import dataclasses
import json
import math

import pytest

from kompakt.compressor.errors import InputError
from kompakt.compressor.evaluation.output import write_outputs
from kompakt.compressor.evaluation.summary import (
    Cell,
    Difference,
    Estimate,
    GridCell,
    Latency,
    Method,
    ShownExample,
    Summary,
    TaskInfo,
)

STAMP = {"processor": "a, b", "commit": "abc+", "seed": "7"}
FOUND = Estimate(1 / 3, 0.1, 0.5, 12)


def cell(task="qa", **changes):
    made = Cell(task, "lexical", 0.25, 12, 0.24999, {"answer_recall": FOUND}, seconds=0.123456, n_over_budget=1)
    return dataclasses.replace(made, **changes)


def summary(*cells, **changes):
    made = Summary(
        "T",
        STAMP,
        (TaskInfo("qa", "QA", "answers", 12, ("length", "depth")),),
        (Method("lexical", "kompakt", "words"), Method("rival", "peer")),
        {"answer_recall": "share"},
        cells or (cell(), cell("", n_invalid=2, n_checked=3)),
        (Difference("", "lexical", "rival", 0.25, "answer_recall", FOUND),),
        (Latency("lexical", 100, 0.5),),
        (GridCell("qa", "lexical", 0.25, 100, 0.5, "answer_recall", FOUND),),
        (ShownExample("qa", "q1", "Who?", ("me",), ()),),
    )
    return dataclasses.replace(made, **changes)


def table(folder):
    with (folder / "summary.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def refuse(constant):
    raise AssertionError(f"{constant} is not JSON")


def content(folder):
    return json.loads((folder / "summary.json").read_text(encoding="utf-8"), parse_constant=refuse)


def test_three_files_are_written(tmp_path):
    files = write_outputs(summary(), tmp_path)
    assert [file.name for file in files] == ["summary.json", "summary.csv", "report.html"]
    assert all(file.parent == tmp_path and file.stat().st_size for file in files)
    assert (tmp_path / "report.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_the_json_holds_the_summary_without_what_the_rows_have(tmp_path):
    write_outputs(summary(), tmp_path)
    found = content(tmp_path)
    assert found["stamp"] == STAMP
    assert found["cells"][0]["estimates"]["answer_recall"] == {"mean": 1 / 3, "low": 0.1, "high": 0.5, "n": 12}
    assert found["differences"][0]["against"] == "rival"
    assert found["grid"][0]["y"] == 0.5
    assert {"examples", "latencies"}.isdisjoint(found)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_json_cannot_say_is_null(tmp_path, value):
    odd = cell(seconds=value, estimates={"answer_recall": Estimate(value, -1, 1, 3)})
    write_outputs(summary(odd), tmp_path)
    found = content(tmp_path)["cells"][0]
    assert found["seconds"] is None
    assert found["estimates"]["answer_recall"] == {"mean": None, "low": -1, "high": 1, "n": 3}


def test_every_line_of_the_table_carries_the_stamp(tmp_path):
    write_outputs(summary(), tmp_path)
    lines = table(tmp_path)
    assert [line["task"] for line in lines] == ["qa", "mean over tasks"]
    for line in lines:
        assert {name: line[name] for name in STAMP} == STAMP
        assert (line["method"], line["role"], line["keep"], line["kept"]) == ("lexical", "kompakt", "0.25", "0.25")
        assert [line[name] for name in ("metric", "mean", "low", "high", "n")] == [
            "answer_recall", "0.3333", "0.1", "0.5", "12",
        ]  # fmt: skip
        assert (line["n_over_budget"], line["seconds"]) == ("1", "0.1235")
    assert (lines[1]["n_invalid"], lines[1]["n_checked"]) == ("2", "3")


def test_a_line_for_each_metric_and_blanks_for_what_was_not_measured(tmp_path):
    odd = cell(seconds=math.nan, estimates={"f1": FOUND, "answer_recall": FOUND})
    write_outputs(summary(odd), tmp_path)
    lines = table(tmp_path)
    assert [line["metric"] for line in lines] == ["f1", "answer_recall"]
    assert {line["seconds"] for line in lines} == {""} == {line["tokens_per_second"] for line in lines}


def test_a_method_that_only_failed_stands_in_the_table(tmp_path):
    write_outputs(summary(cell(method="rival", estimates={}, n_failed=12, seconds=math.nan)), tmp_path)
    [line] = table(tmp_path)
    assert (line["method"], line["n_failed"], line["metric"], line["mean"], line["n"]) == ("rival", "12", "", "", "0")


def test_text_without_an_encoding_is_written_all_the_same(tmp_path):
    odd = cell(n_failed=1, failure="E: \ud83d")
    write_outputs(summary(odd, stamp={"reader": "mod\udcffel"}), tmp_path)
    assert content(tmp_path)["cells"][0]["failure"] == "E: \ud83d"
    assert table(tmp_path)[0]["reader"] == "mod\\udcffel"


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(InputError, match=r"cannot write into .*gone: No such file"):
        write_outputs(summary(), tmp_path / "gone")
