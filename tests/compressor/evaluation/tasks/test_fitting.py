"""Under a limit contexts lose what is not needed, and never what is."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kompakt.compressor.evaluation.example import TaskSettings
from kompakt.compressor.evaluation.task_registry import get_task
from kompakt.compressor.models.tokenizers import load_tokenizer

TOKENIZER = load_tokenizer("o200k_base")
limits = st.none() | st.integers(1, 400)
words = st.text("ab .\n\u00e9", min_size=1, max_size=300)


def make(task, rows, max_context=None, seed=0):
    return list(get_task(task).examples({"x_y": rows}, TaskSettings(TOKENIZER, max_context, seed)))


def size(documents):
    return TOKENIZER.count("\n\n".join(document.text for document in documents))


@pytest.mark.parametrize("task", ["multi-document-qa", "filings-qa"])
@given(texts=st.lists(st.tuples(words, st.booleans()), min_size=1, max_size=8), limit=limits, seed=st.integers(0, 9))
def test_gold_passages_stay(task, texts, limit, seed):
    docs = [{"title": f"T{i}", "text": text, "is_gold": gold} for i, (text, gold) in enumerate(texts)]
    found = make(task, [{"id": "a", "question": "?", "answers": ["x"], "docs": docs}], limit, seed)
    whole = make(task, [{"id": "a", "question": "?", "answers": ["x"], "docs": docs}])[0].documents
    gold = [document for document, (_, is_gold) in zip(whole, texts, strict=True) if is_gold]
    if not found:
        assert size(gold) > limit or not gold
        return
    kept = found[0].documents
    assert [document for document in gold if document in kept] == gold
    assert list(kept) == [document for document in whole if document in kept]
    assert limit is None or size(kept) <= limit
    assert found[0].dataset == "y"


def test_room_is_used():
    docs = [{"title": "T", "text": f"{i} " + "word " * (5 if i else 50), "is_gold": i == 0} for i in range(20)]
    row = {"id": "a", "question": "?", "answers": ["x"], "docs": docs}
    (example,) = make("multi-document-qa", [row], 150)
    assert 130 <= size(example.documents) <= 150
    assert example.documents != make("multi-document-qa", [row], 150, seed=1)[0].documents


def test_yes_and_no_are_not_asked_for():
    row = {"id": "a", "question": "?", "answers": ["yes"], "docs": [], "answer_type": "yesno"}
    assert make("multi-document-qa", [row]) == []


@given(n=st.integers(1, 30), gold=st.integers(0, 29), limit=limits, seed=st.integers(0, 9))
def test_the_key_stays(n, gold, limit, seed):
    records = [[f"key-{i}", f"value-{i * i}"] for i in range(n)]
    row = {"id": "a", "records": records, "value": records[gold % n][1], "gold_index": gold % n}
    found = make("key-value", [row], limit, seed)
    if not found:
        assert TOKENIZER.count(json.dumps(dict([records[gold % n]]), indent=1)) > limit
        return
    text = found[0].documents[0].text
    kept = json.loads(text)
    assert kept[records[gold % n][0]] == found[0].answers[0]
    assert list(kept.items()) == [tuple(record) for record in records if record[0] in kept]
    assert limit is None or TOKENIZER.count(text) <= limit
    assert limit is not None or len(kept) == n
    assert found[0].dataset == f"{n}-keys"


@given(
    labels=st.lists(st.tuples(words, st.sampled_from("pqr")), min_size=1, max_size=130),
    limit=limits,
    seed=st.integers(0, 9),
)
def test_demonstrations_fit(labels, limit, seed):
    row = {
        "id": "a",
        "task": "t",
        "instruction": "Do.",
        "demos": [{"input": text, "output": label} for text, label in labels],
        "queries": [{"id": f"q{label}", "input": "?", "output": label} for label in "pqrs"],
    }
    for example in make("demonstrations", [row], limit, seed):
        assert 1 <= len(example.documents) <= 100
        assert limit is None or size(example.documents) <= limit
        assert any(document.text.endswith(f"Output: {example.answers[0]}") for document in example.documents)
        assert example.group == "a"
        assert example.instruction == "Do."
    if limit is None:
        asked = {example.answers[0] for example in make("demonstrations", [row], limit, seed)}
        assert asked == {label for _, label in labels}


def transcript(*outputs, answer="gold"):
    messages = [{"role": "tool", "tool_call_id": "1", "content": output} for output in outputs]
    return {"id": "t", "messages": messages, "questions": [{"id": "q", "question": "?", "answers": [answer]}]}


@given(outputs=st.lists(words | words.map(lambda text: f"{text} gold"), max_size=6), limit=limits)
def test_outputs_with_the_answer_stay(outputs, limit):
    found = make("agent-transcripts", [transcript(*outputs)], limit)
    holding = [output for output in outputs if "gold" in output]
    if found:
        kept = [document.text for document in found[0].documents]
        assert [text for text in kept if "gold" in text] == holding
        assert limit is None or size(found[0].documents) <= limit
        assert bool(found[0].group) is (len(kept) == sum(bool(output.strip()) for output in outputs))
    else:
        assert not holding or TOKENIZER.count("\n\n".join(holding)) > limit


def test_transcripts_without_outputs_are_left_out():
    row = transcript()
    row["messages"] = [{"role": "user", "content": "gold"}, {"role": "tool", "content": None}]
    assert make("agent-transcripts", [row]) == []


@pytest.mark.parametrize(
    ("function", "title"),
    [
        ({"name": "bash", "arguments": '{"command": "ls -F"}'}, "ls -F"),
        ({"name": "find", "arguments": '{"b":1, "a": "x"}'}, 'find({"b":1, "a": "x"})'),
        ({"name": "find", "arguments": {"a": "\u00e9"}}, 'find({"a": "\u00e9"})'),
        ({"name": "find", "arguments": {"command": 3}}, 'find({"command": 3})'),
        ({"name": "find", "arguments": "not {json"}, "find(not {json)"),
        ({"name": "find", "arguments": ["x"]}, 'find(["x"])'),
        ({"name": "find", "arguments": None}, "find(null)"),
        ({"name": "find"}, "find()"),
        ({"arguments": "{}"}, "tool({})"),
        (None, "tool()"),
    ],
)
def test_titles(function, title):
    row = transcript("gold")
    row["messages"].insert(0, {"role": "assistant", "tool_calls": [{"id": "1", "function": function}]})
    (example,) = make("agent-transcripts", [row])
    assert example.documents[0].metadata == {"title": title}


def test_a_call_id_that_is_used_again_names_the_latest_call():
    row = transcript("gold", "second")
    for position, name in ((0, "one"), (2, "two")):
        call = {"id": "1", "function": {"name": name, "arguments": "{}"}}
        row["messages"].insert(position, {"role": "assistant", "content": None, "tool_calls": [call]})
    (example,) = make("agent-transcripts", [row])
    assert [(d.id, d.metadata["title"]) for d in example.documents] == [("0", "one({})"), ("1", "two({})")]


def test_contents_in_parts_are_read():
    row = transcript([{"type": "text", "text": "gold"}, "more"], {"a": "b"})
    (example,) = make("agent-transcripts", [row])
    assert [document.text for document in example.documents] == ["gold\nmore", '{"a": "b"}']


def test_long_documents_are_left_out_and_free_answers_too():
    questions = [
        {"id": "1", "question": "?", "answers": ["word"]},
        {"id": "2", "question": "?", "answers": ["word"], "answer_type": "extractive"},
        {"id": "3", "question": "?", "answers": ["word"], "answer_type": "freeform"},
    ]
    row = {"id": "d", "document": "word " * 100, "questions": questions, "dataset": "own"}
    found = make("long-document-qa", [row])
    assert [(example.id, example.group, example.dataset) for example in found] == [
        ("1", "d", "own"),
        ("2", "d", "own"),
    ]
    assert make("long-document-qa", [row], 50) == []
