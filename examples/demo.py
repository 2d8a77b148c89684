"""Compress seven documents about an incident to the answer of one question, and check every offset.

make demo        (or: python examples/demo.py)
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

import kompakt
from kompakt.compressor.models.locate import model_path
from kompakt.compressor.models.pull import pull
from kompakt.compressor.models.tokenizers import load_tokenizer

DATA = Path(__file__).parent / "data"
QUESTION = "Why did the checkout service fail on 14 March and who approved the fix?"
MAX_TOKENS = 800
MODELS = ("minilm-l6",)
WRITTEN_BY_KOMPAKT = ("omission", "separator")

Piece = tuple[kompakt.Span, str]


def main() -> int:
    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 110)
    pull_models(console)
    began = time.perf_counter()
    kompakt.compress("Load the model. Then forget it.", query="load", max_tokens=4)
    loaded = time.perf_counter()
    documents = read_documents()
    result = kompakt.compress(documents, query=QUESTION, max_tokens=MAX_TOKENS)
    seconds = time.perf_counter() - loaded
    pieces = merged(kept_pieces(result))
    show_pieces(console, pieces)
    show_counts(console, result, seconds, loading=loaded - began)
    wrong = [
        span for span, text in kept_pieces(result) + pieces if read(span.document_id)[span.start : span.end] != text
    ]
    verdict = (
        "all point at exactly that text" if not wrong else f"{len(wrong)} DO NOT point at that text: {wrong[:3]}"
    )
    console.print(f"Offsets checked against the files on disk: {len(pieces)} ranges, {verdict}.")
    return 1 if wrong else 0


def read_documents() -> list[kompakt.Document]:
    names = sorted(path.name for path in DATA.iterdir() if path.name != "README.md")
    return [kompakt.Document(read(name), id=name, metadata={"path": name}) for name in names]


def read(name: str) -> str:
    return (DATA / name).read_bytes().decode("utf-8")


def pull_models(console: Console) -> None:
    for name in MODELS:
        try:
            model_path(name)
        except kompakt.ModelNotFoundError:
            console.print(f"Pulling the model {name} (once) ...")
            try:
                pull(name)
            except kompakt.DownloadError as error:
                console.print(f"{error}\nGoing on without it: prose is ranked by its words alone.")


def kept_pieces(result: kompakt.Compressed) -> list[Piece]:
    """Return every verbatim piece of the result's text with the source range that it claims."""
    pieces = []
    for part in result.parts:
        bounds = [*part.starts, len(part.text)]
        pieces.extend((span, part.text[a:b]) for span, a, b in zip(part.spans, bounds, bounds[1:], strict=False))
    return [(span, text) for span, text in pieces if span.kind not in WRITTEN_BY_KOMPAKT]


def merged(pieces: list[Piece]) -> list[Piece]:
    """Join pieces that touch in their source."""
    joined: list[Piece] = []
    for span, text in pieces:
        last = joined[-1] if joined else None
        if last and last[0].document_id == span.document_id and last[0].end == span.start:
            whole = kompakt.Span(span.document_id, last[0].start, span.end, last[0].kind, last[0].protected)
            joined[-1] = (whole, last[1] + text)
        else:
            joined.append((span, text))
    return joined


def show_pieces(console: Console, pieces: list[Piece]) -> None:
    console.print(Text(QUESTION, style="bold"))
    name = None
    for span, text in pieces:
        if span.document_id != name:
            name = span.document_id
            console.print(Text(f"\n{name}", style="bold cyan"))
        if any(map(str.isalnum, text)):
            line = Text(f"  [{span.start}:{span.end}] ", style="dim")
            console.print(line.append(" ".join(text.split()), style="not dim"))
    console.print()


def show_counts(console: Console, result: kompakt.Compressed, seconds: float, loading: float) -> None:
    count = load_tokenizer().count
    after = {document.id: count(document.text) for document in result.documents}
    table = Table("document", box=None, pad_edge=False)
    for title in ("tokens before", "tokens after"):
        table.add_column(title, justify="right")
    for source in result.sources:
        table.add_row(source.id, f"{count(source.text):,}", f"{after.get(source.id, 0):,}")
    table.add_row("together", f"{result.tokens_before:,}", f"{result.tokens_after:,}", style="bold")
    console.print(table)
    share = result.tokens_after / result.tokens_before
    counts = f"{result.tokens_before:,} -> {result.tokens_after:,} tokens ({share:.1%} kept, budget {MAX_TOKENS})"
    console.print(
        f"\n{result.outcome.status}: {counts} in {seconds:.2f} s, after {loading:.1f} s for loading the model."
    )
    for trace in result.trace:
        if trace.note:
            console.print(f"{trace.stage}: {trace.note}")


if __name__ == "__main__":
    sys.exit(main())
