"""Filters on metadata do in SQL what they say."""

import json
import sqlite3
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kompakt import InputError
from kompakt.retrieval.filters import compile_filter

ROWS = {
    "a": {"year": 2024, "lang": "de", "score": 3, "tag": "x", "ok": True},
    "b": {"year": 2023, "lang": "fr", "score": 8.5, "tag": None, "ok": False},
    "c": {"year": 2024, "lang": "en", "score": 9, "tags": ["x", "y"]},
    "d": {"year": "2024", "lang": "fr", "score": "high", "ok": 1},
    "e": {},
}


def matching(where, rows=None):
    rows = ROWS if rows is None else rows
    sql, values = compile_filter(where, column="metadata")
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.execute("CREATE TABLE rows (id TEXT, metadata TEXT)")
        written = [(name, json.dumps(row, ensure_ascii=False)) for name, row in rows.items()]
        connection.executemany("INSERT INTO rows VALUES (?, ?)", written)
        found = connection.execute(f"SELECT id FROM rows WHERE {sql} ORDER BY id", values).fetchall()
    return "".join(name for (name,) in found)


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (None, "abcde"),
        ({}, "abcde"),
        ({"year": 2024}, "ac"),
        ({"year": 2024.0}, "ac"),
        ({"year": "2024"}, "d"),
        ({"lang": ["de", "fr"]}, "abd"),
        ({"lang": ("de",)}, "a"),
        ({"year": {2023, 2024}}, "abc"),
        ({"year": [2023, "2024"]}, "bd"),
        ({"lang": []}, ""),
        ({"score": {">=": 3, "<": 9}}, "ab"),
        ({"score": {">": 3}}, "bc"),
        ({"score": {"<=": 8.5}}, "ab"),
        ({"score": {">": "a"}}, "d"),
        ({"lang": {"<": "e"}}, "a"),
        ({"tag": {"!=": "x"}}, "bcde"),
        ({"tag": {"!=": None}}, "a"),
        ({"tag": {"!=": ["x", None]}}, ""),
        ({"tag": None}, "bcde"),
        ({"tag": ["x", None]}, "abcde"),
        ({"year": {"=": 2024, "!=": 2023}}, "ac"),
        ({"ok": True}, "a"),
        ({"ok": False}, "b"),
        ({"ok": {"!=": True}}, "bcde"),
        ({"ok": 1}, "d"),
        ({"tags": '["x","y"]'}, ""),
        ({"year": 2024, "lang": "en"}, "c"),
        ({"missing": 1}, ""),
        ({"year": list(range(100_000))}, "abc"),
    ],
)
def test_filters(where, expected):
    assert matching(where) == expected


ODD_KEYS = [
    "a.b",
    "a[0]",
    "$",
    "",
    "it's",
    'a"b',
    "a\\b",
    "é 日本",
    "line\nbreak",
    "#-1",
    "x') OR 1 --",
    "\U0001f600",
]


@pytest.mark.parametrize("key", ODD_KEYS)
def test_keys_mean_themselves(key):
    rows = {"a": {key: "it"}, "b": {"other": "it"}, "c": {key: 5}}
    assert matching({key: "it"}, rows) == "a"
    assert matching({key: {"!=": "it"}}, rows) == "bc"
    assert matching({key: {">": 4}}, rows) == "c"
    assert matching({key: None}, rows) == "b"


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=6)
numbers = st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
scalars = st.none() | st.booleans() | texts | numbers | st.sampled_from([0, 1, 1.0, "1", "a"])


def kind(value):
    return "number" if isinstance(value, (int, float)) and not isinstance(value, bool) else type(value)


@given(texts, scalars, scalars)
def test_equality_is_that_of_python_within_a_kind(key, stored, wanted):
    is_equal = kind(stored) == kind(wanted) and stored == wanted
    rows = {"a": {key: stored}}
    assert matching({key: wanted}, rows) == ("a" if is_equal else "")
    assert matching({key: {"!=": wanted}}, rows) == ("" if is_equal else "a")
    assert matching({key: [wanted, "no such value"]}, rows) == ("a" if is_equal else "")


@given(scalars, texts | numbers)
def test_order_is_that_of_python_within_a_kind(stored, limit):
    is_comparable = kind(stored) == kind(limit)
    rows = {"a": {"x": stored}}
    assert matching({"x": {"<": limit}}, rows) == ("a" if is_comparable and stored < limit else "")
    assert matching({"x": {">=": limit}}, rows) == ("a" if is_comparable and stored >= limit else "")


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("year", "where must be a mapping.*'year'"),
        ({1: 2}, "key must be a string, got 1"),
        ({"a": {}}, r"where\['a'\] has no operator"),
        ({"a": {"~": 1}}, r"where\['a'\]: no operator '~'. Operators: =, !=, <"),
        ({"a": {"<": [1]}}, r"where\['a'\]: a value must be .*\[1\] \(list\)"),
        ({"a": {"<": True}}, "< compares numbers or strings, got True"),
        ({"a": {">": None}}, "> compares numbers or strings, got None"),
        ({"a": object}, r"where\['a'\].*\(type\)"),
        ({"a": b"x"}, r"\(bytes\)"),
        ({"a": [[1]]}, r"\(list\)"),
        ({"a": float("nan")}, "finite"),
        ({"a": 2**63}, "64 bits"),
        ({"a": "\ud800"}, "lone surrogate"),
        ({"\ud800": 1}, "lone surrogate"),
        ({"a": "x\0y"}, "NUL"),
    ],
)
def test_what_cannot_be_used_is_named(where, message):
    with pytest.raises(InputError, match=message):
        compile_filter(where, column="metadata")


def test_values_are_never_part_of_the_sql():
    sql, values = compile_filter({"k'\"y": "'; DROP TABLE rows; --", "z": {"<": "'"}}, column="metadata")
    assert "DROP" not in sql
    assert "k'" not in sql
    assert sql.count("?") == len(values)
