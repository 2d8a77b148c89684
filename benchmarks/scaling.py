"""Speed of the compressors that need no model on inputs of 10,000 to 1,000,000 tokens, and how it grows.

    python benchmarks/scaling.py --compressors lexical dedup --kinds prose logs

Prints, for each compressor and kind of text, tokens a second at each size and the exponent of the time, fitted by
least squares on both logarithms: 1 where twice the text takes twice as long. Texts are made from the documentation
and examples of this repository with a running number in each sentence, row, line or statement, so that no two are
equal. Times are of this process alone, the shortest of several runs at small sizes; tokenisation and the check of the
result are included.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import count, cycle
from pathlib import Path
from typing import Final

import numpy as np

import kompakt
from kompakt.compressor.base import Compressor
from kompakt.compressor.models.tokenizers import load_tokenizer
from kompakt.compressor.types import Document
from kompakt.compressor.units.sentences import split_sentences

QUERY: Final = "Why did the checkout service fail on 14 March, and who approved the fix?"
SIZES: Final = (10_000, 100_000, 1_000_000)
COMPRESSORS: Final = ("lexical", "structured", "dedup", "default", "mmr")
ROOT: Final = Path(__file__).resolve().parent.parent
DATA: Final = ROOT / "examples" / "data"
_PER_DOCUMENT: Final = 500
"""Tokens of each of several documents, about what a retriever returns."""


def load(name: str) -> Compressor:
    """Load a compressor by its name, without the model that it could use."""
    return kompakt.load(name, model="none") if name in ("default", "mmr") else kompakt.load(name)


def prose() -> Iterator[str]:
    """Paragraphs of four sentences."""
    found = numbered(sentences())
    while True:
        yield " ".join(next(found) for _ in range(4)) + "\n\n"


def markdown() -> Iterator[str]:
    """Sections with a heading, a paragraph and a list; every tenth with a table, every tenth with code."""
    found = numbered(sentences())
    for n in count():
        yield f"## Section {n}\n\n{next(found)} {next(found)}\n\n- {next(found)}\n- {next(found)}\n\n"
        if n % 10 == 3:
            yield f"| name | value |\n|---|---|\n| pool | {n} |\n| size | {n + 1} |\n\n"
        if n % 10 == 7:
            yield f"```python\ndef step_{n}(pool):\n    pool.open({n})\n    return pool\n```\n\n"


def documents() -> Iterator[str]:
    """What ``prose`` gives; see ``make``."""
    return prose()


def rows() -> Iterator[str]:
    """Rows of a JSON array."""
    for n, sentence in zip(count(), sentences(), strict=False):
        row = {"id": n, "status": "failed" if n % 997 == 0 else "ok", "ms": n * 37 % 400, "note": sentence[:80]}
        yield ("[" if n == 0 else ",\n") + json.dumps(row)


def json_lines() -> Iterator[str]:
    """Rows of JSON Lines."""
    for n, sentence in zip(count(), sentences(), strict=False):
        yield json.dumps({"id": n, "level": "info", "ms": n * 37 % 400, "message": sentence[:80]}) + "\n"


def logs() -> Iterator[str]:
    """Lines of a log, one a second."""
    lines = (DATA / "checkout.log").read_text("utf-8").splitlines()
    for n, line in zip(count(), cycle(lines), strict=False):
        clock = f"{n // 3600 % 24:02}:{n // 60 % 60:02}:{n % 60:02}"
        yield f"Mar {14 + n // 86_400} {clock}{line[15:]} #{n}\n"


def code() -> Iterator[str]:
    """Classes of Python with two methods each."""
    for n in count():
        yield f"class Pool{n}:\n"
        for verb in ("open", "close"):
            yield (
                f"    def {verb}_{n}(self, size: int) -> list[int]:\n"
                f"        if size > {n}:\n            raise ValueError(size)\n"
                f"        found = self.{verb}(size, timeout={n % 60})\n        return sorted(found)\n\n"
            )


def table() -> Iterator[str]:
    """Rows of a CSV file with a header."""
    yield "time_utc,orders,errors,p95_ms,pool_in_use,pool_size\n"
    for n in count():
        yield f"{n // 60 % 24:02}:{n % 60:02},{n},{n % 7},{200 + n % 90},{n % 41},40\n"


def chat() -> Iterator[str]:
    """Messages of a chat, user and assistant in turn."""
    found = numbered(sentences())
    for n in count():
        text = " ".join(next(found) for _ in range(8))
        message = {"role": ("user", "assistant")[n % 2], "content": text}
        yield ('{"messages": [' if n == 0 else ",\n") + json.dumps(message)


KINDS: Final[dict[str, Callable[[], Iterator[str]]]] = {
    "prose": prose, "documents": documents, "markdown": markdown, "json": rows, "jsonl": json_lines, "logs": logs,
    "code": code, "table": table, "chat": chat,
}  # fmt: skip
_ENDS: Final = {"json": "]", "chat": "]}"}


def sentences() -> Iterator[str]:
    """Return the sentences of the documentation and of the examples' prose, again and again."""
    files = [*sorted((ROOT / "docs").glob("*.md")), DATA / "postmortem.md", DATA / "handbook.md"]
    texts = [path.read_text("utf-8") for path in files]
    found = [" ".join(text[a:b].split()) for text in texts for a, b in split_sentences(text)]
    return cycle([one for one in found if 40 <= len(one) <= 300 and one.endswith(".") and one[0].isalpha()])


def numbered(found: Iterator[str]) -> Iterator[str]:
    """Give each sentence a number of its own."""
    for n, sentence in enumerate(found):
        yield f"{sentence[:-1]} in case {n}."


def make(kind: str, n_tokens: int) -> list[Document]:
    """Return text of a kind with at least ``n_tokens`` tokens, as one document, or as many for ``documents``."""
    tokenizer = load_tokenizer()
    found, used = [], 0
    for piece in KINDS[kind]():
        found.append(piece)
        used += tokenizer.count(piece)
        if used >= n_tokens:
            break
    if kind != "documents":
        return [Document("".join(found) + _ENDS.get(kind, ""))]
    size = -(-len(found) * _PER_DOCUMENT // used)
    return [Document("".join(found[start : start + size])) for start in range(0, len(found), size)]


def least_seconds(run: Callable[[], object], repeats: int) -> float:
    """Return the shortest time of this process over ``repeats`` runs."""
    seconds = []
    for _ in range(repeats):
        began = time.process_time()
        run()
        seconds.append(time.process_time() - began)
    return min(seconds)


def exponent(sizes: Sequence[int], seconds: Sequence[float]) -> float:
    """Return ``b`` of ``seconds = a * sizes ** b``, by least squares on the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def measure(name: str, texts: Sequence[list[Document]], repeats: Sequence[int]) -> list[float]:
    """Return the seconds that a compressor takes for each of several texts, nothing remembered of earlier runs."""
    compressor = load(name)

    def run(documents: list[Document]) -> None:
        compressor.forget()
        kompakt.compress(documents, query=QUERY, keep=0.25, compressor=compressor, on_error="raise")

    run(texts[0])
    return [least_seconds(lambda text=text: run(text), times) for text, times in zip(texts, repeats, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compressors", nargs="+", default=COMPRESSORS)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES)
    args = parser.parse_args()
    repeats = [3 if size <= 100_000 else 1 for size in args.sizes]
    for kind in args.kinds:
        texts = [make(kind, size) for size in args.sizes]
        for name in args.compressors:
            seconds = measure(name, texts, repeats)
            rates = "  ".join(f"{size / s:10,.0f}" for size, s in zip(args.sizes, seconds, strict=True))
            print(f"{kind:10} {name:12} {rates}  tokens/s  exponent {exponent(args.sizes, seconds):.2f}", flush=True)


if __name__ == "__main__":
    main()
