"""A hook below the clients of OpenAI and Anthropic: their requests are compressed on the way out.

Every method of a client ends in one HTTP request, so one hook covers all of them: ``create``, ``parse``, ``stream``,
raw responses, beta interfaces and whatever comes next. httpx and httpx2 are served alike, sync and async.
"""

from __future__ import annotations

import contextlib
import importlib
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Final
from urllib.parse import quote

from kompakt.adapters._engine import Engine, Rewritten
from kompakt.adapters._overrides import PREFIX, from_body, from_headers, option_of, parse_overrides
from kompakt.adapters._settings import Report, Settings, passed_through, reason_of
from kompakt.adapters._spans import record_span
from kompakt.adapters._usage import Usage, UsageReader, watched_stream
from kompakt.adapters._wires import Wire, wire_of
from kompakt.compressor.errors import ConfigError

_LIBRARIES: Final = ("httpx", "httpx2")
_OF_THE_BODY: Final = (b"content-length", b"transfer-encoding")
_BODY_HASH: Final = "x-amz-content-sha256"
_MAX_REASON: Final = 300
"""Characters of a reason in a header: it may quote what was sent."""
_REPORTS: Final = 100
_LARGE: Final = 1 << 16
"""Bytes of a body that is read in a thread: an event loop must not stand still for it."""


def _nobody(request: Any) -> str:  # noqa: ANN401 (of either library)
    del request
    return ""


class Kompakt:
    """What was done to the requests of a wrapped client, and what does it.

    Args:
        engine: What compresses them.
        owner_of: Whose conversation a request belongs to, where one client serves several.
        on_report: Told what was done to each request.
        on_usage: Told what the provider counted.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        owner_of: Callable[[Any], str] = _nobody,
        on_report: Callable[[Report], None] | None = None,
        on_usage: Callable[[Usage], None] | None = None,
    ) -> None:
        self.engine = engine
        self.owner_of = owner_of
        self._on_report = on_report
        self._on_usage = on_usage
        self._lock = threading.Lock()
        self.reports: deque[Report] = deque(maxlen=_REPORTS)
        """What was done to the last requests, the newest last."""

    @property
    def last(self) -> Report | None:
        """What was done to the request that went out last, from whatever thread; None before the first."""
        return self.reports[-1] if self.reports else None

    def note(self, report: Report) -> None:
        """Add what was done to a request."""
        with self._lock:
            self.reports.append(report)
        if self._on_report is not None:
            self._on_report(report)

    def settle(self, report: Report, usage: Usage) -> None:
        """Add to a report what the provider counted."""
        with self._lock:
            for index, one in enumerate(self.reports):
                if one is report:
                    self.reports[index] = replace(report, usage=usage)
        if self._on_usage is not None:
            self._on_usage(usage)

    def close(self) -> None:
        """End the threads; requests go out as they are from now on."""
        self.engine.close()


def wrap_http_client(inner: Any, kompakt: Kompakt) -> Any:  # noqa: ANN401 (a client of either library)
    """Return an HTTP client that compresses what it sends, and sends it by another one, which is not changed.

    Connections, timeouts, proxies, authentication and hooks stay those of the other one, which is its maker's to
    close.

    Args:
        inner: A ``Client`` or an ``AsyncClient`` of httpx or httpx2.
        kompakt: Where it is noted what was done.

    Raises:
        ConfigError: If it is none of these.
    """
    for name in _LIBRARIES:
        if any(base.__module__.partition(".")[0] == name for base in type(inner).__mro__):
            library = importlib.import_module(name)
            break
    else:
        raise ConfigError(f"not a client of {' or '.join(_LIBRARIES)}: {inner!r}")
    is_async = isinstance(inner, library.AsyncClient)
    transport = (_async_transport if is_async else _sync_transport)(name)
    made = (library.AsyncClient if is_async else library.Client)(
        transport=transport(inner, kompakt),
        auth=inner.auth,
        params=inner.params,
        base_url=inner.base_url,
        headers=inner.headers,
        cookies=inner.cookies,
        timeout=inner.timeout,
        follow_redirects=inner.follow_redirects,
        max_redirects=inner.max_redirects,
        trust_env=False,
    )
    # so that those who meet the client can tell that it is wrapped
    made.kompakt = kompakt
    return made


@cache
def _sync_transport(name: str) -> type:
    library: Any = importlib.import_module(name)

    class CompressingTransport(library.BaseTransport):  # type: ignore[misc]
        def __init__(self, inner: Any, kompakt: Kompakt) -> None:  # noqa: ANN401
            self._inner, self._kompakt = inner, kompakt

        def handle_request(self, request: Any) -> Any:  # noqa: ANN401
            wire, engine = _wire_for(request), self._kompakt.engine
            if wire is None:
                return self._send(_unasked(library, request))
            call = _read(request, request.read(), engine.settings)
            done = call.settled or engine.rewrite(
                call.body,
                wire,
                settings=call.settings,
                query=call.query,
                owner=self._kompakt.owner_of(request),
            )
            answer = self._send(_outgoing(library, request, call, done))
            return _answered(library, answer, done.report, self._kompakt)

        def _send(self, request: Any) -> Any:  # noqa: ANN401
            # what the outer client does must not be done twice
            return self._inner.send(request, stream=True, follow_redirects=False, auth=None)

        def close(self) -> None:
            self._kompakt.close()

    return CompressingTransport


@cache
def _async_transport(name: str) -> type:
    library: Any = importlib.import_module(name)

    class AsyncCompressingTransport(library.AsyncBaseTransport):  # type: ignore[misc]
        def __init__(self, inner: Any, kompakt: Kompakt) -> None:  # noqa: ANN401
            self._inner, self._kompakt = inner, kompakt

        async def handle_async_request(self, request: Any) -> Any:  # noqa: ANN401
            wire, engine = _wire_for(request), self._kompakt.engine
            if wire is None:
                return await self._send(_unasked(library, request))
            call = await _aread(request, await request.aread(), engine.settings)
            done = call.settled or await engine.arewrite(
                call.body,
                wire,
                settings=call.settings,
                query=call.query,
                owner=self._kompakt.owner_of(request),
            )
            answer = await self._send(_outgoing(library, request, call, done))
            return _answered(library, answer, done.report, self._kompakt)

        async def _send(self, request: Any) -> Any:  # noqa: ANN401
            return await self._inner.send(request, stream=True, follow_redirects=False, auth=None)

        async def aclose(self) -> None:
            # of whatever event loop runs: the libraries serve trio's as well
            from anyio import to_thread

            await to_thread.run_sync(self._kompakt.close)

    return AsyncCompressingTransport


def _wire_for(request: Any) -> Wire | None:  # noqa: ANN401
    """Return the interface that a request is for, or None if it is for none that holds a prompt."""
    return wire_of(request.url.path) if request.method == "POST" else None


@dataclass(frozen=True, slots=True)
class _Call:
    """A request that may be compressed.

    Args:
        content: Its body as it came.
        body: The same without what it asks of kompakt.
        settings: How it is made smaller.
        query: The question, if it gives one.
        settled: What becomes of it where that needs no engine.
    """

    content: bytes
    body: str
    settings: Settings
    query: str | None = None
    settled: Rewritten | None = None


async def _aread(request: Any, content: bytes, settings: Settings) -> _Call:  # noqa: ANN401
    if len(content) < _LARGE:
        return _read(request, content, settings)
    from anyio import to_thread

    return await to_thread.run_sync(_read, request, content, settings)


def _read(request: Any, content: bytes, settings: Settings) -> _Call:  # noqa: ANN401
    began, body, used, query = time.monotonic(), "", settings, None
    reason = _untouchable(request)
    try:
        if not reason:
            body, asked = from_body(content.decode())
            overrides = parse_overrides(asked, from_headers(request.headers.items()))
            used, query = overrides.applied_to(settings), overrides.query
            reason = "bypassed, as the request asks" if overrides.bypass else ""
    except UnicodeDecodeError:
        reason = "the body is no UTF-8"
    except Exception as error:  # whatever a request asks for, it must go out
        if settings.on_error == "raise":
            raise
        reason = reason_of(error)
    if reason:
        report = passed_through(reason, time.monotonic() - began)
        record_span(report)
        return _Call(content, body, settings, settled=Rewritten(None, report))
    return _Call(content, body, used, query)


def _untouchable(request: Any) -> str:  # noqa: ANN401
    """Return why a request must stay as it is; empty if it may change."""
    # where a client sends two of them, they come as one value
    if "AWS4-" in request.headers.get("authorization", "") or _BODY_HASH in request.headers:
        return "its body is signed (AWS Signature Version 4)"
    if "content-encoding" in request.headers:
        return f"its body has the content encoding {request.headers['content-encoding']}"
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    return "" if kind == "application/json" else f"its body is {kind or 'of no given type'}, not application/json"


def _outgoing(library: Any, request: Any, call: _Call, done: Rewritten) -> Any:  # noqa: ANN401
    """Return the request that goes out: the very one that came, if nothing of it has to change."""
    text = done.text if done.text is not None else call.body
    content = text.encode() if text else call.content
    if content == call.content:
        return _unasked(library, request)
    headers = [(name, value) for name, value in _own_headers(request) if name.lower() not in _OF_THE_BODY]
    return library.Request(
        request.method, request.url, headers=headers, content=content, extensions=request.extensions
    )


def _unasked(library: Any, request: Any) -> Any:  # noqa: ANN401
    """Return a request without the headers that ask something of kompakt: the very one that came, if it has none."""
    headers = _own_headers(request)
    if len(headers) == len(request.headers.raw):
        return request
    return library.Request(
        request.method, request.url, headers=headers, stream=request.stream, extensions=request.extensions
    )


def _own_headers(request: Any) -> list[tuple[bytes, bytes]]:  # noqa: ANN401
    return [(name, value) for name, value in request.headers.raw if option_of(name.decode("latin-1")) is None]


def _answered(library: Any, response: Any, report: Report, kompakt: Kompakt) -> Any:  # noqa: ANN401
    """Note what was done to a request, write it into the headers of its response, and watch that for its usage."""
    kompakt.note(report)
    response.headers.update(report_headers(report))
    is_read = response.is_stream_consumed
    encoding = "" if is_read else response.headers.get("content-encoding", "")
    reader = UsageReader(encoding, lambda usage: kompakt.settle(report, usage))
    if is_read:  # by a hook of the application's own
        with contextlib.suppress(library.ResponseNotRead):
            reader.add(response.content)
        reader.finish()
    else:
        response.stream = watched_stream(library, response.stream, reader)
    return response


def report_headers(report: Report) -> dict[str, str]:
    """Return what was done to a request as headers; the reason is percent-encoded."""
    headers = {
        "outcome": report.outcome.status.value,
        "tokens-before": str(report.tokens_before),
        "tokens-after": str(report.tokens_after),
        "seconds": f"{report.seconds:.4f}",
    }
    if report.outcome.reason:
        headers["reason"] = quote(report.outcome.reason[:_MAX_REASON], safe=" ,:;()'=.")
    return {f"{PREFIX}{name}": value for name, value in headers.items()}
