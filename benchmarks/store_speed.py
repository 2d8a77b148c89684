"""A context of many segments: how long the store takes to give them back, against compressing them.

    python benchmarks/store_speed.py [--compressor extractive] [--segments 200]

Each figure but the cold one is the median of ``--repeats`` runs of the whole call, keys included. ``memory`` finds
the segments in the process that has read them before; ``sqlite`` opens the file anew each time, so that nothing is in
memory, and counts the opening. In both the segments come in another order than they were made in.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import kompakt
from kompakt.compressor.store.places import open_store
from kompakt.compressor.types import Compressed

EXAMPLES = Path(__file__).resolve().parents[1] / "examples" / "data"


def segments(n: int, n_tokens: int, seed: int = 0) -> list[str]:
    """Return different texts of about ``n_tokens`` tokens, made of the paragraphs of the examples."""
    text = "\n\n".join(path.read_text(encoding="utf-8") for path in sorted(EXAMPLES.glob("*.md")))
    paragraphs = [part for part in text.split("\n\n") if len(part) > 80]
    chance = random.Random(seed)  # noqa: S311
    made = []
    for number in range(n):
        chosen = [f"Part {number}."]
        while sum(map(len, chosen)) < 4 * n_tokens:
            chosen.append(chance.choice(paragraphs))
        made.append("\n\n".join(chosen))
    return made


def timed(run: Callable[[], list[Compressed]]) -> tuple[float, list[Compressed]]:
    began = time.perf_counter()
    results = run()
    return time.perf_counter() - began, results


def share_found(results: list[Compressed]) -> float:
    return sum(result.trace[-1].cache_hits for result in results) / len(results)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compressor", default="extractive")
    parser.add_argument("--segments", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=15)
    args = parser.parse_args()
    texts = segments(args.segments, args.tokens)
    shuffled = random.Random(1).sample(texts, len(texts))  # noqa: S311
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "segments.sqlite"

        def pipeline() -> kompakt.Pipeline:
            return kompakt.Pipeline([args.compressor], store=open_store(path))

        pipeline().compress_each(["Load the model first. It takes a while. Then begin."] * 2, keep=0.5)
        warm = pipeline()
        cold, made = timed(lambda: warm.compress_each(texts, keep=0.5))
        expected = {result.sources[0].text: result.text for result in made}
        memory, from_file = [], []
        for _ in range(args.repeats):
            seconds, found = timed(lambda: warm.compress_each(shuffled, keep=0.5))
            memory.append(seconds)
            fresh = pipeline()
            seconds, read = timed(lambda fresh=fresh: fresh.compress_each(shuffled, keep=0.5))
            from_file.append(seconds)
            fresh.close()
            assert [result.text for result in found] == [expected[text] for text in shuffled]
            assert [result.text for result in read] == [expected[text] for text in shuffled]
        warm.close()
        size = path.stat().st_size
    tokens = sum(result.tokens_before for result in made)
    print(f"{len(texts)} segments, {tokens} tokens, {args.compressor}, keep 0.5, store {size / 1024:.0f} KiB")
    print(f"cold    {1000 * cold:9.1f} ms")
    for name, runs, results in (("memory", memory, found), ("sqlite", from_file, read)):
        middle = statistics.median(runs)
        print(f"{name:7} {1000 * middle:9.2f} ms  (1/{cold / middle:.0f} of cold)  found {share_found(results):.0%}")


if __name__ == "__main__":
    main()
