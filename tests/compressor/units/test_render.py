"""Writing what was kept: no fused words, no lost line breaks, marks where asked for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import any_texts, subsets

from kompakt.compressor.types import Document, Kind, Span
from kompakt.compressor.units.render import Fragment, longest_mark, render
from kompakt.compressor.units.segment import segment
from kompakt.compressor.units.sentences import split_words
from kompakt.compressor.units.unit import Layout, Unit, Units

PROSE = "One is first. Two comes next.\n\nThree is a paragraph. Four ends it.\n"
ROWS = [f"2026-05-09 07:29:1{n} status {n}" for n in range(5)]
LOG = "\n".join([*ROWS, ""])


def written(text, kept, **options):
    splitter = {"prose": options.pop("prose")} if "prose" in options else {}
    return "".join(piece.text for piece in render(segment([Document(text, id="0")], **splitter), kept, **options)[0])


@pytest.mark.parametrize(
    ("text", "kept", "plain", "marked"),
    [
        (PROSE, {0, 1}, "One is first. Two comes next.", "One is first. Two comes next.\n\n[…]"),
        (PROSE, {0, 2}, "One is first.\n\nThree is a paragraph.", "One is first. […]\n\nThree is a paragraph. […]"),
        (PROSE, {1, 3}, "Two comes next.\n\nFour ends it.\n", "[…] Two comes next.\n\n[…] Four ends it.\n"),
        (PROSE, {3}, "Four ends it.\n", "[…] Four ends it.\n"),
        (PROSE, {0}, "One is first.", "One is first. […]"),
        (LOG, {0, 3}, f"{ROWS[0]}\n{ROWS[3]}", f"{ROWS[0]}\n[…]\n{ROWS[3]}\n[…]"),
        (LOG, {4}, f"{ROWS[4]}\n", f"[…]\n{ROWS[4]}\n"),
        ("a,b\n1,2\n3,4\n5,6\n", {0, 2}, "a,b\n3,4", "a,b\n[…]\n3,4\n[…]"),
        ("# T\n\n```\na\nb\nc\n```\nEnd.", {1, 3}, "```\nb\n```", "[…]\n\n```\n[…]\nb\n[…]\n```\n[…]"),
        ("# T\n\n```py\nx = 1\ny = 2\n```\n", {1, 2, 4}, "```py\n# 1 line omitted\ny = 2\n```\n",
         "[…]\n\n```py\n# 1 line omitted\ny = 2\n```\n"),
        ("他说。你好。再见。", {0, 2}, "他说。再见。", "他说。 […]再见。"),
        ("One.\r\n\r\nTwo. Three\r\nFour.", {0, 3}, "One.\r\n\r\nFour.", "One.\r\n\r\n[…]\r\nFour."),
        ("One.  Two.\r\nThree. X", {0, 2}, "One.\r\nThree.", "One. […]\r\nThree. […]"),
    ],
)  # fmt: skip
def test_gaps(text, kept, plain, marked):
    assert written(text, kept) == plain
    assert written(text, kept, mark_omissions=True) == marked


def tokens(text):
    return text.replace("[…]", " ").split()


@given(st.lists(st.sampled_from(["a", "b.", "(c", "d\n", "e\n\n", "\tf", "3.", "x=1", '"q']), max_size=30), st.data())
def test_words_are_never_fused(parts, data):
    text = " ".join(parts)
    units = segment([Document(text, id="0")], prose=split_words)
    kept = data.draw(subsets(units))
    expected = [word for index in sorted(kept) for word in units[index].text.split()]
    for mark in (False, True):
        assert tokens("".join(piece.text for piece in render(units, kept, mark_omissions=mark)[0])) == expected


def test_seams_without_spaces_are_separated():
    source = Document("one-two-three.Four", id="0")
    units = Units([source], [Unit(0, a, b, Kind.PROSE, "") for a, b in ((0, 3), (3, 8), (8, 13), (13, 14), (14, 18))])
    assert render(units, {0, 2}) == [
        [
            Fragment("one", Span("0", 0, 3)),
            Fragment(" ", Span("0", 8, 8, Kind.SEPARATOR)),
            Fragment("three", Span("0", 8, 13)),
        ]
    ]
    assert "".join(piece.text for piece in render(units, {3, 4})[0]) == ".Four"
    assert "".join(piece.text for piece in render(units, {1, 4})[0]) == "-two- Four"


@given(any_texts, st.booleans(), st.data())
def test_lines_that_are_kept_stay_lines(text, mark, data):
    units = segment([Document(text, id="0")])
    kept = data.draw(subsets(units))
    result = "".join(piece.text for piece in render(units, kept, mark_omissions=mark)[0])
    line_starts = {0, *(n + 1 for n, character in enumerate(text) if character == "\n")}
    for index in kept:
        unit = units[index]
        first = text[unit.start : unit.head_end].split("\n")[0].strip()
        if unit.kind in (Kind.LOG, Kind.TABLE, Kind.CODE) and unit.start in line_starts and first:
            assert any(line.strip().startswith(first) for line in result.split("\n"))


@given(any_texts, st.data())
def test_an_output_without_its_end_has_no_white_space_there(text, data):
    units = segment([Document(text, id="0")])
    kept = data.draw(subsets(units))
    pieces = render(units, kept)[0]
    tops = [index for index, unit in enumerate(units) if unit.parent is None]
    if pieces and tops[-1] not in kept:
        assert not pieces[-1].text[-1].isspace()


def test_the_longest_mark_is_that_of_nothing_kept():
    unit = Unit(0, 0, 9, Kind.JSON, "[", head_end=1, tail_start=8, layout=Layout.JSON_ARRAY, noun="rows")
    assert longest_mark(unit, 12) == '"… 12 of 12 rows omitted"'
    assert longest_mark(unit, 0) == ""
    assert longest_mark(Unit(0, 0, 9, Kind.PROSE, ""), 3) == ""
