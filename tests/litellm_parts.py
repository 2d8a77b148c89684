"""What the tests of LiteLLM ask for beside what those of clients do."""

import hashlib
import json

import wire_parts
from wire_parts import CHAT, OUTPUT, RESPONSE

SYSTEM = "Answer from the log alone. " * 40
HASH = hashlib.sha256(wire_parts.LOG.encode()).hexdigest()[:24]
MESSAGES = [{"role": "system", "content": SYSTEM}, *wire_parts.MESSAGES]
PROMPT = f"{SYSTEM}\n\nContext:\n{wire_parts.LOG}\n\n{wire_parts.QUESTION}"
TOLD = CHAT["choices"][0]["message"]
RETRIEVE = {"name": "headroom_retrieve", "arguments": json.dumps({"hash": HASH})}
RETRIEVING = {**TOLD, "content": None, "tool_calls": [{"id": "r", "type": "function", "function": RETRIEVE}]}
EMBEDDINGS = {"object": "list", "model": "m", "data": [], "usage": wire_parts.USAGE}
STREAMS = wire_parts.STREAMS | {
    "/v1/responses": [
        {"type": "response.created", "sequence_number": 0, "response": {**RESPONSE, "output": []}},
        {"type": "response.output_item.added", "output_index": 0, "item": {**OUTPUT, "content": []}},
        {"type": "response.output_text.delta", "item_id": "m", "output_index": 0, "content_index": 0, "delta": "390"},
        {"type": "response.output_item.done", "output_index": 0, "item": RESPONSE["output"][0]},
        {"type": "response.completed", "sequence_number": 1, "response": RESPONSE},
    ],
}


class Handler(wire_parts.Handler):
    streams = STREAMS

    def value(self, path, body):
        if body["model"] == "retrieving" and body["messages"][-1].get("tool_call_id") != "r":
            choice = {**CHAT["choices"][0], "finish_reason": "tool_calls", "message": RETRIEVING}
            return {**CHAT, "choices": [choice]}
        return EMBEDDINGS if path == "/v1/embeddings" else super().value(path, body)


class Server(wire_parts.Server):
    handler = Handler


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
