"""The corpus job on inputs of growing size: peak memory, time, and the exponent of time.

    python benchmarks/corpus_scale.py --megabytes 10 30 100 300 1000
    python benchmarks/corpus_scale.py --megabytes 10 --costs [--compressor extractive] [--index]

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
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Build:
    """What one build took, and what it left behind; times in seconds, sizes in bytes."""

    seconds: float
    cpu_seconds: float
    peak: int
    manifest: dict
    store: int
    index: int
    state: int

    @property
    def million_tokens(self) -> float:
        return self.manifest["counts"]["tokens_before"] / 1e6


def build(folder: Path, corpus: Path, *, compressor: str, with_index: bool, name: str) -> Build:
    """Build a corpus into the folder's store, in a process of its own; ``name`` tells its state and index apart."""
    pipeline, store, index = (folder / part for part in ("p.toml", "s.sqlite", f"{name}-index"))
    # the state of a job with an index is kept beside the index
    state = index / "corpus" if with_index else folder / f"{name}-state"
    pipeline.write_text(PIPELINE.format(compressor), encoding="utf-8")
    where = ["--index", str(index)] if with_index else ["--state", str(state)]
    command = [
        sys.executable, "-m", "kompakt", "corpus", "build", str(corpus), "--to", str(store), *where,
        "--pipeline", str(pipeline), "--keep", "0.5", "--json", "--quiet",
    ]  # fmt: skip
    began = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert child.stdout is not None
    said = child.stdout.read()
    # wait4 tells the peak of this child alone
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed with status {status}")
    return Build(
        seconds=time.perf_counter() - began,
        cpu_seconds=usage.ru_utime + usage.ru_stime,
        peak=usage.ru_maxrss * 1024,
        manifest=json.loads(said),
        store=bytes_in(store),
        index=bytes_in(index) - bytes_in(state) if with_index else 0,
        state=bytes_in(state),
    )


def bytes_in(path: Path) -> int:
    """Return the size of a file, or of all files of a folder; 0 for what is not there."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def show_costs(first: Build, again: Build) -> None:
    """Print what a million tokens cost, first when all is new, then when the store has all of it."""
    counts = first.manifest["counts"]
    for label, one in (("new", first), ("found", again)):
        print(
            f"      {label}: {one.seconds / one.million_tokens:.2f} s and {one.cpu_seconds / one.million_tokens:.2f} "
            "core seconds a million tokens"
        )
    print(
        f"      {counts['tokens_before'] / counts['documents']:.0f} tokens a document, "
        f"{counts['tokens_before'] / counts['segments']:.0f} a segment; "
        f"store {first.store / first.million_tokens / 1e6:.2f} MB a million tokens, "
        f"index {first.index / counts['segments']:.0f} bytes a segment, "
        f"state {first.state / counts['documents']:.0f} bytes a document",
        flush=True,
    )


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
    parser.add_argument("--index", action="store_true", help="fill an index, too")
    parser.add_argument("--costs", action="store_true", help="build each twice, and say what a million tokens cost")
    args = parser.parse_args()
    options = {"compressor": args.compressor, "with_index": args.index}
    seconds, peaks = [], []
    print("   MB  documents   segments    seconds   MB/s   peak MiB")
    for size in args.megabytes:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            corpus = folder / "corpus.jsonl"
            n = write_corpus(corpus, int(size * 1e6))
            first = build(folder, corpus, name="first", **options)
            counts, peak, took = first.manifest["counts"], first.peak / 2**20, first.seconds
            print(
                f"{size:5.0f} {n:10d} {counts['segments']:10d} {took:10.1f} {size / took:6.2f} {peak:10.0f}",
                flush=True,
            )
            if args.costs:
                show_costs(first, build(folder, corpus, name="again", **options))
        seconds.append(took)
        peaks.append(peak)
    if len(seconds) > 1:
        print(
            f"exponent of time {exponent(args.megabytes, seconds):.3f}, "
            f"largest peak / smallest peak {max(peaks) / min(peaks):.3f}"
        )


if __name__ == "__main__":
    main()
