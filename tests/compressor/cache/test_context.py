"""A context as tokens: what stands around it, and which of its tokens must stay."""

import json

import pytest
from cache_parts import lm_of

from kompakt import Document
from kompakt.compressor.cache.context import read_context
from kompakt.compressor.types import as_documents


def read(base, *documents, query=None, is_chat=True, before=""):
    lm = lm_of(base)
    context = read_context(as_documents(list(documents)), lm, model=base, query=query, is_chat=is_chat, before=before)
    return context, lm


def ids_of(lm, text, *, begins=False):
    return (*((0,) if begins else ()), *lm.tokenizer.encode(text).ids)


def test_a_text_stands_behind_the_token_that_texts_begin_with(base):
    context, lm = read(base, "one", "two", query="Why?", before="See: ")
    assert context.before == ids_of(lm, "See: ", begins=True)
    assert context.ids == ids_of(lm, "one\n\ntwo")
    assert context.after == ids_of(lm, "\n\nWhy?")
    assert (context.first, context.last) == (6, 14)
    assert context.protected == ()
    assert context.source.text == "one\n\ntwo"


def test_the_chat_format_stands_before_what_the_caller_writes(chat_base):
    context, lm = read(chat_base, "one", before="See: ")
    assert context.before == ids_of(lm, "user: See: ", begins=True)
    assert context.after == ()
    plain, _ = read(chat_base, "one", is_chat=False)
    assert plain.before == (0,)


def test_text_that_spells_a_special_token_is_text(base):
    context, _ = read(base, "a <|endoftext|> b")
    assert 0 not in context.ids
    assert len(context.ids) == len("a <|endoftext|> b")


@pytest.mark.parametrize(
    ("text", "protected", "expected"),
    [
        ("abcdef", ((1, 3),), (1, 2)),
        ("abcdef", ((0, 1), (4, 6)), (0, 4, 5)),
        ("abcdef", ((2, 2),), ()),
        ("abcdef", ((2, 4), (0, 3), (3, 3)), (0, 1, 2, 3)),
        # a space and a t are one token
        ("a to", ((2, 3),), (1,)),
        ("a to", ((1, 2),), (1,)),
        # a character of two bytes is two tokens
        ("aüb", ((1, 2),), (1, 2)),
        ("雪a", ((0, 1),), (0, 1, 2)),
    ],
)
def test_a_token_is_protected_if_it_reaches_into_protected_text(base, text, protected, expected):
    assert read(base, Document(text, protected=protected))[0].protected == expected
    behind, _ = read(base, "xy", Document(text, protected=protected))
    assert behind.protected == tuple(index + 4 for index in expected)


def test_spans_of_protected_text_say_so(base):
    context, _ = read(base, Document("abcdef", id="d", protected=((1, 3), (2, 4))), Document("gh", id="e"))
    spans = [(span.document_id, span.start, span.end) for span in context.source.spans]
    assert spans == [("d", 0, 1), ("d", 1, 4), ("d", 4, 6), ("e", 0, 0), ("e", 0, 2)]
    assert [span.protected for span in context.source.spans] == [False, True, False, False, False]
    assert context.source.text == "abcdef\n\ngh"


def test_a_chat_is_protected_as_a_whole(base):
    chat = json.dumps([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}])
    context, _ = read(base, "abc", chat)
    assert context.protected == tuple(range(5, len(context.ids)))


def test_its_content_tells_contexts_apart(base):
    contexts = [
        read(base, "abc", **options)[0].content
        for options in ({}, {"query": "Why?"}, {"query": "Who?"}, {"before": "x"})
    ]
    contexts.append(read(base, "abd")[0].content)
    contexts.append(read(base, Document("abc", protected=((0, 1),)))[0].content)
    assert len(set(contexts)) == 6
    assert read(base, "abc", is_chat=False)[0].content == contexts[0]
    assert read(base, Document("abc", id="other"))[0].content == contexts[0]


def test_an_empty_document_among_others(base):
    context, lm = read(base, "", "abc")
    assert context.ids == ids_of(lm, "\n\nabc")
    assert context.source.text == "\n\nabc"
