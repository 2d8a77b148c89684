"""Where the time of every compressor goes.

    python benchmarks/hot_paths.py [--tokens 4000] [--repeats 3] [--threads 2] [--compressors NAME ...] [--json FILE]
    python benchmarks/hot_paths.py --before FILE

Each compressor makes a quarter of the same text, from text to checked result, after ``forget``; soft and cache
methods with untrained weights upon ``smollm2-135m``. Times are medians; shares are read from torch's profiler in one
more run: matrix products, attention, other operations of torch, and what is left: Python, tokenizers, numpy, spaCy.
``--json`` keeps the figures of a commit, ``--before`` compares with them.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from pathlib import Path

import torch

import kompakt
from kompakt.compressor.base import Compressor
from kompakt.compressor.models.tokenizers import load_tokenizer
from kompakt.compressor.registry import compressor_class, compressor_names

MODEL = "smollm2-135m"
QUESTION = "What is kept when the budget is small, and who decides?"
KEEP = {"icae": 0.3}
"""Its coarsest rate does not fit into a quarter."""
PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "mkldnn::_linear_pointwise", "mkldnn::_linear_pointwise.binary")
ATTENTION = ("aten::_scaled_dot_product_flash_attention_for_cpu", "aten::_scaled_dot_product_attention_math")


def text_of(n_tokens: int) -> str:
    root = Path(__file__).resolve().parents[1]
    pages = [root / "README.md", *sorted((root / "docs").glob("*.md"))]
    text = "\n\n".join(path.read_text(encoding="utf-8") for path in pages)
    # by characters, so that another commit's tokenizer changes nothing
    return text[: n_tokens * 4]


def made(name: str) -> Compressor:
    fields = [field.name for field in dataclasses.fields(compressor_class(name))]
    # arc-encoder has both, and its decoder is a number
    option = next((one for one in ("base", "decoder") if one in fields), None)
    return kompakt.load(name, **({option: MODEL} if option else {}))


def run(compressor: Compressor, text: str) -> None:
    compressor.forget()
    compressor.compress(text, query=QUESTION, keep=KEEP.get(compressor.name, 0.25), tokenizer=MODEL)


def shares(compressor: Compressor, text: str) -> dict[str, float]:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        began = time.perf_counter()
        run(compressor, text)
        wall = time.perf_counter() - began
    spent = {one.key: one.self_cpu_time_total / 1e6 for one in profile.key_averages()}
    products = sum(spent.get(name, 0.0) for name in PRODUCTS)
    attention = sum(spent.get(name, 0.0) for name in ATTENTION)
    other = sum(seconds for name, seconds in spent.items() if "::" in name) - products - attention
    rest = max(0.0, wall - products - attention - other)
    whole = products + attention + other + rest
    parts = {"products": products, "attention": attention, "other torch": other, "rest": rest}
    return {kind: seconds / whole for kind, seconds in parts.items()}


def measured(name: str, text: str, repeats: int) -> dict[str, float]:
    compressor = made(name)
    run(compressor, text)
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        run(compressor, text)
        times.append(time.perf_counter() - began)
    return {"tokens/s": load_tokenizer(MODEL).count(text) / statistics.median(times), **shares(compressor, text)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compressors", nargs="+", default=compressor_names())
    parser.add_argument("--json", type=Path)
    parser.add_argument("--before", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    text = text_of(args.tokens)
    before = json.loads(args.before.read_text(encoding="utf-8")) if args.before else {}
    found = {}
    print(f"| compressor | {'before | ' if before else ''}tokens/s | products | attention | other torch | rest |")
    print(f"|---|---|---|---|---|---|{'---|' if before else ''}")
    for name in args.compressors:
        row = found[name] = measured(name, text, args.repeats)
        old = f"{before[name]['tokens/s']:,.0f} | " if name in before else " | " if before else ""
        parts = " | ".join(f"{row[kind]:.0%}" for kind in ("products", "attention", "other torch", "rest"))
        print(f"| `{name}` | {old}{row['tokens/s']:,.0f} | {parts} |", flush=True)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
