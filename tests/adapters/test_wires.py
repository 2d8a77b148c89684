"""Texts are found in the bodies of every interface, with who says them and where the cache ends."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.strategies import recursive

from kompakt.adapters._wires import Role, Wire, find_slots, wire_of

BREAK = {"type": "ephemeral"}


def at(body, path):
    for key in path:
        body = body[key]
    return body


def found(body, wire):
    slots = find_slots(body, wire)
    assert all(at(body, slot.path) == slot.text for slot in slots)
    return [(slot.role.value, slot.text, slot.message, slot.tool) for slot in slots]


@pytest.mark.parametrize(
    ("path", "wire"),
    [
        ("/v1/chat/completions", Wire.CHAT_COMPLETIONS),
        ("/openai/deployments/gpt-5/chat/completions", Wire.CHAT_COMPLETIONS),
        ("/v1/completions", Wire.COMPLETIONS),
        ("/v1/responses/", Wire.RESPONSES),
        ("/v1/messages", Wire.MESSAGES),
        ("/v1/messages/count_tokens", None),
        ("/v1/messages/batches", None),
        ("/v1/responses/resp_1", None),
        ("/v1/embeddings", None),
        ("/v1/chat_completions", None),
        ("/", None),
    ],
)
def test_interfaces_are_known_by_the_end_of_their_path(path, wire):
    assert wire_of(path) is wire


def test_chat_completions():
    body = {
        "messages": [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Look."}, {"type": "image_url", "image_url": {}}]},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "grep", "arguments": "{}"}}],
            },
            {"role": "tool", "tool_call_id": "c1", "content": "42 matches"},
            {"role": "tool", "tool_call_id": "c2", "content": [{"type": "text", "text": "no such call"}]},
            {"role": "critic", "content": "who?"},
            {"role": "user", "content": "So?"},
        ]
    }
    assert found(body, Wire.CHAT_COMPLETIONS) == [
        ("system", "Be brief.", 0, ""),
        ("user", "Look.", 1, ""),
        ("tool", "42 matches", 3, "grep"),
        ("tool", "no such call", 4, ""),
        ("user", "So?", 6, ""),
    ]


def test_completions():
    assert found({"prompt": "Once"}, Wire.COMPLETIONS) == [("user", "Once", 0, "")]
    for prompt in (["a", "b"], [1, 2], [[1], [2]], None):
        assert found({"prompt": prompt}, Wire.COMPLETIONS) == []


def test_responses():
    body = {
        "instructions": "Be brief.",
        "input": [
            {"role": "user", "content": "Look."},
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]},
            {"type": "function_call", "call_id": "c1", "name": "grep", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "42 matches"},
            {"type": "custom_tool_call_output", "call_id": "x", "output": [{"type": "input_text", "text": "part"}]},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Found."}]},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "So?"}]},
        ],
    }
    assert found(body, Wire.RESPONSES) == [
        ("system", "Be brief.", 0, ""),
        ("user", "Look.", 0, ""),
        ("tool", "42 matches", 3, "grep"),
        ("tool", "part", 4, ""),
        ("assistant", "Found.", 5, ""),
        ("user", "So?", 6, ""),
    ]
    assert found({"input": "Hello"}, Wire.RESPONSES) == [("user", "Hello", 0, "")]


MESSAGES = {
    "system": [{"type": "text", "text": "Be brief.", "cache_control": BREAK}],
    "messages": [
        {"role": "user", "content": "Look."},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "s"},
                {"type": "text", "text": "I look."},
                {"type": "tool_use", "id": "t1", "name": "grep", "input": {"pattern": "x"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": "42 matches"},
                {
                    "type": "tool_result",
                    "tool_use_id": "t2",
                    "is_error": True,
                    "content": [{"type": "text", "text": "no"}, {"type": "image", "source": {}}],
                },
                {
                    "type": "document",
                    "title": "D",
                    "source": {"type": "text", "data": "Deed"},
                    "cache_control": BREAK,
                },
                {"type": "document", "citations": {"enabled": True}, "source": {"type": "text", "data": "Cited"}},
                {"type": "search_result", "title": "S", "source": "u", "content": [{"type": "text", "text": "Hit"}]},
                {"type": "text", "text": "So?"},
            ],
        },
    ],
}


def test_messages():
    assert found(MESSAGES, Wire.MESSAGES) == [
        ("system", "Be brief.", 0, ""),
        ("user", "Look.", 0, ""),
        ("assistant", "I look.", 1, ""),
        ("tool", "42 matches", 2, "grep"),
        ("tool", "no", 2, ""),
        ("document", "Deed", 2, ""),
        ("document", "Cited", 2, ""),
        ("document", "Hit", 2, ""),
        ("user", "So?", 2, ""),
    ]
    slots = {slot.text: slot for slot in find_slots(MESSAGES, Wire.MESSAGES)}
    assert {text for text, slot in slots.items() if slot.is_fixed} == {"no", "Cited"}
    assert {text for text, slot in slots.items() if not slot.is_cached} == {"Cited", "Hit", "So?"}
    assert (slots["Deed"].title, slots["Hit"].title) == ("D", "S")


def test_a_breakpoint_counts_wherever_it_stands():
    image = {"type": "image", "source": {}, "cache_control": BREAK}
    content = [{"type": "text", "text": "a"}, image, {"type": "text", "text": "b"}]
    slots = find_slots({"messages": [{"role": "user", "content": content}]}, Wire.MESSAGES)
    assert [slot.is_cached for slot in slots] == [True, False]
    chat = {"messages": [{"role": "user", "content": "a", "cache_control": BREAK}, {"role": "user", "content": "b"}]}
    assert [slot.is_cached for slot in find_slots(chat, Wire.CHAT_COMPLETIONS)] == [True, False]


def test_a_string_of_a_whole_result_is_a_slot_of_its_own():
    body = {"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": ""}]}]}
    assert find_slots(body, Wire.MESSAGES) == []


keys = st.sampled_from(
    "messages content role type text tool_calls id function name tool_call_id input output prompt source data "
    "citations enabled cache_control system instructions call_id tool_use_id is_error title tools".split()
)
words = st.sampled_from(
    "user assistant tool system text input_text tool_result tool_use document search_result message function_call "
    "function_call_output content x".split()
)
anything = recursive(
    st.none() | st.booleans() | st.integers() | words,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=6),
    max_leaves=30,
)


@given(st.dictionaries(keys, anything, max_size=6), st.sampled_from(list(Wire)))
def test_whatever_a_body_holds_only_its_texts_are_found(body, wire):
    slots = find_slots(body, wire)
    assert all(at(body, slot.path) == slot.text != "" for slot in slots)
    assert len({slot.path for slot in slots}) == len(slots)
    assert [slot.is_cached for slot in slots] == sorted((slot.is_cached for slot in slots), reverse=True)
    assert all(isinstance(slot.role, Role) for slot in slots)
