"""Repeats go; what differs in a number, a name or a negation is no repeat."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

import kompakt
from kompakt import ConfigError, Document, Pipeline
from kompakt.compressor.text import dedup
from kompakt.compressor.units.segment import segment

TREATY = "The treaty was signed in 1848 by John Smith in the old city of Paris."


def kept(*texts, **options):
    stages = [kompakt.load("dedup", **options), "lexical"]
    # one token less than everything, so that something must go
    whole = kompakt.compress(list(texts), keep=1.0, compressor="lexical").tokens_before
    return Pipeline(stages).compress(list(texts), max_tokens=whole - 1)


@pytest.mark.parametrize(
    "repeat",
    [
        TREATY,
        "The  treaty was signed in 1848 by John Smith\nin the old city of Paris.",
        "The treaty was signed in 1848 by John Smith in the old city.",
    ],
    ids=["exact", "white space", "part"],
)
def test_repeats_go(repeat):
    result = kept(TREATY, repeat)
    assert [document.id for document in result.documents] == ["0"]
    assert result.text == TREATY


@pytest.mark.parametrize(
    "other",
    [
        TREATY.replace("1848", "1849"),
        TREATY.replace("Smith", "Jones"),
        TREATY.replace("was signed", "was not signed"),
        "It rained all day in the new part of town, and nobody came.",
    ],
    ids=["number", "name", "negation", "another thing"],
)
def test_what_differs_stays(other):
    compressor = kompakt.load("dedup")
    units = [TREATY, other]
    small = kompakt.compress([*units, TREATY], keep=0.7, compressor=compressor)
    assert {document.id for document in small.documents} == {"0", "1"}


def test_headings_statements_and_members_of_objects_are_never_repeats():
    code = "def f(a):\n    return a + a + a + a\n\n\ndef g(a):\n    return a + a + a + a\n"
    data = '{"first": {"state": "ready to go at any time now"}, "second": {"state": "ready to go at any time now"}}'
    documents = [
        Document("# Notes\n\nOne.", "0"),
        Document("# Notes\n\nTwo.", "1"),
        Document(code, "2"),
        Document(data, "3"),
    ]
    assert kompakt.load("dedup").repeats(segment(documents)) == frozenset()


@given(st.text(st.sampled_from("aZn't09. \t\n\x1c_-no") | st.characters(max_codepoint=127), max_size=40))
def test_the_patterns_for_ascii_find_what_the_general_ones_do(text):
    assert dedup._ASCII_FACT.findall(text) == dedup._FACT.findall(text)
    assert dedup._ASCII_CAPITALS.findall(text) == dedup._CAPITALS.findall(text)
    assert dedup._ASCII_WORD.findall(text.casefold()) == dedup._WORD.findall(text.casefold())


@given(st.lists(st.lists(st.sampled_from("a b c d e 1 2 Rome not".split()), min_size=5, max_size=9), max_size=12))
def test_repeats_are_those_of_a_slow_twin(lines):
    texts = [" ".join(["x", *line]) for line in lines]
    units = segment([Document(text, id=str(n)) for n, text in enumerate(texts)])
    found, firsts = set(), []
    for n, text in enumerate(texts):
        words = text.casefold().split()
        own = {tuple(words[i : i + 3]) for i in range(len(words) - 2)}
        facts = sorted(word for word in text.split() if word in ("1", "2", "Rome", "not"))
        if any(
            text == other
            or (len(own & sequences) >= 0.8 * len(own) and all(facts.count(f) <= theirs.count(f) for f in facts))
            for other, sequences, theirs in firsts
        ):
            found.add(n)
        else:
            firsts.append((text, own, facts))
    assert kompakt.load("dedup").repeats(units) == found


def test_equal_rows_are_repeats():
    row = '{"name": "pump", "state": "ready to go at any time"}'
    units = segment([Document(f"[{row}, {row}]", "0")])
    assert [units[index].text for index in kompakt.load("dedup").repeats(units)] == [row]


def test_chinese_repeats_go():
    sentence = "多瑙河流经十个国家并注入黑海。"
    assert kept(sentence + "第二句说的是别的事情。", sentence).text == sentence + "第二句说的是别的事情。"


@pytest.mark.parametrize("options", [{"similarity": 0}, {"similarity": 1.5}, {"min_words": 0}, {"similarity": "x"}])
def test_bad_options_are_named(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        kompakt.load("dedup", **options)
