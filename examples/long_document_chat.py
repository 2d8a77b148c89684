"""A chat about a document that is longer than what the decoder reads at once: a cache for each question.

    python examples/long_document_chat.py                          # what is in examples/data, as one document
    python examples/long_document_chat.py REPORT.txt --ask "Who paid?" --ask "When?"

Finch reads the document in chunks before each question, and keeps the keys and values of the positions that the
question attends to; the model answers from these alone. The caches lie in the file that ``--store`` names, so that a
question that was asked before reads nothing. Needs the extra local and the model smollm2-135m, which is too small to
answer well: name a larger one on your machine with ``--model``.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import kompakt
from kompakt.adapters.transformers import TransformersBackend
from kompakt.compressor.backend import Prompt

DATA = Path(__file__).parent / "data"
FILES = ("handbook.md", "kundenservice.txt", "checkout.log", "pool.py", "checkout_metrics.csv", "postmortem.md")
QUESTIONS = (
    "Who approves emergency changes?",
    "What did the incident do to customers?",
    "Who approves emergency changes?",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", type=Path, help="a text; without it what is in examples/data")
    parser.add_argument("--ask", action="append", metavar="QUESTION", help="may be given several times")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--positions", type=int, default=1024, help="positions that remain of the document")
    parser.add_argument("--store", help="a file for the caches; a temporary one without it")
    args = parser.parse_args()

    files = [args.file] if args.file else [DATA / name for name in FILES]
    document = "\n\n".join(path.read_text(encoding="utf-8") for path in files)
    reader = TransformersBackend(args.model)
    finch = kompakt.load("finch", decoder=args.model)
    store = args.store or str(Path(tempfile.mkdtemp()) / "caches.sqlite")
    n_tokens = reader.tokenizer.count(document)
    print(f"{n_tokens} tokens, of which {args.model} reads {reader.max_positions} at once")
    print()

    history = ""
    pipeline = kompakt.Pipeline([finch], tokenizer=reader.tokenizer, store=store)
    for question in args.ask or QUESTIONS:
        small = pipeline.compress(document, query=question, max_tokens=args.positions)
        prompt = Prompt(small.parts, after=f"\n\n{history}{question} Answer in one sentence.", stop="\n")
        made = reader.generate(prompt, max_new_tokens=48)
        trace = small.trace[-1]
        origin = "found in the store" if trace.cache_hits else f"made in {trace.seconds:.1f} s"
        megabytes = small.n_bytes / 1e6
        print(f"> {question}")
        print(made.text)
        print(
            f"  [{small.tokens_after} of {small.tokens_before} positions, {megabytes:.0f} MB of keys and values "
            f"{origin}; first word after {made.seconds_to_first:.2f} s]"
        )
        print()
        history += f"{question}\n{made.text}\n\n"
    pipeline.close()


if __name__ == "__main__":
    main()
