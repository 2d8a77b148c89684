"""The gateway as a process: it starts, answers, and lets what runs come to its end."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from servers import free_port, running

httpx2 = pytest.importorskip("httpx2")
for needed in ("prometheus_client", "starlette", "uvicorn"):
    pytest.importorskip(needed)

LOG = " ".join(f"Ship {n} left port {n % 7} with {n * 13} bells on day {n}." for n in range(60))
MESSAGES = [{"role": "user", "content": "How many bells did ship 30 carry?"}, {"role": "tool", "content": LOG}]

_UPSTREAM = """
import asyncio, sys, uvicorn

async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    body = b""
    while True:
        event = await receive()
        body += event.get("body", b"")
        if not event.get("more_body"):
            break
    if scope["path"] == "/slow":
        open("asked", "w").close()
        await asyncio.sleep(2)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})

uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="error")
"""


def kompakt(*words, **environment):
    return subprocess.run(
        [sys.executable, "-m", "kompakt", "serve", *words],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environment},
        check=False,
    )


@pytest.fixture
def serve(tmp_path):
    """Start the gateway with options; its address and process come back."""
    with contextlib.ExitStack() as stack:
        port = free_port()
        upstream = f"http://127.0.0.1:{port}"
        stack.enter_context(running([sys.executable, "-c", _UPSTREAM, str(port)], upstream, tmp_path))
        written = tmp_path / "pipeline.toml"
        written.write_text('schema_version = 1\nstages = [{ compressor = "lexical", share = 1.0 }]\n')

        def start(*options, **environment):
            port = free_port()
            command = [sys.executable, "-m", "kompakt", "serve", "--upstream", upstream, "--port", str(port)]
            command += [
                "--pipeline",
                str(written),
                "--store",
                str(tmp_path / "s.sqlite"),
                "--deadline",
                "20",
                *options,
            ]
            url = f"http://127.0.0.1:{port}"
            return url, stack.enter_context(running(command, f"{url}/healthz", tmp_path, **environment))

        yield start


def ask(url, path="/v1/chat/completions", **headers):
    return httpx2.post(f"{url}{path}", json={"messages": MESSAGES}, headers=headers, timeout=30, trust_env=False)


@pytest.mark.slow
def test_the_process_compresses_and_remembers(serve):
    url, _ = serve("--keep", "0.3")
    answer = ask(url)
    assert answer.headers["x-kompakt-outcome"] == "compressed"
    assert "Ship 30 left port 2 with 390 bells" in answer.json()["messages"][1]["content"] != LOG
    [name] = ask(url, "/v1/compress").json()["ccr_hashes"]
    other, _ = serve("--max-tokens", "200", "--dry-run")
    assert httpx2.get(f"{other}/v1/retrieve/{name}", trust_env=False).json()["content"] == LOG
    assert ask(other).json() == {"messages": MESSAGES}
    assert (
        'kompakt_requests_total{outcome="passed_through"} 1.0' in httpx2.get(f"{other}/metrics", trust_env=False).text
    )


@pytest.mark.slow
def test_a_token_of_its_own(serve):
    url, _ = serve("--keep", "0.3", KOMPAKT_GATEWAY_TOKEN="s3cret")
    assert ask(url).status_code == 401
    assert ask(url, **{"x-kompakt-token": "s3cret"}).status_code == 200


@pytest.mark.slow
def test_what_runs_comes_to_its_end_after_a_signal(serve, tmp_path):
    url, process = serve("--keep", "0.3")
    answers = []
    thread = threading.Thread(target=lambda: answers.append(ask(url, "/slow")))
    thread.start()
    while not (tmp_path / "asked").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    thread.join(20)
    assert [answer.status_code for answer in answers] == [200]
    assert json.loads(answers[0].content) == {"messages": MESSAGES}
    assert process.wait(20) in (0, -signal.SIGTERM)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--keep", "0.3"], "upstream"),
        (["--upstream", "ftp://x", "--keep", "0.3"], "upstream must be http"),
        (["--upstream", "http://x"], "exactly one of max_tokens= and keep="),
        (["--upstream", "http://x", "--keep", "2"], "keep must be"),
        (["--upstream", "http://x", "--keep", "0.3", "--pipeline", "/nowhere.toml"], "/nowhere.toml"),
        (["--upstream", "http://x", "--keep", "0.3", "--max-requests", "0"], "max_requests must be above 0"),
    ],
)
@pytest.mark.slow
def test_what_cannot_be_served_is_one_line(words, message):
    done = kompakt(*words)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_an_empty_token_is_no_token():
    done = kompakt("--upstream", "http://x", "--keep", "0.3", KOMPAKT_GATEWAY_TOKEN=" ")
    assert (done.returncode, done.stderr) == (
        2,
        "error: KOMPAKT_GATEWAY_TOKEN is empty: unset it, or give it a token\n",
    )
