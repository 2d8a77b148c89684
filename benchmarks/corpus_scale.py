"""The corpus job on inputs of growing size: peak memory, time, and the exponent of time.

    python benchmarks/corpus_scale.py --megabytes 10 30 100 300 1000

Each size is one run of ``kompakt corpus build`` in a process of its own, over JSON lines of documents of a few
thousand characters that are all different. The peak is that of the process. The exponent is the slope of a straight
line through the logarithms of size and seconds: 1 is linear.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[1] / "examples" / "data"
PIPELINE = 'schema_version = 1\n\n[[stages]]\ncompressor = "{}"\n'


def write_corpus(path: Path, n_bytes: int, seed: int = 0) -> int:
    """Write documents until the file has ``n_bytes`` bytes, and return their number."""
    text = "\n\n".join(file.read_text(encoding="utf-8") for file in sorted(EXAMPLES.glob("*.md")))
    paragraphs = [part for part in text.split("\n\n") if len(part) > 80]
    chance = random.Random(seed)  # noqa: S311
    n = 0
    with path.open("w", encoding="utf-8") as out:
        while out.tell() < n_bytes:
            parts = [f"Entry {n} of {chance.randrange(10**9)}."]
            parts += [f"{chance.choice(paragraphs)} ({chance.randrange(10**9)})" for _ in range(12)]
            out.write(json.dumps({"id": f"doc-{n}", "text": "\n\n".join(parts)}) + "\n")
            n += 1
    return n


def run(folder: Path, corpus: Path, compressor: str) -> tuple[float, float, dict]:
    """Return the seconds and the peak MiB of one build, and its manifest."""
    pipeline = folder / "pipeline.toml"
    pipeline.write_text(PIPELINE.format(compressor), encoding="utf-8")
    command = [
        sys.executable, "-m", "kompakt", "corpus", "build", str(corpus), "--to", str(folder / "store.sqlite"),
        "--pipeline", str(pipeline), "--state", str(folder / "state"), "--keep", "0.5", "--json", "--quiet",
    ]  # fmt: skip
    began = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert child.stdout is not None
    said = child.stdout.read()
    # wait4 tells the peak of this child alone
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed with status {status}")
    return time.perf_counter() - began, usage.ru_maxrss / 1024, json.loads(said)


def exponent(sizes: list[float], seconds: list[float]) -> float:
    """Return the slope of the least-squares line through the logarithms."""
    x, y = [math.log(size) for size in sizes], [math.log(value) for value in seconds]
    middle_x, middle_y = sum(x) / len(x), sum(y) / len(y)
    above = sum((a - middle_x) * (b - middle_y) for a, b in zip(x, y, strict=True))
    return above / sum((a - middle_x) ** 2 for a in x)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, nargs="+", default=[10, 30, 100, 300, 1000])
    parser.add_argument("--compressor", default="lexical")
    args = parser.parse_args()
    seconds, peaks = [], []
    print("   MB  documents   segments    seconds   MB/s   peak MiB")
    for size in args.megabytes:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            n = write_corpus(folder / "corpus.jsonl", int(size * 1e6))
            took, peak, manifest = run(folder, folder / "corpus.jsonl", args.compressor)
        seconds.append(took)
        peaks.append(peak)
        n_segments = manifest["counts"]["segments"]
        print(f"{size:5.0f} {n:10d} {n_segments:10d} {took:10.1f} {size / took:6.2f} {peak:10.0f}", flush=True)
    if len(seconds) > 1:
        print(
            f"exponent of time {exponent(args.megabytes, seconds):.3f}, "
            f"largest peak / smallest peak {max(peaks) / min(peaks):.3f}"
        )


if __name__ == "__main__":
    main()
