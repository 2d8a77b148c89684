"""Sentences and words tile their text and end where a reader would end them."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import proses, texts

from kompakt.compressor.units.sentences import (
    filled_lines,
    is_wrapped,
    lines_of,
    pack_chunks,
    split_sentences,
    split_words,
    tile,
)


def cut(text, splitter=split_sentences):
    return [text[start:end] for start, end in splitter(text)]


@pytest.mark.parametrize("splitter", [split_sentences, split_words])
@given(text=texts | proses)
def test_ranges_tile_the_text(splitter, text):
    pieces = cut(text, splitter)
    assert "".join(pieces) == text
    assert all(pieces)
    assert not text.strip() or all(piece.strip() for piece in pieces)


@given(texts | proses)
def test_newlines_stay_before_and_other_spaces_go_after(text):
    for left, right in zip(cut(text), cut(text)[1:], strict=False):
        assert not left[-1].isspace() or left[-1] == "\n"
        assert "\n" not in right[: len(right) - len(right.lstrip())]


@given(texts | proses)
def test_words_are_whole_and_graphemes_intact(text):
    import regex

    seams = {start for start, _ in split_words(text)}
    inside = {n for match in regex.finditer(r"\X", text) for n in range(match.start() + 1, match.end())}
    assert not seams & inside
    assert not text.isascii() or [piece.strip() for piece in cut(text, split_words) if piece.strip()] == text.split()


@given(texts, st.lists(st.integers(0, 200)))
def test_tile_moves_cuts_to_seams(text, cuts):
    pieces = [text[start:end] for start, end in tile(text, [min(cut, len(text)) for cut in cuts])]
    assert "".join(pieces) == text


@given(texts)
def test_lines(text):
    assert "".join(lines_of(text)) == "".join(filled_lines(text)) == text
    assert all("\n" not in line[:-1] for line in lines_of(text))
    assert not text.strip() or all(line.strip() for line in filled_lines(text))


SENTENCES = [
    ["Dr. Smith went to the U.S. in May, e.g. by ship.", " See Fig. 3 for 3.14.", " Visit http://a.org/b.c?d=1 now!"],
    ['"Go!" he said.', ' "Why?"', " She left."],
    ["你好。", "今天天气很好。", "是吗\uff1f"],
    ["مرحبا.", " كيف حالك؟", " أنا بخير."],
    ["यह एक वाक्य है।", " यह दूसरा है।"],
    ["Hi 😀.", " So 👩‍👩‍👧 they came.", " End"],
    ["A line.\r\n", "Another\r\n\r\n", "A paragraph.", " Its second.\r\n"],
    ["Buy:\n", "- milk\n", "- eggs. Brown ones\n\n", "1. First.\n", "2. Second. Really.\n", "a) third"],
    ["\n\n  Start.", " End.\n\n\n"],
    ["ALICE: Hello there.\n", "BOB: Hi!", " How are you?\n", "ALICE: Fine"],
]


@pytest.mark.parametrize("expected", SENTENCES)
def test_sentences(expected):
    joined = "".join(expected)
    found = cut(joined)
    # ". B" and ". R" begin the second sentences of list items
    assert found == [
        part for piece in expected for part in (piece.replace(". B", ".| B").replace(". R", ".| R")).split("|")
    ]


WRAPPED = (
    "This is a paragraph whose lines were broken to fit a width of about\n"
    "seventy characters, so that its sentences run across the lines. The\n"
    "second one does so too, and\nit ends here.\n"
)


def test_newlines_inside_wrapped_paragraphs_are_no_boundaries():
    text = WRAPPED.replace("and\nit", "and it")
    assert len(cut(text)) == 2
    assert len(cut(f"{text}\n{text}")) == 4
    assert len(cut(text.replace("\n", "\r\n"))) == 2


@pytest.mark.parametrize("sentence", ["The {} of them met Dr. Smith.", "这是第{}句话。"], ids=["latin", "chinese"])
def test_a_paragraph_too_long_to_be_cut_at_once_is_cut_at_the_same_places(sentence):
    sentences = [sentence.format(n) + (" " if sentence.isascii() else "") for n in range(3_000)]
    assert [part.strip() for part in cut("".join(sentences))] == [part.strip() for part in sentences]


def test_a_sentence_longer_than_what_is_cut_at_once_stays_whole():
    long = "word " * 6_000 + "end."
    assert [len(part.strip()) for part in cut(f"Short one. {long} Short two.")] == [10, len(long), 10]


def test_list_items_end_wrapped_paragraphs():
    items = [f"- {WRAPPED.split('. ')[0]}\n" for _ in range(3)]
    assert cut("".join(items)) == items


@pytest.mark.parametrize(
    "text",
    [
        "tests/unit/test_units.py::test_one PASSED [10%]\ntests/unit/test_units.py::test_two PASSED [20%]\n",
        "Whose woods these are I think I know,\nHis house is in the village though,\nHe will not see me\n",
        "short\nlines\nhere",
        "one line that is long enough to be wrapped but has nothing that follows it",
    ],
)
def test_other_lines_are_not_wrapped(text):
    assert not is_wrapped(text)
    assert cut(text) == lines_of(text)


@given(st.text(st.sampled_from("ab.\n\r\t \x1c"), max_size=30))
def test_ascii_words_are_cut_where_any_cut_at_their_starts_would_move(text):
    assert split_words(text) == tile(text, (match.start() for match in re.finditer(r"\S+", text)))


def test_words_of_scripts_without_spaces_are_graphemes():
    assert cut("日本 go ไม่ x", split_words) == ["日", "本", " go", " ไ", "ม่", " x"]
    assert cut("cafe\u0301 👩‍👩‍👧!\nnext", split_words) == ["cafe\u0301", " 👩‍👩‍👧!\n", "next"]


@given(st.lists(st.integers(1, 200), max_size=30), st.integers(1, 150))
def test_chunks_are_full_but_within_the_limit(sizes, limit):
    ranges = [(n, n + 1) for n in range(len(sizes))]
    chunks = pack_chunks(ranges, sizes, max_tokens=limit)
    assert [n for start, end in chunks for n in range(start, end)] == list(range(len(sizes)))
    sums = [sum(sizes[start:end]) for start, end in chunks]
    assert all(total <= limit or end - start == 1 for total, (start, end) in zip(sums, chunks, strict=True))
    for (start, end), total in zip(chunks, sums, strict=True):
        assert end == len(sizes) or total + sizes[end] > limit or start == end
