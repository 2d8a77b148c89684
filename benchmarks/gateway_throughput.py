"""Requests a second through ``kompakt serve``, against its upstream asked directly: the same requests, in one run.

    python benchmarks/gateway_throughput.py [--compressor lexical] [--tokens 4000]

All three run on this machine and share its cores: who asks, the gateway, and an upstream that answers at once. So
the figures are a lower bound of what the gateway does, and an upper bound of what a model's server does.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import httpx2
from loopback import free_port, messages, percentile, running, upstream

from kompakt import Pipeline


async def ask(url: str, numbers: list[int], args: argparse.Namespace, **headers: str) -> tuple[float, float, Counter]:
    """Return requests a second, the 99th percentile of their seconds, and what was done to them."""
    bodies = iter([{"model": "m", "messages": messages(number, args.tokens)} for number in numbers])
    taken, outcomes = [], Counter()

    async def one(client: httpx2.AsyncClient) -> None:
        for body in bodies:
            began = time.perf_counter()
            answer = await client.post(f"{url}/v1/chat/completions", json=body, headers=headers)
            taken.append(time.perf_counter() - began)
            outcomes[answer.headers.get("x-kompakt-outcome", answer.status_code)] += 1

    began = time.perf_counter()
    async with httpx2.AsyncClient(trust_env=False, timeout=120) as client:
        await asyncio.gather(*(one(client) for _ in range(args.at_once)))
    return len(numbers) / (time.perf_counter() - began), percentile(taken, 0.99), outcomes


async def measure(bare: str, gateway: str, args: argparse.Namespace) -> None:
    numbers = list(range(args.requests))
    await ask(bare, [-1] * 20, args)
    await ask(gateway, [-1] * 20, args)
    direct = 0.0
    print(f"{'way':34} {'requests/s':>10} {'of direct':>10} {'p99 ms':>8}  outcomes")
    for name, headers in (
        ("direct", None),
        ("gateway, bypassed", {"x-kompakt-bypass": "1"}),
        ("gateway, texts never seen", {}),
        ("gateway, texts of earlier turns", {}),
    ):
        url = bare if headers is None else gateway
        rate, late, outcomes = await ask(url, numbers, args, **(headers or {}))
        direct = direct or rate
        said = ", ".join(f"{outcome}: {count}" for outcome, count in outcomes.items())
        print(f"{name:34} {rate:10.1f} {rate / direct:10.2f} {1000 * late:8.1f}  {said}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compressor", default="lexical")
    parser.add_argument("--tokens", type=int, default=4000)
    parser.add_argument("--at-once", type=int, default=16)
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--keep", type=float, default=0.3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, upstream() as bare:
        pipeline = Path(folder) / "pipeline.toml"
        pipeline.write_text(Pipeline([args.compressor], mark_omissions=True).to_toml(), encoding="utf-8")
        command = [sys.executable, "-m", "kompakt", "serve", "--upstream", bare, "--keep", str(args.keep)]
        command += ["--pipeline", str(pipeline), "--store", str(Path(folder) / "store.sqlite")]
        port = free_port()
        with running([*command, "--port", str(port)], port) as gateway:
            asyncio.run(measure(bare, gateway, args))


if __name__ == "__main__":
    main()
