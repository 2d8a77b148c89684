"""A middleware for agents of LangChain: ``create_agent(model, tools, middleware=[KompaktMiddleware(keep=0.4)])``."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, TypeVar, cast

from kompakt.adapters._engine import Engine, Rewritten
from kompakt.adapters._messages import Rules
from kompakt.adapters._settings import Report, Reuse, Settings, default_pipeline
from kompakt.adapters._wires import Wire
from kompakt.compressor.errors import MissingExtraError
from kompakt.compressor.pipeline import OnError, Pipeline

try:
    from langchain.agents.middleware import AgentMiddleware, ModelRequest, ModelResponse, ToolCallRequest
    from langchain_core.messages import AIMessage, AnyMessage, BaseMessage, ChatMessage, HumanMessage, ToolMessage
    from langgraph.types import Command
except ImportError as error:
    raise MissingExtraError("KompaktMiddleware", "langchain") from error

__all__ = ["KompaktMiddleware", "Report", "Rules"]

_MARK: Final = "kompakt"
"""Where, in the response metadata of an output, it says what was done to it."""

_FIXED: Final = "system"
"""The role, in the body that is compressed, of what must stay as it is."""

_BREAKPOINTS: Final = ("cache_control", "prompt_cache_breakpoint")

MessageT = TypeVar("MessageT", bound=BaseMessage)
Output = TypeVar("Output")


class KompaktMiddleware(AgentMiddleware[Any, Any, Any]):
    """Makes what an agent sends to its model smaller.

    Outputs of tools are compressed once, when they arrive, for the question that the user has asked: the agent's
    state keeps what remains, and every later turn sends the same. Context pasted into messages of the user, and
    outputs that could not be compressed when they arrived, are compressed on their way to the model; the state keeps
    them whole, and later turns send the same again. Errors of tools, artifacts, ids and names are not touched, nor is
    the system prompt. What was done to an output is in its ``response_metadata`` under ``"kompakt"``; what was done
    last, in ``last``.

    Give kompakt the agent or the client of its model, not both: each would compress what the other left.

    Args:
        pipeline: What compresses; ``default`` with marks for what is left out, remembered by this process, without
            one. Give it a store to remember for longer.
        keep: The fraction that may remain of each text that is compressed.
        max_tokens: The most tokens that may remain of all texts of a request together that can be compressed; give
            this or ``keep``. With it nothing is compressed before it is known what else is sent: the state keeps
            outputs whole.
        trigger_tokens: Conversations with at most so many tokens of text are left as they are.
        rules: Which texts are compressed: by default outputs of tools and context pasted into messages of the user.
        reuse: ``"conversation"`` compresses each text once and sends the same in every later turn, so that the
            provider's cache goes on being hit; ``"never"`` compresses for the question of each request, and leaves
            outputs whole in the state.
        on_arrival: Whether outputs are compressed when they arrive. Without it the state keeps them whole, and they
            are compressed on their way to the model.
        deadline: Seconds after which an output or a request goes on with what is ready by then.
        on_error: ``"pass_through"`` leaves texts as they are if something fails; ``"raise"`` raises.
        dry_run: Do everything, and leave texts as they are.

    Attributes:
        last: What was done to the last request or output; None before the first.

    Raises:
        ConfigError: If an option makes no sense.
        BudgetError: If not exactly one of ``keep`` and ``max_tokens`` is given.
    """

    def __init__(
        self,
        *,
        pipeline: Pipeline | None = None,
        keep: float | None = None,
        max_tokens: int | None = None,
        trigger_tokens: int = 0,
        rules: Rules | None = None,
        reuse: Reuse = "conversation",
        on_arrival: bool = True,
        deadline: float = 2.0,
        on_error: OnError = "pass_through",
        dry_run: bool = False,
    ) -> None:
        super().__init__()
        settings = Settings(
            keep=keep,
            max_tokens=max_tokens,
            trigger_tokens=trigger_tokens,
            rules=rules or Rules(),
            reuse=reuse,
            deadline=deadline,
            on_error=on_error,
            dry_run=dry_run,
        )
        self.tools = []
        self.last: Report | None = None
        self._is_on_arrival = on_arrival and max_tokens is None and reuse == "conversation"
        self._engine = Engine(pipeline or default_pipeline(), settings)

    def close(self) -> None:
        """End kompakt's threads; texts stay as they are from now on. The pipeline is the caller's."""
        self._engine.close()

    def wrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], ModelResponse[Any]]
    ) -> ModelResponse[Any]:
        """Send a request with smaller messages."""
        sent = _Sent(request.messages)
        done = self._engine.rewrite(sent.body, Wire.CHAT_COMPLETIONS)
        return handler(self._overridden(request, sent, done))

    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]]
    ) -> ModelResponse[Any]:
        """Do as ``wrap_model_call`` does without holding up the event loop."""
        sent = _Sent(request.messages)
        done = await self._engine.arewrite(sent.body, Wire.CHAT_COMPLETIONS)
        return await handler(self._overridden(request, sent, done))

    def _overridden(self, request: ModelRequest[Any], sent: _Sent, done: Rewritten) -> ModelRequest[Any]:
        self.last = done.report
        if done.text is None:
            return request
        return request.override(messages=cast("list[AnyMessage]", sent.rewritten(done.text)))

    def wrap_tool_call(
        self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], ToolMessage | Command[Any]]
    ) -> ToolMessage | Command[Any]:
        """Return what a tool put out, made smaller."""
        output = handler(request)
        sent = self._sent(request, output)
        if sent is None:
            return output
        done = self._engine.rewrite(sent.body, Wire.CHAT_COMPLETIONS, settings=self._on_arrival(sent))
        return self._arrived(output, sent, done)

    async def awrap_tool_call(
        self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], Awaitable[ToolMessage | Command[Any]]]
    ) -> ToolMessage | Command[Any]:
        """Do as ``wrap_tool_call`` does without holding up the event loop."""
        output = await handler(request)
        sent = self._sent(request, output)
        if sent is None:
            return output
        done = await self._engine.arewrite(sent.body, Wire.CHAT_COMPLETIONS, settings=self._on_arrival(sent))
        return self._arrived(output, sent, done)

    def _sent(self, request: ToolCallRequest, output: object) -> _Sent | None:
        """Return what a tool put out, with what came before it; None if none of that is compressed now."""
        before: Sequence[BaseMessage] = _messages_of(request.state)
        if not self._is_on_arrival or self._engine.settings.rules.first_message > len(before):
            return None
        call = request.tool_call
        new = [message for message in _outputs(output) if _is_open(message) and message.tool_call_id == call["id"]]
        if not self._engine.settings.trigger_tokens:
            # all that matters then is the question
            before = [message for message in before if isinstance(message, HumanMessage)][-1:]
        named = [message if message.name else message.model_copy(update={"name": call["name"]}) for message in new]
        return _Sent([*before, *named], new) if new else None

    def _on_arrival(self, sent: _Sent) -> Settings:
        settings = self._engine.settings
        # nobody has seen these texts before, and what is done to them now is in the state from now on
        rules = replace(settings.rules, first_message=len(sent.messages) - len(sent.new), before_breakpoint=True)
        return replace(settings, rules=rules, reuse="never")

    def _arrived(self, output: Output, sent: _Sent, done: Rewritten) -> Output:
        self.last = report = done.report
        if done.text is None:
            return output
        mark = {
            "outcome": report.outcome.status.value,
            "reason": report.outcome.reason,
            "tokens_saved": report.tokens_before - report.tokens_after,
        }
        smaller = {
            id(old): old.model_copy(
                update={"content": made.content, "response_metadata": {**old.response_metadata, _MARK: mark}}
            )
            for old, made in zip(sent.new, sent.rewritten(done.text)[-len(sent.new) :], strict=True)
            if made.content != old.content
        }
        return _replaced(output, smaller)


class _Sent:
    """Messages as the body of a request.

    Args:
        messages: The messages.
        new: Those of them, at the end, that are compressed now, if not any may be.
    """

    def __init__(self, messages: Sequence[BaseMessage], new: Sequence[ToolMessage] = ()) -> None:
        self.messages = messages
        self.new = new
        self._bodies = [_as_chat(message) for message in messages]
        self.body = json.dumps({"messages": self._bodies})

    def rewritten(self, text: str) -> list[BaseMessage]:
        """Return the messages with the texts of another body; those that did not change are the same objects."""
        return [
            message if new["content"] == old["content"] else _with_content(message, new["content"])
            for message, old, new in zip(self.messages, self._bodies, json.loads(text)["messages"], strict=True)
        ]


def _as_chat(message: BaseMessage) -> dict[str, Any]:
    """Return what kompakt must know of a message, in the form of Chat Completions."""
    chat: dict[str, Any] = {"role": _role(message), "content": _as_parts(message.content)}
    if isinstance(message, AIMessage):
        chat["tool_calls"] = [{"id": call["id"], "function": {"name": call["name"]}} for call in message.tool_calls]
    elif isinstance(message, ToolMessage):
        chat |= {"tool_call_id": message.tool_call_id, "name": message.name or ""}
    return chat


def _role(message: BaseMessage) -> str:
    match message:
        case HumanMessage():
            return "user"
        case AIMessage():
            return "assistant"
        case ToolMessage() if _is_open(message):
            return "tool"
        case ChatMessage():
            return message.role
    return _FIXED


def _is_open(message: ToolMessage) -> bool:
    """Return whether an output may be compressed: it is no error, and nothing was done to it before."""
    return message.status != "error" and _MARK not in message.response_metadata


def _as_parts(content: str | list[str | dict[Any, Any]]) -> str | list[dict[str, Any]]:
    return content if isinstance(content, str) else [_as_part(part) for part in content]


def _as_part(part: str | dict[Any, Any]) -> dict[str, Any]:
    """Return a part of a message without what is no text: images are large, and not all can be written as JSON."""
    if isinstance(part, str):
        return {"type": "text", "text": part}
    made: dict[str, Any] = {"type": str(part.get("type"))}
    if isinstance(part.get("text"), str):
        made["text"] = part["text"]
    return made | {name: {} for name in _BREAKPOINTS if part.get(name) is not None}


def _with_content(message: MessageT, new: str | list[dict[str, Any]]) -> MessageT:
    old = message.content
    content = (
        new
        if isinstance(new, str) or isinstance(old, str)
        else [_with_text(part, made) for part, made in zip(old, new, strict=True)]
    )
    return message.model_copy(update={"content": content})


def _with_text(part: str | dict[Any, Any], made: Mapping[str, Any]) -> str | dict[Any, Any]:
    if isinstance(part, str):
        return str(made["text"])
    return {**part, "text": made["text"]} if "text" in made else part


def _messages_of(state: object) -> list[BaseMessage]:
    """Return the messages of an agent's state, which may be of three forms."""
    if isinstance(state, Mapping):
        found = state.get("messages")
    else:
        found = state if isinstance(state, list) else getattr(state, "messages", None)
    return [message for message in found or [] if isinstance(message, BaseMessage)]


def _outputs(output: object) -> list[ToolMessage]:
    """Return the messages in what a tool put out: one, a command that adds some to the state, or several of these."""
    match output:
        case ToolMessage():
            return [output]
        case Command(update={"messages": messages}):
            return _outputs(messages)
        case list():
            return [message for one in output for message in _outputs(one)]
    return []


def _replaced(output: Output, smaller: Mapping[int, ToolMessage]) -> Output:
    """Return what a tool put out with other messages in place of some, by their ``id()``."""
    made: Any = output
    match output:
        case ToolMessage():
            made = smaller.get(id(output), output)
        case Command(update={"messages": messages, **others}):
            made = replace(output, update={**others, "messages": _replaced(messages, smaller)})
        case list():
            made = [_replaced(one, smaller) for one in output]
    return cast("Output", made)
