"""Markdown by block: nothing lost, structure kept together, at a good speed."""

import gc
import time

import pytest
from hypothesis import given
from strategies import proses

from kompakt.compressor.types import Kind
from kompakt.compressor.units.markdown import split_markdown
from kompakt.compressor.units.sentences import split_sentences
from kompakt.compressor.units.unit import Layout


def cut(text):
    return split_markdown(text, split_sentences, document=0)


@given(proses)
def test_top_level_units_tile_the_text(text):
    tops = [unit for unit in cut(text) if unit.parent is None]
    assert "".join(text[unit.start : unit.end] for unit in tops) == text
    for index, unit in enumerate(units := cut(text)):
        inside = [child for child in units if child.parent == index]
        if inside:
            assert [unit.head_end, *(child.end for child in inside)] == [
                *(child.start for child in inside), unit.tail_start,
            ]  # fmt: skip


def test_headings_are_the_context_of_what_is_below():
    text = "Intro.\n\n# One\n\nA.\n\n## Two ##\n\nB.\n\nThree\n=====\n\nC.\n\n> # Quoted\n\nD.\n"
    contexts = {unit.text.strip(): unit.context for unit in cut(text)}
    assert contexts["Intro."] == ""
    assert contexts["A."] == "One"
    assert contexts["B."] == "One Two"
    assert contexts["## Two ##"] == "One"
    assert contexts["Three\n====="] == ""
    assert contexts["C."] == contexts["D."] == "Three"


def test_table_rows_require_their_header():
    units = cut("Before.\n\n| a | b |\n|---|---|\n| 1 | 2 |\n| 3 | 4 |\n\nAfter.\n")
    rows = [(unit.text, unit.requires) for unit in units if unit.kind is Kind.TABLE]
    assert rows == [
        ("| a | b |\n", ()), ("|---|---|\n", ()), ("| 1 | 2 |\n", (1, 2)), ("| 3 | 4 |\n\n", (1, 2)),
    ]  # fmt: skip
    assert [unit.text for unit in units if unit.kind is Kind.PROSE] == ["Before.\n\n", "After.\n"]


@pytest.mark.parametrize(
    ("text", "head", "tail", "layouts"),
    [
        ("```python\nx = 1\ny = 2\n```\n", "```python\n", "```\n", {Layout.FLAT, Layout.HASH_BLOCK}),
        ('~~~json\n{"a": 1}\n~~~', "~~~json\n", "~~~", {Layout.FLAT, Layout.JSON_OBJECT}),
        ("```\nx\ny\n```\n\nAfter.", "```\n", "```\n\n", {Layout.FLAT}),
        ("- item\n\n  ```sh\n  ls\n  ```\n\n  more\n", "  ```sh\n", "  ```\n\n", {Layout.FLAT, Layout.HASH_BLOCK}),
        ("> ```\n> quoted\n> ```\n> more\n", "> ```\n", "> ```\n", {Layout.FLAT}),
        ("```\nnever closed\nat all", "```\n", "", {Layout.FLAT}),
        ("```c\n```\n", "", "", {Layout.FLAT}),
    ],
)
def test_fences_keep_their_lines(text, head, tail, layouts):
    units = cut(text)
    fences = [unit for unit in units if unit.is_container and unit.parent is None]
    assert [(unit.text, text[unit.tail_start : unit.end]) for unit in fences] == ([(head, tail)] if head else [])
    assert {unit.layout for unit in units} == layouts


def test_lists_quotes_and_html_are_cut_by_line_and_sentence():
    text = (
        "- one. Two\n  - nested\n    1. deeper\n- three\n\n> quote one\n> goes on\n\n<div>\nhtml\n</div>\n\n    x\n"
    )
    assert [unit.text for unit in cut(text)] == [
        "- one.", " Two\n", "  - nested\n", "    1. deeper\n", "- three\n\n", "> quote one\n", "> goes on\n\n",
        "<div>\n", "html\n", "</div>\n\n", "    x\n",
    ]  # fmt: skip


def test_a_short_first_line_of_plain_text_is_its_title():
    text = f"The Danube\n\n{'It is a river of Europe and flows far. ' * 5}"
    units = cut(text)
    assert [unit.context for unit in units] == ["", *["The Danube"] * (len(units) - 1)]
    assert {unit.context for unit in cut(text.replace("Danube", "Danube."))} == {""}


def test_speed():
    block = "## Heading\n\nA paragraph with some words. Another sentence, longer than the first.\n\n- item\n\n"
    text = block * 2000
    # what the tests before hold would be looked through again and again
    gc.collect()
    gc.freeze()
    began = time.process_time()
    cut(text)
    seconds = time.process_time() - began
    gc.unfreeze()
    # a tenth of what is expected, so that a busy machine does not fail it
    assert len(text) / 1e6 / seconds > 0.1
