"""What may be compressed of a request, and what never is."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kompakt.adapters._messages import Rules, find_targets, live_question, pasted_context
from kompakt.adapters._wires import Role, Slot
from kompakt.compressor.errors import ConfigError

LONG = "The valve of pump seven was checked in May. " * 20


def slot(text, role=Role.USER, message=0, **about):
    return Slot(("place", message), text, role, message, **about)


def texts(slots, **rules):
    return [target.document.text for target in find_targets(slots, Rules(**rules))]


def test_by_default_only_outputs_documents_and_pasted_context_are_targets():
    slots = [
        slot("system " + LONG, Role.SYSTEM),
        slot("assistant " + LONG, Role.ASSISTANT),
        slot("tool", Role.TOOL, tool="grep"),
        slot("failed " + LONG, Role.TOOL, is_fixed=True),
        slot("document", Role.DOCUMENT),
        slot("cited " + LONG, Role.DOCUMENT, is_fixed=True),
        slot("user " + LONG),
        slot("half \ud800", Role.TOOL),
    ]
    assert texts(slots) == ["tool", "document"]
    assert texts(slots, tool_outputs=False) == ["document"]
    assert texts(slots, documents=False) == ["tool"]


def test_tools_have_rules_of_their_own():
    slots = [slot("a", Role.TOOL, tool="grep"), slot("b", Role.TOOL, tool="read"), slot("c", Role.TOOL)]
    found = find_targets(slots, Rules(tools={"grep": 0.2, "read": 0.9}))
    assert [(target.document.text, target.keep) for target in found] == [("a", 0.2), ("b", 0.9), ("c", None)]


@pytest.mark.parametrize("keep", [0, -0.1, 1.1, True, "half", None])
def test_a_rule_that_makes_no_sense_is_named(keep):
    with pytest.raises(ConfigError, match=r"of the tool 'grep' must be above 0 and at most 1"):
        Rules(tools={"grep": keep})


def test_few_tokens_cannot_be_below_none():
    with pytest.raises(ConfigError, match="min_tokens"):
        Rules(min_tokens=-1)


@pytest.mark.parametrize(
    ("text", "context"),
    [
        (f"Fix this:\n```py\n{LONG}\n```\nThanks", LONG),
        (f"~~~~\n{LONG}\n~~~~", LONG),
        (f"<document id='3'>{LONG}</document>\nWhat is wrong?", LONG),
        (f"<Document_2>{LONG}</document_2> Sum up.", LONG),
        (f"<docs><doc>{LONG}</doc><doc>{LONG}</doc></docs> Compare.", f"<doc>{LONG}</doc><doc>{LONG}</doc>"),
        (f"Answer from the context.\n\nContext:\n{LONG}\n\nQuestion: when?", LONG),
        (f"Question: when?\n\n**Retrieved documents:**\n\n{LONG}\n\n{LONG}\n\nBe brief.", f"{LONG}\n\n{LONG}"),
    ],
)
def test_context_is_told_from_what_is_asked(text, context):
    [(start, end)] = pasted_context(text)
    assert text[start:end].strip() == context.strip()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "When?",
        LONG,
        f"{LONG}\n\nWhen?",
        f"Write about this.\n\n{LONG}\n\nIt rhymes.",
        f"<instructions>{LONG}</instructions> <rules>{LONG}</rules>",
        f"Context: {LONG}",
        "Write a poem.\n\nIt has three verses.\n\nIt rhymes.",
        "Run ```ls``` in <dir>/tmp</dir>.\n```sh\nls\n```",
        f"```\n{LONG}",
        f"<open>{LONG}",
    ],
)
def test_what_may_be_an_instruction_is_no_context(text):
    assert pasted_context(text) == []


def test_several_blocks_are_found_and_the_rest_is_protected():
    text = f"Compare\n```\n{LONG}\n```\nwith\n<data>{LONG}</data>\nin a table."
    [target] = find_targets([slot(text)], Rules())
    kept = [text[start:end] for start, end in target.document.protected]
    assert kept == ["Compare\n```\n", "```\nwith\n<data>", "</data>\nin a table."]


@given(
    st.lists(
        st.sampled_from(["```\n", "\n```\n", "<doc>", "</doc>", "\n```\n", "\nContext:", "\n\n", LONG, "x", " "]),
        max_size=12,
    ).map("".join)
)
def test_context_lies_within_the_text_in_order(text):
    found = pasted_context(text)
    assert found == sorted(found)
    bounds = [place for pair in found for place in pair]
    assert bounds == sorted(bounds)
    assert all(0 <= start < end <= len(text) for start, end in found)
    for target in find_targets([slot(text)], Rules()):
        covered = sorted([*target.document.protected, *found])
        assert "".join(text[start:end] for start, end in covered) == text


def test_the_question_is_what_the_user_said_last_without_what_was_pasted():
    slots = [
        slot("First question?", message=0),
        slot("Let me see.", Role.ASSISTANT, 1),
        slot(f"<log>{LONG}</log>", message=2),
        slot("Why did it stop?", message=2),
        slot("output", Role.TOOL, 3),
    ]
    assert live_question(slots).split("\n")[-1] == "Why did it stop?"
    assert "valve" not in live_question(slots)
    assert live_question(slots[:2]) == "First question?"
    assert live_question([slot("out", Role.TOOL)]) is live_question([slot("  ")]) is None
    assert live_question([slot("a" * 5000 + " Why?")]).endswith(" Why?")
    assert len(live_question([slot("a" * 5000)])) == 2000


def test_outputs_of_unknown_tools_stay_where_some_must():
    slots = [slot("a", Role.TOOL), slot("b", Role.TOOL, tool="grep")]
    assert texts(slots, tools={"read": 1}) == ["b"]
    assert texts(slots, tools={"read": 0.5}) == ["a", "b"]


@pytest.mark.parametrize(
    "part", ["<br>hello wor", "<doc x", "```", "```x\n", "\n \n", "Context:", "<doc>", "the the the "]
)
def test_long_messages_take_no_longer_than_their_length(part):
    text = part * (1_000_000 // len(part))
    began = time.perf_counter()
    pasted_context(text)
    assert time.perf_counter() - began < 5
