"""Endpoints that speak OpenAI's chat completions: one that misbehaves as told, and a real one."""

import contextlib
import json
import socket
import sys
import threading
import time
import traceback
from dataclasses import FrozenInstanceError, dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from kompakt.adapters.http import HttpBackend
from kompakt.compressor.backend import Backend, Generation, Prompt
from kompakt.compressor.errors import BackendError, ConfigError, InputError, MissingExtraError
from kompakt.compressor.types import TextPart

pytest.importorskip("openai")


@dataclass
class Reply:
    """What the endpoint does with one request.

    Args:
        status: Of the response.
        body: Pieces of it; a number is a wait in seconds.
        headers: Of the response.
        is_cut: Whether the connection breaks before the body is complete.
    """

    status: int = 200
    body: list[bytes | float] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=lambda: {"Content-Type": "text/event-stream"})
    is_cut: bool = False


def chunk(content=None, *, finish=None, **delta):
    """One event of a stream."""
    if content is not None:
        delta["content"] = content
    return event({"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m"} | choice(delta, finish))


def choice(delta, finish):
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


def event(data):
    return b"data: " + (data if isinstance(data, bytes) else json.dumps(data).encode()) + b"\n\n"


def usage(n_prompt, n_completion, **more):
    """The event with the counts, as it follows the last piece of an answer."""
    counts = {"prompt_tokens": n_prompt, "completion_tokens": n_completion, **more}
    return event(
        {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [], "usage": counts}
    )


DONE = event(b"[DONE]")


def answer(*pieces, counts=(7, 3)):
    """A healthy stream."""
    ending = [usage(*counts)] if counts else []
    return Reply(body=[chunk(role="assistant", content=""), *map(chunk, pieces), chunk(finish="stop"), *ending, DONE])


def error(status, body, **headers):
    """An error as JSON, or as it is."""
    written = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Reply(status, [written], {"Content-Type": "application/json", **headers})


class Endpoint:
    """Answers with the replies it was given, the last of them again and again."""

    def __init__(self):
        self.replies = []
        self.requests = []
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                endpoint.requests.append((self.path, self.headers, body))
                with contextlib.suppress(ConnectionError):
                    self.answer(endpoint.next())

            def answer(self, reply):
                self.send_response(reply.status)
                for name, value in {**reply.headers, "Transfer-Encoding": "chunked"}.items():
                    self.send_header(name.replace("_", "-"), value)
                self.end_headers()
                for piece in reply.body:
                    if isinstance(piece, float):
                        time.sleep(piece)
                    else:
                        self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
                if not reply.is_cut:
                    self.wfile.write(b"0\r\n\r\n")
                self.close_connection = reply.is_cut

            def log_message(self, *_):
                pass

        class Server(ThreadingHTTPServer):
            def handle_error(self, request, client_address):
                if not isinstance(sys.exception(), ConnectionError):  # clients leave in the middle
                    super().handle_error(request, client_address)

        self.server = Server(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def next(self):
        return self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]

    def close(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def endpoint():
    made = Endpoint()
    yield made
    made.close()


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch):
    """Keys and proxies of the surroundings are not for tests."""
    for name in ("KOMPAKT_READER_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")


@pytest.fixture
def ask(endpoint):
    """Let a reader read from the endpoint, which answers with what is given."""
    with HttpBackend(f"{endpoint.url}#m", max_retries=0) as backend:

        def ask(*replies, prompt=PROMPT, max_new_tokens=8):
            endpoint.replies = list(replies)
            return backend.generate(prompt, max_new_tokens=max_new_tokens, targets=("x",))

        yield ask


def text(content):
    return TextPart(content, (), ())


PROMPT = Prompt((text("Paris is the capital of France."),), before="Read.\n\n", after="\n\nWhich city?", stop="\n")


def test_what_is_sent(endpoint, ask):
    made = ask(answer("Par", "is", " \nand"))
    assert (made.text, made.n_positions, made.n_tokens, made.likelihoods) == ("Paris", 7, 3, None)
    [(path, headers, body)] = endpoint.requests
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == "Bearer none"
    assert body == {
        "model": "m",
        "messages": [{"role": "user", "content": "Read.\n\nParis is the capital of France.\n\nWhich city?"}],
        "temperature": 0,
        "max_tokens": 8,
        "stop": ["\n"],
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_a_text_to_be_continued_is_a_message_too(endpoint, ask):
    ask(answer("x"), prompt=Prompt((text("Once"),), is_chat=False))
    [(_, _, body)] = endpoint.requests
    assert body["messages"] == [{"role": "user", "content": "Once"}]
    assert "stop" not in body


def test_no_tokens_no_request(endpoint, ask):
    assert ask(answer("x"), max_new_tokens=0) == Generation("", 0, 0, 0.0, 0.0)
    assert endpoint.requests == []


def test_only_text_is_read(endpoint, ask):
    with pytest.raises(InputError, match="reads text, got a str"):
        ask(answer("x"), prompt=Prompt(("not a part",)))
    assert endpoint.requests == []


def test_times_are_those_of_the_answer(ask):
    head = chunk(role="assistant", content="")
    pieces = [chunk("a"), 0.1, chunk("b"), 0.1, chunk("c")]
    made = ask(Reply(body=[head, 0.4, *pieces, 0.6, chunk(finish="stop"), usage(5, 3), DONE]))
    assert 0.4 <= made.seconds_to_first < 1.4
    assert 3 < made.tokens_per_second <= 10.5


def test_time_of_an_empty_answer(ask):
    made = ask(Reply(body=[0.2, chunk(finish="stop"), usage(5, 0), DONE]))
    assert (made.text, made.n_tokens, made.tokens_per_second) == ("", 0, 0.0)
    assert made.seconds_to_first >= 0.2


def test_without_counts_the_pieces_are_counted(ask):
    made = ask(answer("a", "b", "c", counts=None))
    assert (made.text, made.n_positions, made.n_tokens) == ("abc", 0, 3)


@pytest.mark.parametrize("counts", [None, 3, [], {}, {"prompt_tokens": None, "completion_tokens": "many"}])
def test_senseless_counts(ask, counts):
    odd = event({"choices": [], "usage": counts})
    made = ask(Reply(body=[chunk("a"), chunk("b", finish="stop"), odd, DONE]))
    assert (made.n_positions, made.n_tokens) == (0, 2)


def test_thoughts_are_no_part_of_the_answer(ask):
    thought = [chunk(reasoning_content="hm"), chunk(reasoning="hm")]
    counts = usage(5, 12, completion_tokens_details={"reasoning_tokens": 10})
    made = ask(Reply(body=[*thought, chunk("a"), chunk("b", finish="stop"), counts, DONE]))
    assert (made.text, made.n_tokens) == ("ab", 2)


def test_nothing_but_thoughts(ask):
    with pytest.raises(BackendError, match="thinking"):
        ask(Reply(body=[chunk(reasoning_content="hm"), chunk(finish="length"), DONE]))


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ([], "no choices"),
        ([DONE], "no choices"),
        ([event({"choices": []}), usage(5, 0), DONE], "no choices"),
        ([event([1]), event("x"), event(5), DONE], "no choices"),
        ([b'{"choices": [{"message": {"content": "not streamed"}}]}'], "no choices"),
        ([event({"choices": [5]}), DONE], "before the answer was complete"),
        ([event({"choices": [{"delta": 5}]}), DONE], "before the answer was complete"),
        ([chunk("a"), chunk("b")], "before the answer was complete"),
        ([chunk("a"), event(b"{not json"), DONE], "not JSON"),
        ([chunk("a"), event(b"\xff\xfe"), DONE], "not JSON"),
        ([chunk("a"), event({"error": {"message": "out of\nmemory"}})], "failed: out of memory"),
        ([chunk("a"), event({"error": "out of memory"})], "failed: out of memory"),
    ],
)
def test_broken_streams(endpoint, ask, body, told):
    with pytest.raises(BackendError, match=told) as caught:
        ask(Reply(body=body))
    assert endpoint.url in str(caught.value)


def test_a_connection_that_breaks(endpoint, ask):
    with pytest.raises(BackendError, match=f"{endpoint.url} failed: "):
        ask(Reply(body=[chunk("a")], is_cut=True))


def test_content_may_be_missing(ask):
    odd = [event({"choices": [{"delta": None}]}), event({"choices": [{}]}), chunk(content=None), chunk(tool_calls=[])]
    assert ask(Reply(body=[*odd, chunk("a"), *odd, chunk(finish="stop"), DONE])).text == "a"


@pytest.mark.parametrize(
    ("status", "body", "told"),
    [
        (400, {"error": {"message": "temperature:\n  no", "code": None}}, "answered 400: temperature: no"),
        (
            401,
            {"error": {"message": "Wrong key secret-key!"}},
            r"answered 401: Wrong key \[key\]! .*KOMPAKT_READER_API_KEY",
        ),
        (403, {"error": "not for you"}, "answered 403: not for you"),
        (404, {"error": {"message": "no model m"}}, "answered 404: no model m .*chat/completions"),
        (422, {"detail": [{"loc": ["body", "top"], "msg": "odd", "input": "SENT"}]}, "answered 422: body.top odd"),
        (422, {"detail": "Unexpected field"}, "answered 422: Unexpected field"),
        (429, {"error": {"message": "slow down"}}, "answered 429: slow down"),
        (500, b"<html>\x1b[31m" + b"x" * 9000, "answered 500: <html> .31mx+[.]{3}$"),
        (503, b"", "answered 503: "),
    ],
)
def test_errors_of_the_server(endpoint, monkeypatch, status, body, told):
    monkeypatch.setenv("KOMPAKT_READER_API_KEY", "secret-key")
    endpoint.replies = [error(status, body)]
    with (
        HttpBackend(f"{endpoint.url}#m", max_retries=0) as backend,
        pytest.raises(BackendError, match=told) as caught,
    ):
        backend.generate(PROMPT, max_new_tokens=8)
    printed = "".join(traceback.format_exception(caught.value))
    assert str(caught.value).startswith(endpoint.url)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 500
    assert "secret-key" not in printed
    assert "SENT" not in str(caught.value)


TOO_LONG = [
    # OpenAI
    {
        "message": "This model's maximum context length is 8192 tokens. However, your messages have 9000 tokens.",
        "type": "invalid_request_error",
        "param": "messages",
        "code": "context_length_exceeded",
    },
    {"message": "Your input is too long.", "code": "context_length_exceeded"},
    # vLLM, which names the parameter as well
    {
        "message": "'max_tokens' or 'max_completion_tokens' is too large: 32. This model's maximum context length is "
        "16 tokens and your request has 9 input tokens",
        "param": "max_tokens",
        "code": 400,
    },
    # SGLang
    {"message": "The input (1234 tokens) is longer than the model's context length (1024 tokens)."},
    # llama.cpp
    {
        "message": "request (4390 tokens) exceeds the available context size (4096 tokens), try increasing it",
        "type": "exceed_context_size_error",
        "code": 400,
        "n_ctx": 4096,
    },
]


@pytest.mark.parametrize("body", TOO_LONG)
def test_prompts_that_are_too_long(endpoint, ask, body):
    with pytest.raises(InputError, match="too long for m at 127"):
        ask(error(400, {"error": body}))
    with pytest.raises(InputError, match="too long for m at 127"):
        ask(Reply(body=[event({"error": body})]))
    assert len(endpoint.requests) == 2


def test_a_repeated_prompt_does_not_decide_what_an_error_is(ask):
    with pytest.raises(BackendError, match=r"answered 422: body\.n odd"):
        ask(error(422, {"detail": [{"loc": ["body", "n"], "msg": "odd", "input": "context length of 8 tokens"}]}))


def objects_to(name, instead):
    return error(
        400,
        {
            "error": {
                "message": f"Unsupported parameter: '{name}' is not supported with this model.{instead}",
                "type": "invalid_request_error",
                "param": name,
                "code": "unsupported_parameter",
            }
        },
    )


def test_a_server_that_rejects_max_tokens(endpoint, ask):
    assert ask(objects_to("max_tokens", " Use 'max_completion_tokens' instead."), answer("a")).text == "a"
    assert ask(answer("b")).text == "b"
    first, second, third = (body for _, _, body in endpoint.requests)
    assert first["max_tokens"] == second["max_completion_tokens"] == third["max_completion_tokens"] == 8
    assert "max_tokens" not in second
    assert "max_tokens" not in third


def test_a_server_that_rejects_what_can_be_left_out(endpoint, ask):
    rejecting = [
        error(422, {"detail": "Unexpected fields in the request: {'stream_options'}"}),
        objects_to("stop", ""),
    ]
    made = ask(*rejecting, answer("a", "\nb", counts=None))
    assert (made.text, made.n_positions) == ("a", 0)
    last = endpoint.requests[-1][2]
    assert not {"stop", "stream_options"} & last.keys()
    assert last["max_tokens"] == 8


@pytest.mark.parametrize("name", ["max_tokens", "temperature"])
def test_a_server_that_rejects_everything(endpoint, ask, name):
    with pytest.raises(BackendError, match=f"answered 400: Unsupported parameter: '{name}'"):
        ask(objects_to(name, ""))
    assert len(endpoint.requests) == (2 if name == "max_tokens" else 1)
    endpoint.requests.clear()
    ask(answer("a"))
    assert endpoint.requests[0][2]["max_tokens"] == 8  # nothing was learnt from failures


@pytest.mark.parametrize("status", [429, 500])
def test_what_passes_is_tried_again(endpoint, status):
    endpoint.replies = [error(status, {"error": {"message": "busy"}}, retry_after_ms="1"), answer("a")]
    with HttpBackend(f"{endpoint.url}#m", max_retries=1) as backend:
        assert backend.generate(PROMPT, max_new_tokens=8).text == "a"
    assert len(endpoint.requests) == 2


def test_a_server_that_does_not_answer_in_time(endpoint):
    endpoint.replies = [Reply(body=[chunk("a"), 1.5, chunk("b", finish="stop")])]
    backend = HttpBackend(f"{endpoint.url}#m", timeout=0.2, max_retries=0)
    with backend, pytest.raises(BackendError, match=r"failed: .*timed out"):
        backend.generate(PROMPT, max_new_tokens=8)


def test_nobody_there():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    backend = HttpBackend(f"http://127.0.0.1:{port}/v1#m", max_retries=0)
    with backend, pytest.raises(BackendError, match=rf":{port}/v1 failed: Connection error\. .*refused"):
        backend.generate(PROMPT, max_new_tokens=8)


@pytest.mark.parametrize(
    ("given", "variables", "sent"),
    [
        ("given", {"KOMPAKT_READER_API_KEY": "reader", "OPENAI_API_KEY": "openai"}, "given"),
        (None, {"KOMPAKT_READER_API_KEY": "reader", "OPENAI_API_KEY": "openai"}, "reader"),
        (None, {"KOMPAKT_READER_API_KEY": "", "OPENAI_API_KEY": "openai"}, "none"),
        (None, {"KOMPAKT_READER_API_KEY": " "}, "none"),
    ],
)
def test_where_the_key_comes_from(endpoint, monkeypatch, given, variables, sent):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    endpoint.replies = [answer("a")]
    with HttpBackend(f"{endpoint.url}#m", api_key=given) as backend:
        backend.generate(PROMPT, max_new_tokens=8)
        assert endpoint.requests[0][1]["Authorization"] == f"Bearer {sent}"
        assert sent == "none" or sent not in f"{backend!r} {backend.name} {backend.fingerprint}"


def test_the_key_of_openai_is_for_openai(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "openai\n")
    with HttpBackend("https://api.openai.com/v1#m") as backend:
        assert backend._client.api_key == "openai"
    with HttpBackend("https://api.openai.com.example.org/v1#m") as backend:
        assert backend._client.api_key == "none"


@pytest.mark.parametrize("key", ["one two", "kéy", "line\nline"])
def test_keys_that_cannot_be_sent(key):
    with pytest.raises(ConfigError) as caught:
        HttpBackend("http://127.0.0.1/v1#m", api_key=key)
    assert key not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("http://127.0.0.1:8080/v1", "must name a model"),
        ("http://127.0.0.1:8080/v1#", "must name a model"),
        ("http://127.0.0.1:8080/v1# ", "must name a model"),
        ("ftp://127.0.0.1/v1#m", "must be like"),
        ("127.0.0.1:8080/v1#m", "must be like"),
        ("http:///v1#m", "must be like"),
        ("http://127.0.0.1/v 1#m", "must be like"),
        ("#m", "must be like"),
        ("", "must be like"),
        ("http://127.0.0.1:port/v1#m", "malformed host or port"),
        ("http://[::1/v1#m", "malformed host or port"),
        ("http://user:secret@127.0.0.1/v1#m", "no name and no password"),
        ("http://secret@127.0.0.1/v1#m", "no name and no password"),
        ("user:secret@127.0.0.1/v1#m", "no name and no password"),
        ("http://user:sec#secret@127.0.0.1/v1#m", "malformed host or port"),
        ("http://127.0.0.1/v1?key=secret#m", "no query"),
    ],
)
def test_urls_that_name_no_reader(url, told):
    with pytest.raises(ConfigError, match=told) as caught:
        HttpBackend(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("options", [{"timeout": 0}, {"max_retries": -1}])
def test_senseless_options(options):
    with pytest.raises(ConfigError, match="timeout"):
        HttpBackend("http://127.0.0.1/v1#m", **options)


def test_what_it_says_of_itself():
    with HttpBackend("https://reader.example:8080/v1/#org/model:free#2") as backend:
        assert isinstance(backend, Backend)
        assert backend.name == "org/model:free#2 at reader.example:8080"
        assert backend.fingerprint == "https://reader.example:8080/v1#org/model:free#2"
        assert backend.accepts == {"text"}
        assert backend.max_positions is None
        assert backend.tokenizer is None
        with pytest.raises(FrozenInstanceError):
            backend.url = "x"


def test_without_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(MissingExtraError, match=r"OpenAI-compatible reader .* 'kompakt\[openai\]'"):
        HttpBackend("http://127.0.0.1/v1#m")


def test_closed_is_closed(endpoint):
    backend = HttpBackend(f"{endpoint.url}#m", max_retries=0)
    backend.close()
    with pytest.raises(BackendError):
        backend.generate(PROMPT, max_new_tokens=8)
