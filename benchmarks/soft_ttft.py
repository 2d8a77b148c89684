"""Time to the first token: full text against embeddings that are made now and embeddings from the store.

    python benchmarks/soft_ttft.py [--compressor compllm] [--tokens 1000 2000 4000 8000] [--rates 2 4 8]

For each length of context, the same model answers a short question: from the full text; from vectors, compressing
included (cold: nothing is stored); and from vectors that a store file holds, looking up included. The three are timed
in turns in one process, after a warm-up, and the medians compared. Weights are untrained unless ``--checkpoint``
names some, which changes answers but not times. Beside the seconds stand the positions that context and question
take and the bytes of keys and values there. How the encoding time grows is measured apart, with nothing between, the
lengths in turns: the exponent is the slope of the logarithms.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import kompakt
from kompakt.adapters.transformers import TransformersBackend
from kompakt.compressor.backend import Prompt
from kompakt.compressor.results import joined_text
from kompakt.compressor.types import Document, Part, as_documents

ROOT = Path(__file__).resolve().parents[1]
QUESTION = "\n\nWhat is this text about?"


@dataclass(frozen=True)
class Measured:
    seconds: float
    positions: int


def context_of(n_tokens: int, reader: TransformersBackend) -> str:
    """Return the first tokens of the project's own documentation, no passage twice."""
    texts = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))]
    ids = reader._lm.tokenizer.encode("\n\n".join(texts), add_special_tokens=False).ids
    if len(ids) < n_tokens:
        raise SystemExit(f"the documentation has {len(ids)} tokens, fewer than {n_tokens}")
    return str(reader._lm.tokenizer.decode(ids[:n_tokens]))


def answered(reader: TransformersBackend, parts: tuple[Part, ...]) -> tuple[float, int]:
    made = reader.generate(Prompt(parts, after=QUESTION), max_new_tokens=1)
    return made.seconds_to_first, made.n_positions


def from_text(reader: TransformersBackend, text: str) -> Measured:
    documents: tuple[Document, ...] = as_documents(text)
    whole = kompakt.compress(joined_text(documents), keep=1.0, tokenizer=reader.tokenizer)
    seconds, positions = answered(reader, whole.parts)
    return Measured(seconds, positions)


def from_vectors(
    reader: TransformersBackend, encoder: kompakt.Compressor, text: str, rate: int, store: str
) -> Measured:
    """Time looking up or encoding, and reading; the store's file is opened anew, as by another process."""
    pipeline = kompakt.Pipeline([encoder], tokenizer=reader.tokenizer, store=store)
    began = time.perf_counter()
    result = pipeline.compress(text, keep=1 / rate)
    compressing = time.perf_counter() - began
    seconds, positions = answered(reader, result.parts)
    pipeline.close()
    return Measured(compressing + seconds, positions)


def encoding_times(
    reader: TransformersBackend, encoder: kompakt.Compressor, lengths: list[int], rate: int, repeats: int
) -> list[tuple[int, float]]:
    """Time compressing alone, nothing stored; the median of each length."""
    texts = {n_tokens: context_of(n_tokens, reader) for n_tokens in lengths}
    rounds = []
    # the first round fills what is kept between calls, and is not counted
    for _ in range(repeats + 1):
        seconds = {}
        for n_tokens, text in texts.items():
            encoder.forget()
            began = time.perf_counter()
            encoder.compress(text, keep=1 / rate, tokenizer=reader.tokenizer)
            seconds[n_tokens] = time.perf_counter() - began
        rounds.append(seconds)
    return [(n_tokens, median(one[n_tokens] for one in rounds[1:])) for n_tokens in lengths]


def exponent(points: list[tuple[int, float]]) -> float:
    """Return the slope of log seconds over log tokens, by least squares."""
    xs, ys = ([math.log(point[axis]) for point in points] for axis in (0, 1))
    x_mean, y_mean = sum(xs) / len(xs), sum(ys) / len(ys)
    spread = sum((x - x_mean) ** 2 for x in xs)
    return sum((x - x_mean) * (y - y_mean) for x, y in zip(xs, ys, strict=True)) / spread


def bytes_per_position(reader: TransformersBackend) -> int:
    config = reader._lm.model.config
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
    return 2 * config.num_hidden_layers * heads * width * reader._lm.model.dtype.itemsize


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--compressor", default="compllm")
    parser.add_argument("--checkpoint")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1000, 2000, 4000, 8000])
    # below two thousand tokens, the last batch is most of the work and not full
    parser.add_argument("--encoding-tokens", type=int, nargs="+", default=[2000, 4000, 8000, 16000])
    parser.add_argument("--rates", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    import torch

    torch.set_num_threads(args.threads)
    reader = TransformersBackend(args.model)
    size = bytes_per_position(reader)
    encoders = {
        # the coarser rate is for the few segments whose length the rate does not divide
        rate: kompakt.load(args.compressor, base=args.model, checkpoint=args.checkpoint, rates=(rate, 2 * rate))
        for rate in args.rates
    }
    print(f"{args.compressor} on {args.model}, {reader.fingerprint.split()[-1]}, {args.threads} threads")
    titles = ("tokens", "rate", "full s", "cold s", "store s", "cold x", "store x", "positions", "cache MB")
    print("{:>6} {:>4} {:>7} {:>7} {:>8} {:>6} {:>7} {:>12} {:>14}".format(*titles))
    with tempfile.TemporaryDirectory() as folder:
        warm = str(Path(folder) / "warm-up.sqlite")
        from_vectors(reader, encoders[args.rates[0]], context_of(500, reader), args.rates[0], warm)
        from_text(reader, context_of(500, reader))
        for n_tokens in args.tokens:
            text = context_of(n_tokens, reader)
            rounds = []
            for turn in range(args.repeats):
                full = from_text(reader, text)
                row = {}
                for rate, encoder in encoders.items():
                    store = str(Path(folder) / f"{n_tokens}-{rate}-{turn}.sqlite")
                    cold = from_vectors(reader, encoder, text, rate, store)
                    row[rate] = full, cold, from_vectors(reader, encoder, text, rate, store)
                rounds.append(row)
            for rate in args.rates:
                full, cold, stored = ([one[rate][way] for one in rounds] for way in range(3))
                seconds = [median(one.seconds for one in way) for way in (full, cold, stored)]
                places = f"{full[0].positions} > {stored[0].positions}"
                megabytes = f"{full[0].positions * size / 1e6:.0f} > {stored[0].positions * size / 1e6:.0f}"
                print(
                    f"{n_tokens:>6} {rate:>4} {seconds[0]:7.2f} {seconds[1]:7.2f} {seconds[2]:8.2f} "
                    f"{seconds[0] / seconds[1]:6.2f} {seconds[0] / seconds[2]:7.2f} {places:>12} {megabytes:>14}"
                )
    for rate, encoder in encoders.items():
        points = encoding_times(reader, encoder, args.encoding_tokens, rate, args.repeats)
        told = ", ".join(f"{seconds:.2f} s for {n_tokens}" for n_tokens, seconds in points)
        print(f"encoding at rate {rate}: {told} tokens; exponent {exponent(points):.3f}")


if __name__ == "__main__":
    main()
