"""What the tests of LiteLLM ask for, and a server that answers as OpenAI and Anthropic do."""

import hashlib
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

LOG = " ".join(f"Ship {n} left port {n % 7} with {n * 13} bells on day {n}." for n in range(60))
SYSTEM = "Answer from the log alone. " * 40
QUESTION = "How many bells did ship 30 carry?"
ANSWER = "Ship 30 left port 2 with 390 bells"
HASH = hashlib.sha256(LOG.encode()).hexdigest()[:24]

CALL = {"id": "t", "type": "function", "function": {"name": "log", "arguments": "{}"}}
MESSAGES = [
    {"role": "system", "content": SYSTEM},
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
PROMPT = f"{SYSTEM}\n\nContext:\n{LOG}\n\n{QUESTION}"

USAGE = {"prompt_tokens": 90, "completion_tokens": 1, "total_tokens": 91}
TOLD = {"role": "assistant", "content": "390"}
CHAT = {
    "id": "c",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "finish_reason": "stop", "message": TOLD}],
    "usage": USAGE,
}
RETRIEVE = {"name": "headroom_retrieve", "arguments": json.dumps({"hash": HASH})}
RETRIEVING = {**TOLD, "content": None, "tool_calls": [{"id": "r", "type": "function", "function": RETRIEVE}]}
CHUNK = {
    "id": "c",
    "object": "chat.completion.chunk",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "delta": TOLD, "finish_reason": None}],
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
    "output": [{**OUTPUT, "content": [{"type": "output_text", "text": "390", "annotations": []}]}],
    "usage": {"input_tokens": 90, "output_tokens": 1, "total_tokens": 91},
}
MESSAGE = {
    "id": "m",
    "type": "message",
    "role": "assistant",
    "model": "m",
    "content": [{"type": "text", "text": "390"}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": {"input_tokens": 90, "output_tokens": 1},
}
ANSWERS = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": COMPLETION,
    "/v1/responses": RESPONSE,
    "/v1/messages": MESSAGE,
    "/v1/embeddings": {"object": "list", "model": "m", "data": [], "usage": USAGE},
}
STREAMS = {
    "/v1/chat/completions": [CHUNK, {**CHUNK, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}],
    "/v1/completions": [COMPLETION],
    "/v1/responses": [
        {"type": "response.created", "sequence_number": 0, "response": {**RESPONSE, "output": []}},
        {"type": "response.output_item.added", "output_index": 0, "item": {**OUTPUT, "content": []}},
        {"type": "response.output_text.delta", "item_id": "m", "output_index": 0, "content_index": 0, "delta": "390"},
        {"type": "response.output_item.done", "output_index": 0, "item": RESPONSE["output"][0]},
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


class Server(ThreadingHTTPServer):
    """Answers as OpenAI and Anthropic do, and keeps what it was sent."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests = []
        self.failures = 0
        self.host = f"http://127.0.0.1:{self.server_port}"
        self.url = f"{self.host}/v1"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.requests.append((self.path, dict(self.headers.items()), body))
        if self.server.failures:
            self.server.failures -= 1
            self.send_response(503)
            self.send_header("content-length", "0")
            self.end_headers()
            return
        is_streamed = body.get("stream")
        content, kind = self.events() if is_streamed else self.answer(body), "event-stream" if is_streamed else "json"
        self.send_response(200)
        self.send_header("content-type", f"text/{kind}" if is_streamed else f"application/{kind}")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self):
        self.send_error(404)

    def answer(self, body):
        value = ANSWERS[self.path]
        if body["model"] == "retrieving" and body["messages"][-1].get("tool_call_id") != "r":
            value = {
                **CHAT,
                "choices": [{**CHAT["choices"][0], "finish_reason": "tool_calls", "message": RETRIEVING}],
            }
        return json.dumps(value).encode()

    def events(self):
        events = STREAMS[self.path]
        named = [(f"event: {event['type']}\n" if "type" in event else "", json.dumps(event)) for event in events]
        end = "" if named[0][0] else "data: [DONE]\n\n"
        return ("".join(f"{name}data: {event}\n\n" for name, event in named) + end).encode()

    def log_message(self, *_):
        """Say nothing."""


def texts_of(body):
    """Return every string of a body."""
    if isinstance(body, str):
        return [body]
    values = body.values() if isinstance(body, dict) else body if isinstance(body, list) else ()
    return [found for value in values for found in texts_of(value)]


def log_of(body):
    """Return what there is of the log, in a body that holds it once."""
    [found] = [one.removeprefix(SYSTEM) for one in texts_of(body) if " left port " in one]
    return found
