"""Selective Context against a bare forward pass of its model, in one run; and its memory.

    python benchmarks/selective_context.py [FILE ...] [--tokens 10000] [--repeats 3] [--keep 0.5]
    python benchmarks/selective_context.py [FILE ...] --memory 100000 [--granularity phrase] [--context document]

FILEs are text; without any, README and documentation of this repository are taken. They are joined, and repeated up
to the number of tokens asked for. Bare: ``model(input_ids)`` with logits, in the same windows, without a cache.
Compression: everything from text to text, tokens counted. The two take turns; the ratio is that of the best times.
"""

from __future__ import annotations

import argparse
import itertools
import resource
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from kompakt.compressor.models.causal_lm import CausalLM, load_causal_lm, tokenize
from kompakt.compressor.models.noun_chunks import load_chunker
from kompakt.compressor.models.tokenizers import load_tokenizer
from kompakt.compressor.text.selective_context import WINDOW, SelectiveContext

MODEL = "smollm2-135m"
BARE_WINDOW = WINDOW
GRANULARITIES = ("phrase", "sentence", "token")
CONTEXTS = ("document", "sentence")
TARGET_RATIO = 0.80
TARGET_BYTES = 400e6


def build_text(files: list[Path], n_tokens: int) -> str:
    root = Path(__file__).parent.parent
    found = files or [root / "README.md", *sorted((root / "docs").rglob("*.md"))]
    text = "\n\n".join(path.read_text(encoding="utf-8") for path in found if path.is_file())
    if not text.strip():
        raise SystemExit("there is no text: name files")
    tokenizer = load_tokenizer(MODEL)
    whole = text
    while (count := tokenizer.count(whole)) < n_tokens:
        whole += "\n\n" + text
    return whole[: int(len(whole) * n_tokens / count) + 1]


def bare_pass(lm: CausalLM, text: str) -> int:
    import torch

    (tokens,) = tokenize(lm, [text])
    with torch.inference_mode():
        for window in torch.from_numpy(tokens.ids)[None].split(BARE_WINDOW, dim=1):
            lm.model(window.to(lm.device), use_cache=False).logits[0, -1].sum().item()
    return len(tokens.ids)


def timed(run: Callable[[], object]) -> tuple[float, float]:
    """Return seconds on the wall and seconds of processor time, which other programs disturb less."""
    wall, processor = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - processor


def compress_cold(compressor: SelectiveContext, text: str, keep: float) -> None:
    compressor.forget()
    compressor.compress(text, keep=keep, tokenizer=MODEL)


def measure_speed(args: argparse.Namespace) -> None:
    text = build_text(args.files, args.tokens)
    lm = load_causal_lm(MODEL)
    wanted = itertools.product(args.granularity or GRANULARITIES, args.context or CONTEXTS)
    compressors = {f"{g}/{c}": SelectiveContext(granularity=g, context=c) for g, c in wanted}
    bare_pass(lm, text[: len(text) // 10])
    if "phrase" in (args.granularity or GRANULARITIES):
        load_chunker()
    runs: dict[str, Callable[[], object]] = {"bare": lambda: bare_pass(lm, text)}
    for name, compressor in compressors.items():
        runs[name] = partial(compress_cold, compressor, text, args.keep)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for _ in range(args.repeats):
        for name, run in runs.items():
            times[name].append(timed(run))
    n_tokens = len(tokenize(lm, [text])[0].ids)
    print(f"{n_tokens} tokens, {lm.dtype} on {lm.device}, {args.repeats} repeats, keep={args.keep}")
    print(f"{'':20} {'tokens/s':>9} {'ratio':>6} {'ratio of medians':>17} {'of processor time':>18}")
    best, median, processor = summary(times["bare"])
    for name, measured in times.items():
        mine = summary(measured)
        ratio = best / mine[0]
        verdict = "" if name == "bare" else ("  ok" if ratio >= TARGET_RATIO else f"  below {TARGET_RATIO}")
        print(
            f"{name:20} {n_tokens / mine[0]:9.0f} {ratio:6.2f} {median / mine[1]:17.2f} "
            f"{processor / mine[2]:18.2f}{verdict}"
        )


def summary(times: list[tuple[float, float]]) -> tuple[float, float, float]:
    """Return the best and the median time on the wall, and the best processor time, in seconds."""
    walls, processors = zip(*times, strict=True)
    return min(walls), statistics.median(walls), min(processors)


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize()


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_bytes() -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").split("\n")
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024


def measure_memory(args: argparse.Namespace) -> None:
    compressor = SelectiveContext(
        granularity=(args.granularity or ["phrase"])[0], context=(args.context or ["document"])[0]
    )
    text = build_text(args.files, args.memory)
    load_causal_lm(MODEL)
    if compressor.granularity == "phrase":
        load_chunker()
    before = resident_bytes()
    reset_peak()
    result = compressor.compress(text, keep=args.keep, tokenizer=MODEL)
    extra = peak_bytes() - before
    verdict = "ok" if extra < TARGET_BYTES else f"above {TARGET_BYTES / 1e6:.0f} MB"
    print(
        f"{compressor.granularity}/{compressor.context}: {result.tokens_before} -> {result.tokens_after} tokens, "
        f"{before / 1e6:.0f} MB with the models loaded, at most {extra / 1e6:.0f} MB more to compress: {verdict}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE")
    parser.add_argument("--tokens", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--keep", type=float, default=0.5)
    parser.add_argument("--granularity", nargs="+", choices=GRANULARITIES)
    parser.add_argument("--context", nargs="+", choices=CONTEXTS)
    parser.add_argument("--memory", type=int, metavar="TOKENS", help="measure peak memory on a text of this length")
    args = parser.parse_args()
    if args.memory:
        measure_memory(args)
    else:
        measure_speed(args)


if __name__ == "__main__":
    main()
