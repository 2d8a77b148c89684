"""Agents of LangChain send less, the same in every turn, and their state stays valid."""

import asyncio
import json
import threading
import time
from itertools import pairwise
from typing import Annotated, Any

import pytest

from kompakt import BudgetError, ConfigError, Pipeline
from kompakt.compressor.base import Compressor
from kompakt.compressor.models.tokenizers import load_tokenizer

pytest.importorskip("langchain.agents")


from langchain.agents import create_agent
from langchain.agents.middleware import ModelRequest, ToolCallRequest
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import InjectedToolCallId, tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command

from kompakt.adapters.langchain_middleware import KompaktMiddleware, Rules

TOKENIZER = load_tokenizer()
LOG = " ".join(f"Ship {n} left port {n % 7} with {n * 13} bells on day {n}." for n in range(60))
ANSWER = "Ship 30 left port 2 with 390 bells"
QUESTION = "How many bells did ship 30 carry?"
PASTED = f"{QUESTION}\n\n<document>\n{LOG}\n</document>"
SYSTEM = f"You know ships. <document>{LOG}</document>"


class Recorder(GenericFakeChatModel):
    """A model that says what it was told to say, and keeps what it was sent."""

    sent: list[Any]

    def bind_tools(self, tools, **options):
        return self

    def _generate(self, messages, stop=None, run_manager=None, **options):
        self.sent.append(list(messages))
        return super()._generate(messages, stop, run_manager, **options)


def model(*answers):
    return Recorder(messages=iter(answers), sent=[])


def call(name, number, **arguments):
    return {"name": name, "args": arguments, "id": f"c{number}", "type": "tool_call"}


def calls(*made):
    return AIMessage(content="", tool_calls=list(made))


@tool
def ship_log() -> str:
    """Return the log of the ships."""
    return LOG


@tool(response_format="content_and_artifact")
def with_artifact() -> tuple[str, dict]:
    """Return the log with its rows."""
    return LOG, {"rows": [1, 2, 3]}


@tool
def in_blocks() -> list:
    """Return the log in parts, with an image."""
    return [{"type": "text", "text": LOG}, {"type": "image", "base64": "eA==", "mime_type": "image/png"}]


@tool
def as_command(tool_call_id: Annotated[str, InjectedToolCallId]) -> Command:
    """Add the log to the state."""
    return Command(update={"messages": [ToolMessage(LOG, tool_call_id=tool_call_id), HumanMessage("Go on.")]})


@tool
def broken() -> str:
    """Fail at length."""
    raise ValueError(LOG)


TOOLS = [ship_log, with_artifact, in_blocks, as_command, broken]


def pipeline(stage="lexical", **options):
    return Pipeline([stage], store="memory", **options)


@pytest.fixture
def middleware():
    made = []

    def make(**options):
        options = {"pipeline": pipeline(), "keep": 0.3, "deadline": 30, **options}
        made.append(KompaktMiddleware(**options))
        return made[-1]

    yield make
    for one in made:
        one.close()


def run(agent, messages, *, is_async=False, **options):
    given = {"messages": messages}
    return (asyncio.run(agent.ainvoke(given, **options)) if is_async else agent.invoke(given, **options))["messages"]


@pytest.mark.parametrize("is_async", [False, True])
def test_an_output_is_compressed_once_when_it_arrives(middleware, is_async):
    asked = model(calls(call("ship_log", 1)), calls(call("ship_log", 2)), AIMessage("390"))
    made = middleware()
    agent = create_agent(asked, TOOLS, middleware=[made], system_prompt=SYSTEM)
    state = run(agent, [HumanMessage(QUESTION)], is_async=is_async)
    first = state[2]
    assert ANSWER in first.content
    assert TOKENIZER.count(first.content) <= 0.3 * TOKENIZER.count(LOG)
    assert (first.name, first.tool_call_id, first.status) == ("ship_log", "c1", "success")
    mark = first.response_metadata["kompakt"]
    assert json.loads(json.dumps(mark)) == mark
    assert mark["outcome"] == "compressed"
    assert mark["tokens_saved"] > 0
    # the model was sent what the state holds, each time
    assert [[one.content for one in sent] for sent in asked.sent[1:]] == [
        [SYSTEM, *(one.content for one in state[:3])],
        [SYSTEM, *(one.content for one in state[:5])],
    ]
    assert made.last.n_compressed == 0


@pytest.mark.parametrize("is_async", [False, True])
def test_pasted_context_is_sent_smaller_and_the_state_keeps_it(middleware, is_async):
    asked = model(AIMessage("390"), AIMessage("Yes."), calls(call("ship_log", 1)), AIMessage("No."))
    agent = create_agent(asked, TOOLS, middleware=[middleware()], checkpointer=InMemorySaver(), system_prompt=SYSTEM)
    thread = {"config": {"configurable": {"thread_id": "1"}}}
    for text in (PASTED, "Is that sure?", "And ship 31?"):
        state = run(agent, [HumanMessage(text)], is_async=is_async, **thread)
    assert state[0].content == PASTED
    sent = [[one.content for one in messages[1:]] for messages in asked.sent]
    assert QUESTION in sent[0][0]
    assert ANSWER in sent[0][0]
    assert len(sent[0][0]) < 0.5 * len(PASTED)
    for earlier, later in pairwise(sent):
        assert later[: len(earlier)] == earlier


def test_artifacts_blocks_and_commands(middleware):
    asked = model(
        calls(call("with_artifact", 1), call("in_blocks", 2), call("as_command", 3)),
        AIMessage("390"),
    )
    state = run(create_agent(asked, TOOLS, middleware=[middleware()]), [HumanMessage(QUESTION)])
    outputs = {one.tool_call_id: one for one in state if isinstance(one, ToolMessage)}
    assert sorted(outputs) == ["c1", "c2", "c3"]
    assert outputs["c1"].artifact == {"rows": [1, 2, 3]}
    text, image = outputs["c2"].content
    assert image == {"type": "image", "base64": "eA==", "mime_type": "image/png"}
    for smaller in (outputs["c1"].content, text["text"], outputs["c3"].content):
        assert ANSWER in smaller
        assert len(smaller) < 0.5 * len(LOG)
    assert "Go on." in [one.content for one in state]
    # not again on the way to the model
    assert [one.content for one in asked.sent[-1]] == [one.content for one in state[:-1]]


def test_errors_stay_as_they_are(middleware):
    failed = ToolMessage(LOG, tool_call_id="c1", status="error")
    asked = model(AIMessage("Sorry."))
    run(create_agent(asked, TOOLS, middleware=[middleware()]), [HumanMessage("?"), calls(call("broken", 1)), failed])
    assert asked.sent[0][2].content == LOG
    request = ToolCallRequest(tool_call=call("broken", 1), tool=broken, state={"messages": []}, runtime=None)
    assert middleware().wrap_tool_call(request, lambda _: failed) is failed


def test_outputs_of_before_are_compressed_on_their_way(middleware):
    history = [HumanMessage(QUESTION), calls(call("ship_log", 1)), ToolMessage(LOG, tool_call_id="c1", id="t")]
    asked = model(AIMessage("390"))
    state = run(create_agent(asked, TOOLS, middleware=[middleware()]), history)
    sent = asked.sent[0][2]
    assert ANSWER in sent.content
    assert (sent.id, sent.tool_call_id, sent.response_metadata) == ("t", "c1", {})
    assert state[2].content == LOG
    assert history[2].content == LOG


@pytest.mark.parametrize(
    "options",
    [
        {"on_arrival": False},
        {"reuse": "never"},
        {"keep": None, "max_tokens": 150},
    ],
)
def test_outputs_can_stay_whole_in_the_state(middleware, options):
    asked = model(calls(call("ship_log", 1)), AIMessage("390"), AIMessage("Yes."))
    agent = create_agent(asked, TOOLS, middleware=[middleware(**options)])
    state = run(agent, [HumanMessage(QUESTION)])
    assert state[2].content == LOG
    assert ANSWER in asked.sent[1][2].content
    assert len(asked.sent[1][2].content) < 0.5 * len(LOG)
    run(agent, [*state, HumanMessage("Is that sure?")])
    same = asked.sent[2][2].content == asked.sent[1][2].content
    assert same is (options.get("reuse") != "never")


def test_rules_of_single_tools(middleware):
    asked = model(calls(call("ship_log", 1), call("with_artifact", 2)), AIMessage("390"))
    rules = Rules(tools={"ship_log": 1, "with_artifact": 0.6})
    state = run(create_agent(asked, TOOLS, middleware=[middleware(rules=rules)]), [HumanMessage(QUESTION)])
    outputs = {one.tool_call_id: one.content for one in state if isinstance(one, ToolMessage)}
    assert outputs["c1"] == LOG
    assert 0.4 * len(LOG) < len(outputs["c2"]) < 0.65 * len(LOG)
    assert asked.sent[1][2].content == LOG


def test_messages_that_are_not_to_be_touched(middleware):
    asked = model(calls(call("ship_log", 1)), AIMessage("390"))
    made = middleware(rules=Rules(first_message=3))
    state = run(create_agent(asked, TOOLS, middleware=[made]), [HumanMessage(PASTED)])
    assert state[2].content == LOG
    assert [one.content for one in asked.sent[1]] == [PASTED, "", LOG]


def test_a_trigger_counts_the_conversation(middleware):
    asked = model(calls(call("ship_log", 1)), calls(call("ship_log", 2)), AIMessage("390"))
    made = middleware(trigger_tokens=int(1.5 * TOKENIZER.count(LOG)))
    state = run(create_agent(asked, TOOLS, middleware=[made]), [HumanMessage(QUESTION)])
    assert state[2].content == LOG
    assert len(state[4].content) < 0.5 * len(LOG)


def test_dry_run(middleware):
    asked = model(calls(call("ship_log", 1)), AIMessage("390"))
    made = middleware(dry_run=True)
    state = run(create_agent(asked, TOOLS, middleware=[made]), [HumanMessage(PASTED)])
    assert [one.content for one in asked.sent[1]] == [PASTED, "", LOG] == [one.content for one in state[:3]]
    assert made.last.tokens_dry_run < made.last.tokens_before


def test_parts_of_messages_that_are_no_text(middleware):
    class Odd:
        """Cannot be written as JSON."""

    content = [PASTED, {"type": "image", "data": Odd()}, {"type": "text", "text": PASTED}, {"text": 3}]
    message = HumanMessage.model_construct(content=content, additional_kwargs={}, response_metadata={}, type="human")
    sent = []
    request = ModelRequest(model=model(), messages=[SystemMessage(PASTED), message])
    middleware().wrap_model_call(request, sent.append)
    system, made = sent[0].messages
    assert system is request.messages[0]
    assert made.content[1] is content[1]
    assert made.content[3] is content[3]
    assert len(made.content[0]) < 0.5 * len(PASTED)
    assert made.content[2] == {"type": "text", "text": made.content[2]["text"]}
    assert len(made.content[2]["text"]) < 0.5 * len(PASTED)
    assert message.content is content


def test_what_stands_before_a_breakpoint_stays(middleware):
    part = {"type": "text", "text": PASTED, "cache_control": {"type": "ephemeral"}}
    request = ModelRequest(model=model(), messages=[HumanMessage([part])])
    sent = []
    middleware().wrap_model_call(request, sent.append)
    middleware(rules=Rules(before_breakpoint=True)).wrap_model_call(request, sent.append)
    assert sent[0] is request
    assert sent[1].messages[0].content[0]["cache_control"] == {"type": "ephemeral"}
    assert len(sent[1].messages[0].content[0]["text"]) < 0.5 * len(PASTED)


def test_an_output_that_arrives_with_a_breakpoint_is_in_no_cache_yet(middleware):
    part = {"type": "text", "text": LOG, "cache_control": {"type": "ephemeral"}}
    (made,) = arrived(middleware(), ToolMessage([part], tool_call_id="c1")).content
    assert made["cache_control"] == {"type": "ephemeral"}
    assert len(made["text"]) < 0.5 * len(LOG)


def arrived(made, output, state=None):
    request = ToolCallRequest(tool_call=call("ship_log", 1), tool=ship_log, state=state, runtime=None)
    return made.wrap_tool_call(request, lambda _: output)


class Bag:
    """A state that is an object."""

    messages = (HumanMessage(QUESTION),)


@pytest.mark.parametrize("state", [None, [], [HumanMessage(QUESTION)], {}, {"messages": Bag.messages}, Bag()])
def test_states_of_every_form(middleware, state):
    output = ToolMessage(LOG, tool_call_id="c1")
    made = arrived(middleware(), output, state)
    assert len(made.content) < 0.5 * len(LOG)
    assert made.name is None
    assert output.content == LOG
    assert output.response_metadata == {}


def test_only_the_output_of_the_call_is_touched(middleware):
    others = [ToolMessage(LOG, tool_call_id="c0"), HumanMessage(PASTED), {"role": "user", "content": LOG}]
    command = Command(update={"messages": [*others, ToolMessage(LOG, tool_call_id="c1")], "n": 1}, goto="x")
    made = arrived(middleware(), command)
    assert (made.goto, made.update["n"]) == ("x", 1)
    assert all(new is old for new, old in zip(made.update["messages"], others, strict=False))
    assert len(made.update["messages"][3].content) < 0.5 * len(LOG)
    assert len(command.update["messages"][3].content) == len(LOG)
    one, other = arrived(middleware(), [ToolMessage(LOG, tool_call_id="c1"), Command(goto="y")])
    assert len(one.content) < 0.5 * len(LOG)
    assert other == Command(goto="y")
    for untouched in (Command(goto="x"), Command(update=[("messages", [])]), "text", None):
        assert arrived(middleware(), untouched) is untouched


class Failing(Compressor):
    name = "failing"

    def __init__(self, seconds=0.0):
        self.seconds = seconds

    @property
    def options(self):
        return {}

    def compress_batch(self, requests):
        time.sleep(self.seconds)
        raise ValueError("no luck")


@pytest.mark.parametrize("options", [{}, {"deadline": 0.05}])
def test_failures_change_nothing(middleware, options):
    asked = model(calls(call("ship_log", 1)), AIMessage("390"))
    failing = Failing(seconds=0.3 if options else 0.0)
    made = middleware(pipeline=pipeline(failing), **options)
    state = run(create_agent(asked, TOOLS, middleware=[made]), [HumanMessage(PASTED)])
    assert [one.content for one in asked.sent[1]] == [PASTED, "", LOG]
    assert state[2].response_metadata == {}
    assert made.last.outcome.status == "passed_through"
    assert ("deadline" if options else "no luck") in made.last.outcome.reason


def test_failures_raise_where_that_is_asked_for(middleware):
    made = middleware(pipeline=pipeline(Failing(), on_error="raise"), on_error="raise")
    with pytest.raises(ValueError, match="no luck"):
        run(create_agent(model(AIMessage("390")), [], middleware=[made]), [HumanMessage(PASTED)])


def test_the_event_loop_goes_on(middleware):
    made = middleware(pipeline=pipeline(Failing(seconds=0.3)))
    ticks = []

    async def tick():
        while True:
            ticks.append(time.monotonic())
            await asyncio.sleep(0.01)

    async def handler(request):
        return request

    async def main():
        ticking = asyncio.create_task(tick())
        await made.awrap_model_call(ModelRequest(model=model(), messages=[HumanMessage(PASTED)]), handler)
        ticking.cancel()

    asyncio.run(main())
    assert len(ticks) > 10


def test_closing_ends_the_threads(middleware):
    made = middleware()
    sent = []
    request = ModelRequest(model=model(), messages=[HumanMessage(PASTED)])
    made.wrap_model_call(request, sent.append)
    before = threading.active_count()
    made.close()
    assert threading.active_count() < before
    made.wrap_model_call(request, sent.append)
    assert sent[1] is request
    assert made.last.outcome.reason == "kompakt was closed for this client"


def test_wrong_options():
    with pytest.raises(BudgetError, match="exactly one"):
        KompaktMiddleware()
    with pytest.raises(ConfigError, match="deadline"):
        KompaktMiddleware(keep=0.5, deadline=0)
    with pytest.raises(TypeError, match="ratio"):
        KompaktMiddleware(keep=0.5, ratio=0.5)
