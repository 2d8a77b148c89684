"""Every method of the clients goes out compressed, and what comes back is what the library makes of it."""

import asyncio
import json
import threading
import time

import pytest
from wire_parts import ANSWER, BLOCKS, CHAT, ITEMS, LOG, MESSAGES, PROMPT, QUESTION, Server

from kompakt import ConfigError, Pipeline
from kompakt.adapters._engine import Engine
from kompakt.adapters._http import Kompakt, wrap_http_client
from kompakt.adapters._settings import Settings
from kompakt.adapters._usage import Usage
from kompakt.adapters.openai import Rules, wrap

openai = pytest.importorskip("openai")
anthropic = pytest.importorskip("anthropic")
pydantic = pytest.importorskip("pydantic")


@pytest.fixture(scope="module")
def server():
    with Server() as made:
        made.pause = 0.2
        thread = threading.Thread(target=made.serve_forever, daemon=True)
        thread.start()
        yield made
        made.shutdown()


def pipeline():
    return Pipeline(["lexical"], store="memory")


class Bells(pydantic.BaseModel):
    bells: int


OPENAI = {
    "chat create": lambda c: c.chat.completions.create(model="m", messages=MESSAGES),
    "chat create of a generator": lambda c: c.chat.completions.create(model="m", messages=(m for m in MESSAGES)),
    "chat parse": lambda c: c.chat.completions.parse(model="m", messages=MESSAGES, response_format=Bells),
    "chat stream=True": lambda c: c.chat.completions.create(model="m", messages=MESSAGES, stream=True),
    "chat raw": lambda c: c.chat.completions.with_raw_response.create(model="m", messages=MESSAGES),
    "chat with_options": lambda c: c.with_options(timeout=9).chat.completions.create(model="m", messages=MESSAGES),
    "completions": lambda c: c.completions.create(model="m", prompt=PROMPT),
    "completions stream=True": lambda c: c.completions.create(model="m", prompt=PROMPT, stream=True),
    "responses create": lambda c: c.responses.create(model="m", input=ITEMS),
    "responses parse": lambda c: c.responses.parse(model="m", input=ITEMS, text_format=Bells),
    "responses stream=True": lambda c: c.responses.create(model="m", input=ITEMS, stream=True),
    "responses raw": lambda c: c.responses.with_raw_response.create(model="m", input=ITEMS),
}
ANTHROPIC = {
    "messages create": lambda c: c.messages.create(model="m", max_tokens=9, messages=BLOCKS),
    "messages stream=True": lambda c: c.messages.create(model="m", max_tokens=9, messages=BLOCKS, stream=True),
    "messages raw": lambda c: c.messages.with_raw_response.create(model="m", max_tokens=9, messages=BLOCKS),
    "beta messages": lambda c: c.beta.messages.create(model="m", max_tokens=9, messages=BLOCKS),
    "messages with_options": lambda c: c.with_options(timeout=9).messages.create(
        model="m", max_tokens=9, messages=BLOCKS
    ),
}
CASES = [pytest.param(openai, "OpenAI", call, id=name) for name, call in OPENAI.items()]
CASES += [pytest.param(anthropic, "Anthropic", call, id=name) for name, call in ANTHROPIC.items()]


def client(library, name, server):
    url = server.url if library is openai else server.url.removesuffix("/v1")
    return getattr(library, name)(base_url=url, api_key="k", max_retries=0)


def drained(answer):
    """Return what a stream gave and when, or the answer itself."""
    if not hasattr(answer, "__iter__") or isinstance(answer, pydantic.BaseModel):
        return answer
    return [(event, time.monotonic()) for event in answer]


async def adrained(answer):
    if not hasattr(answer, "__aiter__"):
        return answer
    return [(event, time.monotonic()) async for event in answer]


def as_value(answer):
    """Return an answer without what differs from call to call."""
    if isinstance(answer, list):
        return [as_value(event) for event, _ in answer]
    if hasattr(answer, "model_dump"):
        return type(answer), repr(answer)
    return type(answer), answer.http_response.status_code, answer.headers["content-length"]


def check(server, answer, plain, before):
    sent = json.dumps(server.sent)
    assert ANSWER in sent
    assert len(sent) < 0.7 * len(before)
    assert QUESTION in sent
    assert as_value(answer) == as_value(plain)
    if isinstance(answer, list) and len(answer) > 1:
        assert answer[-1][1] - answer[0][1] > 0.15, "a stream was held back"


@pytest.mark.parametrize(("library", "name", "call"), CASES)
def test_every_method_is_compressed_and_answers_alike(server, library, name, call):
    plain = client(library, name, server)
    expected = drained(call(plain))
    before = json.dumps(server.sent)
    with plain, wrap(plain, pipeline=pipeline(), keep=0.3) as wrapped:
        assert type(wrapped) is type(plain)
        check(server, drained(call(wrapped)), expected, before)
        assert wrapped.kompakt.last.outcome.status == "compressed"


@pytest.mark.parametrize(("library", "name", "call"), CASES)
def test_every_method_of_the_async_clients_too(server, library, name, call):
    async def main():
        plain = client(library, f"Async{name}", server)
        expected = await adrained(await call(plain))
        before = json.dumps(server.sent)
        async with plain, wrap(plain, pipeline=pipeline(), keep=0.3, deadline=30) as wrapped:
            assert type(wrapped) is type(plain)
            check(server, await adrained(await call(wrapped)), expected, before)
            assert wrapped.kompakt.last.outcome.status == "compressed"

    asyncio.run(main())


def test_stream_managers(server):
    with client(openai, "OpenAI", server) as plain, wrap(plain, pipeline=pipeline(), keep=0.3) as wrapped:
        with wrapped.chat.completions.stream(model="m", messages=MESSAGES) as stream:
            assert "390" in "".join(event.delta for event in stream if event.type == "content.delta")
        assert ANSWER in server.sent["messages"][2]["content"]
        with wrapped.responses.stream(model="m", input=ITEMS) as stream:
            assert stream.get_final_response().output_text == '{"bells": 390}'
        assert server.sent["input"][2]["output"] != LOG
        with wrapped.chat.completions.with_streaming_response.create(model="m", messages=MESSAGES) as response:
            assert response.headers["x-kompakt-outcome"] == "compressed"
            assert json.loads(response.read()) == CHAT
    with client(anthropic, "Anthropic", server) as plain, wrap(plain, pipeline=pipeline(), keep=0.3) as wrapped:
        with wrapped.messages.stream(model="m", max_tokens=9, messages=BLOCKS) as stream:
            assert "".join(stream.text_stream) == "390"
        assert server.sent["messages"][2]["content"][0]["content"] != LOG


def test_the_client_that_was_given_stays_as_it_is(server):
    with client(openai, "OpenAI", server) as plain:
        with wrap(plain, pipeline=pipeline(), keep=0.3) as wrapped:
            assert (wrapped.api_key, wrapped.base_url, wrapped.max_retries) == (plain.api_key, plain.base_url, 0)
        plain.chat.completions.create(model="m", messages=MESSAGES)
        assert server.sent["messages"] == MESSAGES
        assert not hasattr(plain, "kompakt")


def test_copies_know_what_was_done_and_are_not_wrapped_again(server):
    with client(openai, "OpenAI", server) as plain, wrap(plain, pipeline=pipeline(), keep=0.3) as wrapped:
        copy = wrapped.with_options(timeout=5).copy(max_retries=1)
        copy.chat.completions.create(model="m", messages=MESSAGES)
        assert copy.kompakt is wrapped.kompakt
        assert copy.kompakt.last.outcome.status == "compressed"
        for one in (wrapped, copy):
            with pytest.raises(ConfigError, match="compresses what it sends already"):
                wrap(one, keep=0.5)
        assert not hasattr(wrapped.with_options(http_client=plain._client), "kompakt")


def test_what_is_sent_after_closing_goes_out_as_it_is(server):
    async def main():
        async with client(openai, "AsyncOpenAI", server) as plain:
            wrapped = wrap(plain, pipeline=pipeline(), keep=0.3)
            wrapped.kompakt.close()
            await wrapped.chat.completions.create(model="m", messages=MESSAGES)
            return wrapped.kompakt.last.outcome

    assert asyncio.run(main()).reason == "kompakt was closed for this client"
    assert server.sent["messages"] == MESSAGES


def test_a_signed_body_is_not_touched(server):
    with client(openai, "OpenAI", server) as plain, wrap(plain, pipeline=pipeline(), keep=0.3) as wrapped:
        for headers in ({"authorization": "AWS4-HMAC-SHA256 x"}, {"x-amz-content-sha256": "x"}):
            wrapped.chat.completions.create(model="m", messages=MESSAGES, extra_headers=headers)
            assert server.sent["messages"] == MESSAGES
            assert "signed" in wrapped.kompakt.last.outcome.reason


def test_what_is_of_another_interface_is_left_alone(server):
    with client(openai, "OpenAI", server) as plain, wrap(plain, pipeline=pipeline(), keep=0.3) as wrapped:
        assert wrapped.models.list().data == []
        answer = wrapped.post("/embeddings", body={"model": "m", "input": LOG}, cast_to=object)
        assert answer == {"path": "/v1/embeddings"}
        assert server.sent == {"model": "m", "input": LOG}
        wrapped.post(
            "/embeddings", body={"input": "x"}, cast_to=object, options={"headers": {"x-kompakt-bypass": "1"}}
        )
        assert not [name for name in server.requests[-1][1] if "kompakt" in name.lower()]
        assert server.sent == {"input": "x"}
        assert wrapped.kompakt.last is None
    with client(anthropic, "Anthropic", server) as plain, wrap(plain, pipeline=pipeline(), keep=0.3) as wrapped:
        wrapped.post("/v1/messages/count_tokens", body={"messages": BLOCKS}, cast_to=object)
        assert server.sent == {"messages": BLOCKS}


def test_one_request_may_ask_for_something_else(server):
    def asked(**options):
        wrapped.chat.completions.create(model="m", messages=MESSAGES, **options)
        _, headers, body = server.requests[-1]
        assert "kompakt" not in body
        assert not [name for name in headers if "kompakt" in name.lower()]
        return body["messages"][2]["content"]

    with (
        client(openai, "OpenAI", server) as plain,
        wrap(plain, pipeline=pipeline(), keep=0.5, reuse="never") as wrapped,
    ):
        default = asked()
        assert len(asked(extra_body={"kompakt": {"keep": 0.1}})) < 0.3 * len(default)
        assert len(asked(extra_headers={"x-kompakt-max-tokens": "100"})) < len(default)
        assert "Ship 51 left" in asked(extra_headers={"x-kompakt-query": "ship%2051", "x-kompakt-keep": "0.1"})
        assert asked(extra_headers={"x-kompakt-bypass": "true"}) == LOG
        assert wrapped.kompakt.last.outcome.reason == "bypassed, as the request asks"
        assert asked(extra_body={"kompakt": {"dry_run": True}}) == LOG
        assert wrapped.kompakt.last.tokens_dry_run < wrapped.kompakt.last.tokens_after
        for wrong, message in (
            ({"keep": 3}, "keep must be"),
            ({"keep": True}, "keep must be a number, got True"),
            ({"max_tokens": 1.5}, "max_tokens must be a whole number"),
            ({"query": 1}, "query must be a string"),
            ({"bypass": "perhaps"}, "bypass must be true or false"),
            ({"ratio": 2}, "cannot ask kompakt for 'ratio'. Known: bypass, dry_run, keep, max_tokens, query"),
            ([], "must hold an object"),
        ):
            assert asked(extra_body={"kompakt": wrong}) == LOG
            assert message in wrapped.kompakt.last.outcome.reason


def test_responses_say_what_was_done(server):
    with client(openai, "OpenAI", server) as plain, wrap(plain, pipeline=pipeline(), keep=0.3) as wrapped:
        raw = wrapped.chat.completions.with_raw_response.create(model="m", messages=MESSAGES)
        last = wrapped.kompakt.last
        assert raw.headers["x-kompakt-outcome"] == "compressed"
        assert int(raw.headers["x-kompakt-tokens-before"]) == last.tokens_before
        assert int(raw.headers["x-kompakt-tokens-after"]) == last.tokens_after
        raw = wrapped.chat.completions.with_raw_response.create(
            model="m", messages=MESSAGES, extra_headers={"x-kompakt-keep": "f%C3%BCnf"}
        )
        assert raw.headers["x-kompakt-reason"].startswith("keep must be a number, got 'f%C3%BC")


def test_what_the_provider_counts_is_in_the_report_once_it_was_read(server):
    with client(openai, "OpenAI", server) as plain, wrap(plain, pipeline=pipeline(), keep=0.3) as wrapped:
        with wrapped.chat.completions.with_streaming_response.create(model="m", messages=MESSAGES) as response:
            assert wrapped.kompakt.last.usage is None
            response.read()
        assert wrapped.kompakt.last.usage == Usage(90, 0, 1)
        assert wrapped.kompakt.last.outcome.status == "compressed"
        wrapped.completions.create(model="m", prompt=PROMPT)
        assert [report.usage for report in wrapped.kompakt.reports] == [Usage(90, 0, 1)] * 2


def test_a_hook_that_reads_answers_hides_nothing(server):
    library = pytest.importorskip("httpx2")
    made = Kompakt(Engine(pipeline(), Settings(keep=0.3)))
    hooks = {"response": [lambda response: response.read()]}
    with library.Client(event_hooks=hooks) as inner, wrap_http_client(inner, made) as wrapped:
        assert wrapped.post(f"{server.url}/chat/completions", json={"messages": MESSAGES}).json() == CHAT
    assert made.last.usage == Usage(90, 0, 1)


def test_spans_say_what_was_done_and_nothing_of_the_texts(server):
    trace = pytest.importorskip("opentelemetry.sdk.trace")
    from opentelemetry import trace as api
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    kept = InMemorySpanExporter()
    provider = trace.TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    # the global one can be set once only
    with (
        pytest.MonkeyPatch.context() as patch,
        client(openai, "OpenAI", server) as plain,
        wrap(plain, pipeline=pipeline(), keep=0.3) as wrapped,
    ):
        patch.setattr(api, "get_tracer", provider.get_tracer)
        with provider.get_tracer("app").start_as_current_span("answer"):
            wrapped.chat.completions.create(model="m", messages=MESSAGES)
    own, around = kept.get_finished_spans()
    assert (own.name, own.parent.span_id) == ("kompakt.compress", around.context.span_id)
    assert around.start_time < own.start_time < own.end_time < around.end_time
    assert own.attributes["kompakt.outcome"] == "compressed"
    assert own.attributes["kompakt.tokens_before"] == wrapped.kompakt.last.tokens_before
    assert not [value for value in own.attributes.values() if "bells" in str(value)]


def test_an_event_loop_of_trio(server):
    trio = pytest.importorskip("trio")

    async def main():
        library = pytest.importorskip("httpx2")
        made = Kompakt(Engine(pipeline(), Settings(keep=0.3)))
        async with library.AsyncClient() as inner, wrap_http_client(inner, made) as wrapped:
            answer = await wrapped.post(f"{server.url}/chat/completions", json={"messages": MESSAGES})
            assert answer.json() == CHAT
        return made.last

    assert trio.run(main).outcome.status == "compressed"
    assert ANSWER in server.sent["messages"][2]["content"] != LOG


def test_rules_are_followed(server):
    with (
        client(openai, "OpenAI", server) as plain,
        wrap(plain, pipeline=pipeline(), keep=0.3, rules=Rules(tools={"log": 1})) as wrapped,
    ):
        wrapped.chat.completions.create(model="m", messages=MESSAGES)
        assert server.sent["messages"] == MESSAGES
        assert wrapped.kompakt.last.outcome.status == "fits"


@pytest.mark.parametrize("wrong", [None, "client", object(), threading])
def test_what_is_no_client_is_named(wrong):
    with pytest.raises(ConfigError, match="a client of openai or anthropic"):
        wrap(wrong, keep=0.5)


@pytest.mark.parametrize("name", ["httpx", "httpx2"])
def test_both_libraries_are_served(server, name):
    library = pytest.importorskip(name)
    kompakt = Kompakt(Engine(pipeline(), Settings(keep=0.3)))
    with library.Client(headers={"x-own": "1"}) as inner, wrap_http_client(inner, kompakt) as made:
        answer = made.post(f"{server.url}/chat/completions", json={"messages": MESSAGES})
        assert answer.json() == CHAT
        assert answer.headers["x-kompakt-outcome"] == "compressed"
        _, headers, body = server.requests[-1]
        assert headers["x-own"] == "1"
        assert ANSWER in body["messages"][2]["content"]
    with pytest.raises(ConfigError, match="not a client of httpx or httpx2"):
        wrap_http_client(object(), kompakt)


@pytest.mark.parametrize(
    ("content", "headers"),
    [
        (b"\xff\xfe", {}),
        (b'{"messages": 3}', {}),
        (b"{}", {"content-encoding": "identity"}),
        (b"{}", {"content-type": "text/plain"}),
    ],
)
def test_what_cannot_be_read_goes_out_to_the_byte(content, headers):
    httpx2 = pytest.importorskip("httpx2")
    sent = []

    def answer(request):
        sent.append(request.read())
        return httpx2.Response(200)

    inner = httpx2.Client(transport=httpx2.MockTransport(answer))
    with wrap_http_client(inner, Kompakt(Engine(pipeline(), Settings(keep=0.3)))) as made:
        made.post("http://x/v1/messages", content=content, headers={"content-type": "application/json"} | headers)
    assert sent == [content]
