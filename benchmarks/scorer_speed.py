"""How fast token surprisals are made, against what the machine's matrix products allow; and the smaller scorer.

    python benchmarks/scorer_speed.py [DATA_DIR] [--tokens 8192] [--repeats 5] [--threads 2] [--window 1024]

In one run, medians of ``--repeats`` turns: transformers' own forward pass with all logits (``bare``), the scorer of
``selective-context`` with ``smollm2-135m`` and with ``surprisal-lite``. The limit is what the products of the layers
and of the output layer would take at the bf16 speed of a product of 2048 x 2048 x 2048, and nothing else. Where the
time goes is read from torch's profiler.

With DATA_DIR, a folder of ``*.jsonl.gz`` whose rows hold texts, ``surprisal-lite`` is compared with the full model on
texts of each file: Spearman's correlation of tokens, and of phrases. Without it, texts are this repository's pages.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr

from kompakt.compressor.models.causal_lm import output_layer, tokenize
from kompakt.compressor.models.noun_chunks import noun_chunks, split_phrases
from kompakt.compressor.models.scorers import recent_scorer
from kompakt.compressor.models.self_information import Scorer, self_information
from kompakt.compressor.text.selective_context import information_recipe, unit_information

sys.path.insert(0, str(Path(__file__).resolve().parent))

from limits import matmul_flops
from timing import medians

FULL, LITE = "smollm2-135m", "surprisal-lite"
TARGET_OF_LIMIT, TARGET_SPEED, TARGET_SPEARMAN = 0.85, 3.0, 0.95
CHARACTERS = 4000
"""Of each text."""


def pages() -> dict[str, list[str]]:
    root = Path(__file__).resolve().parents[1]
    return {"pages": [path.read_text(encoding="utf-8") for path in sorted(root.rglob("docs/*.md"))]}


def texts_of(folder: Path, n_texts: int) -> dict[str, list[str]]:
    """Return some texts of each file, at even distances."""
    found = {}
    for path in sorted(folder.glob("*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            texts = [text for line in lines for text in strings(json.loads(line)) if len(text) > 200]
        step = max(1, len(texts) // n_texts)
        found[path.name.removesuffix(".jsonl.gz")] = [text[:CHARACTERS] for text in texts[::step][:n_texts]]
    return {name: texts for name, texts in found.items() if texts}


def strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from strings(one)


def bare(scorer: Scorer, ids: np.ndarray, window: int) -> None:
    with torch.inference_mode():
        for row in torch.from_numpy(ids)[None].split(window, dim=1):
            logits = scorer.lm.model(row, use_cache=False).logits[0].float()
            logits.log_softmax(dim=-1).gather(1, row[0][:, None]).sum().item()


def flops_of_products(scorer: Scorer) -> float:
    """Arithmetic of the layers and the output layer for one token."""
    body = scorer.lm.model.base_model
    weights = sum(
        value.numel() for name, value in body.named_parameters() if ".layers." in f".{name}" and value.ndim == 2
    )
    return 2.0 * (weights + output_layer(scorer.lm.model).weight.numel())


def shares(run: Callable[[], object]) -> list[tuple[str, float]]:
    kinds = {
        "products of layers": ("mkldnn::_linear_pointwise", "aten::addmm"),
        "products of the output layer": ("aten::mm",),
        "attention": ("aten::_scaled_dot_product_flash_attention_for_cpu",),
        "sums of exponentials": (
            "aten::exp_",
            "aten::exp",
            "aten::sum",
            "aten::amax",
            "aten::_log_softmax",
            "aten::logsumexp",
        ),
    }
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run()
    by_name = {one.key: one.self_cpu_time_total for one in profile.key_averages()}
    total = sum(by_name.values())
    found = {kind: sum(by_name.get(name, 0.0) for name in names) / total for kind, names in kinds.items()}
    return [*found.items(), ("normalising, rotating, copying and the rest", 1 - sum(found.values()))]


def speed(args: argparse.Namespace) -> None:
    scorers = {name: recent_scorer(name) for name in (FULL, LITE)}
    full = scorers[FULL]
    text = "\n\n".join(text for texts in corpus(args).values() for text in texts)
    (tokens,) = tokenize(full.lm, [text])
    ids = np.resize(tokens.ids, args.tokens)
    runs: dict[str, Callable[[], object]] = {"bare": lambda: bare(full, ids, args.window)}
    for name, scorer in scorers.items():
        window = min(args.window, scorer.longest)
        runs[name] = lambda scorer=scorer, window=window: self_information(scorer, [ids], window=window, overlap=0)
    taken = medians(runs, args.repeats)
    products = matmul_flops(torch.bfloat16, 2048, 2048, 2048)
    limit = products / flops_of_products(full)
    print(f"{args.tokens} tokens in windows of {args.window}, {full.lm.dtype}, {torch.get_num_threads()} threads")
    print(f"bf16 products: {products / 1e9:,.0f} GFLOP/s, which would be {limit:,.0f} tokens/s and nothing else")
    for name, seconds in taken.items():
        rate = args.tokens / seconds
        of_bare = taken["bare"] / seconds
        print(f"{name:16} {rate:8,.0f} tokens/s  {rate / limit:5.2f} of the limit  {of_bare:5.2f} x bare")
    verdict("full model of the limit", args.tokens / taken[FULL] / limit, TARGET_OF_LIMIT)
    verdict("surprisal-lite against the full model", taken[FULL] / taken[LITE], TARGET_SPEED)
    print("\nwhere the time of the full model goes:")
    for kind, share in shares(runs[FULL]):
        print(f"  {kind:45} {share:5.1%}")


def agreement(args: argparse.Namespace) -> None:
    scorers = [recent_scorer(name) for name in (FULL, LITE)]
    recipes = [information_recipe(scorer, context="document") for scorer in scorers]
    print("\nSpearman's correlation of surprisal-lite with the full model")
    print(f"{'file':24} {'tokens':>7} {'of tokens':>10} {'of phrases':>11}")
    everything: list[tuple[np.ndarray, np.ndarray]] = []
    for name, texts in corpus(args).items():
        full, lite = (recipe.compute(texts) for recipe in recipes)
        of_tokens = [np.concatenate([one.nats for one in several]) for several in (full, lite)]
        of_phrases = [phrase_scores(texts, several) for several in (full, lite)]
        everything.append((of_tokens[0], of_tokens[1]))
        print(
            f"{name:24} {len(of_tokens[0]):7} {spearmanr(*of_tokens).statistic:10.4f} "
            f"{spearmanr(*of_phrases).statistic:11.4f}"
        )
    whole = spearmanr(*(np.concatenate(several) for several in zip(*everything, strict=True))).statistic
    verdict("Spearman over all tokens", float(whole), TARGET_SPEARMAN)


def phrase_scores(texts: Sequence[str], information: Sequence[object]) -> np.ndarray:
    cut = [split_phrases(text, chunks) for text, chunks in zip(texts, noun_chunks(texts), strict=True)]
    scores = [unit_information(text, ranges, one) for text, ranges, one in zip(texts, cut, information, strict=True)]
    return np.concatenate(scores)


def corpus(args: argparse.Namespace) -> dict[str, list[str]]:
    return texts_of(args.folder, args.texts) if args.folder else pages()


def verdict(what: str, value: float, target: float) -> None:
    print(f"{what}: {value:.3f} ({'reaches' if value >= target else 'MISSES'} {target})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, metavar="DATA_DIR")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--window", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--texts", type=int, default=20, help="texts of each file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    speed(args)
    agreement(args)


if __name__ == "__main__":
    main()
