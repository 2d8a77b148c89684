"""Chats stay chats: the same messages, roles, ids and tool calls, with less text."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import long_strings, subsets

from kompakt.compressor.types import Document, Kind
from kompakt.compressor.units.messages import chat_of, is_same_chat
from kompakt.compressor.units.render import render
from kompakt.compressor.units.segment import segment

contents = st.one_of(
    st.none(),
    st.just("Short."),
    long_strings,
    st.lists(long_strings.map(lambda text: {"type": "text", "text": text})),
)
functions = long_strings.map(lambda text: {"name": "f", "arguments": json.dumps({"content": text})})
calls = st.fixed_dictionaries({"id": st.just("c1"), "type": st.just("function"), "function": functions})
messages = st.one_of(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "user"]), "content": contents}),
    st.fixed_dictionaries(
        {"role": st.just("assistant"), "content": contents, "tool_calls": st.lists(calls, max_size=1)}
    ),
    st.fixed_dictionaries({"role": st.just("tool"), "tool_call_id": st.just("c1"), "content": contents}),
)
chats = st.lists(messages, min_size=1, max_size=4)


def written(units, kept):
    return "".join(piece.text for piece in render(units, kept)[0])


@given(chats, st.booleans(), st.sampled_from([None, 1]), st.data())
def test_any_result_is_the_same_chat(chat, is_wrapped, indent, data):
    value = {"model": "m", "tools": [{"name": "x" * 500}], "messages": chat} if is_wrapped else chat
    text = json.dumps(value, indent=indent)
    units = segment([Document(text, id="0")])
    assert {unit.kind for unit in units} == {Kind.MESSAGE}
    result = written(units, data.draw(subsets(units)))
    assert is_same_chat(result, text)
    found = chat_of(result)
    last_user = max((n for n, message in enumerate(chat) if message["role"] == "user"), default=None)
    for n, (message, before) in enumerate(zip(found, chat, strict=True)):
        assert {**message, "content": 0} == {**before, "content": 0}
        if message["role"] == "system" or n == last_user:
            assert message == before


def test_only_long_texts_of_earlier_messages_are_cut():
    long = "A sentence that is here. " * 30
    chat = [
        {"role": "system", "content": long},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "input": {"content": long}}]},
        {"role": "user", "content": [{"tool_use_id": "t1", "content": [{"type": "text", "text": long}]}]},
        {"role": "assistant", "content": long, "text": long, "name": long},
        {"role": "user", "content": long},
    ]  # fmt: skip
    units = segment([Document(json.dumps(chat), id="0")])
    result = json.loads(written(units, {index for index, unit in enumerate(units) if unit.protected}))
    assert [result[n] == chat[n] for n in range(5)] == [True, True, False, False, True]
    assert result[2]["content"][0] == {**chat[2]["content"][0], "content": [{"type": "text", "text": " …"}]}
    assert result[3] == {"role": "assistant", "content": " …", "text": " …", "name": long}


@pytest.mark.parametrize(
    "value",
    [
        [],
        {},
        [1],
        {"messages": []},
        {"messages": "none"},
        {"messages": {"a": 1}},
        [{"role": "user", "name": "Ada"}],
        [{"role": ["user"], "content": ""}],
        [{"role": "admin", "content": ""}],
    ],
)
def test_other_json_is_no_chat(value):
    text = json.dumps(value)
    assert chat_of(text) is None
    assert not is_same_chat(text, text)
    assert not any(unit.protected for unit in segment([Document(text, id="0")]))


def test_what_is_not_json_is_no_chat():
    assert chat_of("[") is None
    assert chat_of("[" * 100_000) is None
