"""Chunks hold all of a document, keep to their limit and end where its structure does."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import any_texts, sentences

from kompakt import ConfigError, Document, InputError
from kompakt.compressor.models.tokenizers import load_tokenizer
from kompakt.compressor.units.sentences import split_words
from kompakt.retrieval.chunks import split_chunks

TOKENIZER = load_tokenizer("o200k_base")


def chunks_of(text, max_tokens=256, **metadata):
    return split_chunks(Document(text, id="d", metadata=metadata), tokenizer=TOKENIZER, max_tokens=max_tokens)


def texts_of(text, max_tokens=256, **metadata):
    return [chunk.text for chunk in chunks_of(text, max_tokens, **metadata)]


def contexts_of(text, max_tokens=256, **metadata):
    return [chunk.context for chunk in chunks_of(text, max_tokens, **metadata)]


@given(any_texts, st.sampled_from([1, 4, 16, 256]), st.sampled_from(["", "A title"]))
def test_chunks_hold_every_character_once(text, max_tokens, title):
    position = 0
    for chunk in chunks_of(text, max_tokens, title=title):
        assert not text[position : chunk.start].strip()
        assert chunk.start < chunk.end
        assert chunk.text == text[chunk.start : chunk.end] == chunk.text.strip()
        assert chunk.document_id == "d"
        position = chunk.end
    assert not text[position:].strip()


@given(any_texts, st.sampled_from([1, 4, 16]))
def test_only_a_word_can_be_above_the_limit(text, max_tokens):
    for chunk in chunks_of(text, max_tokens):
        if TOKENIZER.count(chunk.text) > max_tokens:
            assert len(split_words(chunk.text)) == 1


@given(st.lists(st.lists(sentences, min_size=1, max_size=4).map(" ".join), max_size=4), st.sampled_from([8, 64]))
def test_no_chunk_reaches_into_the_next_section(parts, max_tokens):
    text = "\n\n".join(f"# Part {n}\n\n{part}" for n, part in enumerate(parts))
    found = chunks_of(text, max_tokens)
    assert not any("\n# Part" in chunk.text for chunk in found)
    starts = [chunk for chunk in found if chunk.text.startswith("# Part")]
    assert len(starts) == len(parts)
    section = -1
    for chunk in found:
        section += chunk in starts
        assert chunk.context == ("" if chunk in starts else f"Part {section}")


def test_sentences_are_whole_and_packed():
    text = "One two three. Four five six. Seven eight nine. Ten eleven."
    assert texts_of(text, 9) == ["One two three. Four five six.", "Seven eight nine. Ten eleven."]
    assert texts_of(text) == [text]


def test_what_is_long_begins_a_chunk_and_is_cut_between_words():
    long = "alpha beta gamma delta epsilon zeta eta theta iota kappa"
    pieces = texts_of(f"It is short. {long}. Short again.", 6)
    assert pieces[0] == "It is short."
    assert " ".join(pieces[1:]) == f"{long}. Short again."
    assert all(TOKENIZER.count(piece) <= 6 for piece in pieces)


def test_scripts_without_spaces_are_cut_between_characters():
    pieces = texts_of("日本語の文章は空白で区切られない" * 4, 5)
    assert "".join(pieces) == "日本語の文章は空白で区切られない" * 4
    assert all(TOKENIZER.count(piece) <= 5 for piece in pieces)


MARKDOWN = """# Boats

Boats float. They need water.

## Sails

Sails catch the wind.

Oars
----

| name | length |
|------|--------|
| long | 4 m    |
| tiny | 1 m    |

# Cars

Cars roll.
"""


def test_sections_are_apart_and_know_their_headings():
    found = chunks_of(MARKDOWN, title="Transport")
    assert [(chunk.text.split("\n")[0], chunk.context) for chunk in found] == [
        ("# Boats", "Transport"),
        ("## Sails", "Transport > Boats"),
        ("Oars", "Transport > Boats"),
        ("# Cars", "Transport"),
    ]


def test_later_chunks_of_a_section_have_its_headings_as_context():
    columns = "Boats > Oars > | name | length |"
    assert contexts_of(MARKDOWN, 11) == ["", "Boats", "Boats", "Boats > Oars", columns, columns, ""]


def test_a_section_beside_a_nested_one_keeps_its_levels():
    text = "# A\n\n## B\n\n### C\n\nOf c.\n\n### D\n\nOf d. More of d.\n\n## E\n\nOf e. More of e.\n"
    assert contexts_of(text, 8) == ["", "A > B", "A > B", "A > B > D", "A", "A > E"]


def test_headings_without_text_between_them_stay_with_what_follows():
    assert texts_of("# One\n\n## Two\n\nText of two.\n\n## Three") == ["# One\n\n## Two\n\nText of two.", "## Three"]


@pytest.mark.parametrize(
    "text", ["- item\n\n  # not a section\n\n  more", "> # quoted\n\ntext", "```\n# comment\n```\n"]
)
def test_what_only_looks_like_a_heading_is_none(text):
    assert texts_of(f"Before it.\n\n{text}") == [f"Before it.\n\n{text}".strip()]


def test_a_first_line_above_long_text_is_its_title():
    text = (
        "The long voyage\n\n"
        + "The ship left the harbour in the morning, with all hands on deck and a fair wind. " * 4
    )
    assert contexts_of(text, 25)[1:] == ["The long voyage"] * 3


def test_a_method_knows_its_class():
    code = (
        "class Ship:\n    def sail(self):\n        return 'sailing'\n\n    def moor(self):\n        return 'moored'\n"
    )
    found = chunks_of(code, 14, path="ship.py")
    assert [chunk.text.split("(")[0] for chunk in found] == ["class Ship:\n    def sail", "def moor"]
    assert found[1].context == "class Ship:"


def test_rows_are_whole_and_know_their_columns():
    table = "name,city\n" + "".join(f"person {n},town {n}\n" for n in range(20))
    found = chunks_of(table, 30)
    assert all(row.startswith("person") for chunk in found[1:] for row in chunk.text.split("\n"))
    assert {chunk.context for chunk in found[1:]} == {"name,city"}


def test_members_of_json_stay_whole():
    rows = json.dumps([{"id": n, "name": f"name {n}"} for n in range(40)])
    for text in texts_of(rows, 40):
        assert text.lstrip("[").startswith('{"id"')


def test_what_stands_above_is_shortened():
    table = ",".join(f"column_{n}" for n in range(60)) + "\n" + (",".join("1" * 60) + "\n") * 20
    assert max(len(chunk.context) for chunk in chunks_of(table, 200)) == 200


@pytest.mark.parametrize("text", ["", " \n\t\n"])
def test_a_blank_document_has_no_chunks(text):
    assert chunks_of(text) == []


@pytest.mark.parametrize("max_tokens", [0, -1, True, 2.5, "8"])
def test_a_bad_limit_is_named(max_tokens):
    with pytest.raises(ConfigError, match=f"max_tokens.*{max_tokens!r}"):
        chunks_of("text", max_tokens)


def test_a_document_needs_an_id_and_unicode():
    with pytest.raises(InputError, match="needs an id"):
        split_chunks(Document("text"), tokenizer=TOKENIZER)
    with pytest.raises(InputError, match="lone surrogate"):
        chunks_of("a \ud800 b")
