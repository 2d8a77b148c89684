"""JSON in, JSON out, whatever is left out."""

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import json_lines, json_roots, json_texts, subsets

from kompakt.compressor.types import Document, Kind
from kompakt.compressor.units.json_tree import is_json, is_json_lines
from kompakt.compressor.units.render import render
from kompakt.compressor.units.segment import segment
from kompakt.compressor.units.unit import Layout


def units_of(text):
    return segment([Document(text, id="0")])


def written(units, kept, **options):
    return "".join(piece.text for piece in render(units, kept, **options)[0])


def no_duplicates(pairs):
    keys = [key for key, _ in pairs]
    assert len(keys) == len(set(keys)), keys
    return dict(pairs)


@given(json_texts, st.booleans(), st.data())
def test_any_subset_with_the_root_is_json_of_the_same_type(text, mark, data):
    units = units_of(text)
    assert written(units, range(len(units))) == text
    kept = data.draw(subsets(units)) | {0}
    result = written(units, kept, mark_omissions=mark)
    assert type(json.loads(result, object_pairs_hook=no_duplicates)) is type(json.loads(text))
    json.loads(result).__repr__().encode("utf-8")
    for index in kept:
        if not units[index].is_container:
            assert units[index].text in result


@given(json_lines, st.booleans(), st.data())
def test_any_rows_are_json_lines(text, mark, data):
    units = units_of(text)
    assert written(units, range(len(units))) == text
    result = written(units, data.draw(subsets(units)), mark_omissions=mark)
    assert all(is_json(line) for line in result.split("\n") if line.strip())


def test_what_is_missing_is_counted():
    text = json.dumps({"rows": [{"id": n, "text": "x" * 20} for n in range(60)], "total": 60})
    units = units_of(text)
    kept = {0, 1, 2, 7, 61}
    assert json.loads(written(units, kept)) == {
        "rows": [*({"id": n, "text": "x" * 20} for n in (0, 5, 59)), "… 57 of 60 rows omitted"],
        "…": "1 of 2 keys omitted",
    }


def test_the_key_of_the_count_is_free():
    for key in ("…", "\\u2026", "……"):
        text = f'{{"{key}": 1, "a": {{"…": [{", ".join("1" * 9 for _ in range(60))}], "b": 2}}}}'
        units = units_of(text)
        for kept in ({0}, {0, 1}, {0, 2}, {0, 1, 2}):
            json.loads(written(units, kept), object_pairs_hook=no_duplicates)


@pytest.mark.parametrize("ascii_only", [True, False])
def test_long_strings_are_cut_between_sentences_and_never_inside_escapes(ascii_only):
    value = 'He said "go". 他说。' * 10 + "One.\n\tTwo \\ three? 😀! " * 20
    units = units_of(json.dumps([value], ensure_ascii=ascii_only))
    pieces = [unit.text for unit in units[2:]]
    assert len(pieces) > 40
    assert units[1].layout is Layout.JSON_STRING
    assert json.loads(f'"{"".join(pieces)}"') == value
    assert "".join(json.loads(f'"{piece}"') for piece in pieces) == value
    assert "\tTwo \\ three?" in [json.loads(f'"{piece}"') for piece in pieces]


@example('{"a": NaN, "b": [Infinity, -Infinity]}')
@example("[" + "9" * 5000 + "]")
@example('[1e400, -0, 1E+5, "\\ud800"]')
@given(json_texts)
def test_texts_that_only_some_parsers_accept_are_cut_or_left_whole(text):
    units = units_of(text)
    assert is_json(text)
    assert {unit.kind for unit in units} == {Kind.JSON}
    assert is_json(written(units, {0}))


@pytest.mark.parametrize(
    "text", ["", "1", '"a"', "[1, 2", "{1: 2}", "[1] [2]", "[1,]", "{'a': 1}", "[" * 5000 + "]" * 5000, "[}"]
)
def test_other_texts_are_not_json(text):
    assert not is_json(text)
    assert not is_json_lines(text)
    segment([Document(text, id="0")])


def test_numbers_of_any_length_are_json():
    assert is_json("[" + "9" * 5000 + "]")


@given(json_roots)
def test_white_space_around_the_root_is_kept(value):
    text = f" \n{json.dumps(value)}\n\n"
    units = units_of(text)
    assert (units[0].start, units[0].end) == (0, len(text))
    assert json.loads(written(units, {0})) is not None


def test_rows_of_json_lines_are_counted_and_long_ones_cut():
    rows = [json.dumps({"id": n, "text": "A sentence here. " * (200 if n == 1 else 1)}) for n in range(5)]
    units = units_of("\n".join(rows))
    assert written(units, {0, 1}) == rows[0] + '\n{"…": "4 of 5 rows omitted"}\n'
    last = len(units) - 1
    assert written(units, {0, last}) == rows[4] + '\n{"…": "4 of 5 rows omitted"}\n'
    inside = next(index for index, unit in enumerate(units) if unit.layout is Layout.JSON_STRING)
    kept = json.loads(written(units, {0, 2, inside, inside + 1}).split("\n")[0])
    assert kept == {"text": "A sentence here. …", "…": "1 of 2 keys omitted"}
    assert render(units, {0}) == [[]]


def test_contexts_are_the_keys_above():
    text = json.dumps({"users": [{"name": "Ada " * 120, "tags": ["x" * 500]}]})
    contexts = {unit.context for unit in units_of(text)}
    assert {"users", "users name", "users tags"} <= contexts


def test_offsets_of_texts_beyond_ascii_are_quick():
    text = json.dumps([{"é": "日本語。" * 50, "n": n} for n in range(3000)], ensure_ascii=False)
    units = units_of(text)
    assert written(units, range(len(units))) == text
