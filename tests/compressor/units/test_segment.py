"""What holds for units of every kind, and how kinds are told apart."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import any_texts, documents, subsets

from kompakt.compressor.results import from_fragments, to_part
from kompakt.compressor.types import Document, Kind
from kompakt.compressor.units.json_tree import is_json
from kompakt.compressor.units.render import render
from kompakt.compressor.units.segment import recognise, segment
from kompakt.compressor.units.sentences import split_words
from kompakt.compressor.validity import check


class Counter:
    def count(self, text):
        return len(text)


@given(documents())
def test_all_units_kept_give_the_documents_back(sources):
    units = segment(sources)
    for mark in (False, True):
        fragments = render(units, range(len(units)), mark_omissions=mark)
        assert ["".join(piece.text for piece in pieces) for pieces in fragments] == [d.text for d in sources]


@given(documents(), st.booleans(), st.data())
def test_any_closed_subset_with_the_protected_units_is_a_valid_result(sources, mark, data):
    units = segment(sources, prose=split_words) if data.draw(st.booleans()) else segment(sources)
    kept = data.draw(subsets(units))
    check(from_fragments(sources, render(units, kept, mark_omissions=mark), Counter(), 0))


@given(documents(), st.booleans(), st.data())
def test_fragments_cover_the_output_and_verbatim_ones_ascend_in_their_source(sources, mark, data):
    units = segment(sources)
    fragments = render(units, data.draw(subsets(units)), mark_omissions=mark)
    starts = to_part(fragments).starts
    assert list(starts) == sorted(set(starts))
    for source, pieces in zip(sources, fragments, strict=True):
        position = 0
        for piece in pieces:
            assert piece.text
            assert piece.span.document_id == source.id
            if piece.span.kind not in (Kind.OMISSION, Kind.SEPARATOR):
                assert piece.span.start >= position
                assert piece.text == source.text[piece.span.start : piece.span.end]
                position = piece.span.end


@given(any_texts)
def test_units_are_in_order_and_parents_come_first(text):
    units = segment([Document(text, id="0")])
    for index, unit in enumerate(units):
        assert 0 <= unit.start <= unit.head_end <= unit.tail_start <= unit.end <= len(text)
        if unit.parent is not None:
            parent = units[unit.parent]
            assert unit.parent < index
            assert parent.head_end <= unit.start <= unit.end <= parent.tail_start
    tops = [unit for unit in units if unit.parent is None]
    assert [unit.start for unit in tops] == [0, *(unit.end for unit in tops[:-1])][: len(tops)]
    assert not text or tops[-1].end == len(text)


def test_a_document_between_others_keeps_its_own_text():
    table = "name,city\nAda,London\nAlan,Wilmslow\n"
    sources = [Document("One. Two.", id="a"), Document('{"k": [1, 2]}', id="b"), Document(table, id="c")]
    units = segment(sources)
    rows = [index for index, unit in enumerate(units) if unit.kind is Kind.TABLE]
    assert all(units[need].document == 2 for row in rows for need in units[row].requires)
    fragments = render(units, {index for index, unit in enumerate(units) if unit.document != 0})
    assert not fragments[0]
    assert "".join(piece.text for piece in fragments[1]) == sources[1].text
    assert "".join(piece.text for piece in fragments[2]) == table


LOGS = [
    '127.0.0.1 - - [10/Oct/2000:13:55:36 -0700] "GET /a.gif HTTP/1.0" 200 2326\n' * 4,
    "Jan  5 10:00:01 host sshd[42]: Accepted, for, root\n" * 4,
    "2026-05-09 07:29:27 status installed libc6:amd64 2.36\n" * 4,
    "1700000000 start\n1700000001 stop\n1700000002 start\n",
    "INFO a\nDEBUG b\n  more\nERROR c\n",
    "[2024-01-01T00:00:00Z] one\n[2024-01-01T00:00:01Z] two\n\tat Foo.java\n[2024-01-01T00:00:02Z] three\n",
    "2024-01-01,5.0,x\n2024-01-02,6.0,y\n2024-01-03,7.0,z\n",
]
TABLES = [
    "a|b|c\n1|2|3\n4|5|6",
    "| a | b |\n|---|---|\n| 1 | 2 |\n",
    'name,note\nAda,"x, y"\nAlan,z\n',
    "time,value\n2024-01-01,5.0\n2024-01-02,6.1\n2024-01-03,2.2\n",
    "     1\tfoo\n     2\tbar\n     3\tbaz\n",
]
PROSES = [
    "Dear Sir,\nthank you, truly,\nfor the letter, and\nfor the wine, too",
    "Ada Lovelace\n12 St James Square, London\n10 Downing Street, London\nBaker Street, London",
    "Shall I compare thee to a summer's day,\nThou art more lovely and more temperate,\nRough winds do shake,\n",
    "ALICE: Hello.\nBOB: Hi, Alice.\nALICE: Import the class; return it.\n",
    "PASSED tests/test_a.py::test_x\nFAILED tests/test_b.py::test_y - assert 1 == 2\n=== 1 failed, 1 passed ===\n",
    "src/a.py:12:def f():\nsrc/b.py:40:    return f()\nsrc/c.py:1:import os\n",
    "total 8\n-rw-r--r-- 1 root root 220 Jan  1 00:00 a\ndrwxr-xr-x 2 root root 40 Jan  1 00:00 b\n",
    "name: kompakt\nversion: 1\ndependencies:\n  - numpy\n  - regex\n",
    "$ ls\na b\n$ cd a\n$ echo hello\nhello\n",
    "--- a/x.py\n+++ b/x.py\n@@ -1,3 +1,3 @@\n def f():\n-    return 1\n+    return 2\n import os\n",
    "import the goods from Rome\nreturn to sender;\nfor (all) we know\nclass is over\n",
    "   \n\t\n",
    "# Title\n\n```python\nimport os\ndef f():\n    return 1\n```\n",
]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (text, kind)
        for kind, found in ((Kind.LOG, LOGS), (Kind.TABLE, TABLES), (Kind.PROSE, PROSES))
        for text in found
    ],
)
def test_recognition_of_lines(text, kind):
    assert recognise(Document(text)).kind is kind


@pytest.mark.parametrize(
    ("text", "by_line"),
    [('{"a": NaN}', False), (" [1]\n", False), ('{"a": 1}\n\n[2]\n', True), ('{"a": "\u2028"}\n{"a": "\x7f"}', True)],
)
def test_recognition_of_json(text, by_line):
    content = recognise(Document(text))
    assert (content.kind, content.by_line) == (Kind.JSON, by_line)


def test_deep_json_is_left_alone_or_cut_without_a_crash():
    text = "[" * 10_000 + "]" * 10_000
    units = segment([Document(text, id="0")])
    assert len(units) == 1 or not is_json(text)


def test_hints_decide_before_the_text():
    assert recognise(Document("x", metadata={"path": "a/b.rs"})).language == "rust"
    assert recognise(Document("x", metadata={"language": "Python"})).language == "python"
    assert recognise(Document('{"a": 1}', metadata={"path": "a.json", "language": 3})).kind is Kind.JSON
    assert recognise(Document("Some words.", metadata={"path": "README", "language": "en"})).kind is Kind.PROSE


def test_recognition_does_not_keep_texts_alive():
    from kompakt.compressor.units import segment as module

    recognise(Document("Only seen here."))
    assert all(isinstance(key, bytes) and len(key) == 16 for key in module._recognise_text.cache)


@pytest.mark.parametrize(
    "text",
    [
        *(character * 300_000 for character in ("a", ".", "\0", '"', "{", "é", "`")),
        *(pair * 50_000 for pair in ("a\n", ". ", "1:", "[1,", "# \n", "- ")),
        "x" + "\n" * 100_000,
        " " * 300_000 + "x",
        "\n" + " " * 300_000 + "x",
    ],
)
def test_hostile_text_takes_linear_time(text):
    units = segment([Document(text, id="0", protected=tuple((n, n + 1) for n in range(0, len(text), 1000)))])
    assert "".join(piece.text for piece in render(units, range(len(units)))[0]) == text
