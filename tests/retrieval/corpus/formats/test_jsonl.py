"""JSON Lines: a line a record, whatever is wrong with its neighbours, and never more than one line in memory."""

import gzip
import json
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kompakt.compressor.types import Document
from kompakt.retrieval.corpus.readers import ReadOptions, Record, find_files, read_file


def lines(*items):
    return b"".join((item if isinstance(item, bytes) else json.dumps(item).encode()) + b"\n" for item in items)


def test_fields_become_documents(read):
    data = lines(
        {"text": "One.", "id": "a", "tags": ["x", {"y": None}], "n": 3}, {"text": "Two.\r\n"}, {"id": 7, "text": "3"}
    )
    assert read("in.jsonl", data) == [
        Record("in.jsonl", 0, Document("One.", id="a", metadata={"tags": ["x", {"y": None}], "n": 3})),
        Record("in.jsonl", 1, Document("Two.\r\n", id="in.jsonl#1")),
        Record("in.jsonl", 2, Document("3", id="7")),
    ]


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "A.JSONL"])
def test_every_suffix(read, name):
    assert [record.document.text for record in read(name, lines({"text": "x"}))] == ["x"]


def test_names_of_fields_are_options(read):
    (record,) = read(
        "in.jsonl", lines({"body": "One.", "key": 5, "text": 1, "id": 2}), text_field="body", id_field="key"
    )
    assert record.document == Document("One.", id="5", metadata={"text": 1, "id": 2})


@pytest.mark.parametrize("name", [None, ""])
def test_absent_ids_are_made(read, name):
    (record,) = read("in.jsonl", lines({"text": "One.", "id": name}))
    assert record.document.id == "in.jsonl#0"


def test_numbers_that_json_has_not_become_null(read):
    (record,) = read("in.jsonl", b'{"text": "One.", "a": NaN, "b": [1e999, -Infinity], "id": NaN}\n')
    assert record.document == Document("One.", id="in.jsonl#0", metadata={"a": None, "b": [None, None]})


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "cut', "not JSON: Unterminated string starting at (column 10)"),
        (b"[1]", "must be a JSON object, got list"),
        (b'{"body": "x"}', "no field 'text'; name one with text_field=. It has: 'body'"),
        (b"{}", "It has: none"),
        (json.dumps({str(n): 0 for n in range(9)}).encode(), "'7', ..."),
        (b'{"text": 5}', "'text' must be text, got int"),
        (b'{"text": null}', "got null"),
        (b'{"text": ""}', "the text is empty"),
        (b'{"text": " \\n"}', "the text is empty"),
        (b'{"text": "\xff"}', "not utf-8 text: byte 0xff at offset 10; give its encoding with encoding="),
        (b'{"text": "a\\ud800"}', "the text holds a lone surrogate (U+D800) at character 1"),
        (b'{"text": "a", "id": "\\ud800"}', "the id holds a lone surrogate"),
        (b'{"text": "a", "b": [{"\\ud800": 1}]}', "the field 'b' holds a lone surrogate"),
        (b'{"text": "a", "b": ["\\ud800"]}', "the field 'b' holds a lone surrogate"),
        (b'{"text": "a", "\\ud800": 1}', "the name of a field holds a lone surrogate"),
        (b'{"\\ud800": 1}', "It has: '\\ud800'"),
        (b'{"text": "a", "id": [1]}', "'id' must be text or a number, got list"),
        (b'{"text": "a", "id": true}', "got bool"),
        (b'{"text": ' + b"[" * 100_000, "nested too deeply"),
        (b'{"text": "a", "n": ' + b"9" * 5000 + b"}", "not usable JSON: Exceeds the limit"),
        (b'\0{"text": "a"}', "looks binary: a NUL character at offset 0"),
    ],
)
def test_a_broken_line_is_one_record(read, line, reason):
    good = {"text": "fine"}
    before, broken, after = read("in.jsonl", lines(good, line, good))
    assert (before.document.text, after.document.text, after.position) == ("fine", "fine", 2)
    assert broken.document is None
    assert broken.position == 1
    assert reason in broken.error
    json.dumps(broken.error, ensure_ascii=False).encode()


def test_blank_lines_count_but_give_nothing(read):
    records = read("in.jsonl", b'\n{"text": "a"}\r\n  \r\n{"text": "b"}')
    assert [(record.position, record.document.text) for record in records] == [(1, "a"), (3, "b")]


def test_an_empty_file_has_no_records(read):
    assert read("in.jsonl", b"") == []


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "UTF8"])
def test_the_byte_order_mark_is_dropped(read, encoding):
    (record,) = read("in.jsonl", b"\xef\xbb\xbf" + lines({"text": "a"}), encoding=encoding)
    assert record.document.text == "a"


def test_other_encodings(read):
    (record,) = read("in.jsonl", '{"text": "café"}'.encode("cp1252"), encoding="cp1252")
    assert record.document.text == "café"


@pytest.mark.parametrize(
    ("encoding", "reason"),
    [("utf-8", "the byte order mark of UTF-16"), ("utf-16", "lines cannot be told apart in encoding='utf-16'")],
)
def test_lines_of_utf16_are_refused_once(read, encoding, reason):
    data = '{"text": "a"}\n{"text": "b"}\n'.encode("utf-16")
    (record,) = read("in.jsonl", data, encoding=encoding)
    assert record.document is None
    assert reason in record.error
    assert read("in.jsonl", data, encoding=encoding, start=1) == []


VALUES = st.one_of(
    st.fixed_dictionaries({"text": st.text(min_size=1)}, optional={"id": st.text(), "n": st.floats()}).map(
        json.dumps
    ),
    st.sampled_from(["{", "[]", "1", '{"text": 1}', '{"text": "' + "x" * 99 + '"}']),
)


@given(values=st.lists(VALUES), ends=st.booleans(), packed=st.booleans(), start=st.integers(0, 12))
def test_reading_from_a_position_is_the_rest_of_reading_all(tmp_path_factory, values, ends, packed, start):
    data = "\n".join(values).encode() + b"\n" * ends
    path = tmp_path_factory.mktemp("corpus") / ("in.jsonl.gz" if packed else "in.jsonl")
    path.write_bytes(gzip.compress(data) if packed else data)
    (file,) = find_files([path])
    options = ReadOptions(max_document_bytes=90)
    every = list(read_file(file, options))
    assert [record.position for record in every] == list(range(len(values)))
    assert list(read_file(file, options, start=start)) == every[start:]


@pytest.mark.parametrize("end", [b"\n", b""])
def test_a_line_may_be_as_long_as_the_limit(read, end):
    line = b'{"text": "123456789"}'
    (record,) = read("in.jsonl", line + end, max_document_bytes=len(line))
    assert record.document.text == "123456789"
    records = read("in.jsonl", line + b"\n" + line + end, max_document_bytes=len(line) - 1)
    assert [record.position for record in records] == [0, 1]
    assert f"above max_document_bytes={len(line) - 1}; split it or raise the limit" in records[1].error


def test_a_line_that_is_too_long_is_never_in_memory(tmp_path):
    path = tmp_path / "in.jsonl"
    n_long = 30 * 2**20
    with path.open("wb") as stream:
        stream.write(lines({"text": "before"}))
        for _ in range(n_long // 2**20):
            stream.write(b"x" * 2**20)
        stream.write(b"\n" + lines({"text": "after"}))
    (file,) = find_files([path])
    options = ReadOptions(max_document_bytes=2**20)
    for start in (0, 2):
        tracemalloc.start()
        try:
            records = list(read_file(file, options, start=start))
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert records[-1].document.text == "after"
        assert peak < 4 * 2**20
    before, long, _ = read_file(file, options)
    assert before.document.text == "before"
    assert f"the line has {n_long + 1} bytes" in long.error


def test_a_truncated_gzip_file_ends_with_an_error_where_it_breaks(read):
    packed = gzip.compress(lines(*({"text": f"number {n * 7919}"} for n in range(5000))))
    records = read("in.jsonl.gz", packed[: len(packed) // 2])
    *good, last = records
    assert len(good) > 1000
    assert [record.position for record in records] == list(range(len(records)))
    assert all(record.document for record in good)
    assert "the gzip file is truncated" in last.error
    assert read("in.jsonl.gz", packed[: len(packed) // 2], start=last.position) == [last]
    assert read("in.jsonl.gz", packed[: len(packed) // 2], start=last.position + 1) == []


def test_a_file_that_is_no_gzip_file(read_error):
    assert "the gzip file is broken: Not a gzipped file" in read_error("in.jsonl.gz", lines({"text": "a"}))


def test_a_damaged_gzip_file_ends_with_an_error(read):
    packed = bytearray(gzip.compress(lines({"text": "a"})))
    packed[-8] ^= 1
    good, last = read("in.jsonl.gz", bytes(packed))
    assert good.document.text == "a"
    assert (last.position, last.document) == (1, None)
    assert "CRC" in last.error
