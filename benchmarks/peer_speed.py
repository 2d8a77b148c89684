"""`selective-context` against LLMLingua and Selective Context on the same SmolLM2, in one run.

    python benchmarks/peers/make_environments.py PEERS_DIR llmlingua selective-context-0.1.4
    python benchmarks/peer_speed.py PEERS_DIR [DATA_DIR] [--contexts 5] [--tokens 4000] [--keep 0.5] [--threads 2]

Each context is another text, so that nobody is asked the same twice; kompakt and the peers take turns. Times are
those of a call: kompakt's from text to checked text, tokens counted; a peer's own call alone, warmed up. LLMLingua
has its weights in bf16, which is faster than its default; Selective Context has them in fp32, as it loads them.

DATA_DIR holds ``*.jsonl.gz``; without it, texts are this repository's pages.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch

import kompakt
from kompakt.compressor.base import Compressor
from kompakt.compressor.models.tokenizers import load_tokenizer

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE / "peers")]

from peers import PEERS, Peer  # noqa: E402
from scorer_speed import pages, texts_of  # noqa: E402

TARGETS = {"llmlingua": 8.0, "selective-context-0.1.4": 6.0}
MODELS = ("smollm2-135m", "surprisal-lite")
TOKENIZER = "smollm2-135m"


def contexts(args: argparse.Namespace) -> list[str]:
    """Return texts of about the tokens asked for, each joined from other pieces."""
    found = texts_of(args.data, 60) if args.data else pages()
    pieces = [piece for rank in range(60) for texts in found.values() for piece in texts[rank : rank + 1]]
    tokenizer = load_tokenizer(TOKENIZER)
    joined: list[str] = []
    current = ""
    for piece in pieces:
        current = f"{current}\n\n{piece}" if current else piece
        if tokenizer.count(current) >= args.tokens:
            joined.append(current)
            current = ""
    if len(joined) < args.contexts:
        raise SystemExit(f"the texts give {len(joined)} contexts of {args.tokens} tokens; {args.contexts} are wanted")
    return joined[: args.contexts]


def rate_of(compressor: Compressor, text: str, keep: float) -> float:
    """Return tokens a second."""
    began = time.perf_counter()
    result = compressor.compress(text, keep=keep, tokenizer=TOKENIZER)
    seconds = result.trace[0].seconds if isinstance(compressor, Peer) else time.perf_counter() - began
    return result.tokens_before / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peers", type=Path, metavar="PEERS_DIR")
    parser.add_argument("data", nargs="?", type=Path, metavar="DATA_DIR")
    parser.add_argument("--contexts", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=4000)
    parser.add_argument("--keep", type=float, default=0.5)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    ours = {f"kompakt, {model}": kompakt.load("selective-context", model=model) for model in MODELS}
    theirs = {name: Peer(PEERS[name], args.peers) for name in TARGETS}
    everyone: dict[str, Compressor] = {**ours, **theirs}
    texts = contexts(args)
    for compressor in everyone.values():
        compressor.compress(texts[0][:2000], keep=args.keep, tokenizer=TOKENIZER)
    rates: dict[str, list[float]] = {name: [] for name in everyone}
    for text in texts:
        for name, compressor in everyone.items():
            compressor.forget()
            rates[name].append(rate_of(compressor, text, args.keep))
    for peer in theirs.values():
        peer.close()
    print(f"{len(texts)} contexts of {args.tokens} tokens or little more, keep={args.keep}, {args.threads} threads")
    for name, several in rates.items():
        print(f"{name:28} {statistics.median(several):8,.0f} tokens/s")
    for name in ours:
        for peer, target in TARGETS.items():
            ratio = statistics.median(a / b for a, b in zip(rates[name], rates[peer], strict=True))
            print(f"{name} against {peer}: {ratio:.1f} x ({'reaches' if ratio >= target else 'MISSES'} {target:g})")


if __name__ == "__main__":
    main()
