"""What a provider says that it counted, read from its answers as they pass by."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

_USAGE: Final = re.compile(r'"usage"\s*:\s*(?=\{)')
"""In a string, as part of what a model says, its quotes would be escaped."""

_END_BYTES: Final = 1 << 16
"""Kept of the beginning and of the end of an answer: Anthropic's streams count at both, others at the end."""

_PACKED_BYTES: Final = 1 << 20
"""An answer with a content encoding can only be read from its beginning; a longer one is not."""


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
        text: A JSON answer or a stream of events, of OpenAI's or Anthropic's APIs, or its beginning and end.
    """
    found: dict[str, Any] = {}
    for match in _USAGE.finditer(text):
        try:
            said, _ = json.JSONDecoder().raw_decode(text, match.end())
        except ValueError:  # cut off where the middle is missing
            continue
        found |= {name: value for name, value in said.items() if value is not None}
    return _read(found)


def _read(said: Mapping[str, Any]) -> Usage | None:
    details = said.get("prompt_tokens_details") or said.get("input_tokens_details")
    inside = details.get("cached_tokens") if isinstance(details, Mapping) else None
    read, written = _number(said.get("cache_read_input_tokens")), _number(said.get("cache_creation_input_tokens"))
    n_input = said.get("prompt_tokens", said.get("input_tokens"))
    if not isinstance(n_input, int) or isinstance(n_input, bool):
        return None
    # Anthropic counts what its cache has beside the input, OpenAI within it
    beside = 0 if "prompt_tokens" in said or isinstance(details, Mapping) else read + written
    n_output = _number(said.get("completion_tokens", said.get("output_tokens")))
    return Usage(n_input + beside, _number(inside) or read, n_output)


def _number(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


class UsageReader:
    """Watches an answer pass, and says at its end what the provider counted.

    Args:
        library: ``httpx`` or ``httpx2``, which knows how to unpack.
        encoding: The answer's content encoding.
        tell: Called once, at the end of an answer that says it.
    """

    def __init__(self, library: Any, encoding: str, tell: Callable[[Usage], None]) -> None:  # noqa: ANN401
        self._library = library
        self._encoding = "" if encoding == "identity" else encoding
        self._tell: Callable[[Usage], None] | None = tell
        self._size = 0
        self._begin, self._end = bytearray(), bytearray()

    def add(self, piece: bytes) -> None:
        """See the next piece of the body."""
        room = (_PACKED_BYTES if self._encoding else _END_BYTES) - len(self._begin)
        self._size += len(piece)
        self._begin += piece[:room]
        self._end += piece[room:]
        del self._end[:-_END_BYTES]

    def finish(self) -> None:
        """Say what was counted; what cannot be read says nothing, and is nobody's trouble."""
        tell, self._tell = self._tell, None
        if tell is not None and (usage := find_usage(self._text())) is not None:
            tell(usage)

    def _text(self) -> str:
        is_whole = len(self._begin) + len(self._end) == self._size
        if not self._encoding:
            return (self._begin + (b"" if is_whole else b"\n") + self._end).decode("utf-8", "replace")
        if not is_whole:
            return ""
        try:
            packed = self._library.Response(
                200, headers={"content-encoding": self._encoding}, content=bytes(self._begin + self._end)
            )
            return str(packed.content, "utf-8", "replace")
        except self._library.DecodingError:
            return ""


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
            self._reader.finish()
            self._inner.close()

        async def aclose(self) -> None:
            self._reader.finish()
            await self._inner.aclose()

    return WatchedStream
