"""Strings are replaced where they stand; nothing else of a JSON text changes."""

import json
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kompakt.adapters._json_splice import drop_key, replace_strings, string_places

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=25,
)


def strings_in(value, path=()):
    """Return the strings of a parsed value by their paths: what ``string_places`` finds in its text."""
    match value:
        case str():
            return {path: value}
        case list():
            items = enumerate(value)
        case dict():
            items = value.items()
        case _:
            return {}
    return {place: text for key, inner in items for place, text in strings_in(inner, (*path, key)).items()}


@given(values, st.sampled_from([None, 1]), st.booleans())
def test_every_string_is_found_where_it_stands(value, indent, ascii_only):
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    found = {path: json.loads(text[start:end]) for path, (start, end) in string_places(text).items()}
    assert found == strings_in(value)


@given(values, st.data())
def test_what_is_replaced_is_replaced_and_nothing_else(value, data):
    text = json.dumps(value, indent=1)
    known = strings_in(value)
    chosen = data.draw(st.dictionaries(st.sampled_from(sorted(known, key=repr)), st.text())) if known else {}
    new = replace_strings(text, chosen)
    assert strings_in(json.loads(new)) == known | chosen


def test_numbers_spaces_and_escapes_stay_as_they_were():
    text = '{ "a" : 1.50e2,"b":["\\u0041", "x\\n", 1E400 ],\t"c":"\\/" }'
    assert replace_strings(text, {("b", 1): 'say "é"'}) == text.replace('"x\\n"', '"say \\"é\\""')
    assert replace_strings(text, {}) == text


def test_of_equal_keys_the_last_counts_as_it_does_to_a_parser():
    assert replace_strings('{"a": "1", "a": "2"}', {("a",): "3"}) == '{"a": "1", "a": "3"}'


def test_a_place_without_a_string_is_an_error():
    with pytest.raises(KeyError):
        replace_strings('{"a": 1}', {("a",): "2"})


@given(st.dictionaries(st.text(max_size=3) | st.just("kompakt"), values, max_size=5), st.sampled_from([None, 1]))
def test_a_key_is_dropped_and_nothing_else(value, indent):
    text = json.dumps(value, indent=indent)
    new = drop_key(text, "kompakt")
    assert json.loads(new) == {key: inner for key, inner in value.items() if key != "kompakt"}
    if "kompakt" not in value:
        assert new == text


def test_numbers_and_spaces_stay_when_a_key_is_dropped():
    text = '{ "a": 1.50, "kompakt" : {"keep": [0.5, {"kompakt": 1}]} , "b":{"kompakt":2} }'
    assert drop_key(text, "kompakt") == '{ "a": 1.50, "b":{"kompakt":2} }'
    assert drop_key('{"kompakt": 1}', "kompakt") == "{}"
    assert drop_key('{"kompakt": 1, "kompakt": 2, "a": "}"}', "kompakt") == '{ "a": "}"}'


def test_a_long_string_takes_no_more_room_than_itself():
    text = json.dumps({"image": "A" * 20_000_000, "text": "x"})
    tracemalloc.start()
    assert string_places(text)[("text",)][1] == len(text) - 1
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2 * len(text)
