"""Parts that the measurements of adapters share: a server on this machine that answers at once, and requests."""

from __future__ import annotations

import contextlib
import json
import random
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).resolve().parents[1] / "examples" / "data"
QUESTION = "When was the pool enlarged, and who approved that?"

ANSWER = {
    "id": "c",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "At noon."}}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
}

_UPSTREAM = f"""
import sys, uvicorn

ANSWER = {json.dumps(ANSWER).encode()!r}

async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    while (await receive()).get("more_body"):
        ...
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(ANSWER)).encode())]
    await send({{"type": "http.response.start", "status": 200, "headers": headers}})
    await send({{"type": "http.response.body", "body": ANSWER}})

uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="error", access_log=False)
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


@contextlib.contextmanager
def running(command: Sequence[str], port: int) -> Iterator[str]:
    """Run a server until the block ends; gives its address."""
    url = f"http://127.0.0.1:{port}"
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with subprocess.Popen(command) as process:
        try:
            until = time.monotonic() + 60
            while not _answers(direct, f"{url}/healthz"):
                if process.poll() is not None or time.monotonic() > until:
                    raise SystemExit(f"no server: {' '.join(command)}")
                time.sleep(0.05)
            yield url
        finally:
            process.terminate()


def _answers(opener: urllib.request.OpenerDirector, url: str) -> bool:
    try:
        with opener.open(url, timeout=30):
            return True
    except OSError:
        return False


@contextlib.contextmanager
def upstream() -> Iterator[str]:
    """Run a server that answers every request at once; gives its address."""
    port = free_port()
    with running([sys.executable, "-c", _UPSTREAM, str(port)], port) as url:
        yield url


def messages(number: int, n_tokens: int) -> list[dict[str, Any]]:
    """Return a conversation with one output of a tool of about ``n_tokens`` tokens, different for each number."""
    text = "\n\n".join(path.read_text(encoding="utf-8") for path in sorted(EXAMPLES.glob("*.md")))
    paragraphs = [part for part in text.split("\n\n") if len(part) > 80]
    chance = random.Random(number)  # noqa: S311
    chosen = [f"Report {number}."]
    while sum(map(len, chosen)) < 4.4 * n_tokens:
        chosen.append(chance.choice(paragraphs))
    call = {"id": "t", "type": "function", "function": {"name": "read", "arguments": "{}"}}
    return [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "t", "content": "\n\n".join(chosen)},
    ]


def percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]
