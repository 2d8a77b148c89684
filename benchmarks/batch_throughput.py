"""Many short documents: one call of ``compress_batch`` against a loop over single calls, each on one core.

    python benchmarks/batch_throughput.py [--documents 300] [--sentences 3] [--repeats 3]

The documents are made of sentences of the examples, all different, so that nothing is found in a cache: each is its
own context with its own question. Both ways are timed in turns, with empty caches, and the medians compared. Results
that differ between the two ways are counted.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path
from statistics import median

import kompakt
from kompakt.compressor.base import Compressor
from kompakt.compressor.units.sentences import split_sentences

EXAMPLES = Path(__file__).resolve().parents[1] / "examples" / "data"
QUESTIONS = ("Who approved the change?", "When did it happen?", "How much did it cost?", "What failed first?")


def short_documents(n: int, n_sentences: int, seed: int = 0) -> list[str]:
    """Return documents of a few sentences; a number in each sentence makes it unlike any other."""
    texts = [path.read_text(encoding="utf-8") for path in sorted(EXAMPLES.glob("*.md"))]
    found = [text[start:end].strip() for text in texts for start, end in split_sentences(text)]
    sentences = [sentence for sentence in found if 30 < len(sentence) < 160 and sentence[0].isupper()]
    chance = random.Random(seed)  # noqa: S311
    return [
        " ".join(f"{chance.choice(sentences).rstrip('.')} ({chance.randrange(10**6)})." for _ in range(n_sentences))
        for _ in range(n)
    ]


def seconds_of(name: str, documents: list[str], queries: list[str], *, one_by_one: bool) -> tuple[float, list[str]]:
    """Return how long it takes to compress all documents with empty caches, and the results."""
    compressor: Compressor = kompakt.load(name)
    compressor.forget()
    began = time.perf_counter()
    if one_by_one:
        results = [
            kompakt.compress(document, query=query, keep=0.5, compressor=compressor)
            for document, query in zip(documents, queries, strict=True)
        ]
    else:
        results = kompakt.compress_batch(documents, queries=queries, keep=0.5, compressor=compressor)
    return time.perf_counter() - began, [result.text for result in results]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=300)
    parser.add_argument("--sentences", type=int, default=3)
    parser.add_argument("--compressors", nargs="+", default=["extractive", "selective-context"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    import torch

    torch.set_num_threads(args.threads)
    documents = short_documents(args.documents, args.sentences)
    queries = [QUESTIONS[index % len(QUESTIONS)] for index in range(len(documents))]
    print(
        f"{len(documents)} documents of {sum(map(len, documents)) / len(documents):.0f} characters, "
        f"{args.threads} thread(s)"
    )
    for name in args.compressors:
        seconds_of(name, documents[:20], queries[:20], one_by_one=True)
        turns = [
            (
                seconds_of(name, documents, queries, one_by_one=True),
                seconds_of(name, documents, queries, one_by_one=False),
            )
            for _ in range(args.repeats)
        ]
        alone, together = (median(turn[way][0] for turn in turns) for way in (0, 1))
        factors = [loop[0] / batch[0] for loop, batch in turns]
        n_different = sum(one != other for one, other in zip(turns[0][0][1], turns[0][1][1], strict=True))
        print(
            f"{name}: loop {len(documents) / alone:.1f} documents/s, batch {len(documents) / together:.1f}, "
            f"factor {median(factors):.2f} (from {min(factors):.2f} to {max(factors):.2f}), "
            f"{n_different} results differ"
        )


if __name__ == "__main__":
    main()
