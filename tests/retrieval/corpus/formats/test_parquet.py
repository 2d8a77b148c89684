"""Parquet: a row a record, in groups of any size, and an end where the file breaks."""

import datetime
import decimal
import io
import sys

import pytest

from kompakt.compressor.errors import MissingExtraError
from kompakt.compressor.types import Document
from kompakt.retrieval.corpus.readers import Record

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def parquet(table, **options):
    stream = io.BytesIO()
    pq.write_table(pa.table(table) if isinstance(table, dict) else table, stream, **options)
    return stream.getvalue()


def rows(n_rows):
    return {"text": [f"Row {n}." for n in range(n_rows)], "id": list(range(n_rows))}


def test_rows_become_documents(read):
    table = {
        "text": ["One.", "Two."],
        "id": [7, None],
        "n": [1.5, None],
        "tags": [["a"], []],
        "about": [{"k": "v"}] * 2,
    }
    assert read("in.parquet", parquet(table)) == [
        Record("in.parquet", 0, Document("One.", id="7", metadata={"n": 1.5, "tags": ["a"], "about": {"k": "v"}})),
        Record(
            "in.parquet",
            1,
            Document("Two.", id="in.parquet#1", metadata={"n": None, "tags": [], "about": {"k": "v"}}),
        ),
    ]


def test_names_of_columns_are_options(read):
    (record,) = read("in.parquet", parquet({"a.b": ["One."], "key": ["k"]}), text_field="a.b", id_field="key")
    assert record.document == Document("One.", id="k")


def test_values_that_json_lacks_become_text_or_null_or_go(read):
    table = {
        "text": ["One."],
        "day": [datetime.date(2024, 2, 29)],
        "time": pa.array([1_500_000], pa.timestamp("us", tz="UTC")),
        "fine": pa.array([1], pa.timestamp("ns")),
        "price": [decimal.Decimal("1.50")],
        "missing": [float("nan")],
        "image": [b"\xff"],
        "spans": pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64())),
        "span": pa.array([{"at": 1}], pa.struct([("at", pa.timestamp("ns"))])),
        "length": [datetime.timedelta(seconds=1)],
    }
    (record,) = read("in.parquet", parquet(table))
    assert record.document.metadata == {
        "day": "2024-02-29",
        "time": "1970-01-01T00:00:01.500000+00:00",
        "fine": "1970-01-01 00:00:00.000000001",
        "price": "1.50",
        "missing": None,
        "spans": [["k", 1]],
    }


def test_text_may_be_stored_as_bytes_or_with_a_dictionary(read):
    table = {"text": pa.array(["caf\u00e9".encode("cp1252")]), "id": pa.array(["x"]).dictionary_encode()}
    (record,) = read("in.parquet", parquet(table), encoding="cp1252")
    assert record.document == Document("caf\u00e9", id="x")
    (record,) = read("in.parquet", parquet(table))
    assert "not utf-8 text: byte 0xe9 at offset 3" in record.error
    (record,) = read("in.parquet", parquet({"text": pa.array(["a", "a"]).dictionary_encode()}))[1:]
    assert record.document == Document("a", id="in.parquet#1")


def bad_utf8():
    offsets = pa.array([0, 1, 2], pa.int32()).buffers()[1]
    return pa.Array.from_buffers(pa.string(), 2, [None, offsets, pa.py_buffer(b"\xffa")])


@pytest.mark.parametrize(
    ("texts", "reason"),
    [
        ([None, "a"], "'text' must be text, got null"),
        (["", "a"], "the text is empty"),
        (["x" * 11, "a"], "the text has 11 bytes, above max_document_bytes=10"),
        (["\u00e9" * 6, "a"], "the text has 12 bytes, above max_document_bytes=10"),
        (bad_utf8(), "the column 'text' is not utf-8 text: bad byte at offset 0"),
    ],
)
def test_a_broken_row_is_one_record(read, texts, reason):
    broken, fine = read("in.parquet", parquet({"text": texts}), max_document_bytes=10)
    assert broken.document is None
    assert reason in broken.error
    assert fine.document.text == "a"


@pytest.mark.parametrize("ids", [[[1]], [True], [datetime.date(2024, 1, 1)]])
def test_ids_must_be_text_or_numbers(read_error, ids):
    assert "'id' must be text or a number" in read_error("in.parquet", parquet({"text": ["a"], "id": ids}))


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ({"body": ["a", "b"], "n": [1, 2]}, "no column 'text'; name one with text_field=. It has: 'body', 'n'"),
        (pa.table([["a"], ["b"]], names=["text", "text"]), "2 columns are named 'text'"),
    ],
)
def test_a_file_without_one_text_column_is_one_record(read, table, reason):
    (record,) = read("in.parquet", parquet(table))
    assert record.document is None
    assert reason in record.error
    assert read("in.parquet", parquet(table), start=1) == []


def test_a_file_without_rows_has_no_records(read):
    assert read("in.parquet", parquet({"text": pa.array([], pa.string())})) == []


@pytest.mark.parametrize("group", [1, 7, 100, 300])
def test_reading_from_a_position_is_the_rest_of_reading_all(read, group):
    data = parquet(rows(200), row_group_size=group)
    every = read("in.parquet", data)
    assert [record.document.id for record in every] == [str(n) for n in range(200)]
    for start in (0, 1, 6, 7, 63, 64, 65, 199, 200, 999):
        assert read("in.parquet", data, start=start) == every[start:]


def test_a_damaged_page_ends_the_file_where_it_stands(read):
    data = bytearray(parquet(rows(300), row_group_size=100, write_page_checksum=True, compression="none"))
    data[data.index(b"Row 150.")] ^= 1
    records = read("in.parquet", bytes(data))
    assert [record.position for record in records] == list(range(101))
    assert all(record.document for record in records[:100])
    assert "the Parquet file is broken, and ends here" in records[100].error
    assert "CRC" in records[100].error
    for start in (99, 100, 101, 150, 200):
        assert read("in.parquet", bytes(data), start=start)[: max(0, 101 - start)] == records[start:]


@pytest.mark.parametrize("cut", [0, 3, 100, -1])
def test_a_truncated_file(read, read_error, cut):
    data = parquet(rows(10))[:cut]
    assert "the Parquet file is broken" in read_error("in.parquet", data)
    assert read("in.parquet", data, start=1) == []


def test_without_the_extra(read, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(MissingExtraError, match=r"reading Parquet files needs .*kompakt\[corpus\]"):
        read("in.parquet", parquet({"text": ["a"]}))


def test_row_groups_are_not_held_whole(tmp_path):
    from kompakt.retrieval.corpus.readers import ReadOptions, find_files, read_file

    path = tmp_path / "in.parquet"
    # pages of 1 MiB, a group of 40
    texts = [f"{n:08}" * 2**14 for n in range(320)]
    pq.write_table(
        pa.table({"text": texts}),
        path,
        compression="none",
        use_dictionary=False,
        write_batch_size=8,
        row_group_size=320,
    )
    (file,) = find_files([path])
    before = pa.total_allocated_bytes()
    peak = n_records = 0
    for record in read_file(file, ReadOptions()):
        assert record.document.text == texts[record.position]
        n_records += 1
        peak = max(peak, pa.total_allocated_bytes() - before)
    assert n_records == 320
    assert peak < file.n_bytes / 2
