"""A hook below the clients of OpenAI and Anthropic: their requests are compressed on the way out.

Every method of a client ends in one HTTP request, so one hook covers all of them: ``create``, ``parse``, ``stream``,
raw responses, beta interfaces and whatever comes next. httpx and httpx2 are served alike, sync and async.
"""

from __future__ import annotations

import importlib
import time
from collections import deque
from dataclasses import dataclass
from functools import cache
from typing import Any, Final
from urllib.parse import quote

from kompakt.adapters._engine import Engine, Rewritten
from kompakt.adapters._overrides import PREFIX, from_body, from_headers, parse_overrides
from kompakt.adapters._settings import Report, Settings
from kompakt.adapters._wires import Wire, wire_of
from kompakt.compressor.errors import ConfigError, KompaktError
from kompakt.compressor.types import Outcome, Status

_LIBRARIES: Final = ("httpx", "httpx2")
_OF_THE_BODY: Final = ("content-length", "transfer-encoding")
_REPORTS: Final = 100


class Kompakt:
    """What was done to the requests of a wrapped client, and what does it.

    Args:
        engine: What compresses them.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.reports: deque[Report] = deque(maxlen=_REPORTS)
        """What was done to the last requests, the newest last."""

    @property
    def last(self) -> Report | None:
        """What was done to the request that went out last, from whatever thread; None before the first."""
        return self.reports[-1] if self.reports else None

    def close(self) -> None:
        """End the threads; requests go out as they are from now on."""
        self.engine.close()


def wrap_http_client(inner: Any, kompakt: Kompakt) -> Any:  # noqa: ANN401 (a client of either library)
    """Return an HTTP client that compresses what it sends, and sends it by another one, which is not changed.

    Timeouts, proxies, authentication and hooks stay those of the other one. To close the new one closes both.

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
    return (library.AsyncClient if is_async else library.Client)(
        transport=transport(inner, kompakt),
        base_url=inner.base_url,
        headers=inner.headers,
        cookies=inner.cookies,
        timeout=inner.timeout,
        follow_redirects=inner.follow_redirects,
        max_redirects=inner.max_redirects,
        trust_env=False,
    )


@cache
def _sync_transport(name: str) -> type:
    library: Any = importlib.import_module(name)

    class CompressingTransport(library.BaseTransport):  # type: ignore[misc]
        def __init__(self, inner: Any, kompakt: Kompakt) -> None:  # noqa: ANN401
            self._inner, self._kompakt = inner, kompakt

        def handle_request(self, request: Any) -> Any:  # noqa: ANN401
            wire, engine = _wire_for(request), self._kompakt.engine
            if wire is None:
                return self._send(request)
            call = _read(request, request.read(), engine.settings)
            done = call.settled or engine.rewrite(call.body, wire, settings=call.settings, query=call.query)
            return _answered(self._send(_outgoing(library, request, call, done)), done.report, self._kompakt)

        def _send(self, request: Any) -> Any:  # noqa: ANN401
            return self._inner.send(request, stream=True, follow_redirects=False)

        def close(self) -> None:
            self._inner.close()
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
                return await self._send(request)
            call = _read(request, await request.aread(), engine.settings)
            done = call.settled or await engine.arewrite(call.body, wire, settings=call.settings, query=call.query)
            return _answered(await self._send(_outgoing(library, request, call, done)), done.report, self._kompakt)

        async def _send(self, request: Any) -> Any:  # noqa: ANN401
            return await self._inner.send(request, stream=True, follow_redirects=False)

        async def aclose(self) -> None:
            await self._inner.aclose()
            self._kompakt.close()

    return AsyncCompressingTransport


def _wire_for(request: Any) -> Wire | None:  # noqa: ANN401
    """Return the interface that a request is for, or None if it must be left alone."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    is_plain = "content-encoding" not in request.headers
    return wire_of(request.url.path) if request.method == "POST" and kind == "application/json" and is_plain else None


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


def _read(request: Any, content: bytes, settings: Settings) -> _Call:  # noqa: ANN401
    began, body = time.monotonic(), ""
    try:
        body, asked = from_body(content.decode())
        overrides = parse_overrides(asked, from_headers(request.headers.items()))
        used = overrides.applied_to(settings)
        reason = "bypassed, as the request asks" if overrides.bypass else ""
    except UnicodeDecodeError:
        reason = "the body is no UTF-8"
    except KompaktError as error:
        if settings.on_error == "raise":
            raise
        reason = str(error)
    if reason:
        report = Report(Outcome(Status.PASSED_THROUGH, reason), seconds=time.monotonic() - began)
        return _Call(content, body, settings, settled=Rewritten(None, report))
    return _Call(content, body, used, overrides.query)


def _outgoing(library: Any, request: Any, call: _Call, done: Rewritten) -> Any:  # noqa: ANN401
    """Return the request that goes out: the very one that came, if nothing of it has to change."""
    text = done.text if done.text is not None else call.body
    content = text.encode() if text else call.content
    asked = [name for name in request.headers if name.lower().startswith(PREFIX)]
    if content == call.content and not asked:
        return request
    dropped = {*_OF_THE_BODY, *(name.lower() for name in asked)}
    headers = [(name, value) for name, value in request.headers.multi_items() if name.lower() not in dropped]
    return library.Request(
        request.method, request.url, headers=headers, content=content, extensions=request.extensions
    )


def _answered(response: Any, report: Report, kompakt: Kompakt) -> Any:  # noqa: ANN401
    """Note what was done to a request, and write it into the headers of its response."""
    kompakt.reports.append(report)
    response.headers.update(report_headers(report))
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
        headers["reason"] = quote(report.outcome.reason, safe=" ,:;()'=.")
    return {f"{PREFIX}{name}": value for name, value in headers.items()}
