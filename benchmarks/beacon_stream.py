"""Memory of a long stream that Activation Beacon reads, window after window.

    python benchmarks/beacon_stream.py --tokens 32000 --ratio 8 32

For each ratio, a process of its own reads the stream in calls of one window each. Beside the tokens read stand the
positions that the next token sees, the bytes of keys and values that are held, the memory of the process above what
it had after the first window, and the seconds since the row before. Keys and values of a decoder without compression
are computed from its configuration, and so is whether it could read that far at all. Weights are untrained: they
decide what is remembered, not how much.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from pathlib import Path

import psutil
import torch

from kompakt.compressor.cache.beacon_config import BeaconConfig
from kompakt.compressor.cache.beacon_module import BeaconModule
from kompakt.compressor.cache.beacon_session import BeaconSession
from kompakt.compressor.models.causal_lm import load_causal_lm
from kompakt.compressor.soft.decoder import cache_shape

ROOT = Path(__file__).parents[1]


def stream(model: str, n_tokens: int, ratio: int, window: int, every: int, threads: int) -> None:
    torch.set_num_threads(threads)
    lm = load_causal_lm(model)
    texts = "\n\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md")))
    ids = lm.tokenizer.encode(texts, add_special_tokens=False).ids
    ids = (ids * (n_tokens // len(ids) + 1))[:n_tokens]
    session = BeaconSession(BeaconModule(lm, BeaconConfig(window=window, ratios=(ratio,))))
    n_layers, n_heads, width = cache_shape(lm)
    size = 2 * n_layers * n_heads * width * lm.model.dtype.itemsize
    process = psutil.Process()
    base, began = 0, time.perf_counter()
    print(
        f"\nratio {ratio}, window {window}, {lm.dtype}, {threads} threads; {model} reads {lm.context_length} at once"
    )
    titles = ("tokens", "positions", "cache MB", "without MB", "process MB", "s")
    print("{:>7} {:>10} {:>9} {:>11} {:>11} {:>6}".format(*titles))
    for start in range(0, n_tokens, window):
        session.read(ids[start : start + window])
        resident = process.memory_info().rss
        base = base or resident
        if session.n_tokens % every and session.n_tokens > window and session.n_tokens < n_tokens:
            continue
        held, plain = session.n_positions * size / 1e6, session.n_tokens * size / 1e6
        grown, seconds = (resident - base) / 1e6, time.perf_counter() - began
        print(
            f"{session.n_tokens:>7} {session.n_positions:>10} {held:9.1f} {plain:11.1f} {grown:+11.1f} {seconds:6.1f}"
        )
        began = time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--tokens", type=int, default=32768)
    parser.add_argument("--ratio", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--window", type=int, default=1024)
    parser.add_argument("--every", type=int, default=4096, help="tokens between rows")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    for ratio in args.ratio:
        # what one run has left behind must not count in the next
        process = multiprocessing.get_context("spawn").Process(
            target=stream, args=(args.model, args.tokens, ratio, args.window, args.every, args.threads)
        )
        process.start()
        process.join()
        if process.exitcode:
            raise SystemExit(process.exitcode)


if __name__ == "__main__":
    main()
