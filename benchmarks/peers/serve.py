"""What every runner shares: requests come in as JSON lines, answers go out as JSON lines.

In:  ``{"id", "documents": [{"text", "title"}], "query", "max_tokens", "keep", "tokens_before"}``
Out: ``{"ready": true, "version"}`` once, then for each request ``{"id", "text", "seconds"}`` or ``{"id", "error"}``.

This file runs in the environment of a peer: it uses the standard library alone.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, TextIO

Compress = Callable[[dict], str]
"""From a request to the compressed text."""

OFFLINE = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_OFFLINE": "1",
}
"""Set for every peer: a benchmark must measure what is on the machine, and tell nobody."""


_PROSE = {"text": "Ada wrote the first program. It ran on paper. " * 20, "title": "Ada"}
_JSON = {"text": json.dumps({f"key {number}": number for number in range(40)}, indent=1), "title": None}
_ASKED = {"query": "Who wrote the first program?", "max_tokens": 200, "keep": 0.5, "tokens_before": 400}
WARM_UP = (
    {"documents": [_PROSE, _JSON], **_ASKED},
    {"documents": [_PROSE], **_ASKED},
    {"documents": [_JSON], **_ASKED},
)
"""Asked before the first request, which would otherwise pay for what a peer loads on demand."""


class Memory:
    """Remembers what a peer's model said, so that one context at three budgets is read once, not three times.

    The seconds that an answer took when it was computed are added to those of each request that is given it again:
    what a request is said to take is what it takes without this.

    Args:
        size: Answers kept; the least recently used goes first.
    """

    def __init__(self, size: int) -> None:
        self._answers: OrderedDict[Hashable, tuple[Any, float]] = OrderedDict()
        self._size = size
        self._spared = 0.0

    def get(self, key: Hashable, compute: Callable[[], Any]) -> Any:
        """Return what ``compute`` returns, or returned when the key was last seen; it must not be changed."""
        if key in self._answers:
            self._answers.move_to_end(key)
            answer, seconds = self._answers[key]
            self._spared += seconds
            return answer
        began = time.perf_counter()
        answer = compute()
        self._answers[key] = answer, time.perf_counter() - began
        if len(self._answers) > self._size:
            self._answers.popitem(last=False)
        return answer

    def take_spared(self) -> float:
        """Return the seconds that were spared since the last call."""
        spared, self._spared = self._spared, 0.0
        return spared


def serve(
    distribution: str,
    load: Callable[[Sequence[str]], Compress],
    environment: Mapping[str, str] | None = None,
    *,
    warms_up: bool = True,
    memory: Memory | None = None,
) -> None:
    """Load a peer and answer requests until the input ends.

    Args:
        distribution: The peer's name on the package index, for its version.
        load: Imports the peer and returns what compresses; it gets the runner's arguments.
        environment: Variables that must be set before the peer is imported.
        warms_up: Whether to compress ``WARM_UP`` first.
        memory: What the peer remembers its model's answers in; the seconds it spares are counted.
    """
    memory = memory or Memory(0)
    answers = _take_stdout()
    os.environ.update(OFFLINE)
    os.environ.update(environment or {})
    try:
        compress = load(sys.argv[1:])
    except Exception as error:  # whatever a foreign package raises must reach the other side
        _send(answers, {"ready": False, "error": _describe(error)})
        raise
    for request in WARM_UP if warms_up else ():
        _answer(compress, {"id": None, **request}, memory)
    _send(answers, {"ready": True, "version": importlib.metadata.version(distribution)})
    for line in sys.stdin:
        _send(answers, _answer(compress, json.loads(line), memory))


def joined(request: dict) -> str:
    """Return the documents as one text, with an empty line between them."""
    return "\n\n".join(document["text"] for document in request["documents"])


def needed_query(request: dict) -> str:
    """Return the query; a peer that cannot work without one says so."""
    if not request["query"]:
        raise ValueError("this peer needs a query")
    return request["query"]


def own_target(request: dict, count: Callable[[str], int]) -> int:
    """Return the budget in the peer's own tokens.

    A peer that counts tokens differently would otherwise be asked for more or for less than the others.
    """
    return max(1, round(request["keep"] * count(joined(request))))


def _take_stdout() -> TextIO:
    """Keep the real standard output for answers, and send there whatever a peer prints to the error output."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


def _send(answers: TextIO, row: dict) -> None:
    answers.write(json.dumps(row) + "\n")
    answers.flush()


def _answer(compress: Compress, request: dict, memory: Memory) -> dict:
    memory.take_spared()
    began = time.perf_counter()
    try:
        text = compress(request)
    except Exception as error:  # as above; the next request may well succeed
        return {"id": request["id"], "error": _describe(error)}
    return {"id": request["id"], "text": text, "seconds": time.perf_counter() - began + memory.take_spared()}


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
