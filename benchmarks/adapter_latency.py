"""What a wrapped client adds to a request: the same requests, sent plain and wrapped, in turns, in one run.

    python benchmarks/adapter_latency.py [--compressors lexical extractive] [--tokens 4000]

Every request holds one output of a tool of so many tokens. ``new`` is one that was never seen, ``known`` one of an
earlier turn, which the store remembers. The server is another process of this machine and answers at once, so what a
plain client takes is the client itself. A request that was late went out as it was; the last column counts them.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections import Counter

import openai
from loopback import messages, percentile, upstream

from kompakt import Pipeline
from kompakt.adapters.openai import wrap
from kompakt.compressor.models.tokenizers import DEFAULT_TOKENIZER, load_tokenizer


async def seconds_of(client: openai.AsyncOpenAI, numbers: list[int], n_tokens: int, at_once: int) -> list[float]:
    """Ask with the conversations of these numbers, so many at a time, and return what each took."""
    bodies = iter([messages(number, n_tokens) for number in numbers])
    taken = []

    async def ask() -> None:
        for body in bodies:
            began = time.perf_counter()
            await client.chat.completions.create(model="m", messages=body)
            taken.append(time.perf_counter() - began)

    await asyncio.gather(*(ask() for _ in range(at_once)))
    return taken


async def measure(url: str, compressor: str, args: argparse.Namespace) -> None:
    plain = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0, timeout=120)
    pipeline = Pipeline([compressor], store="memory", mark_omissions=True)
    wrapped = wrap(plain, pipeline=pipeline, keep=args.keep, deadline=args.deadline)
    await seconds_of(plain, [-1] * 8, args.tokens, 4)
    await asyncio.to_thread(pipeline.compress, messages(-1, args.tokens)[2]["content"], query="Why?", keep=args.keep)
    first = 0
    for at_once in args.at_once:
        n = max(args.requests, 4 * at_once)
        numbers = list(range(first, first + n))
        first += n
        alone = await seconds_of(plain, numbers, args.tokens, at_once)
        for name in ("new", "known"):
            wrapped.kompakt.reports.clear()
            taken = await seconds_of(wrapped, numbers, args.tokens, at_once)
            said = Counter(report.outcome.status.value for report in wrapped.kompakt.reports)
            figures = [f"{1000 * percentile(values, p):8.1f}" for p in (0.5, 0.99) for values in (alone, taken)]
            added = [f"{1000 * (percentile(taken, p) - percentile(alone, p)):8.1f}" for p in (0.5, 0.99)]
            late = sum(count for outcome, count in said.items() if outcome != "compressed")
            print(f"{compressor:18} {at_once:4} {name:6} {n:5} {' '.join([*figures, *added])} {late:5}", flush=True)
    await wrapped.close()
    await plain.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compressors", nargs="+", default=["lexical", "extractive"])
    parser.add_argument("--tokens", type=int, default=4000)
    parser.add_argument("--at-once", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--requests", type=int, default=100, help="at least, for each line")
    parser.add_argument("--keep", type=float, default=0.3)
    parser.add_argument("--deadline", type=float, default=2.0)
    args = parser.parse_args()
    size = load_tokenizer(DEFAULT_TOKENIZER).count(messages(0, args.tokens)[2]["content"])
    print(f"one output of a tool, {size} tokens; keep {args.keep}, deadline {args.deadline:g} s; milliseconds")
    print("                        at                      p50              p99            added        not")
    print("compressor            once            n    plain  wrapped    plain  wrapped      p50      p99  made")
    with upstream() as url:
        for compressor in args.compressors:
            asyncio.run(measure(url, compressor, args))


if __name__ == "__main__":
    main()
