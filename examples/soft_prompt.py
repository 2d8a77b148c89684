"""Five questions about one document that is compressed once: full text against embeddings from the store.

    python examples/soft_prompt.py                                      # examples/data/handbook.md, untrained weights
    python examples/soft_prompt.py REPORT.txt --checkpoint WEIGHTS      # with a checkpoint of CompLLM

The vectors lie in the file that ``--store`` names, so that a second run compresses nothing. Without a checkpoint the
compressor's weights are untrained: positions and seconds are those of trained ones, but no answer can be expected.
Needs the extra local and the model smollm2-135m.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import kompakt
from kompakt.adapters.transformers import TransformersBackend
from kompakt.compressor.backend import Prompt
from kompakt.compressor.types import Part

DOCUMENT = Path(__file__).parent / "data" / "handbook.md"
QUESTIONS = (
    "Who approves emergency changes?",
    "When are changes frozen?",
    "Who is on call at night?",
    "What is a severity one incident?",
    "How long are logs kept?",
)


def ask(reader: TransformersBackend, parts: tuple[Part, ...], question: str) -> tuple[str, float, int]:
    prompt = Prompt(parts, after=f"\n\n{question} Answer in a few words.", stop="\n")
    made = reader.generate(prompt, max_new_tokens=24)
    return made.text, made.seconds_to_first, made.n_positions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", type=Path, default=DOCUMENT)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--checkpoint", help="a folder of weights; untrained ones without it")
    parser.add_argument("--keep", type=float, default=0.25, help="the fraction of positions that remains")
    parser.add_argument("--store", help="a file for the vectors; a temporary one without it")
    args = parser.parse_args()

    reader = TransformersBackend(args.model)
    encoder = kompakt.load("compllm", base=args.model, checkpoint=args.checkpoint)
    store = args.store or str(Path(tempfile.mkdtemp()) / "vectors.sqlite")
    pipeline = kompakt.Pipeline([encoder], tokenizer=reader.tokenizer, store=store)
    text = args.file.read_text(encoding="utf-8")

    began = time.perf_counter()
    first = pipeline.compress(text, keep=args.keep)
    cold = time.perf_counter() - began
    print(f"{args.file.name}: {first.tokens_before} tokens, {first.tokens_after} positions as vectors")
    weights = first.trace[0].note or "trained weights"
    print(f"compressed in {cold:.2f} s, {first.trace[0].cache_misses} segments encoded, {weights}")
    print()

    full = kompakt.compress(text, keep=1.0, tokenizer=reader.tokenizer)
    print(f"{'question':36} {'full text':>28} {'vectors from the store':>28}")
    for question in QUESTIONS:
        answer, seconds, positions = ask(reader, full.parts, question)
        began = time.perf_counter()
        known = pipeline.compress(text, keep=args.keep)
        lookup = time.perf_counter() - began
        soft_answer, soft_seconds, soft_positions = ask(reader, known.parts, question)
        print(
            f"{question:36} {positions:>12} positions {seconds:5.2f} s "
            f"{soft_positions:>12} positions {lookup + soft_seconds:5.2f} s"
        )
        print(f"    full text: {answer}")
        print(f"    vectors:   {soft_answer}")
    pipeline.close()


if __name__ == "__main__":
    main()
