"""Entroly 1.0.87: selection under a budget of tokens, for a question.

    run_entroly.py {optimize,messages}

``optimize(fragments, budget=, query=)`` is what the documentation of its ``compress`` advises once there is a
question; each document is a fragment. ``compress_messages(messages, budget=)`` keeps the last message, the question,
and selects evidence for it in the message before, which holds all documents. Without a question both variants call
``compress(text, budget=)``. The budget is counted with its own ``count_tokens``.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence

from serve import joined, own_target, serve


def load(arguments: Sequence[str]) -> Callable[[dict], str]:
    (method,) = arguments
    from entroly import compress as compress_blindly
    from entroly import compress_messages, optimize
    from entroly.sdk import count_tokens

    def by_fragments(request: dict, budget: int) -> str:
        fragments = [{"content": doc["text"], "source": str(i)} for i, doc in enumerate(request["documents"])]
        return optimize(fragments, budget=budget, query=request["query"])["context_text"]

    def by_messages(request: dict, budget: int) -> str:
        messages = [{"role": "user", "content": joined(request)}, {"role": "user", "content": request["query"]}]
        budget += count_tokens(request["query"])
        return compress_messages(messages, budget=budget, preserve_last_n=1)[0]["content"]

    ask = by_messages if method == "messages" else by_fragments

    def compress(request: dict) -> str:
        budget = own_target(request, count_tokens)
        return ask(request, budget) if request["query"] else compress_blindly(joined(request), budget=budget)

    return compress


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as state:
        # it keeps its books in the home folder otherwise
        serve("entroly", load, {"ENTROLY_DIR": state, "ENTROLY_DISABLE_TELEMETRY": "1"})
