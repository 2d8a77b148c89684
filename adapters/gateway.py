"""A gateway that compresses what passes through it: in front of any server that speaks OpenAI's or Anthropic's API.

Only the upstream that the operator names is ever asked. What is no request to a model passes through to the byte.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
import logging
import re
import time
from collections.abc import AsyncIterator, Coroutine, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote, urlsplit

from kompakt.adapters._engine import Engine
from kompakt.adapters._http import Kompakt, wrap_http_client
from kompakt.adapters._settings import Report, Settings
from kompakt.adapters._usage import Usage
from kompakt.adapters._wire_contract import compress_messages, find_original
from kompakt.compressor.errors import ConfigError, InputError, KompaktError, MissingExtraError
from kompakt.compressor.pipeline import Pipeline

if TYPE_CHECKING:
    import httpx2
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

_LOG = logging.getLogger(__name__)

GATE_HEADER: Final = "x-kompakt-token"

_HOP_BY_HOP: Final = frozenset(
    "connection keep-alive proxy-authenticate proxy-authorization te trailer transfer-encoding upgrade".split()
)
"""Headers that are between two neighbours, and not for those behind them (RFC 9110, section 7.6.1)."""

_NOT_SENT_ON: Final = _HOP_BY_HOP | {"host", "content-length", GATE_HEADER}
_METHODS: Final = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
_HEALTH_SECONDS: Final = 30.0
_OWNER_CHARACTERS: Final = 16
_MANY: Final = 2**31
_GONE: Final = 499
"""What is logged of a caller that did not wait; nobody reads it."""
_OWN: Final = re.compile(r"POST /v1/compress|GET /v1/retrieve/[^/]+")
"""What the gateway answers itself, and so never sends on with its token in the headers."""
_OPEN: Final = ("/healthz", "/metrics")
"""Asked by machines that have no token; they say nothing of anybody's texts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the gateway takes on.

    Args:
        max_body: Bytes of a request; larger ones get 413.
        max_requests: Requests at one time; one more gets 429.
        max_bytes: Bytes of all requests at one time; the one that would exceed them gets 429.
        timeout: Seconds to wait for the upstream's connection, and for each next piece of its answer.

    Raises:
        ConfigError: If one of them is not above 0.
    """

    max_body: int = 64 << 20
    max_requests: int = 256
    max_bytes: int = 1 << 30
    timeout: float = 600.0

    def __post_init__(self) -> None:
        for name in ("max_body", "max_requests", "max_bytes", "timeout"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be above 0, got {getattr(self, name)!r}")
        if self.max_bytes < self.max_body:
            raise ConfigError(f"max_bytes must be at least max_body, got {self.max_bytes} and {self.max_body}")


def create_app(
    upstream: str, pipeline: Pipeline, settings: Settings, *, limits: Limits | None = None, token: str | None = None
) -> Starlette:
    """Return the gateway as an ASGI application.

    Args:
        upstream: The URL that paths are appended to, such as ``https://api.openai.com``.
        pipeline: What compresses; its store keeps what is reused in later turns, and the originals of
            ``/v1/compress``.
        settings: How.
        limits: What it takes on.
        token: What callers must send as ``x-kompakt-token``, or to the gateway's own endpoints as a bearer token;
            nothing without one.

    Raises:
        ConfigError: If the upstream is no URL of a server.
        MissingExtraError: If the extra ``server`` is not installed.
    """
    try:
        from starlette.applications import Starlette
        from starlette.middleware import Middleware
        from starlette.requests import ClientDisconnect
        from starlette.responses import Response
        from starlette.routing import Route
    except ImportError as error:
        raise MissingExtraError("kompakt serve", "server") from error
    taken_on = limits or Limits()
    gateway = _Gateway(_checked_url(upstream), Engine(pipeline, settings), taken_on)
    return Starlette(
        routes=[
            Route("/healthz", gateway.healthz),
            Route("/metrics", gateway.metrics),
            Route("/v1/compress", gateway.compress, methods=["POST"]),
            Route("/v1/retrieve/{hash}", gateway.retrieve),
            Route("/{path:path}", gateway.forward, methods=_METHODS),
        ],
        middleware=[Middleware(_Gate, token=token, limits=taken_on)],
        exception_handlers={
            InputError: lambda _, error: _error(400, str(error)),
            KompaktError: lambda _, error: _error(500, str(error)),
            TimeoutError: lambda _, __: _error(408, "the request did not arrive in time"),
            _TooLargeError: lambda _, error: _error(413, str(error)),
            _BusyError: lambda _, error: _busy(str(error)),
            ClientDisconnect: lambda _, __: Response(status_code=_GONE),
        },
        lifespan=gateway.lifespan,
    )


def _checked_url(url: str) -> str:
    import httpx2

    try:
        parts = httpx2.URL(url)
        is_right = parts.scheme in ("http", "https") and bool(parts.host) and urlsplit(url).port != 0
    except (ValueError, httpx2.InvalidURL):
        is_right = False
    if not is_right or any(mark in url for mark in "?#@ "):
        raise ConfigError(f"upstream must be http(s)://HOST[:PORT][/PATH], got {url!r}")
    return url.rstrip("/")


def _target(upstream: str, path: str, query: str) -> httpx2.URL:
    """Return where a request goes: below the upstream's path, and nowhere else.

    Raises:
        InputError: If its path leads elsewhere.
    """
    import httpx2

    is_below = path.startswith("/") and not any(part in (".", "..") for part in re.split(r"[/\\]", unquote(path)))
    if is_below:
        target, origin = httpx2.URL(f"{upstream}{path}{query}"), httpx2.URL(upstream)
        if (target.scheme, target.netloc, target.userinfo) == (origin.scheme, origin.netloc, b""):
            return target
    raise InputError(f"a path must begin with / and not have the parts . and .., got {path!r}")


class _Gate:
    """An ASGI application before another: asks for the token, and lets in no more than can be done."""

    def __init__(self, app: Any, *, token: str | None, limits: Limits) -> None:  # noqa: ANN401 (any ASGI app)
        self._app = app
        self._token = token
        self._limits = limits
        self._n_inside = 0
        self._n_bytes = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:  # noqa: ANN401
        from starlette.requests import Request

        if scope["type"] != "http" or (scope["path"] in _OPEN and scope["method"] in ("GET", "HEAD")):
            await self._app(scope, receive, send)
        elif not self._is_allowed(Request(scope)):
            await _error(401, f"send the gateway's token as {GATE_HEADER}")(scope, receive, send)
        elif self._n_inside >= self._limits.max_requests:
            await _busy(f"{self._n_inside} requests are under way")(scope, receive, send)
        else:
            await self._let_in(scope, receive, send)

    async def _let_in(self, scope: Any, receive: Any, send: Any) -> None:  # noqa: ANN401
        own = 0

        async def counted() -> Any:  # noqa: ANN401
            nonlocal own
            message = await receive()
            size = len(message.get("body", b""))
            own, self._n_bytes = own + size, self._n_bytes + size
            if size and self._n_bytes > self._limits.max_bytes:
                raise _BusyError(f"the requests under way have over {self._limits.max_bytes:,} bytes")
            return message

        self._n_inside += 1
        try:
            await self._app(scope, counted, send)
        finally:
            self._n_inside -= 1
            self._n_bytes -= own

    def _is_allowed(self, request: Request) -> bool:
        if self._token is None:
            return True
        given = request.headers.get(GATE_HEADER, "")
        if not given and _OWN.fullmatch(f"{request.method} {request.url.path}"):
            scheme, _, value = request.headers.get("authorization", "").partition(" ")
            given = value.strip() if scheme.lower() == "bearer" else ""
        return hmac.compare_digest(given.encode(), self._token.encode())


class _Gateway:
    """What the endpoints share."""

    def __init__(self, upstream: str, engine: Engine, limits: Limits) -> None:
        self._upstream = upstream
        self._engine = engine
        self._limits = limits
        self._meters = _Meters()
        self._kompakt = Kompakt(
            engine,
            owner_of=lambda request: _owner(request.headers),
            on_report=self._meters.count_report,
            on_usage=self._meters.count_usage,
        )
        self._client: Any = None
        self._health = (float("-inf"), "")
        self._looking = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Open the connections to the upstream, and close them at the end."""
        import httpx2

        del app
        limits = httpx2.Limits(max_connections=self._limits.max_requests)
        inner = httpx2.AsyncClient(timeout=self._limits.timeout, limits=limits, trust_env=False)
        async with inner, wrap_http_client(inner, self._kompakt) as self._client:
            yield

    async def healthz(self, request: Request) -> Response:
        """Say whether texts can be compressed, which is tried at most twice a minute."""
        from starlette.responses import JSONResponse

        del request
        async with self._looking:
            looked, reason = self._health
            if time.monotonic() - looked > _HEALTH_SECONDS:
                reason = await asyncio.to_thread(self._trouble)
                self._health = (time.monotonic(), reason)
        if reason:
            return JSONResponse({"status": "unhealthy", "reason": reason}, 503)
        return JSONResponse({"status": "ok"})

    def _trouble(self) -> str:
        try:
            texts = ["The sea was calm. The ship left at noon. It carried bells."]
            result = self._engine.pipeline.compress(texts, query="When did it leave?", keep=0.6)
        except Exception as error:  # whatever it is, it is what the probe asks for
            return f"{type(error).__name__}: {error}"
        return result.outcome.reason

    async def metrics(self, request: Request) -> Response:
        """Return the numbers in Prometheus' form."""
        from starlette.responses import Response

        del request
        return Response(self._meters.text(), media_type="text/plain; version=0.0.4")

    async def compress(self, request: Request) -> Response:
        """Compress messages; see ``compress_messages``."""
        from starlette.responses import Response

        content, headers = await self._body(request), request.headers
        is_bypassed = headers.get("x-headroom-bypass", "").lower() in ("1", "true")
        answer = await asyncio.to_thread(self._compressed, content, _owner(headers), is_bypassed=is_bypassed)
        return Response(answer, media_type="application/json")

    def _compressed(self, content: bytes, owner: str, *, is_bypassed: bool) -> bytes:
        try:
            body = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise InputError(f"the body is no JSON: {error}") from error
        if not isinstance(body, dict):
            raise InputError("the body must be a JSON object")
        if is_bypassed:
            body = {**body, "config": {"frozen_message_count": _MANY}}
        try:
            return json.dumps(compress_messages(self._engine, body, owner=owner)).encode()
        except RecursionError as error:
            raise InputError("the body is nested too deep") from error

    async def retrieve(self, request: Request) -> Response:
        """Return the original of a hash."""
        from starlette.responses import JSONResponse

        name = request.path_params["hash"]
        artefacts = self._engine.artefacts(_owner(request.headers))
        original = await asyncio.to_thread(find_original, artefacts, name)
        if original is None:
            return _error(
                404, f"there is no text with the hash {name}; it was never kept or is gone: do not ask again"
            )
        return JSONResponse({"hash": name, "content": original, "original_content": original})

    async def forward(self, request: Request) -> Response:
        """Send a request on to the upstream, compressed if it is one to a model, and stream back the answer."""
        import httpx2
        from starlette.responses import StreamingResponse

        path = request.scope["raw_path"].decode("ascii").partition("?")[0]
        target = _target(self._upstream, path, f"?{request.url.query}" if request.url.query else "")
        # not built by the client, which would add its own headers and the cookies of other callers
        outgoing = httpx2.Request(
            request.method,
            target,
            headers=_sent_on(request.headers),
            content=await self._body(request),
            extensions={"timeout": httpx2.Timeout(self._limits.timeout).as_dict()},
        )
        try:
            answer = await _unless_gone(request, self._client.send(outgoing, stream=True))
        except httpx2.TimeoutException:
            return _error(504, "the upstream did not answer in time")
        except httpx2.HTTPError as error:
            _LOG.warning("the upstream cannot be reached: %s", type(error).__name__)
            return _error(502, f"the upstream cannot be reached: {type(error).__name__}")
        self._meters.count_answer(answer.status_code)
        response = StreamingResponse(self._streamed(answer), answer.status_code)
        response.raw_headers = _neighbourless(answer.headers, _HOP_BY_HOP)
        return response

    async def _streamed(self, answer: Any) -> AsyncIterator[bytes]:  # noqa: ANN401 (of httpx2)
        try:
            async for piece in answer.aiter_raw():
                yield piece
        finally:
            await answer.aclose()

    async def _body(self, request: Request) -> bytes:
        parts, size = [], 0
        async with asyncio.timeout(self._limits.timeout):
            async for part in request.stream():
                size += len(part)
                if size > self._limits.max_body:
                    raise _TooLargeError(f"a request may have {self._limits.max_body:,} bytes")
                parts.append(part)
        return b"".join(parts)


class _TooLargeError(Exception):
    """A request with more bytes than the gateway takes."""


class _BusyError(Exception):
    """A request that would be too much beside those that are under way."""


async def _unless_gone(request: Request, answer: Coroutine[Any, Any, Any]) -> Any:  # noqa: ANN401 (of httpx2)
    """Wait for an answer as long as somebody waits for it: nobody should pay for what nobody reads."""
    from starlette.requests import ClientDisconnect

    asked, gone = asyncio.create_task(answer), asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait((asked, gone), return_when=asyncio.FIRST_COMPLETED)
        if not asked.done():
            raise ClientDisconnect
        return asked.result()
    finally:
        gone.cancel()
        if not asked.done():
            asked.cancel()
            await asyncio.wait((asked,))


def _sent_on(headers: Any) -> list[tuple[bytes, bytes]]:  # noqa: ANN401 (of starlette)
    return _neighbourless(headers, _NOT_SENT_ON)


def _neighbourless(headers: Any, dropped: frozenset[str]) -> list[tuple[bytes, bytes]]:  # noqa: ANN401 (of either side)
    """Return headers, to the byte and in order, without those that are for the next neighbour alone."""
    named = {name.strip().lower() for name in headers.get("connection", "").split(",")}
    away = {name.encode("latin-1") for name in dropped | named}
    return [(name.lower(), value) for name, value in headers.raw if name.lower() not in away]


def _owner(headers: Any) -> str:  # noqa: ANN401 (of either side)
    """Return whose request this is: a hash of the key that it is sent with."""
    keys = [headers.get(name, "") for name in ("authorization", "x-api-key", "api-key")]
    return hashlib.sha256("\n".join(keys).encode()).hexdigest()[:_OWNER_CHARACTERS] if any(keys) else ""


def _error(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    from starlette.responses import JSONResponse

    # both APIs put what went wrong into ``error``
    body = {"type": "error", "error": {"type": "kompakt_error", "message": message}}
    return JSONResponse(body, status, dict(headers or {}))


def _busy(message: str) -> Response:
    return _error(429, message, {"retry-after": "1"})


class _Meters:
    """What is counted, in Prometheus' form."""

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Counter, Histogram

        self._registry = CollectorRegistry()
        own: dict[str, Any] = {"registry": self._registry, "namespace": "kompakt"}
        self._requests = Counter("requests", "Requests to models.", ["outcome"], **own)
        self._tokens = Counter("tokens", "Tokens of their texts.", ["when"], **own)
        self._usage = Counter("provider_tokens", "Tokens as the upstream counts them.", ["kind"], **own)
        self._seconds = Histogram("seconds", "What compressing them took.", **own)
        self._answers = Counter("upstream_answers", "Answers of the upstream.", ["status"], **own)

    def count_answer(self, status: int) -> None:
        """Count an answer of the upstream."""
        self._answers.labels(str(status)).inc()

    def count_report(self, report: Report) -> None:
        """Count what was done to a request."""
        self._requests.labels(report.outcome.status.value).inc()
        self._tokens.labels("before").inc(report.tokens_before)
        self._tokens.labels("after").inc(report.tokens_after)
        self._seconds.observe(report.seconds)

    def count_usage(self, usage: Usage) -> None:
        """Count what the upstream counted."""
        self._usage.labels("input").inc(usage.input_tokens)
        self._usage.labels("cached").inc(usage.cached_tokens)
        self._usage.labels("output").inc(usage.output_tokens)

    def text(self) -> bytes:
        """Return the numbers."""
        from prometheus_client import generate_latest

        return bytes(generate_latest(self._registry))
