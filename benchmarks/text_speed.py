"""Speed of the text compressors: seconds for a passage, tokens a second for a long text, counting included.

    python benchmarks/text_speed.py TEXT_FILE...

Without files, the text is the documentation of this repository. Each figure is the median of ``--repeats`` warm runs;
caches of embeddings are emptied before each, so that every run does all the work.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from kompakt import Compressed, load
from kompakt.compressor.models.tokenizers import Tokenizer, load_tokenizer
from kompakt.compressor.units.sentences import split_sentences

QUERY = "What is kept when the budget is small, and who decides?"


def cut(text: str, n_tokens: int, tokenizer: Tokenizer) -> str:
    """The first sentences of a text, repeated if it is too short, up to ``n_tokens`` tokens."""
    while tokenizer.count(text) < n_tokens:
        text = f"{text}\n\n{text}"
    ranges = split_sentences(text)
    counts = tokenizer.count_batch([text[start:end] for start, end in ranges])
    used = 0
    for (_, end), n in zip(ranges, counts, strict=True):
        used += n
        if used >= n_tokens:
            return text[:end]
    return text


def median_seconds(run: Callable[[], Compressed], repeats: int, before: Callable[[], None]) -> float:
    """Median over ``repeats`` runs after one warm-up."""
    seconds = []
    for repeat in range(repeats + 1):
        before()
        began = time.perf_counter()
        run()
        if repeat:
            seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="*")
    parser.add_argument("--tokenizer", default="smollm2-135m")
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    root = Path(__file__).resolve().parent.parent
    files = args.files or [root / "README.md", *sorted((root / "docs").glob("*.md"))]
    text = "\n\n".join(path.read_text(encoding="utf-8") for path in files)
    tokenizer = load_tokenizer(args.tokenizer)
    for name, n_tokens in (("extractive", 1_500), ("default", 1_500), ("lexical", 10_000), ("lexical", 100_000)):
        passage = cut(text, n_tokens, tokenizer)
        compressor = load(name)

        def run(passage: str = passage, compressor=compressor) -> Compressed:
            return compressor.compress(passage, query=QUERY, keep=0.25, tokenizer=tokenizer)

        seconds = median_seconds(run, args.repeats, compressor.forget)
        n = tokenizer.count(passage)
        print(f"{name:12} {n:8,} tokens  {seconds:7.3f} s  {n / seconds:10,.0f} tokens/s")


if __name__ == "__main__":
    main()
