"""Tables and lines: headers, rules, quoted cells."""

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kompakt.compressor.types import Document, Kind
from kompakt.compressor.units.lines import is_log, split_lines, split_table, table_delimiter
from kompakt.compressor.units.render import render
from kompakt.compressor.units.segment import segment


@pytest.mark.parametrize(
    ("text", "n_header"),
    [
        ("name,city\nAda,London\nAlan,X\n", 1),
        ("| a | b |\n|---|:-:|\n| 1 | 2 |\n", 2),
        ("|  | 2024 | 2023 |\n|---|---|---|\n| Sales | 1 | 2 |\n", 2),
        ("name,2024,2023\nSales,1,2\n", 1),
        ("1,2\n3,4\n5,6\n", 0),
        ("     1\tfoo\n     2\tbar\n", 0),
        ("2024-01-01;5\n2024-01-02;6\n", 0),
    ],
)
def test_rows_require_the_header_if_there_is_one(text, n_header):
    rows = split_table(text, document=0)
    header = tuple(range(n_header))
    assert [row.requires for row in rows] == [() if n < n_header else header for n in range(len(rows))]
    assert "".join(row.text for row in rows) == text


def test_the_header_is_the_context_of_the_rows():
    rows = split_table("name,city\nAda,London\n", document=0, context="People")
    assert [row.context for row in rows] == ["People", "People name,city"]


cells = st.text(st.sampled_from('ab "\n,é'), min_size=1, max_size=8)


@given(st.lists(st.tuples(cells, cells), min_size=3, max_size=8))
def test_quoted_line_breaks_do_not_part_rows(found):
    out = io.StringIO()
    csv.writer(out, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows([("name", "note"), *found])
    rows = split_table(out.getvalue(), document=0)
    assert "".join(row.text for row in rows) == out.getvalue()
    if all(part.strip() for pair in found for cell in pair for part in cell.split("\n")):
        assert list(csv.reader(io.StringIO("".join(row.text for row in rows[::2])))) == [
            list(row) for row in [("name", "note"), *found][::2]
        ]


def test_a_quote_without_a_partner_does_not_join_rows():
    assert len(split_table('size,n\n5",1\n6,2\n7,3\n', document=0)) == 4


def test_csv_keeps_its_header_and_whole_rows():
    text = 'name,note\nAda,"x, y"\nAlan,"two\nlines"\n' + "".join(f"N{n},note\n" for n in range(40))
    units = segment([Document(text, id="0")])
    assert {unit.kind for unit in units} == {Kind.TABLE}
    kept = "".join(piece.text for piece in render(units, {0, 2, 30})[0])
    assert list(csv.reader(io.StringIO(kept)))[:2] == [["name", "note"], ["Alan", "two\nlines"]]


def test_blank_lines_stay_with_the_line_before():
    units = split_lines("\n\na\n \nb\n\n\n", document=0, kind=Kind.LOG)
    assert [unit.text for unit in units] == ["\n\na\n \n", "b\n\n\n"]


@pytest.mark.parametrize("text", ["", "\n\n", "a,b", "a,b\n1,2", "One, two.\nThree, four.\nFive, six.\n"])
def test_too_little_is_no_table_and_no_log(text):
    assert table_delimiter(text) is None
    assert not is_log(text)
