"""Protected ranges survive in every kind of document, and cost no more than their words."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import documents

from kompakt.compressor.budget import closures
from kompakt.compressor.results import from_fragments
from kompakt.compressor.types import Document
from kompakt.compressor.units.render import render
from kompakt.compressor.units.segment import segment
from kompakt.compressor.validity import check


class Characters:
    def count(self, text):
        return len(text)


def kept_alone(*sources, mark=False):
    """What is written if nothing is kept but what must be."""
    units = segment(sources)
    needs = closures(units)
    kept = frozenset().union(*(needs[index] for index, unit in enumerate(units) if unit.protected))
    result = from_fragments(sources, render(units, kept, mark_omissions=mark), Characters(), 0)
    check(result)
    return result.text


@given(documents(), st.booleans())
def test_protected_ranges_survive_alone(sources, mark):
    kept_alone(*sources, mark=mark)


def around(text, part):
    start = text.index(part)
    return Document(text, id="0", protected=((start, start + len(part)),))


PROSE = "The first sentence is long. The second names 42 and more. The third is here."
TABLE = "name,city\nAda,London\nAlan,Wilmslow\n"
LOG = "".join(f"2026-05-09 07:29:{n} INFO message {n} of many\n" for n in range(10, 20))
CODE = "import os\n\nclass A:\n    def f(self):\n        x = 1\n        return 42\n"


@pytest.mark.parametrize(
    ("text", "part", "expected"),
    [
        (PROSE, "42", "42"),
        (PROSE, "nd names 42 an", "second names 42 and"),
        (PROSE, " 42 ", "names 42 and"),
        (PROSE, "long. The second", "long. The second"),
        (LOG, "message 15", "message 15"),
        (TABLE, "Wilms", "name,city\nAlan,Wilmslow\n"),
        (
            CODE,
            "42",
            "# 1 line omitted\nclass A:\n    def f(self):\n        ...  # 1 line omitted\n        return 42\n",
        ),
        ("a" * 50, "aaa", "a" * 50),
    ],
)
def test_what_is_kept_with_a_protected_range(text, part, expected):
    assert kept_alone(around(text, part)) == expected


def test_protected_glue_between_members_keeps_both():
    text = json.dumps({"a": ["x" * 300, "y" * 300, "z" * 300]})
    start = text.index(", ")
    for width in (1, 2, 3):
        assert text[: start + width] in kept_alone(Document(text, id="0", protected=((start, start + width),)))


def test_ranges_may_overlap_touch_and_be_empty():
    source = Document(PROSE, id="0", protected=((4, 9), (6, 20), (20, 22), (30, 30), (45, 47), (45, 47)))
    assert kept_alone(source) == "first sentence is long. 42"


def test_pieces_of_a_cut_sentence_tile_it():
    source = around(PROSE, "42")
    pieces = [unit.text for unit in segment([source])]
    assert "".join(pieces) == PROSE
    assert pieces[1:4] == [" The second names ", "42", " and more."]


def test_many_ranges_in_a_long_word_take_linear_time():
    text = "a" * 300_000
    source = Document(text, id="0", protected=tuple((n, n + 1) for n in range(0, len(text), 50)))
    assert kept_alone(source) == text
