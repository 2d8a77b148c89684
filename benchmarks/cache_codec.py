"""What key-value caches take and cost as bytes: every precision, against the exact cache and computing it again.

    python benchmarks/cache_codec.py [--model smollm2-135m] [--tokens 1000] [--following 256] [--windows 3]

Contexts are windows of the project's own documentation. Of each, the model's cache is written and read back, and the
text that follows is read behind it: ``nats`` is the mean loss of its tokens' log-likelihood against the exact cache,
``KL`` the mean divergence of the model's predictions from those behind it. ``times`` is how many times smaller than
bf16 the bytes are, ``keys`` and ``values`` the root of the mean squared error, divided by that of the numbers.

Seconds are medians, of the first window: to encode; to decode; to open a store's file, look the cache up and decode
it; and, above the table, to compute it again from its tokens. ``faster`` is the last of these over the one before.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch

from kompakt.compressor.cache.cache_gen import CacheCodec, cache_codec
from kompakt.compressor.models.causal_lm import CausalLM, load_causal_lm
from kompakt.compressor.models.key_value_caches import cache_argument, new_cache
from kompakt.compressor.store.places import open_store

ROOT = Path(__file__).resolve().parents[1]
KEY = bytes(32)


@dataclass(frozen=True)
class Window:
    """A context's cache ``[2, L, H_kv, n, D_head]``, the tokens behind it, and their exact predictions."""

    cache: torch.Tensor
    following: list[int]
    exact: torch.Tensor


def timed(run: Callable[[], Any], repeats: int) -> tuple[Any, float]:
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        result = run()
        seconds.append(time.perf_counter() - began)
    return result, median(seconds)


def cache_of(lm: CausalLM, ids: list[int]) -> torch.Tensor:
    cache = new_cache()
    with torch.inference_mode():
        lm.model.base_model(torch.tensor([ids]), **cache_argument(lm.model.base_model, cache), use_cache=True)
        layers: list[Any] = list(cache.layers)
        return torch.stack([torch.cat([getattr(layer, side) for layer in layers]) for side in ("keys", "values")])


def predictions(lm: CausalLM, tensor: torch.Tensor, following: list[int]) -> torch.Tensor:
    """Return the log-probabilities of what comes after each of the tokens but the last, ``[n - 1, V]``."""
    cache = new_cache()
    for layer, (keys, values) in enumerate(zip(*tensor, strict=True)):
        cache.update(keys[None], values[None], layer)
    with torch.inference_mode():
        logits = lm.model(torch.tensor([following]), **cache_argument(lm.model, cache), use_cache=True).logits
        return logits[0, :-1].float().log_softmax(-1)


def windows(lm: CausalLM, n_tokens: int, n_following: int, n_windows: int) -> Iterator[tuple[list[int], list[int]]]:
    """Yield contexts and what follows them, no passage twice."""
    text = "\n\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md")))
    ids = lm.tokenizer.encode(text, add_special_tokens=False).ids
    stride = len(ids) // n_windows
    if stride < n_tokens + n_following:
        raise SystemExit(f"the documentation has {len(ids)} tokens, too few for {n_windows} windows")
    for start in range(0, stride * n_windows, stride):
        middle = start + n_tokens - 1
        yield [lm.prefix_id, *ids[start:middle]], ids[middle : middle + n_following]


def relative_error(exact: torch.Tensor, found: torch.Tensor) -> float:
    return float((found.double() - exact.double()).norm() / exact.double().norm())


def effect(lm: CausalLM, window: Window, found: torch.Tensor) -> tuple[float, float]:
    """Return the nats that a following token loses, and the divergence of what is predicted."""
    read = predictions(lm, found, window.following)
    targets = torch.tensor(window.following[1:])[:, None]
    lost = (window.exact - read).gather(1, targets).mean()
    return float(lost), float((window.exact.exp() * (window.exact - read)).sum(-1).mean())


def from_store(path: Path, decode: Callable[[bytes], torch.Tensor]) -> torch.Tensor:
    with open_store(path) as store:
        (data,) = store.get_many([KEY])
    assert data is not None
    return decode(data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--tokens", type=int, default=1000)
    parser.add_argument("--following", type=int, default=256)
    parser.add_argument("--windows", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    lm = load_causal_lm(args.model)
    texts = list(windows(lm, args.tokens, args.following, args.windows))
    made = []
    for context, following in texts:
        cache = cache_of(lm, context)
        made.append(Window(cache, following, predictions(lm, cache, following)))
    _, recomputing = timed(lambda: cache_of(lm, texts[0][0]), args.repeats)
    n_numbers = made[0].cache.numel()
    print(
        f"{args.model}, {lm.dtype}, {args.threads} threads: {args.tokens} positions, {n_numbers / 1e6:.2f}M numbers, "
        f"{2 * n_numbers / 1e6:.1f} MB in bf16; computing them takes {recomputing:.3f} s"
    )
    titles = ("MB", "bits", "times", "keys", "values", "nats", "KL", "encode", "decode", "store", "faster")
    print(f"{'precision':16}" + "".join(f"{title:>8}" for title in titles))
    codecs = {name: cache_codec(name) for name in ("full", "int8", "int4")}
    codecs |= {f"cachegen {level}": CacheCodec(level) for level in ("fine", "medium", "coarse")}
    with tempfile.TemporaryDirectory() as folder:
        for name, codec in codecs.items():
            data, encoding = timed(lambda codec=codec: codec.encode(made[0].cache), args.repeats)
            _, decoding = timed(lambda codec=codec, data=data: codec.decode(data), args.repeats)
            path = Path(folder) / f"{name}.sqlite"
            with open_store(path) as store:
                store.put_many({KEY: data})
            _, loading = timed(lambda path=path, codec=codec: from_store(path, codec.decode), args.repeats)
            found = [codec.decode(codec.encode(window.cache)) for window in made]
            keys, values = (
                fmean(relative_error(window.cache[side], one[side]) for window, one in zip(made, found, strict=True))
                for side in (0, 1)
            )
            effects = [effect(lm, window, one) for window, one in zip(made, found, strict=True)]
            nats, divergence = (fmean(column) for column in zip(*effects, strict=True))
            print(
                f"{name:16}{len(data) / 1e6:8.2f}{8 * len(data) / n_numbers:8.2f}{2 * n_numbers / len(data):8.2f}"
                f"{keys:8.4f}{values:8.4f}{nats:8.4f}{divergence:8.4f}"
                f"{encoding:8.3f}{decoding:8.3f}{loading:8.3f}{recomputing / loading:8.1f}"
            )


if __name__ == "__main__":
    main()
