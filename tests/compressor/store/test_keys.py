"""Keys: equal exactly where everything that decides a value is."""

import hashlib
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

import kompakt
from kompakt.compressor.store import keys as module
from kompakt.compressor.store.keys import is_key, release, text_keys

# characters that a careless joining would trip over
texts = st.text(st.sampled_from('ab"[],:\\ \0\n1é😀'), max_size=6)
recipes = st.lists(st.one_of(texts, st.integers(0, 3), st.none(), st.lists(texts, max_size=2)), max_size=3)


def key_by_hand(recipe, text, tenant):
    about = json.dumps([release(), tenant, *recipe], ensure_ascii=False).encode()
    return hashlib.sha256(len(about).to_bytes(8, "big") + about + text.encode()).digest()


@given(recipes, st.lists(texts, max_size=3), texts)
def test_keys_are_what_they_are_said_to_be(recipe, several, tenant):
    found = text_keys(recipe, several, tenant=tenant)
    assert found == [key_by_hand(recipe, text, tenant) for text in several]
    assert all(map(is_key, found))


parts = st.tuples(recipes, texts, texts)


@given(parts, parts)
def test_two_keys_are_equal_only_if_recipe_text_and_tenant_are(first, second):
    (one,), (other,) = (text_keys(recipe, [text], tenant=tenant) for recipe, text, tenant in (first, second))
    assert (one == other) == (first == second)


@given(recipes, texts, texts)
def test_no_part_can_stand_for_another(recipe, text, tenant):
    written = json.dumps([*recipe])
    lookalikes = [
        (recipe, text, tenant + "x"),
        (recipe, text + "x", tenant),
        ([*recipe, text], "", tenant),
        ([*recipe, tenant], text, ""),
        ([tenant, *recipe], text, "" if tenant else "-"),
        ([], written + text, tenant) if recipe else (["x"], text, tenant),
        ([[*recipe]], text, tenant),
    ]
    (own,) = text_keys(recipe, [text], tenant=tenant)
    for other in lookalikes:
        if other != (recipe, text, tenant):
            assert text_keys(other[0], [other[1]], tenant=other[2]) != [own]


def test_types_of_options_count():
    kinds = [[1], [True], ["1"], [1.0], [None], ["null"], [[1]]]
    assert len({text_keys(recipe, ["x"])[0] for recipe in kinds}) == len(kinds)


def test_characters_count_as_they_are():
    # one glyph, composed and not; and what some encodings drop
    looks_alike = ["é", "e\u0301", "E\u0301", "\ufeffé", "é\u200b", "é\0"]
    assert len(set(text_keys(["x"], looks_alike))) == len(looks_alike)
    assert len({text_keys(["x"], ["x"], tenant=name)[0] for name in looks_alike}) == len(looks_alike)


def test_values_of_another_minor_version_are_not_found(monkeypatch):
    assert release() == re.match(r"\d+\.\d+", kompakt.__version__)[0]
    before = text_keys(["x"], ["text"])
    monkeypatch.setattr(module, "release", lambda: "0.999")
    assert text_keys(["x"], ["text"]) != before


@pytest.mark.parametrize("value", [b"", bytes(31), bytes(33)])
def test_what_is_no_key(value):
    assert not is_key(value)
