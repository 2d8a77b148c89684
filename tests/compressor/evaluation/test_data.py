"""Rows are read whole or not at all, and whatever is wrong is named with its file and line."""

import gzip
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kompakt import InputError
from kompakt.compressor.evaluation.data import (
    Record,
    dataset_of,
    name_of,
    read_rows,
    records_of,
    rows_of,
    samples_folder,
)

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc\u00e9", max_size=3), inner, max_size=3),
    max_leaves=5,
)


@pytest.mark.parametrize("ascii_only", [True, False])
@pytest.mark.parametrize("suffix", ["", ".gz"])
@given(rows=st.lists(st.dictionaries(st.text("abc"), values, max_size=3), max_size=4))
def test_rows_come_back(tmp_path_factory, rows, suffix, ascii_only):
    text = "".join(json.dumps(row, ensure_ascii=ascii_only) + "\n" for row in rows).encode()
    path = tmp_path_factory.mktemp("rows") / f"x.jsonl{suffix}"
    path.write_bytes(gzip.compress(text) if suffix else text)
    assert read_rows(path) == rows


def test_blank_lines_a_mark_and_a_missing_newline_do_not_matter(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\r\n  \n{"a": 2}')
    assert read_rows(str(path)) == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[1]", "must be a JSON object"),
        (b'{"a": "\xff"}', "not UTF-8"),
        (b'{"a": "\\ud83d"}', "lone surrogate"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, line, message):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"a": "\\ud83d\\ude00"}\n\n' + line + b"\n")
    with pytest.raises(InputError, match=f"{re.escape(str(path))}, line 3.*{message}"):
        read_rows(path)


@pytest.mark.parametrize(
    "data",
    [b"{}", gzip.compress(b"{}" * 99)[:-9], b"\x1f\x8b\x08" + bytes(30)],
    ids=["not packed", "cut short", "damaged"],
)
def test_a_broken_archive_is_named(tmp_path, data):
    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"cannot unpack .*x\.jsonl\.gz"):
        read_rows(path)


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(InputError, match=r"cannot read .*nothing"):
        read_rows(tmp_path / "nothing.jsonl")
    with pytest.raises(InputError, match=r"cannot read the data folder .*nowhere"):
        rows_of(tmp_path / "nowhere", ["*"])


def test_files_are_found_by_pattern(tmp_path):
    for name in ("b_2.jsonl", "b_1.jsonl", "a.jsonl", "b_3.json", "b_4.txt", "B_5.jsonl"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "b_0.jsonl.gz").write_bytes(gzip.compress(b"{}"))
    assert list(rows_of(tmp_path, ["b_*"])) == ["b_0", "b_1", "b_2"]
    assert list(rows_of(tmp_path, ["b_1", "a*"])) == ["a", "b_1"]
    assert rows_of(tmp_path, ["c*"]) == {}


def test_the_same_name_twice_is_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text("{}")
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b"{}"))
    with pytest.raises(InputError, match="hold the same rows"):
        rows_of(tmp_path, ["a"])


def test_names():
    assert [name_of(name) for name in ("x/a.jsonl", "a.b.jsonl.gz", "a")] == ["a", "a.b", "a"]
    assert dataset_of("rag_sample", Record({}, "")) == "sample"
    assert dataset_of("haystack", Record({"dataset": None}, "")) == "haystack"
    assert dataset_of("rag_sample", Record({"dataset": "own"}, "")) == "own"


def test_places_follow_the_lines(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{}\n\n{"docs": [{}, {"title": 3}]}\n')
    first, second = (record for _, record in records_of({"x": read_rows(path)}))
    assert first.place == f"{path}, line 1"
    with pytest.raises(InputError, match=r"line 3, docs\[1\]: the field 'title' must be a string, got 3"):
        second.records("docs")[1].text("title")
    with pytest.raises(InputError, match=r"line 1: the field 'docs' is missing; found: none"):
        first.records("docs")
    assert [record.place for _, record in records_of({"own": [{}, {}]})] == ["own, row 1", "own, row 2"]


@pytest.mark.parametrize(
    ("read", "value"),
    [("text", None), ("text_or", 1), ("texts", "a"), ("texts", ["a", 1]), ("items", {}), ("records", [{}, 1])],
)
def test_a_field_of_the_wrong_kind_is_named(read, value):
    record = Record({"field": value}, "here")
    arguments = ("field", "") if read == "text_or" else ("field",)
    with pytest.raises(InputError, match="here: the field 'field' must be"):
        getattr(record, read)(*arguments)


def test_blank_answers_are_dropped():
    assert Record({"answers": ["", "a", " "]}, "").texts("answers") == ("a",)


def test_samples_are_small_and_explained():
    files = sorted(samples_folder().iterdir())
    assert sum(file.stat().st_size for file in files) < 250_000
    readme = (samples_folder() / "README.md").read_text("utf-8")
    assert {file.name for file in files} == {"README.md", *re.findall(r"`(\w+\.jsonl)`", readme)}
