"""Structured content: what stands out stays, what repeats goes, and the shape holds."""

import ast
import json

import pytest

import kompakt
from kompakt import Document
from kompakt.compressor.text.outliers import is_alarm, outlying_rows, template
from kompakt.compressor.types import Status
from kompakt.compressor.units.segment import segment


def rows(n=60, **changes):
    made = [{"id": i, "status": "ok", "latency_ms": 40 + i % 7, "host": f"web-{i % 4}"} for i in range(n)]
    made[37].update(changes)
    return json.dumps({"service": "checkout", "rows": made}, indent=1)


@pytest.mark.parametrize(
    "change",
    [{"status": "FATAL"}, {"latency_ms": 9000}, {"trace": "x"}, {"host": None}],
    ids=["category", "number", "extra key", "null"],
)
@pytest.mark.parametrize("name", ["structured", "default"])
@pytest.mark.parametrize("query", [None, "Which hosts answer?"])
def test_the_one_odd_row_stays(name, change, query):
    compressor = kompakt.load(name, **({"model": "none"} if name == "default" else {}))
    small = kompakt.compress(rows(**change), query=query, keep=0.1, compressor=compressor)

    kept = json.loads(small.text)
    assert any(isinstance(row, dict) and row["id"] == 37 for row in kept["rows"])
    omitted = [row for row in kept["rows"] if isinstance(row, str)]
    assert omitted == [f"… {60 - len(kept['rows']) + 1} of 60 rows omitted"]


def test_rows_of_json_lines_are_compared_too():
    lines = "\n".join(json.dumps({"n": i, "level": "FATAL" if i == 5 else "INFO"}) for i in range(30))
    small = kompakt.compress(lines, keep=0.2, compressor="structured")
    assert '"FATAL"' in small.text
    assert all(json.loads(line) for line in small.text.splitlines())


def test_columns_of_free_text_have_no_outliers():
    text = json.dumps([{"name": f"person number {i}"} for i in range(40)])
    units = segment([Document(text, id="0")])
    assert outlying_rows(units) == frozenset()


def test_log_keeps_its_errors_and_one_line_a_template():
    lines = [f"2026-05-09 07:29:{i % 60:02} INFO request {i} served in {i % 9} ms" for i in range(200)]
    lines[120] = "2026-05-09 07:31:00 ERROR replica-2 lost its connection"
    lines[121] = "2026-05-09 07:31:01 WARN retrying in 5 s"
    small = kompakt.compress("\n".join(lines), keep=0.05, compressor="structured")
    assert "ERROR replica-2" in small.text
    assert "WARN retrying" in small.text
    assert "request 0 served" in small.text


@pytest.mark.parametrize(
    "line", ["FATAL disk full", "ValueError: x", "Traceback (most recent call last):", "access denied"]
)
def test_alarms(line):
    assert is_alarm(line)


@pytest.mark.parametrize("line", ["INFO ready", "an error-free run", "terror", "the failsafe mode"])
def test_no_alarms(line):
    assert not is_alarm(line)


def test_template_hides_what_varies():
    first = template('2026-05-09 07:29:01 user=ada id 7f3a9c21d opened "a.txt" in 12.5 ms')
    assert first == template('2026-05-10 11:00:59 user=bob id 00ff11aa2 opened "b.txt" in 7 ms')


def test_bodies_go_before_signatures_and_code_still_parses():
    body = "    first = argument + 1\n    second = first * 2\n    return second\n"
    source = "\n".join(f"def function_{i}(argument: int) -> int:\n{body}" for i in range(12))
    small = kompakt.compress(Document(source, metadata={"path": "m.py"}), keep=0.75, compressor="structured")
    tree = ast.parse(small.text)
    assert len([node for node in tree.body if isinstance(node, ast.FunctionDef)]) == 12
    assert "lines omitted" in small.text


def rows_of(count, odd, **plain):
    made = [{"id": n} | {key: value(n) for key, value in plain.items()} for n in range(count)]
    made[count // 2] |= odd
    return made


@pytest.mark.parametrize(
    ("rows", "odd"),
    [
        (rows_of(200, {"level": "FATAL"}, user=lambda n: f"u{n % 30}", level=lambda n: "INFO"), "FATAL"),
        (rows_of(200, {"status": 500}, path=lambda n: f"/item/{n}", status=lambda n: 200), "500"),
        (rows_of(200, {"errors": 17}, errors=lambda n: 0), "17"),
        (rows_of(100, {"health": {"state": "FATAL"}}, health=lambda n: {"state": "ok"}), "FATAL"),
    ],
    ids=["beside a column of users", "number among equal ones", "number among zeros", "nested"],
)
@pytest.mark.parametrize("form", ["array", "members", "lines", "csv"])
def test_the_odd_row_stays_in_every_form(rows, odd, form):
    flat = [{k: v if not isinstance(v, dict) else v["state"] for k, v in row.items()} for row in rows]
    text = {
        "array": lambda: json.dumps(rows),
        "members": lambda: json.dumps({f"host-{n}": row for n, row in enumerate(rows)}),
        "lines": lambda: "\n".join(map(json.dumps, rows)),
        "csv": lambda: "\n".join([",".join(flat[0]), *(",".join(map(str, row.values())) for row in flat)]),
    }[form]()
    assert odd in kompakt.compress(text, keep=0.1, compressor="structured").text


def test_a_tool_result_inside_a_chat_is_cut_and_keeps_its_alarm():
    result = json.dumps([{"id": n, "state": "FATAL" if n == 40 else "ok"} for n in range(80)])
    call = {"id": "c1", "type": "function", "function": {"name": "get", "arguments": "{}"}}
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Look at the machines."},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": result},
        {"role": "user", "content": "What failed?"},
    ]
    text = json.dumps(chat, indent=1)
    for compressor in (kompakt.load("structured"), kompakt.Pipeline(["dedup", "structured"])):
        small = kompakt.compress(text, query="What failed?", max_tokens=300, compressor=compressor)
        kept = json.loads(small.text)
        assert [message["role"] for message in kept] == [message["role"] for message in chat]
        assert "FATAL" in kept[3]["content"]
        assert kept[3]["tool_call_id"] == "c1"


def test_a_quoted_cell_of_several_lines_is_read_whatever_the_delimiter():
    rows = "\n".join(f'{i};"cell {i}\nsecond line";{i * 3}' for i in range(30))
    result = kompakt.compress(f"id;note;value\n{rows}\n", query="cell 7", keep=0.4, compressor="structured")
    assert result.outcome.status is Status.COMPRESSED
    assert "cell 7" in result.text
