"""What calls of LiteLLM hold and ask for, and how texts are put back into them. Needs no LiteLLM."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeAlias, TypeVar

from kompakt.adapters._engine import Rewritten
from kompakt.adapters._json_splice import Path
from kompakt.adapters._overrides import BODY_KEY, from_headers, option_of, parse_overrides
from kompakt.adapters._settings import Report, Settings, passed_through, reason_of
from kompakt.adapters._usage import Usage, find_usage
from kompakt.adapters._wires import Wire, find_slots
from kompakt.compressor.errors import InputError

Arguments: TypeAlias = dict[str, Any]
"""Those of a call of LiteLLM, by name."""

METADATA: Final = ("metadata", "litellm_metadata")
"""The arguments in which LiteLLM and its users keep notes."""

REQUEST_KEY: Final = "kompakt_request"
"""In the metadata of a call in the proxy: what the hook before the router knows and the one after it does not."""

_HEADERS: Final = ("headers", "extra_headers")
_REMEMBERED: Final = 1000
_OWNER_CHARACTERS: Final = 16

_SIGNERS: Final = ("bedrock", "sagemaker", "oci")
"""Providers, by the beginning of their names, whose bodies are signed before a sync call can be changed."""

_SIGNATURES: Final = ("AWS4-", "Signature ")
"""How the header ``authorization`` of a signed request begins."""


@dataclass(frozen=True, slots=True)
class Form:
    """Where the texts of a call are.

    Args:
        wire: The interface whose body its arguments make up.
        names: The arguments that hold texts or breakpoints; without the first one there is nothing to do.
        metadata: The argument that LiteLLM keeps its own notes in, which is sent to no provider.
    """

    wire: Wire
    names: Sequence[str]
    metadata: str = "metadata"


CHAT: Final = Form(Wire.CHAT_COMPLETIONS, ("messages",))
COMPLETION: Final = Form(Wire.COMPLETIONS, ("prompt",))
RESPONSES: Final = Form(Wire.RESPONSES, ("input", "instructions"), "litellm_metadata")
MESSAGES: Final = Form(Wire.MESSAGES, ("messages", "system", "tools"), "litellm_metadata")

CALLS: Final[Mapping[str, Form]] = {
    "completion": CHAT,
    "acompletion": CHAT,
    "text_completion": COMPLETION,
    "atext_completion": COMPLETION,
    "responses": RESPONSES,
    "aresponses": RESPONSES,
    "anthropic_messages": MESSAGES,
    "aanthropic_messages": MESSAGES,
}
"""LiteLLM's call types."""

SYNC: Final = ("completion", "text_completion", "responses")
"""Those for which LiteLLM asks no hook before the last one, when the provider's body is ready, or none that can
change all of it."""

PASSED_ON: Final = "pass_through_endpoint"
"""What the proxy sends on as it is; no other hook hears of it."""

Value = TypeVar("Value")


class Recent(Generic[Value]):
    """Values of the last calls, by LiteLLM's id of them."""

    def __init__(self) -> None:
        self._values: dict[str, Value] = {}
        self._lock = threading.Lock()

    def get(self, call_id: object) -> Value | None:
        """Return the value of a call, or None."""
        return self._values.get(str(call_id))

    def put(self, call_id: object, value: Value) -> None:
        """Remember the value of a call, if it has an id."""
        if call_id is None:
            return
        with self._lock:
            self._values.pop(str(call_id), None)
            self._values[str(call_id)] = value
            while len(self._values) > _REMEMBERED:
                del self._values[next(iter(self._values))]


@dataclass(frozen=True, slots=True)
class Call:
    """A call that may be compressed.

    Args:
        arguments: Its arguments without what they ask of kompakt.
        settings: How it is made smaller.
        body: The same as the JSON of its interface, as far as there are texts.
        query: The question, if it gives one.
        owner: Whose it is.
        settled: What becomes of it where that needs no engine.
    """

    arguments: Arguments
    settings: Settings
    body: str = ""
    query: str | None = None
    owner: str = ""
    settled: Rewritten | None = None


def read_call(kwargs: Arguments, form: Form, settings: Settings) -> Call:
    """Read what a call asks for and what it holds.

    Raises:
        Exception: What makes that impossible, if ``on_error`` says to raise.
    """
    began = time.monotonic()
    arguments, asked, headers = without_asked(kwargs)
    try:
        notes = [mapping(mapping(kwargs.get(name)).get(REQUEST_KEY)) for name in reversed(METADATA)]
        known: Mapping[str, Any] = next(filter(None, notes), {})
        overrides = parse_overrides(asked, {**mapping(known.get("headers")), **asked_by(headers)})
        used, query = overrides.applied_to(settings), overrides.query
        if not overrides.bypass:
            body = _body(arguments, form)
            return Call(arguments, used, body, query, str(known.get("owner", "")))
        reason = "bypassed, as the request asks"
    except Exception as error:  # whatever a call asks for, it must go out
        if settings.on_error == "raise":
            raise
        reason = reason_of(error)
    return Call(arguments, settings, settled=Rewritten(None, passed_through(reason, time.monotonic() - began)))


def without_asked(kwargs: Arguments) -> tuple[Arguments, object, dict[str, Any]]:
    """Return arguments without what is meant for kompakt, which the provider would refuse; and what that was."""
    asked: object = {}
    arguments: Arguments = dict(kwargs)
    headers: dict[str, Any] = {}
    for name in (*METADATA, "extra_body"):
        inner = mapping(arguments.get(name))
        if BODY_KEY in inner:
            asked = inner[BODY_KEY]
            arguments[name] = {key: value for key, value in inner.items() if key != BODY_KEY}
    for name in _HEADERS:
        inner = mapping(arguments.get(name))
        ours = {key: value for key, value in inner.items() if option_of(str(key)) is not None}
        if ours:
            headers |= ours
            arguments[name] = {key: value for key, value in inner.items() if key not in ours}
    return arguments, arguments.pop(BODY_KEY, asked), headers


def asked_by(headers: Mapping[Any, Any]) -> dict[str, str]:
    """Return what headers ask of kompakt."""
    return from_headers((str(name), str(value)) for name, value in headers.items())


def _body(arguments: Arguments, form: Form) -> str:
    """Return the part of a call that holds texts as JSON.

    Raises:
        InputError: If the argument with the texts is missing.
    """
    if arguments.get(form.names[0]) is None:
        raise InputError(f"write {form.names[0]}=...: LiteLLM lets no callback change what is given by position")
    texts = {name: arguments[name] for name in form.names if arguments.get(name) is not None}
    return json.dumps(texts, default=_plain)


def _plain(value: object) -> object:
    """Return JSON's form of what clients and LiteLLM itself put into messages; None for what has no texts."""
    dump = getattr(value, "model_dump", None)
    return dump(warnings=False) if callable(dump) else None


def applied(call: Call, form: Form, done: Rewritten) -> tuple[Arguments, Report]:
    """Return the arguments with the texts that were compressed; what held the others is copied, not changed."""
    if done.text is None:
        return call.arguments, done.report
    arguments = call.arguments
    try:
        before, after = (find_slots(json.loads(text), form.wire) for text in (call.body, done.text))
        for old, new in zip(before, after, strict=True):
            if old.text != new.text:
                arguments = _with(arguments, old.path, new.text)
    except Exception as error:  # whatever holds the texts, the call must go out
        if call.settings.on_error == "raise":
            raise
        return call.arguments, passed_through(reason_of(error), done.report.seconds)
    return arguments, done.report


def _with(value: Any, path: Path, text: str) -> Any:  # noqa: ANN401
    """Return a copy of a value with another text in one place; what is not on the way there is shared."""
    if not path:
        return text
    first, rest = path[0], path[1:]
    if isinstance(value, Mapping):
        return {**value, first: _with(value[first], rest, text)}
    if isinstance(first, int):
        items = list(value)
        items[first] = _with(items[first], rest, text)
        return items
    return value.model_copy(update={first: _with(getattr(value, first), rest, text)})


def form_of_body(body: object, provider: str) -> Form | None:
    """Return the form of a provider's body, or None if it has none of those that are known."""
    if not isinstance(body, dict):
        return None
    if "messages" in body:
        return MESSAGES if provider == "anthropic" else CHAT
    return next((form for form in (COMPLETION, RESPONSES) if form.names[0] in body), None)


def body_hash(body: object, form: Form) -> int:
    """Return a number that tells whether a body's texts and what it asks of kompakt are those of another one."""
    names = (*form.names, BODY_KEY, "extra_body", *_HEADERS)
    return hash(json.dumps([mapping(body).get(name) for name in names], default=repr))


def put_back(body: Arguments, headers: object, arguments: Arguments) -> None:
    """Make a body, and the headers that go with it, what the arguments that were made of them say."""
    for name in body.keys() - arguments.keys():
        del body[name]
    # what the provider gets of the metadata is not all of them
    sent, _, _ = without_asked({name: body[name] for name in METADATA if name in body})
    body |= {name: arguments[name] for name in body} | sent
    # those of the body win, and LiteLLM may have been given these by the caller
    if isinstance(headers, MutableMapping) and "extra_headers" not in body:
        for name in headers.keys() - arguments["headers"].keys():
            del headers[name]


def untouchable(provider: str, headers: object) -> str:
    """Return why the body of a sync call must stay as it is; empty if it may change."""
    signature = str(mapping(headers).get("Authorization", mapping(headers).get("authorization", "")))
    if provider.startswith(_SIGNERS) or signature.startswith(_SIGNATURES):
        return (
            f"LiteLLM signs the bodies of sync calls to {provider} before a callback is asked; make it an async call"
        )
    return ""


def owner_of(user: object) -> str:
    """Return whose call it is: a hash of the key that it came with, and of whom that belongs to."""
    marks = [getattr(user, name, None) for name in ("token", "api_key", "team_id", "user_id")]
    if not any(marks):
        return ""
    return hashlib.sha256(json.dumps(marks, default=str).encode()).hexdigest()[:_OWNER_CHARACTERS]


def as_metadata(report: Report) -> dict[str, Any]:
    """Return a report as other callbacks find it."""
    return {
        "outcome": report.outcome.status.value,
        "reason": report.outcome.reason,
        "tokens_before": report.tokens_before,
        "tokens_after": report.tokens_after,
        "seconds": round(report.seconds, 4),
    }


def usage_of(response: object) -> Usage | None:
    """Return what the provider counted, if LiteLLM's response says so."""
    usage = response.get("usage") if isinstance(response, Mapping) else getattr(response, "usage", None)
    return find_usage(json.dumps({"usage": usage}, default=_plain))


def name_of(call_type: object) -> str:
    """Return what LiteLLM calls a type of calls."""
    return str(getattr(call_type, "value", call_type))


def mapping(value: object) -> Mapping[Any, Any]:
    """Return what should be a mapping and may be None or whatever a caller gave."""
    return value if isinstance(value, Mapping) else {}
