"""LiteLLM's proxy in a process of its own: with the callback, and with the gateway as its guardrail.

Runs in the environment of ``tests/environments/litellm.txt``.
"""

import asyncio
import contextlib
import json
import os
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import pytest
from litellm_parts import MESSAGES, PROMPT, SYSTEM, TOLD, Server, log_of, texts_of
from servers import free_port, running
from wire_parts import ANSWER, BLOCKS, ITEMS, LOG, QUESTION

from kompakt import Pipeline

# without it, LiteLLM asks the network for its list of models
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
litellm = pytest.importorskip("litellm")

from kompakt.adapters.litellm import KompaktCallback  # noqa: E402 (needs litellm)


@pytest.fixture(scope="module")
def server():
    with Server() as made:
        thread = threading.Thread(target=made.serve_forever, daemon=True)
        thread.start()
        yield made
        made.shutdown()


def made():
    return KompaktCallback(pipeline=Pipeline(["lexical"], store="memory"), keep=0.3, deadline=30)


def proxied(callback, key, query, *, forged=None):
    """Do what the proxy does with a request, and return what was done to it."""
    data = {
        "messages": MESSAGES,
        "litellm_call_id": f"{key}{query}",
        "metadata": {"kompakt_request": forged, "kompakt_report": forged},
        "proxy_server_request": {"headers": {"x-kompakt-query": query}},
    }
    user = SimpleNamespace(api_key=key, team_id=None)

    async def main():
        noted = await callback.async_pre_call_hook(user, None, data, "acompletion")
        sent = await callback.async_pre_call_deployment_hook(noted, SimpleNamespace(value="acompletion"))
        headers = await callback.async_post_call_response_headers_hook(noted, user, None)
        return sent["messages"][3]["content"], headers

    return asyncio.run(main())


def test_in_the_proxy_nobody_finds_what_is_of_another_key():
    callback = made()
    mine, headers = proxied(callback, "a", "ship 51")
    assert headers["x-kompakt-outcome"] == "compressed"
    assert callback.kompakt.last.n_reused == 0
    assert proxied(callback, "a", "ship 3")[0] == mine
    assert callback.kompakt.last.n_reused == 1
    theirs, _ = proxied(callback, "b", "ship 3", forged={"owner": "", "headers": {}})
    assert theirs != mine
    assert callback.kompakt.last.n_reused == 0


def test_in_the_proxy_what_is_passed_on_says_why():
    callback = made()
    data = {"messages": BLOCKS}
    assert asyncio.run(callback.async_pre_call_hook(None, None, data, "pass_through_endpoint")) is None
    assert "'pass_through_endpoint'" in callback.kompakt.last.outcome.reason
    assert data == {"messages": BLOCKS}
    assert asyncio.run(callback.async_post_call_response_headers_hook({}, None, None)) is None


def test_little_is_remembered_of_many_calls():
    callback = made()
    for number in range(1100):
        callback._reports.put(number, callback)
    assert callback._reports.get(0) is None
    assert callback._reports.get(1099) is callback
    assert len(callback._reports._values) == 1000


PROXY = """\
model_list:
  - model_name: gpt
    litellm_params: {{model: openai/m, api_base: "{server.url}", api_key: k}}
  - model_name: vllm
    litellm_params: {{model: hosted_vllm/m, api_base: "{server.url}", api_key: k}}
  - model_name: claude
    litellm_params: {{model: anthropic/m, api_base: "{server.host}", api_key: k}}
  - model_name: retrieving
    litellm_params: {{model: hosted_vllm/retrieving, api_base: "{server.url}", api_key: k}}
general_settings:
  master_key: sk-1f6c0d2f8a5b4e7d9c3a
"""

CALLBACK = """\
litellm_settings:
  callbacks: kompakt_callback.callback
"""

MODULE = """\
from kompakt.adapters.litellm import KompaktCallback

callback = KompaktCallback(keep=0.4, deadline=30)
"""

TENANTS = """\
  custom_auth: kompakt_callback.tenant
"""

AUTHENTICATION = """
from litellm.proxy._types import UserAPIKeyAuth


async def tenant(request, api_key):
    return UserAPIKeyAuth(api_key=api_key)
"""

GUARDRAIL = """\
guardrails:
  - guardrail_name: kompakt
    litellm_params:
      guardrail: headroom
      mode: pre_call
      default_on: true
      api_base: {url}
      api_key: the gateway's token
      unreachable_fallback: fail_open
"""


# what a process starts with: the source of this package comes from where the tests have it
SOURCE = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


@contextlib.contextmanager
def proxy(folder, config):
    """LiteLLM's proxy: its address."""
    (folder / "config.yaml").write_text(config)
    (folder / "kompakt_callback.py").write_text(MODULE + AUTHENTICATION)
    url = f"http://127.0.0.1:{(port := free_port())}"
    command = [str(Path(sys.executable).parent / "litellm"), "--config", "config.yaml"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    with running(command, f"{url}/health/liveliness", folder, **SOURCE):
        yield url


def asked(url, path, body, key="sk-1f6c0d2f8a5b4e7d9c3a", **headers):
    """Return the answer of a proxy: its headers and its text."""
    given = {"content-type": "application/json", "authorization": f"Bearer {key}"}
    given |= {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(f"{url}{path}", json.dumps(body).encode(), given)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.headers, answer.read().decode()
    except urllib.error.HTTPError as error:
        raise AssertionError(f"{error.code} {error.read().decode()}") from error


ROUTES = {
    "/v1/chat/completions": {"messages": MESSAGES},
    "/v1/messages": {"messages": BLOCKS, "system": SYSTEM, "max_tokens": 9},
    "/v1/responses": {"input": ITEMS, "instructions": SYSTEM},
    "/v1/completions": {"prompt": PROMPT},
}


@pytest.mark.slow
def test_the_proxy_compresses_on_every_route(server, tmp_path):
    with proxy(tmp_path, PROXY.format(server=server) + CALLBACK) as url:
        for path, body in ROUTES.items():
            for model in ("gpt", "vllm", "claude"):
                for options in ({}, {"stream": True}):
                    n_before = len(server.requests)
                    headers, answer = asked(url, path, {**body, "model": model, **options})
                    assert "390" in answer
                    assert ("data: " in answer) == bool(options)
                    assert headers["x-kompakt-outcome"] == "compressed"
                    assert int(headers["x-kompakt-tokens-after"]) < int(headers["x-kompakt-tokens-before"])
                    [(_, _, sent)] = server.requests[n_before:]
                    assert ANSWER in log_of(sent)
                    assert 0.3 * len(LOG) < len(log_of(sent).removeprefix(SYSTEM)) < 0.55 * len(LOG)
        body = {**ROUTES["/v1/chat/completions"], "model": "vllm"}
        for options, headers, expected in (
            ({}, {"x_kompakt_bypass": "1"}, "bypassed, as the request asks"),
            ({"kompakt": {"bypass": True}}, {}, "bypassed, as the request asks"),
            ({"kompakt": {"ratio": 1}}, {}, "a request cannot ask kompakt for 'ratio'"),
        ):
            answered, _ = asked(url, "/v1/chat/completions", {**body, **options}, **headers)
            assert answered["x-kompakt-outcome"] == "passed_through"
            assert answered["x-kompakt-reason"].startswith(expected)
            assert log_of(server.requests[-1][2]) == LOG
            assert "kompakt" not in server.requests[-1][2]
        asked(url, "/v1/embeddings", {"model": "gpt", "input": LOG})
        assert server.requests[-1][2]["input"] == LOG


@pytest.mark.slow
def test_the_proxy_keeps_the_texts_of_keys_apart(server, tmp_path):
    def sent(key, query):
        asked(url, "/v1/chat/completions", body, key=key, x_kompakt_query=query)
        return log_of(server.requests[-1][2])

    body = {"messages": MESSAGES, "model": "vllm"}
    with proxy(tmp_path, PROXY.format(server=server) + TENANTS + CALLBACK) as url:
        mine = sent("key-of-a", "ship 51")
        assert "Ship 51 left" in mine
        assert sent("key-of-a", "ship 3") == mine
        assert sent("key-of-b", "ship 3") != mine


@pytest.mark.slow
def test_the_proxy_asks_the_gateway_as_its_guardrail(server, tmp_path):
    # it compresses no turn that is under way, and lets the model ask for the original
    older = [*MESSAGES[:1], {"role": "user", "content": "Read the log."}, *MESSAGES[2:], TOLD, MESSAGES[1]]
    older_blocks = [{"role": "user", "content": "Read the log."}, *BLOCKS[1:], TOLD, BLOCKS[0]]
    older_items = [{"role": "user", "content": "Read the log."}, *ITEMS[1:], TOLD, ITEMS[0]]
    gateway = f"http://127.0.0.1:{(port := free_port())}"
    command = [sys.executable, "-m", "kompakt", "serve", "--upstream", server.host, "--port", str(port)]
    command += ["--keep", "0.4", "--store", "memory", "--deadline", "30"]
    token = {"KOMPAKT_GATEWAY_TOKEN": "the gateway's token"}
    with (
        running(command, f"{gateway}/healthz", tmp_path, **SOURCE, **token),
        proxy(tmp_path, PROXY.format(server=server) + GUARDRAIL.format(url=gateway)) as url,
    ):
        for model in ("gpt", "vllm", "claude"):
            for path, body in (
                ("/v1/chat/completions", {"messages": older}),
                ("/v1/messages", {"messages": older_blocks, "max_tokens": 9}),
                ("/v1/responses", {"input": older_items}),
            ):
                headers, answer = asked(url, path, {**body, "model": model})
                assert "390" in answer
                assert headers["x-litellm-applied-guardrails"] == "kompakt"
                assert len(log_of(server.requests[-1][2])) < 0.55 * len(LOG)
                assert any(QUESTION in one for one in texts_of(server.requests[-1][2]))
        asked(url, "/v1/chat/completions", {"messages": older, "model": "vllm"}, x_headroom_bypass="true")
        assert log_of(server.requests[-1][2]) == LOG
        _, answer = asked(url, "/v1/chat/completions", {"messages": older, "model": "retrieving"})
        assert "390" in answer
        [retrieved] = [one for one in server.requests[-1][2]["messages"] if one.get("tool_call_id") == "r"]
        assert retrieved["content"] == LOG
