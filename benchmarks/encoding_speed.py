"""Sentence embeddings against sentence-transformers, and a batch of requests against one call after another.

    python benchmarks/encoding_speed.py [DATA_DIR] [--threads 2] [--repeats 5] [--only a|b]

a. `extractive`, everything from text to text, against `SentenceTransformer(folder).encode` of the same units and
   query alone, with its defaults: target 2.0.
b. `default` on many requests of several documents and a question: `kompakt.compress_batch` of all against a loop
   over `kompakt.compress`: target 2.5. Results that differ between the two ways are counted. The same for requests
   of one document of three sentences, which leave processors idle when they come alone.

DATA_DIR holds `multidoc_*.jsonl.gz` with lines of `{"question", "docs": [{"title", "text"}]}`; without it, documents
are made of the sentences of the examples. The two sides take turns, caches are emptied before each, and each ratio is
that of the medians. Seconds of the processor stand beside those of the clock: other programs disturb them less. "Of
which embedding" is kompakt's own encoder alone on the same texts. Needs `sentence-transformers`.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import kompakt
from kompakt import Document
from kompakt.compressor.base import Compressor
from kompakt.compressor.models.locate import model_path
from kompakt.compressor.models.sentence_encoder import load_sentence_encoder
from kompakt.compressor.models.tokenizers import load_tokenizer
from kompakt.compressor.units.segment import segment
from kompakt.compressor.units.sentences import split_sentences

Result = TypeVar("Result")

ROOT = Path(__file__).resolve().parents[1]
MODEL = "minilm-l6"
KEEP = 0.25
QUERY = "What is kept when the budget is small, and who decides?"
TARGET_EXTRACTIVE = 2.0
TARGET_BATCH = 2.5


@dataclass(frozen=True)
class Case:
    """A question with the documents that it is asked about."""

    name: str
    query: str
    documents: list[Document]


def read_cases(folder: Path, n: int) -> list[Case]:
    """Return requests from the files of a folder in turns, so that each file has its share."""
    files = sorted(folder.glob("multidoc_*.jsonl.gz"))
    if not files:
        raise SystemExit(f"{folder} has no multidoc_*.jsonl.gz")
    rows = [[json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()] for path in files]
    mixed = [row for turn in itertools.zip_longest(*rows) for row in turn if row is not None][:n]
    return [
        Case(
            f"{len(row['docs'])} documents",
            row["question"],
            [Document(doc["text"], metadata={"title": doc["title"]}) for doc in row["docs"]],
        )
        for row in mixed
    ]


def made_cases(n: int, n_documents: int = 20, n_sentences: int = 5, seed: int = 0) -> list[Case]:
    """Return requests made of the sentences of the examples; a number in each makes it unlike any other."""
    texts = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "examples" / "data").glob("*.md"))]
    found = [text[start:end].strip() for text in texts for start, end in split_sentences(text)]
    sentences = [sentence for sentence in found if 30 < len(sentence) < 160 and sentence[0].isupper()]
    chance = random.Random(seed)  # noqa: S311

    def made() -> Document:
        chosen = (chance.choice(sentences).rstrip(".") for _ in range(n_sentences))
        return Document(" ".join(f"{sentence} ({chance.randrange(10**6)})." for sentence in chosen))

    return [
        Case(
            f"{n_documents} documents" if n_documents > 1 else "one document",
            f"Who approved change {index}?",
            [made() for _ in range(n_documents)],
        )
        for index in range(n)
    ]


def long_case(n_tokens: int) -> Case:
    """Return the documentation of this repository, up to a number of tokens."""
    files = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    text = "\n\n".join(path.read_text(encoding="utf-8") for path in files)
    ranges = split_sentences(text)
    counts = load_tokenizer().count_batch([text[start:end] for start, end in ranges])
    reached = itertools.accumulate(counts)
    end = next((end for (_, end), so_far in zip(ranges, reached, strict=True) if so_far >= n_tokens), len(text))
    return Case("one text", QUERY, [Document(text[:end])])


@dataclass(frozen=True)
class Seconds:
    """What a call takes by the clock and of all processors together."""

    clock: float
    processor: float


def timed(run: Callable[[], Result], compressor: Compressor) -> tuple[Seconds, Result]:
    compressor.forget()
    clock, processor = time.perf_counter(), time.process_time()
    result = run()
    return Seconds(time.perf_counter() - clock, time.process_time() - processor), result


def median(several: Sequence[Seconds]) -> Seconds:
    return Seconds(*(statistics.median(getattr(one, name) for one in several) for name in ("clock", "processor")))


def ratios(slow: Seconds, fast: Seconds, target: float) -> str:
    ratio = slow.clock / fast.clock
    verdict = "ok" if ratio >= target else f"below {target}"
    return f"{ratio:6.2f} {slow.processor / fast.processor:13.2f}  {verdict}"


def compare_encoding(cases: Sequence[Case], repeats: int) -> None:
    from sentence_transformers import SentenceTransformer

    rival = SentenceTransformer(str(model_path(MODEL)))
    own = load_sentence_encoder(MODEL)
    compressor = kompakt.load("extractive")
    number_format = str(next(rival.parameters()).dtype).removeprefix("torch.")
    print(f"a. extractive against SentenceTransformer.encode in {number_format}, target {TARGET_EXTRACTIVE}")
    print(
        f"{'':14} {'units':>6} {'tokens':>7} {'extractive s':>13} {'of which embedding':>19} {'tokens/s':>9} "
        f"{'encode s':>9} {'tokens/s':>9} {'ratio':>6} {'of processor':>13}"
    )
    for case in cases:
        texts = [case.query, *(unit.text for unit in segment(case.documents))]
        n_tokens = sum(map(len, own.tokenizer.encode_batch_fast(texts)))
        runs: tuple[Callable[[], object], ...] = (
            partial(compressor.compress, case.documents, query=case.query, keep=KEEP),
            partial(own.encode, texts),
            partial(rival.encode, texts),
        )
        turns = [[timed(run, compressor)[0] for run in runs] for _ in range(repeats + 1)][1:]
        whole, embedding, other = map(median, zip(*turns, strict=True))
        print(
            f"{case.name:14} {len(texts) - 1:6} {n_tokens:7} {whole.clock:13.3f} {embedding.clock:19.3f} "
            f"{n_tokens / embedding.clock:9,.0f} {other.clock:9.3f} {n_tokens / other.clock:9,.0f} "
            f"{ratios(other, whole, TARGET_EXTRACTIVE)}"
        )


def compare_batch(several: Sequence[Sequence[Case]], repeats: int) -> None:
    compressor = kompakt.load("default")
    print(f"b. default, batch against loop, target {TARGET_BATCH}")
    print(f"{'':14} {'requests':>9} {'loop s':>8} {'batch s':>8} {'differ':>7} {'ratio':>6} {'of processor':>13}")
    for cases in several:
        one_by_one, together = partial(in_loop, cases, compressor), partial(in_batch, cases, compressor)
        in_loop(cases[:5], compressor)
        turns = [(timed(one_by_one, compressor), timed(together, compressor)) for _ in range(repeats)]
        loop, batch = (median([turn[way][0] for turn in turns]) for way in (0, 1))
        n_different = sum(one != other for one, other in zip(turns[0][0][1], turns[0][1][1], strict=True))
        print(
            f"{cases[0].name:14} {len(cases):9} {loop.clock:8.3f} {batch.clock:8.3f} {n_different:7} "
            f"{ratios(loop, batch, TARGET_BATCH)}"
        )


def in_loop(cases: Sequence[Case], compressor: Compressor) -> list[str]:
    return [
        kompakt.compress(case.documents, query=case.query, keep=KEEP, compressor=compressor).text for case in cases
    ]


def in_batch(cases: Sequence[Case], compressor: Compressor) -> list[str]:
    contexts, queries = [case.documents for case in cases], [case.query for case in cases]
    results = kompakt.compress_batch(contexts, queries=queries, keep=KEEP, compressor=compressor)
    return [result.text for result in results]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?", metavar="DATA_DIR")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--requests", type=int, default=100)
    parser.add_argument("--only", choices=("a", "b"))
    args = parser.parse_args()
    import torch

    torch.set_num_threads(args.threads)
    cases = read_cases(args.data, args.requests) if args.data else made_cases(args.requests)
    print(f"{args.threads} thread(s), medians of {args.repeats}, keep={KEEP}")
    if args.only != "b":
        compare_encoding([*cases[:4], long_case(1_500), long_case(10_000)], args.repeats)
    if args.only != "a":
        short = made_cases(3 * args.requests, n_documents=1, n_sentences=3)
        compare_batch([cases, short], args.repeats)


if __name__ == "__main__":
    main()
