"""The gateway: what is for a model goes out compressed, everything else as it came, and nobody waits in vain."""

import json
import random
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from gateway_parts import USAGE, Running
from wire_parts import ANSWER, LOG, MESSAGES

from kompakt import ConfigError, Pipeline
from kompakt.adapters._settings import Settings

for needed in ("httpx2", "prometheus_client", "starlette"):
    pytest.importorskip(needed)

from kompakt.adapters.gateway import Limits, create_app  # noqa: E402 (needs starlette)


def chat(client, **body):
    return client.post("/v1/chat/completions", json={"model": "m", "messages": MESSAGES, **body})


def test_a_request_to_a_model_goes_out_compressed(gateway, upstream):
    with gateway() as client:
        answer = client.post(
            "/v1/chat/completions?api-version=3",
            json={"messages": MESSAGES},
            headers={
                "authorization": "Bearer secret",
                "connection": "x-hop",
                "x-hop": "1",
                "x-kompakt-query": "ship 30",
            },
        )
    assert (answer.status_code, answer.json(), answer.headers["x-own"]) == (200, {"ok": True, "usage": USAGE}, "1")
    assert "keep-alive" not in answer.headers
    assert answer.headers["x-kompakt-outcome"] == "compressed"
    method, path, query, headers, body = upstream.seen[-1]
    assert (method, path, query) == ("POST", "/v1/chat/completions", "api-version=3")
    assert headers["authorization"] == "Bearer secret"
    assert not {"x-hop", "x-kompakt-query"} & set(headers)
    assert headers["host"] == upstream.url.removeprefix("http://")
    assert ANSWER in json.loads(body)["messages"][2]["content"] != LOG


def test_everything_else_passes_to_the_byte(gateway, upstream):
    data = bytes(range(256)) * 40
    with gateway() as client:
        assert (
            client.put("/v1/files/a%20b?x=1&x=2", content=data, headers={"content-type": "image/png"}).status_code
            == 200
        )
        method, path, query, headers, body = upstream.seen[-1]
        assert (method, path, query, headers["content-type"], body) == (
            "PUT",
            "/v1/files/a%20b",
            "x=1&x=2",
            "image/png",
            data,
        )
        assert client.get("/v1/teapot").status_code == 418
        broken = b'{"messages": [{"role": "user"'
        client.post("/v1/messages", content=broken, headers={"content-type": "application/json"})
        assert upstream.seen[-1][4] == broken


def test_streams_pass_as_they_come(gateway):
    with (
        gateway() as client,
        client.stream("POST", "/v1/chat/completions", json={"messages": MESSAGES, "stream": True}) as answer,
    ):
        times = [time.monotonic() for piece in answer.iter_text() if piece.startswith("data")]
    assert len(times) == 4
    assert times[-1] - times[0] > 0.4


def test_the_token_is_asked_for_and_not_sent_on(gateway, upstream):
    with gateway(token="s3cret") as client:
        before = len(upstream.seen)
        for headers in (
            {},
            {"x-kompakt-token": "wrong"},
            {"x-kompakt-token": "s3cre"},
            {"authorization": "Bearer s3cret"},
        ):
            assert client.get("/v1/models", headers=headers).status_code == 401
        assert len(upstream.seen) == before
        assert client.get("/v1/models", headers={"x-kompakt-token": "s3cret"}).status_code == 200
        assert "x-kompakt-token" not in upstream.seen[-1][3]
        own = {"authorization": "Bearer s3cret"}
        assert client.post("/v1/compress", json={"messages": MESSAGES}, headers=own).status_code == 200
        own = {"authorization": "bearer  s3cret"}
        assert client.post("/v1/compress", json={"messages": MESSAGES}, headers=own).status_code == 200
        n = len(upstream.seen)
        for path in ("/healthz", "/metrics"):
            assert client.get(path).status_code == 200
            assert client.post(path).status_code == 401
        assert len(upstream.seen) == n


def test_too_much_is_refused(gateway, upstream):
    with gateway(limits=Limits(max_body=1000)) as client:
        assert client.post("/v1/x", content=b"a" * 1001).status_code == 413
        assert client.post("/v1/x", content=b"a" * 1000).status_code == 200
    with gateway(limits=Limits(max_requests=2)) as client:
        upstream.may_answer.clear()
        answers = []
        threads = [threading.Thread(target=lambda: answers.append(client.get("/v1/x").status_code)) for _ in range(2)]
        n = len(upstream.seen)
        for thread in threads:
            thread.start()
        while len(upstream.seen) < n + 2:
            time.sleep(0.01)
        third = client.get("/v1/x")
        assert (third.status_code, third.headers["retry-after"]) == (429, "1")
        assert client.get("/healthz").status_code == 200
        upstream.may_answer.set()
        for thread in threads:
            thread.join()
        assert answers == [200, 200]
        assert client.get("/v1/x").status_code == 200


def test_requests_together_may_have_so_many_bytes(gateway, upstream):
    with gateway(limits=Limits(max_body=1500, max_bytes=1500)) as client:
        upstream.may_answer.clear()
        answers = []
        thread = threading.Thread(
            target=lambda: answers.append(client.post("/v1/x", content=b"a" * 1000).status_code)
        )
        n = len(upstream.seen)
        thread.start()
        while len(upstream.seen) == n:
            time.sleep(0.01)
        second = client.post("/v1/x", content=b"a" * 501)
        assert (second.status_code, second.headers["retry-after"]) == (429, "1")
        upstream.may_answer.set()
        thread.join()
        assert answers == [200]
        assert client.post("/v1/x", content=b"a" * 1500).status_code == 200


def test_probes_at_the_same_time_compress_once(gateway):
    class Counting(Pipeline):
        n = 0

        def compress(self, *documents, **options):
            self.n += 1
            time.sleep(0.2)
            return super().compress(*documents, **options)

    pipeline = Counting(["lexical"], store="memory")
    with gateway(pipeline=pipeline) as client, ThreadPoolExecutor(10) as probes:
        assert list(probes.map(lambda _: client.get("/healthz").status_code, range(10))) == [200] * 10
    assert pipeline.n == 1


def test_an_answer_of_nonsense_passes_all_the_same(gateway):
    async def nonsense(scope, receive, send):
        if scope["type"] == "http":
            while (await receive()).get("more_body"):
                pass
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": answer})

    with Running(nonsense) as running, gateway(upstream=running.url) as client:
        for answer in (
            b'{"usage": ' + b"[" * 5000 + b"]" * 5000 + b"}",
            b'{"usage": {"prompt_tokens": -1}}',
            b'{"usage": {"prompt_tokens": ' + b"9" * 400 + b"}}",
            b"\xff\xfe",
        ):
            for _ in range(3):
                assert chat(client).content == answer


def test_who_does_not_wait_is_not_answered_by_the_upstream(gateway, upstream):
    class Waiting:
        """Answers nothing, and says when it was left."""

        def __init__(self):
            self.asked, self.left = threading.Event(), threading.Event()

        async def __call__(self, scope, receive, send):
            if scope["type"] == "http":
                self.asked.set()
                while (await receive())["type"] != "http.disconnect":
                    pass
                self.left.set()

    waiting = Waiting()
    with Running(waiting) as running, gateway(upstream=running.url) as client:
        with socket.create_connection((client.base_url.host, client.base_url.port), 10) as sent:
            sent.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}")
            assert waiting.asked.wait(10)
            assert not waiting.left.is_set()
        assert waiting.left.wait(10)
        assert client.get("/healthz").status_code == 200


def test_an_upstream_that_is_gone_or_slow_is_named(gateway, upstream):
    with gateway(upstream="http://127.0.0.1:9") as client:
        gone = chat(client)
        assert (gone.status_code, "cannot be reached" in gone.json()["error"]["message"]) == (502, True)
    with gateway(limits=Limits(timeout=0.3)) as client:
        upstream.may_answer.clear()
        assert chat(client).status_code == 504
        upstream.may_answer.set()


class Broken(Pipeline):
    def compress_batch(self, requests):
        raise RuntimeError("no weights")


def test_health_is_whether_texts_can_be_compressed(gateway, upstream):
    with gateway() as client:
        assert client.get("/healthz").json() == {"status": "ok"}
    with gateway(pipeline=Broken(["lexical"], store="memory")) as client:
        sick = client.get("/healthz")
        assert (sick.status_code, sick.json()) == (
            503,
            {"status": "unhealthy", "reason": "RuntimeError: no weights"},
        )
        # and requests go out all the same
        answer = chat(client)
        assert answer.headers["x-kompakt-outcome"] == "passed_through"
        assert json.loads(upstream.seen[-1][4])["messages"] == MESSAGES


def test_metrics_count_what_was_done(gateway):
    with gateway() as client:
        chat(client)
        client.get("/v1/teapot")
        text = client.get("/metrics").text
    assert 'kompakt_requests_total{outcome="compressed"} 1.0' in text
    assert 'kompakt_upstream_answers_total{status="418"} 1.0' in text
    assert 'kompakt_tokens_total{when="before"}' in text
    assert "kompakt_seconds_count 1.0" in text
    assert 'kompakt_provider_tokens_total{kind="cached"} 64.0' in text


@pytest.mark.parametrize(
    "url",
    [
        *("", "api.openai.com", "ftp://x", "http://", "http://user:key@x", "http://x?a=1", "http://x#m"),
        *("http://[::1", "http://h:abc", "http://h:99999", "http://h /x"),
    ],
)
def test_an_upstream_that_is_no_url_is_named(url):
    with pytest.raises(ConfigError, match="upstream must be"):
        create_app(url, Pipeline(["lexical"], store="memory"), Settings(keep=0.5))


@pytest.mark.parametrize("name", ["max_body", "max_requests", "max_bytes", "timeout"])
def test_limits_of_nothing_are_refused(name):
    with pytest.raises(ConfigError, match=f"{name} must be above 0"):
        Limits(**{name: 0})
    with pytest.raises(ConfigError, match="max_bytes must be at least max_body"):
        Limits(max_body=9, max_bytes=8)


def raw_answer(client, path, more=b""):
    """Ask for a path as no client would write it."""
    with socket.create_connection((client.base_url.host, client.base_url.port), 10) as sent:
        sent.sendall(f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n".encode() + more + b"\r\n")
        return b"".join(iter(lambda: sent.recv(4096), b""))


@pytest.mark.parametrize("path", ["/v1/files/a%2Fb", "/v1/%252F", "/v1/a%3Fb", "//evil/x", "/v1/caf%C3%A9", "/"])
def test_paths_pass_as_they_were_written(gateway, upstream, path):
    with gateway() as client:
        assert raw_answer(client, path).startswith(b"HTTP/1.1 200")
    assert upstream.seen[-1][1] == path


@pytest.mark.parametrize(
    "path",
    [
        "/../x",
        "/v1/%2e%2e/x",
        "/v1/..%2Fx",
        "/v1/%5c..%5cx",
        "/v1/./x",
        "%2F@127.0.0.1:9/x",
        "%2Fx",
    ],
)
def test_paths_that_lead_elsewhere_are_refused(gateway, upstream, path):
    n = len(upstream.seen)
    with gateway() as client:
        assert raw_answer(client, path).startswith(b"HTTP/1.1 400")
    assert len(upstream.seen) == n


def test_headers_pass_to_the_byte_and_nothing_is_added(gateway, upstream):
    with gateway() as client:
        assert client.get("/v1/x").headers.get_list("set-cookie") == ["a=1", "b=2"]
        assert b"x-latin: caf\xe9\r\n" in raw_answer(client, "/v1/x", b"x-name: caf\xe9\r\n")
    assert upstream.seen[-1][3] == {"host": upstream.url.removeprefix("http://"), "x-name": "caf\xe9"}


def test_the_token_of_the_gateway_is_not_sent_on_under_another_name(gateway, upstream):
    own = {"authorization": "Bearer s3cret"}
    n = len(upstream.seen)
    with gateway(token="s3cret") as client:
        for method, path in (("GET", "/v1/compress"), ("POST", "/v1/compress/"), ("GET", "/v1/retrieve/a/b")):
            assert client.request(method, path, headers=own).status_code == 401
    assert len(upstream.seen) == n


CONTENTS = [
    None,
    5,
    "x" * 900,
    LOG,
    [],
    [1],
    [{"type": "text", "text": LOG}],
    [{"type": "tool_result", "content": LOG}],
    {},
]


def test_two_thousand_malformed_bodies_break_nothing_and_are_not_changed(gateway, upstream):
    chance = random.Random(0)
    whole = json.dumps({"messages": MESSAGES, "model": "m"}).encode()
    paths = ("/v1/chat/completions", "/v1/messages", "/v1/responses", "/v1/completions")

    def damaged():
        match chance.randrange(6):
            case 0:
                return whole[: chance.randrange(len(whole))]
            case 1:
                data = bytearray(whole)
                for _ in range(chance.randrange(1, 9)):
                    data[chance.randrange(len(data))] = chance.randrange(256)
                return bytes(data)
            case 2:
                return chance.randbytes(chance.randrange(200))
            case 3:
                depth = chance.choice([5, 900, 5000])
                return whole.replace(b'"m"', b"[" * depth + b"]" * chance.choice([depth, depth - 1]))
            case 4:
                asked = chance.choice(
                    ["{}", "[]", "3", '{"keep": "x"}', '{"keep": 0.5', '{"keep": 1e999}', '"\\ud800"']
                )
                return whole.replace(b'"m"', f'"m", "kompakt": {asked}'.encode())
        key = chance.choice(["messages", "input", "prompt", "system"])
        role = chance.choice(["user", "tool", "assistant", None, 3])
        value = [{"role": role, "content": chance.choice(CONTENTS)}, chance.choice(CONTENTS)]
        return json.dumps({key: chance.choice([value, chance.choice(CONTENTS)])}).encode()

    headers = {"content-type": "application/json"}
    with gateway() as client:
        for _ in range(2000):
            body, path = damaged(), chance.choice(paths)
            kind = {"content-type": chance.choice(["text/plain", "application/json; charset=x"])}
            answer = client.post(path, content=body, headers=chance.choice([headers, headers, headers, kind]))
            assert answer.status_code == 200, body
            if answer.headers["x-kompakt-outcome"] != "compressed":
                # what is meant for kompakt is not sent on, if it can be read
                assert upstream.seen[-1][4] == body or b'"kompakt"' in body
            else:
                json.loads(upstream.seen[-1][4])
