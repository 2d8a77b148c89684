"""What a provider says that it counted, read from its answers as they pass by."""

from __future__ import annotations

import json
import logging
import zlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import zstandard

_LOG = logging.getLogger(__name__)

_BEGIN_BYTES: Final = 1 << 18
"""Kept of the beginning of an answer: a longer one that is no stream of events is not read."""

_END_BYTES: Final = 1 << 16
"""Kept of the end: Anthropic's streams count at the beginning, others at the end."""

_UNPACKED_BYTES: Final = 1 << 22
"""A packed answer is unpacked so far: it may be packed to be large."""

_GZIP_OR_ZLIB: Final = 47
_MANY: Final = 2**53


@dataclass(frozen=True, slots=True)
class Usage:
    """The tokens of a request as its provider counts them.

    Args:
        input_tokens: Those of the prompt, with those that were found in the provider's cache or written to it.
        cached_tokens: Those of them that were found in the provider's cache.
        output_tokens: Those of the answer.
    """

    input_tokens: int
    cached_tokens: int = 0
    output_tokens: int = 0


def find_usage(text: str) -> Usage | None:
    """Return what an answer says was counted, or None if it does not say.

    Args:
        text: A JSON answer or a stream of events, of OpenAI's or Anthropic's APIs; of a stream, its beginning and end
            will do.
    """
    if not text.startswith("{"):
        said = (_said(line.removeprefix("data:")) for line in text.splitlines() if line.startswith("data:"))
        return _read({name: value for one in said for name, value in one.items() if value is not None})
    return _read(_said(text))


def _said(text: str) -> Mapping[str, Any]:
    """Return what one object says was counted. What a model said may look like it, and stands deeper in."""
    if '"usage"' not in text:
        return {}
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):  # cut off where the middle is missing
        return {}
    for holder in (body, *(body.get(name) for name in ("message", "response"))) if isinstance(body, dict) else ():
        if isinstance(holder, dict) and isinstance(holder.get("usage"), dict):
            return dict(holder["usage"])
    return {}


def _read(said: Mapping[str, Any]) -> Usage | None:
    details = said.get("prompt_tokens_details") or said.get("input_tokens_details")
    inside = details.get("cached_tokens") if isinstance(details, Mapping) else None
    read, written = _number(said.get("cache_read_input_tokens")), _number(said.get("cache_creation_input_tokens"))
    n_input = said.get("prompt_tokens", said.get("input_tokens"))
    if n_input is None or n_input != _number(n_input):
        return None
    # Anthropic counts what its cache has beside the input, OpenAI within it
    beside = 0 if "prompt_tokens" in said or isinstance(details, Mapping) else read + written
    n_output = _number(said.get("completion_tokens", said.get("output_tokens")))
    return Usage(n_input + beside, _number(inside) or read, n_output)


def _number(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MANY else 0


class UsageReader:
    """Watches an answer pass, and says at its end what the provider counted.

    Args:
        encoding: The answer's content encoding. Of the packed ones ``gzip``, ``deflate`` and ``zstd`` are read.
        tell: Called once, at the end of an answer that says it.
    """

    def __init__(self, encoding: str, tell: Callable[[Usage], None]) -> None:
        self._encoding = "" if encoding == "identity" else encoding
        self._tell: Callable[[Usage], None] | None = tell
        self._size = 0
        self._begin, self._end = bytearray(), bytearray()

    def add(self, piece: bytes) -> None:
        """See the next piece of the body."""
        room = _BEGIN_BYTES - len(self._begin)
        self._size += len(piece)
        self._begin += piece[:room]
        self._end += piece[room:]
        del self._end[:-_END_BYTES]

    def finish(self) -> None:
        """Say what was counted; what cannot be read says nothing, and is nobody's trouble."""
        tell, self._tell = self._tell, None
        if tell is None:
            return
        try:
            usage = find_usage(self._text())
            if usage is not None:
                tell(usage)
        except Exception as error:  # an answer that arrived must not fail for what is said of it
            _LOG.warning("what the provider counted cannot be read: %s: %s", type(error).__name__, error)

    def _text(self) -> str:
        is_whole = len(self._begin) + len(self._end) == self._size
        if not self._encoding:
            return (self._begin + (b"" if is_whole else b"\n") + self._end).decode("utf-8", "replace")
        packed = bytes(self._begin + self._end)
        return _unpacked(self._encoding, packed).decode("utf-8", "replace") if is_whole else ""


def _unpacked(encoding: str, data: bytes) -> bytes:
    """Return the beginning of packed data; nothing if it cannot be read."""
    try:
        if encoding in ("gzip", "deflate"):
            return zlib.decompressobj(_GZIP_OR_ZLIB).decompress(data, _UNPACKED_BYTES)
        if encoding == "zstd":
            with zstandard.ZstdDecompressor().stream_reader(data) as reader:
                return bytes(reader.read(_UNPACKED_BYTES))
    except (zlib.error, zstandard.ZstdError):
        return b""
    return b""


def watched_stream(library: Any, inner: Any, reader: UsageReader) -> Any:  # noqa: ANN401 (of either library)
    """Return the stream of an answer that shows each piece to a reader on its way.

    Args:
        library: ``httpx`` or ``httpx2``.
        inner: The stream.
        reader: What watches it.
    """
    return _stream_class(library)(inner, reader)


@cache
def _stream_class(library: Any) -> type:  # noqa: ANN401
    class WatchedStream(library.SyncByteStream, library.AsyncByteStream):  # type: ignore[misc]
        def __init__(self, inner: Any, reader: UsageReader) -> None:  # noqa: ANN401
            self._inner, self._reader = inner, reader

        def __iter__(self) -> Iterator[bytes]:
            for piece in self._inner:
                self._reader.add(piece)
                yield piece
            self._reader.finish()

        async def __aiter__(self) -> AsyncIterator[bytes]:
            async for piece in self._inner:
                self._reader.add(piece)
                yield piece
            self._reader.finish()

        def close(self) -> None:
            self._inner.close()
            self._reader.finish()

        async def aclose(self) -> None:
            await self._inner.aclose()
            self._reader.finish()

    return WatchedStream
