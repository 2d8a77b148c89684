"""Models behind any endpoint that speaks OpenAI's chat completions, as readers of compressed contexts."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Self
from urllib.parse import urlsplit

from kompakt.compressor.backend import Generation, Prompt
from kompakt.compressor.errors import BackendError, ConfigError, InputError, KompaktError, MissingExtraError
from kompakt.compressor.types import Form, Part, TextPart

if TYPE_CHECKING:
    from openai import OpenAI, Stream

_KEY: Final = "KOMPAKT_READER_API_KEY"
_KEY_OF_OPENAI: Final = "OPENAI_API_KEY"
_OPENAI: Final = "api.openai.com"

_NO_KEY: Final = "none"
"""Sent where there is no key: the client insists on one, and servers that need none ignore it."""

_INSTEAD: Final[Mapping[str, str | None]] = {
    "max_tokens": "max_completion_tokens",
    "stop": None,
    "stream_options": None,
}
"""Parameters that some servers reject, and what says the same. Temperature is not among them: answers must be the
most probable ones."""

_TOO_LONG: Final = re.compile(r"(?=.*context).*(length|tokens|size|window)", re.IGNORECASE)
"""How servers word it: OpenAI, vLLM, SGLang and llama.cpp have no code in common."""

_MAX_SAID: Final = 300
"""Characters of a server's message that are passed on; some send a page of HTML."""


@dataclass(frozen=True)
class HttpBackend:
    """A model behind an endpoint that speaks OpenAI's chat completions.

    Every prompt is sent as one user's message, also one with ``is_chat`` False: plain text to be continued needs
    another interface, which few servers have. For the same reason there are no likelihoods. A reader that spends its
    tokens on thinking before it answers needs its thinking switched off at the server.

    Args:
        url: The endpoint up to ``/chat/completions``, then ``#`` and the model's name there, such as
            ``http://127.0.0.1:8080/v1#qwen3-8b``.
        api_key: The key; from ``KOMPAKT_READER_API_KEY`` if None is given, and for OpenAI's own endpoint else from
            ``OPENAI_API_KEY``, which is sent to no other.
        timeout: Seconds to wait for a connection, and for each next piece of an answer.
        max_retries: How often a request is repeated that found no connection, no capacity or a server's error.

    Raises:
        ConfigError: If the URL names no model, or holds what it must not hold, or the key cannot be sent.
        MissingExtraError: If the extra ``openai`` is not installed.
    """

    url: str
    api_key: str | None = field(default=None, repr=False)
    timeout: float = 120.0
    max_retries: int = 2
    _endpoint: str = field(init=False, repr=False, compare=False)
    _model: str = field(init=False, repr=False, compare=False)
    _client: OpenAI = field(init=False, repr=False, compare=False)
    _rejected: set[str] = field(init=False, repr=False, compare=False, default_factory=set)

    def __post_init__(self) -> None:
        endpoint, model = _parsed(self.url)
        if self.timeout <= 0 or self.max_retries < 0:
            raise ConfigError(
                f"timeout must be above 0 and max_retries at least 0, got {self.timeout} and {self.max_retries}"
            )
        object.__setattr__(self, "_endpoint", endpoint)
        object.__setattr__(self, "_model", model)
        object.__setattr__(self, "_client", self._connect())

    def _connect(self) -> OpenAI:
        """Make the client, which reaches out only when it is asked something."""
        try:
            from openai import OpenAI
        except ImportError as error:
            raise MissingExtraError("an OpenAI-compatible reader", "openai") from error
        given = [self.api_key, os.environ.get(_KEY)]
        if urlsplit(self._endpoint).hostname == _OPENAI:
            given.append(os.environ.get(_KEY_OF_OPENAI))
        key = next((one.strip() for one in given if one and one.strip()), _NO_KEY)
        if not (key.isascii() and key.isprintable()) or " " in key:
            raise ConfigError("the API key of the reader holds a space or a character that cannot be sent")
        return OpenAI(base_url=self._endpoint, api_key=key, timeout=self.timeout, max_retries=self.max_retries)

    def close(self) -> None:
        """Close the connections; the backend cannot be used afterwards."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def name(self) -> str:
        """The model and where it is."""
        return f"{self._model} at {urlsplit(self._endpoint).netloc}"

    @property
    def fingerprint(self) -> str:
        """The endpoint and the model's name: what is behind them can change without a trace here."""
        return f"{self._endpoint}#{self._model}"

    @property
    def accepts(self) -> frozenset[Form]:
        """Text."""
        return frozenset({"text"})

    @property
    def max_positions(self) -> None:
        """Not known: the endpoint does not tell."""

    @property
    def tokenizer(self) -> None:
        """None: tokens are counted by the endpoint."""

    def generate(self, prompt: Prompt, *, max_new_tokens: int, targets: Sequence[str] = ()) -> Generation:
        """Answer a prompt with temperature 0.

        Times hold what the network adds, and the waits between repeated requests. Positions are those that the
        endpoint reports; fewer than expected mean that it cut the prompt.

        Args:
            prompt: What to read.
            max_new_tokens: The most tokens of the answer; 0 sends nothing, and the answer is empty.
            targets: Ignored: the endpoint cannot tell how probable a text is.

        Raises:
            InputError: If a part is not text, or the endpoint says that the prompt is too long.
            BackendError: If the endpoint cannot be reached, refused, failed, or sent no complete answer.
        """
        content = prompt.before + "".join(_text_of(part) for part in prompt.parts) + prompt.after
        given = {"messages": [{"role": "user", "content": content}]}
        return self.ask(given, max_new_tokens=max_new_tokens, stop=prompt.stop)

    def ask(self, given: Mapping[str, Any], *, max_new_tokens: int, stop: str = "") -> Generation:
        """Have what is written already answered, as ``generate`` does.

        Args:
            given: Parameters of the client's method: ``messages`` of a chat, or else ``prompt`` for the Completions
                endpoint; with ``extra_body`` where the server takes more than the client knows.
            max_new_tokens: The most tokens of the answer; 0 sends nothing, and the answer is empty.
            stop: Text at which the answer ends; empty for none.

        Raises:
            InputError: If the endpoint says that the prompt is too long.
            BackendError: If the endpoint cannot be reached, refused, failed, or sent no complete answer.
        """
        if max_new_tokens < 1:
            return Generation("", 0, 0, 0.0, 0.0)
        request: dict[str, Any] = {
            "model": self._model,
            **given,
            "temperature": 0,
            "max_tokens": max_new_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if stop:
            request["stop"] = [stop]
        try:
            answer = self._ask(request)
        except KompaktError:
            raise
        except Exception as error:  # the client passes on errors of its transport, which differs between versions
            # what the server said is in the message; as it wrote it, it may repeat the key
            raise self._failure(error) from (None if getattr(error, "body", None) else error)
        return answer.generation(stop)

    def _ask(self, request: Mapping[str, Any]) -> _Answer:
        """Send a request, and again without the parameters that the server rejects."""
        from openai import BadRequestError, UnprocessableEntityError

        adaptable = _adaptable(request)
        rejected = self._rejected & adaptable
        while True:
            answer = _Answer(time.perf_counter())
            try:
                stream = self._stream(_adapted(request, rejected))
            except (BadRequestError, UnprocessableEntityError) as error:
                name = _rejected_by(error, adaptable - rejected)
                if name is None:
                    raise
                rejected.add(name)
                continue
            self._rejected.update(rejected)
            with stream:
                for chunk in stream:
                    answer.add(chunk, time.perf_counter())
            self._check(answer, stream.response.headers.get("content-type", "nothing"))
            return answer

    def _stream(self, request: Mapping[str, Any]) -> Stream[Any]:
        client = self._client
        create: Any = client.chat.completions.create if "messages" in request else client.completions.create
        stream: Stream[Any] = create(**request)
        return stream

    def _check(self, answer: _Answer, media_type: str) -> None:
        if not answer.n_chunks:
            raise BackendError(f"{self._endpoint} sent no answer: there are no choices in its {media_type}")
        if not answer.finish:
            raise BackendError(f"{self._endpoint} ended its stream before the answer was complete")
        if answer.finish == "length" and not answer.pieces and answer.has_thought:
            raise BackendError(f"{self.name} spent all its tokens on thinking: switch it off at the server")

    def _failure(self, error: Exception) -> KompaktError:
        status = getattr(error, "status_code", None)
        said = _said(error)
        if _is_too_long(error):
            return InputError(f"the prompt is too long for {self.name}: {self._printable(said)}")
        if status is None:
            return BackendError(f"{self._endpoint} failed: {self._printable(said)}")
        hint = {
            401: f" (the key is taken from {_KEY})",
            404: " (the URL is what comes before /chat/completions, the model what follows #)",
        }.get(status, "")
        return BackendError(f"{self._endpoint} answered {status}: {self._printable(said)}{hint}")

    def _printable(self, said: str) -> str:
        """Write on one line what a server said, without the key."""
        if self._client.api_key != _NO_KEY:
            said = said.replace(self._client.api_key, "[key]")
        line = " ".join("".join(char if char.isprintable() else " " for char in said).split())
        return line if len(line) <= _MAX_SAID else line[:_MAX_SAID] + "..."


@dataclass
class _Answer:
    """What has arrived of an answer; chunks are read with care, since the client does not check what they hold."""

    began: float
    pieces: list[str] = field(default_factory=list)
    first: float = 0.0
    last: float = 0.0
    ended: float = 0.0
    finish: str = ""
    n_chunks: int = 0
    has_thought: bool = False
    usage: object = None

    def add(self, chunk: object, now: float) -> None:
        """Take in what arrived at a time."""
        self.usage = getattr(chunk, "usage", None) or self.usage
        choices = getattr(chunk, "choices", None)
        if not isinstance(choices, list) or not choices:
            return
        self.n_chunks += 1
        self.ended = now
        self.finish = str(getattr(choices[0], "finish_reason", None) or self.finish)
        delta = getattr(choices[0], "delta", None)
        # chats send a delta, Completions a text
        text = getattr(choices[0], "text", None) if delta is None else getattr(delta, "content", None)
        if isinstance(text, str) and text:
            self.first, self.last = self.first or now, now
            self.pieces.append(text)
        elif getattr(delta, "reasoning_content", None) or getattr(delta, "reasoning", None):
            self.has_thought = True

    def generation(self, stop: str) -> Generation:
        """Return the whole, as text up to ``stop``."""
        text = "".join(self.pieces)
        if stop:
            text = text.partition(stop)[0]
        details = getattr(self.usage, "completion_tokens_details", None)
        n_tokens = _count(self.usage, "completion_tokens") - _count(details, "reasoning_tokens")
        if n_tokens < 1:
            n_tokens = len(self.pieces)
        elapsed = self.last - self.first
        rate = (n_tokens - 1) / elapsed if len(self.pieces) > 1 and n_tokens > 1 and elapsed > 0 else 0.0
        seconds_to_first = (self.first or self.ended) - self.began
        return Generation(text.strip(), _count(self.usage, "prompt_tokens"), n_tokens, seconds_to_first, rate)


def _parsed(url: str) -> tuple[str, str]:
    """Return the endpoint and the model that a URL names; errors repeat no part of it that may be secret."""
    address, _, model = url.partition("#")
    address, model = address.strip(), model.strip()
    try:
        parts = urlsplit(address)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise ConfigError("the URL of the reader has a malformed host or port") from None
    if "@" in (parts.netloc or address):
        raise ConfigError(f"the URL of the reader must hold no name and no password: put the key into {_KEY}")
    if "?" in address:
        raise ConfigError(f"the URL of the reader must hold no query, got {address.partition('?')[0]}?...")
    if parts.scheme not in ("http", "https") or not host or any(char.isspace() for char in address):
        raise ConfigError(f"the URL of the reader must be like http://host:port/v1#MODEL, got {url!r}")
    if not model:
        raise ConfigError(f"the URL of the reader must name a model: {address}#MODEL, got {url!r}")
    return address.rstrip("/"), model


def _adaptable(request: Mapping[str, Any]) -> set[str]:
    """Return the parameters that can be left out or said differently; Completions has one name for ``max_tokens``."""
    return (request.keys() & _INSTEAD.keys()) - (set() if "messages" in request else {"max_tokens"})


def _adapted(request: Mapping[str, Any], rejected: set[str]) -> dict[str, Any]:
    """Return a request without parameters that the server rejects."""
    adapted = dict(request)
    for name in rejected:
        value, instead = adapted.pop(name), _INSTEAD[name]
        if instead is not None:
            adapted[instead] = value
    return adapted


def _rejected_by(error: Exception, names: set[str]) -> str | None:
    """Return the parameter to which a server objects; None if it objects to something else."""
    if _is_too_long(error):
        return None
    param = getattr(error, "param", None)
    if param in names:
        return str(param)
    found = re.search(rf"(?<![\w-])({'|'.join(sorted(names))})(?![\w-])", _said(error)) if names else None
    return found[1] if found else None


def _is_too_long(error: Exception) -> bool:
    if getattr(error, "status_code", 400) not in (400, 413, 422) or getattr(error, "body", None) is None:
        return False
    kinds = (getattr(error, name, None) for name in ("code", "type"))
    return _TOO_LONG.search(" ".join([_said(error), *map(str, kinds)]).replace("\n", " ")) is not None


def _said(error: Exception) -> str:
    """Return what the server said, or else what happened; never what was sent, which some servers repeat."""
    body = getattr(error, "body", None)
    if isinstance(body, Mapping):
        body = body.get("message") or body.get("detail") or body.get("error")
    if isinstance(body, list):  # as FastAPI lists what does not fit
        body = "; ".join(_objection(one) for one in body)
    if body:
        return str(body)
    if isinstance(error, ValueError):
        return f"it sent what is not JSON: {error}"
    cause = f" ({error.__cause__})" if error.__cause__ else ""
    return f"{str(error) or type(error).__name__}{cause}"


def _objection(one: object) -> str:
    if not isinstance(one, Mapping):
        return str(one)
    where = one.get("loc")
    return f"{'.'.join(map(str, where)) if isinstance(where, list) else ''} {one.get('msg', '')}".strip()


def _count(usage: object, name: str) -> int:
    value = getattr(usage, name, None)
    return max(value, 0) if isinstance(value, int) else 0


def _text_of(part: Part) -> str:
    if isinstance(part, TextPart):
        return part.text
    raise InputError(f"this backend reads text, got a {type(part).__name__}")
