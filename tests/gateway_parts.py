"""The gateway behind a real server, in front of an upstream that says what it was sent."""

import asyncio
import json
import threading
import time

import pytest

uvicorn = pytest.importorskip("uvicorn")

USAGE = {"prompt_tokens": 90, "completion_tokens": 7, "prompt_tokens_details": {"cached_tokens": 64}}


class Running:
    """An ASGI application behind uvicorn, on a port of its own."""

    def __init__(self, app):
        self.server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error"))
        self.thread = threading.Thread(target=self.server.run, daemon=True)

    def __enter__(self):
        self.thread.start()
        until = time.monotonic() + 20
        while not self.server.started and time.monotonic() < until:
            time.sleep(0.01)
        [socket] = self.server.servers[0].sockets
        self.url = f"http://127.0.0.1:{socket.getsockname()[1]}"
        return self

    def __exit__(self, *_):
        self.server.should_exit = True
        self.thread.join(20)


class Upstream:
    """Says what it was sent, streams when asked, and waits when told to."""

    def __init__(self):
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.seen = []

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return
        body = b""
        while True:
            event = await receive()
            body += event.get("body", b"")
            if not event.get("more_body"):
                break
        headers = [(name.decode(), value.decode("latin-1")) for name, value in scope["headers"]]
        query = scope["query_string"].decode()
        self.seen.append((scope["method"], scope["raw_path"].decode(), query, dict(headers), body))
        await asyncio.to_thread(self.may_answer.wait, 20)
        status = 418 if scope["path"].endswith("/teapot") else 200
        told = [(b"content-type", b"application/json"), (b"x-own", b"1"), (b"keep-alive", b"timeout=5")]
        told += [(b"set-cookie", b"a=1"), (b"set-cookie", b"b=2"), (b"x-latin", b"caf\xe9")]
        await send({"type": "http.response.start", "status": status, "headers": told})
        if b'"stream":true' in body:
            for n in range(4):
                await send({"type": "http.response.body", "body": f"data: {n}\n\n".encode(), "more_body": True})
                await asyncio.sleep(0.2)
        await send({"type": "http.response.body", "body": json.dumps({"ok": True, "usage": USAGE}).encode()})
