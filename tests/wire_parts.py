"""What tests ask of models over HTTP, and a server that answers as OpenAI and Anthropic do."""

import json
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

LOG = " ".join(f"Ship {n} left port {n % 7} with {n * 13} bells on day {n}." for n in range(60))
QUESTION = "How many bells did ship 30 carry?"
ANSWER = "Ship 30 left port 2 with 390 bells"


CALL = {"id": "t", "type": "function", "function": {"name": "log", "arguments": "{}"}}
MESSAGES = [
    {"role": "user", "content": QUESTION},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "t", "content": LOG},
]
ITEMS = [
    {"role": "user", "content": QUESTION},
    {"type": "function_call", "call_id": "t", "name": "log", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "t", "output": LOG},
]
BLOCKS = [
    {"role": "user", "content": QUESTION},
    {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "log", "input": {}}]},
    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": LOG}]},
]
PROMPT = f"Read this.\n\nContext:\n{LOG}\n\n{QUESTION}"

USAGE = {"prompt_tokens": 90, "completion_tokens": 1, "total_tokens": 91}
CHAT = {
    "id": "c",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": '{"bells": 390}'}}],
    "usage": USAGE,
}
CHUNK = {
    "id": "c",
    "object": "chat.completion.chunk",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "delta": {"role": "assistant", "content": "390"}, "finish_reason": None}],
}
COMPLETION = {**CHAT, "object": "text_completion", "choices": [{"index": 0, "text": "390", "finish_reason": "stop"}]}
OUTPUT = {"type": "message", "id": "m", "role": "assistant", "status": "completed"}
RESPONSE = {
    "id": "r",
    "object": "response",
    "created_at": 1,
    "model": "m",
    "status": "completed",
    "parallel_tool_calls": False,
    "tool_choice": "auto",
    "tools": [],
    "output": [{**OUTPUT, "content": [{"type": "output_text", "text": '{"bells": 390}', "annotations": []}]}],
    "usage": {"input_tokens": 90, "output_tokens": 1, "total_tokens": 91},
}
MESSAGE = {
    "id": "m",
    "type": "message",
    "role": "assistant",
    "model": "m",
    "content": [{"type": "text", "text": '{"bells": 390}'}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": {"input_tokens": 90, "output_tokens": 1},
}
STREAMS = {
    "/v1/chat/completions": [CHUNK, {**CHUNK, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}],
    "/v1/completions": [COMPLETION],
    "/v1/responses": [
        {"type": "response.created", "sequence_number": 0, "response": {**RESPONSE, "output": []}},
        {"type": "response.completed", "sequence_number": 1, "response": RESPONSE},
    ],
    "/v1/messages": [
        {"type": "message_start", "message": {**MESSAGE, "content": [], "stop_reason": None}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "390"}},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 1}},
        {"type": "message_stop"},
    ],
}
ANSWERS = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": COMPLETION,
    "/v1/responses": RESPONSE,
    "/v1/messages": MESSAGE,
}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    streams = STREAMS

    def end_headers(self):
        # a client that goes on in another event loop could not tell that the server had closed the connection
        self.send_header("connection", "close")
        super().end_headers()

    def value(self, path, body):
        """The answer to a request that is not streamed."""
        return ANSWERS.get(path, {"path": path})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.requests.append((self.path, dict(self.headers.items()), body))
        path = self.path.partition("?")[0]
        if self.server.failures:
            self.server.failures -= 1
            self.send_response(503)
            self.send_header("content-length", "0")
            self.end_headers()
        elif body.get("stream"):
            self.stream(self.streams[path])
        else:
            self.answer(self.value(path, body))

    def do_GET(self):
        self.server.requests.append((self.path, dict(self.headers.items()), None))
        self.answer({"object": "list", "data": []})

    def answer(self, value):
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def stream(self, events):
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        for event in events:
            name = f"event: {event['type']}\n" if "type" in event else ""
            self.wfile.write(f"{name}data: {json.dumps(event)}\n\n".encode())
            self.wfile.flush()
            time.sleep(self.server.pause)
        if events[0] in (CHUNK, COMPLETION):
            self.wfile.write(b"data: [DONE]\n\n")

    def log_message(self, *_):
        """Say nothing."""


class Server(ThreadingHTTPServer):
    """Answers as OpenAI and Anthropic do, and keeps what it was sent.

    Args:
        failures: So many requests get 503 from now on.
        pause: Seconds between two events of a stream.
    """

    daemon_threads = True
    handler = Handler

    def __init__(self):
        super().__init__(("127.0.0.1", 0), self.handler)
        self.requests = []
        self.failures = 0
        self.pause = 0.0
        self.host = f"http://127.0.0.1:{self.server_port}"
        self.url = f"{self.host}/v1"

    @property
    def sent(self):
        """The body of the last request."""
        return self.requests[-1][2]
