"""``kompakt compress --jsonl``: a line in, a line out, and no line lost in silence."""

import io
import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kompakt.compressor import cli
from kompakt.compressor.cli_input import read_batches

TEXT = "Rome is old. A cat sat on the mat. The dog ran away."
ARGUMENTS = ["compress", "-c", "lexical", "--jsonl", "--max-tokens", "5", "-q", "How old is Rome?"]


@pytest.fixture
def run(monkeypatch):
    def run(data, *more):
        streams = {"stdin": data, "stdout": b"", "stderr": b""}
        for name, content in streams.items():
            stream = io.TextIOWrapper(io.BytesIO(content), encoding="utf-8", write_through=True)
            monkeypatch.setattr(sys, name, stream)
        status = cli.run([*ARGUMENTS, *map(str, more)])
        out, err = (stream.buffer.getvalue().decode() for stream in (sys.stdout, sys.stderr))
        monkeypatch.undo()
        return status, [json.loads(line) for line in out.splitlines()], err

    return run


def lines(*records):
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def test_every_form_of_a_record(run):
    records = [
        {"text": TEXT, "id": "a"},
        {
            "documents": [TEXT, {"text": "The moon.", "id": "moon", "metadata": {"k": 1}}],
            "query": "What of the moon?",
        },
        {"documents": [], "id": 7},
    ]
    status, rows, err = run(lines(*records))
    assert status == 0
    assert [row["id"] for row in rows] == ["a", 2, 7]
    assert rows[0]["text"] == "Rome is old."
    assert rows[0]["outcome"] == {"status": "compressed", "reason": ""}
    assert rows[1]["documents"][-1] == {"id": "moon", "text": "The moon.", "metadata": {"k": 1}}
    assert all(row["tokens_after"] <= 5 for row in rows)
    assert err.startswith("compressed: ")
    assert err.endswith(", 3 of 3 lines\n")


def test_bad_lines_are_reported_and_others_written(run):
    data = (
        lines({"text": TEXT}) + b"{not json\n\n" + lines({"text": 5}, {"text": TEXT, "id": "z"}) + b'{"text":"\xe9"}'
    )
    status, rows, err = run(data, "--quiet")
    assert status == 2
    assert [row["id"] for row in rows] == [1, "z"]
    told = err.splitlines()
    assert [line[: len("error: line 2")] for line in told[:3]] == ["error: line 2", "error: line 4", "error: line 6"]
    assert told[3:] == ["error: 3 of 5 lines could not be used"]


def test_many_bad_lines_do_not_flood(run):
    status, rows, err = run(b"x\n" * 500, "--quiet")
    assert (status, rows) == (2, [])
    assert len(err.splitlines()) == 11
    assert err.endswith("error: 500 of 500 lines could not be used, the first 10 are shown\n")


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ([1], "list"),
        ("text", "str"),
        ({}, "exactly one"),
        ({"text": "a", "documents": []}, "exactly one"),
        ({"documents": "a"}, "must be a list"),
        ({"documents": [{"txt": "a"}]}, "document"),
        ({"documents": [{"text": "a", "id": 5}]}, '"id"'),
        ({"documents": [{"text": "a", "metadata": []}]}, "metadata"),
        ({"documents": [{"text": "a", "id": "x"}, {"text": "b", "id": "x"}]}, "two documents"),
        ({"text": "a", "query": 5}, '"query"'),
        ({"text": "a", "id": None}, '"id"'),
        ({"text": "a", "max_tokens": 5}, "max_tokens"),
        ({"text": "\ud800"}, "surrogate"),
    ],
)
def test_what_is_wrong_with_a_line(run, record, words):
    status, rows, err = run(lines(record, {"text": TEXT, "id": "good"}))
    assert status == 2
    assert [row["id"] for row in rows] == ["good"]
    assert err.startswith("error: line 1: ")
    assert words in err.splitlines()[0]


def test_a_budget_that_one_line_cannot_meet_spares_the_others(run):
    data = lines({"text": "KEEP " * 50, "id": "bad"}, *({"text": TEXT, "id": i} for i in range(40)))
    status, rows, err = run(data, "--protect", "KEEP " * 50)
    assert status == 2
    assert [row["id"] for row in rows] == list(range(40))
    assert err.startswith("error: line 1: ")


def test_what_concerns_all_lines_ends_the_run(run, empty_cache):
    status, rows, err = run(lines(*[{"text": TEXT}] * 3), "--tokenizer", "minilm-l6")
    assert (status, rows) == (2, [])
    assert err.count("\n") == 1


def test_output_must_not_be_the_input(run, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines({"text": TEXT}))
    status, _, err = run(b"", path, "--output", path)
    assert status == 2
    assert "overwrite" in err
    assert path.read_bytes() == lines({"text": TEXT})
    assert run(b"", path, "--output", tmp_path / "b.jsonl")[0] == 0
    assert json.loads((tmp_path / "b.jsonl").read_bytes())["text"] == "Rome is old."
    assert run(b"", path, path)[0] == 2


def test_batches_are_bounded():
    endless = iter(lambda: b'{"text": "a"}\n', None)
    first = next(read_batches(endless, "utf-8"))
    assert 1 <= len(first) <= 64
    big = b'{"text": "' + b"a" * (1 << 21) + b'"}\n'
    assert [len(batch) for batch in read_batches([big, big, b"{}\n"], "utf-8")] == [1, 1, 1]


@given(st.lists(st.binary(max_size=40), max_size=40))
def test_any_bytes_give_one_record_a_line(data):
    given_lines = [line.replace(b"\n", b"") + b"\n" for line in data]
    records = [record for batch in read_batches(given_lines, "utf-8") for record in batch]
    assert [record.number for record in records] == [
        number for number, line in enumerate(given_lines, start=1) if line.strip()
    ]
