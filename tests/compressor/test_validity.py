"""The check lets good results pass and names each broken promise."""

import json
from dataclasses import replace

import pytest

from kompakt.compressor.errors import ValidityError
from kompakt.compressor.results import to_part
from kompakt.compressor.types import Compressed, Document, Kind, Outcome, Span, Status, TextPart
from kompakt.compressor.units.render import Fragment
from kompakt.compressor.validity import check


def result_of(source, text):
    """A result that says ``text`` in place of ``source``, as text of its own."""
    part = to_part([[Fragment(text, Span(source.id, 0, len(source.text), Kind.OMISSION))]])
    documents = (replace(source, text=text, protected=()),)
    return Compressed((part,), documents, Outcome(Status.COMPRESSED), 2, 1, 1, sources=(source,))


CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Long question. " * 60},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "c1", "function": {"name": "f", "arguments": "{}"}}],
    },
    {"role": "tool", "tool_call_id": "c1", "content": "Long answer. " * 60},
    {"role": "user", "content": "And now?"},
]


def chat(change=lambda messages: None):
    messages = json.loads(json.dumps(CHAT))
    change(messages)
    return json.dumps(messages)


GOOD = [
    ("a.json", '{"a": [1, 2, 3]}', '{"a": [1, "…"]}'),
    ("a.jsonl", '{"a": 1}\n{"a": 2}\n', '{"a": 2}\n'),
    ("a.py", "def f():\n    x = 1\n    return x\n", "def f():\n    ...\n"),
    ("broken.py", "def f(:\n    x = 1\n", "    x = 1\n"),
    ("a.txt", "Some words. More words.", "More words."),
    ("chat.json", chat(), chat(lambda messages: messages[1].update(content="Long …"))),
]
BAD = [
    ("a.json", '{"a": [1, 2, 3]}', '{"a": [1, }', "was JSON"),
    ("a.json", "[1, 2, 3]", "1", "was JSON"),
    ("a.jsonl", '{"a": 1}\n{"a": 2}\n', '{"a": 2\n', "was JSON"),
    ("a.py", "def f():\n    x = 1\n", "def f(\n", "no longer parse"),
    ("chat.json", chat(), chat(lambda messages: messages.pop(1)), "is a chat"),
    ("chat.json", chat(), chat(lambda messages: messages[0].update(content="Be")), "is a chat"),
    ("chat.json", chat(), chat(lambda messages: messages[-1].update(content="And")), "is a chat"),
    ("chat.json", chat(), chat(lambda messages: messages[3].update(tool_call_id="c2")), "is a chat"),
    ("chat.json", chat(), chat(lambda messages: messages[3].pop("tool_call_id")), "is a chat"),
    ("chat.json", chat(), chat(lambda messages: messages[2].update(tool_calls=[])), "is a chat"),
]


def document(path, text, **options):
    return Document(text, id="d", metadata={"path": path}, **options)


@pytest.mark.parametrize(("path", "source", "text"), GOOD)
def test_good_results_pass(path, source, text):
    check(result_of(document(path, source), text))


@pytest.mark.parametrize(("path", "source", "text", "promise"), BAD)
def test_broken_syntax_is_named(path, source, text, promise):
    with pytest.raises(ValidityError, match=promise):
        check(result_of(document(path, source), text))


def spans_of(source, *spans):
    return to_part([[Fragment(source.text[span.start : span.end], span) for span in spans]])


def test_lost_protected_text_is_named():
    source = document("a.txt", "Keep this number 42 here.", protected=((17, 19),))
    part = spans_of(source, Span("d", 0, 17), Span("d", 17, 19), Span("d", 20, 24))
    whole = replace(result_of(source, part.text), parts=(part,))
    check(whole)
    for cut in ((0, 18), (18, 24)):
        part = spans_of(source, Span("d", *cut))
        with pytest.raises(ValidityError, match="protected characters 17 to 19"):
            check(replace(result_of(source, part.text), parts=(part,)))


def test_spans_that_point_elsewhere_are_named():
    source = document("a.txt", "Some words. More words.")
    part = TextPart("More words.", (Span("d", 0, 11),), (0,))
    with pytest.raises(ValidityError, match="not what stands in its source"):
        check(replace(result_of(source, part.text), parts=(part,)))


@pytest.mark.parametrize("starts", [(1,), (0, 5), (), (5, 0)])
def test_spans_that_do_not_tile_are_named(starts):
    source = document("a.txt", "Some words. More words.")
    good = result_of(source, "Some words.")
    spans = tuple(Span("d", 0, 1, Kind.OMISSION) for _ in (starts if starts == (5, 0) else [1]))
    with pytest.raises(ValidityError, match="do not tile"):
        check(replace(good, parts=(TextPart(good.text, spans, starts),)))


def test_text_that_is_in_no_document_is_named():
    source = document("a.txt", "Some words. More words.")
    good = result_of(source, "Some words.")
    with pytest.raises(ValidityError, match="differs from its documents"):
        check(replace(good, documents=(replace(source, text="Some"),)))
