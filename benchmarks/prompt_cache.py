"""What a provider's prompt cache is worth, turn by turn: as it is, compressed once, and compressed for each question.

    python benchmarks/prompt_cache.py TRANSCRIPTS.jsonl.gz [--turns 20] [--read-price 0.1]

Each line of the file is a conversation ``{"messages": [...]}`` in the form of OpenAI's chats, outputs of tools as
messages of the role ``tool``. Each is sent as an application does: once for every message of the assistant, with all
messages before it. The cache is the best one there can be: whatever a request begins with that an earlier one of the
same conversation began with is read from it. ``price`` counts the tokens that are read from the cache as that share
of one, and all others as one; it says nothing of any provider's other prices.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kompakt import Pipeline
from kompakt.adapters._engine import Engine
from kompakt.adapters._settings import Settings
from kompakt.adapters._wires import Wire
from kompakt.compressor.models.tokenizers import DEFAULT_TOKENIZER, load_tokenizer

TOKENIZER = load_tokenizer(DEFAULT_TOKENIZER)


@dataclass
class Bill:
    """What was sent in one way."""

    sent: int = 0
    cached: int = 0
    turns: int = 0
    broken: int = 0
    seen: str = field(default="", repr=False)

    def add(self, body: str) -> None:
        """Count a request: what it shares with the one before it comes from the cache."""
        pairs = enumerate(zip(self.seen, body, strict=False))
        shared = next((at for at, (one, other) in pairs if one != other), min(len(self.seen), len(body)))
        # the end of a body, its closing brackets, is no part of the prompt
        self.broken += bool(self.seen) and shared < len(self.seen) - 2
        self.cached += TOKENIZER.count(body[:shared])
        self.sent += TOKENIZER.count(body)
        self.turns += 1
        self.seen = body


def conversations(path: Path, n_turns: int) -> Iterator[list[list[dict[str, Any]]]]:
    """Return, for each conversation that is long enough, the messages of each of its requests."""
    data = path.read_bytes()
    for line in (gzip.decompress(data) if path.suffix == ".gz" else data).splitlines():
        messages = json.loads(line)["messages"]
        ends = [at for at, message in enumerate(messages) if message["role"] == "assistant" and at]
        if len(ends) >= n_turns:
            yield [messages[:end] for end in ends[:n_turns]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("transcripts", type=Path)
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--most", type=int, default=20, help="conversations")
    parser.add_argument("--compressor", default="lexical")
    parser.add_argument("--keep", type=float, default=0.3)
    parser.add_argument("--read-price", type=float, default=0.1, help="of a token that is read from the cache")
    args = parser.parse_args()
    ways = {"as it is": None, "conversation": "conversation", "never": "never"}
    bills = {name: Bill() for name in ways}
    n = 0
    for requests in itertools.islice(conversations(args.transcripts, args.turns), args.most):
        n += 1
        for name, reuse in ways.items():
            bill = bills[name]
            bill.seen = ""
            pipeline = Pipeline([args.compressor], store="memory", mark_omissions=True)
            engine = reuse and Engine(pipeline, Settings(keep=args.keep, reuse=reuse, deadline=60, on_error="raise"))
            for messages in requests:
                body = json.dumps({"messages": messages})
                done = engine.rewrite(body, Wire.CHAT_COMPLETIONS) if engine else None
                bill.add((done and done.text) or body)
            if engine:
                engine.close()
    plain = bills["as it is"]
    if not n:
        raise SystemExit(f"no conversation of {args.turns} turns in {args.transcripts}")
    whole = plain.sent - (1 - args.read_price) * plain.cached
    print(f"{n} conversations of {args.turns} turns, {args.compressor}, keep {args.keep}")
    print(f"{'reuse':14} {'tokens sent':>12} {'from cache':>11} {'turns that break it':>20} {'price':>8}")
    for name, bill in bills.items():
        price = (bill.sent - (1 - args.read_price) * bill.cached) / whole
        cached = f"{bill.cached / bill.sent:.0%}"
        print(f"{name:14} {bill.sent:12,} {cached:>11} {bill.broken:>13} of {bill.turns - n:4} {price:8.2f}")


if __name__ == "__main__":
    main()
