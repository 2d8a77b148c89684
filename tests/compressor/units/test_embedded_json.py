"""JSON between paragraphs of prose keeps its shape."""

import json

import pytest

import kompakt
from kompakt.compressor.units.json_tree import embedded_json

ROWS = [{"id": n, "state": "FATAL" if n == 17 else "ok"} for n in range(40)]


@pytest.mark.parametrize("indent", [None, 1])
def test_it_is_cut_by_rows(indent):
    text = f"Tool output:\n{json.dumps(ROWS, indent=indent)}\nPlease explain what failed here.\n"
    small = kompakt.compress(text, query="What failed?", max_tokens=120, compressor="structured").text
    start, end = small.index("["), small.rindex("]") + 1
    kept = json.loads(small[start:end])
    assert ROWS[17] in kept
    assert all(set(row) == {"id", "state"} for row in kept if isinstance(row, dict))
    assert kept[-1] == f"… {len(ROWS) - len(kept) + 1} of 40 items omitted"


@pytest.mark.parametrize(
    "text",
    [
        "[1] A reference.\n[2] Another.",
        "{not json}\n" * 100,
        "[\n" * 200,
        f"inline {json.dumps(ROWS)}",
        '{"a": 1}\nshort',
    ],
)
def test_what_is_no_block_of_json_is_prose(text):
    assert embedded_json(text) == []


def test_ranges_are_whole_lines():
    block = json.dumps(ROWS)
    text = f"Before.\n  {block}  \nAfter.\n{block}"
    assert [text[start:end] for start, end in embedded_json(text)] == [f"  {block}  \n", block]
