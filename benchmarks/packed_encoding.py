"""Segments packed one behind the other against padded batches, on the ragged lengths of real documents.

    python benchmarks/packed_encoding.py [DATA_DIR] [--segments 200] [--repeats 5] [--threads 2]

The decoder is ``smollm2-135m`` with the adapter of an untrained ``compllm``. Two kinds of segments: passages (one a
document) and sentences. Each way encodes the same segments, in turns; the figures are medians.

* padded: transformers' forward pass of batches in the order that segments come in, filled up to the longest of each
  batch and masked, as most libraries do; of batches of 8 and 32 segments the faster counts;
* sorted: the same batches of segments that were sorted by length;
* packed: what ``hidden_states`` does for compressors.

DATA_DIR holds ``multidoc_*.jsonl.gz``; without it, the segments are this repository's pages, by paragraph.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from kompakt.compressor.models.causal_lm import load_causal_lm, tokenize
from kompakt.compressor.soft.decoder import body_of, embed, hidden_states
from kompakt.compressor.soft.lora import Lora, with_adapter
from kompakt.compressor.units.sentences import split_sentences

sys.path.insert(0, str(Path(__file__).resolve().parent))

from timing import medians

TARGET = 1.7
BATCHES = (8, 32)
LONGEST = 1024
"""Tokens of a segment; what is longer is cut off."""


def passages(folder: Path | None) -> list[str]:
    if folder is None:
        root = Path(__file__).resolve().parents[1]
        pages = [path.read_text(encoding="utf-8") for path in sorted(root.glob("docs/*.md"))]
        return [paragraph for page in pages for paragraph in page.split("\n\n") if paragraph.strip()]
    found = []
    for path in sorted(folder.glob("multidoc_*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            found.append([document["text"] for line in lines for document in json.loads(line)["docs"]])
    # some of each file, at even distances
    return [texts[rank * len(texts) // 200] for rank in range(200) for texts in found]


def sentences(texts: Sequence[str]) -> list[str]:
    return [text[start:end] for text in texts for start, end in split_sentences(text) if text[start:end].strip()]


def padded(body: PreTrainedModel, rows: Sequence[torch.Tensor], size: int) -> list[torch.Tensor]:
    states: list[torch.Tensor] = []
    for start in range(0, len(rows), size):
        batch = rows[start : start + size]
        lengths = torch.tensor([len(row) for row in batch])
        mask = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
        output = body(inputs_embeds=pad_sequence(list(batch), batch_first=True), attention_mask=mask, use_cache=False)
        states += [state[: len(row)] for state, row in zip(output.last_hidden_state, batch, strict=True)]
    return states


def compare(kind: str, body: PreTrainedModel, rows: list[torch.Tensor], repeats: int) -> None:
    ordered = sorted(rows, key=len)
    runs: dict[str, Callable[[], object]] = {"packed": lambda: hidden_states(body, rows, max_positions=LONGEST)}
    for size in BATCHES:
        runs[f"padded, {size}"] = lambda size=size: padded(body, rows, size)
        runs[f"sorted, {size}"] = lambda size=size: padded(body, ordered, size)
    with torch.no_grad():
        ours, theirs = torch.cat(hidden_states(body, rows, max_positions=LONGEST)), torch.cat(padded(body, rows, 16))
        error = float((ours.float() - theirs.float()).norm() / theirs.float().norm())
        taken = medians(runs, repeats)
    n_tokens = sum(map(len, rows))
    longest = max(map(len, rows))
    print(
        f"\n{len(rows)} {kind} of 1 to {longest} tokens, {n_tokens} in all; packed differs by {error:.3f} of the norm"
    )
    for name, seconds in taken.items():
        print(f"  {name:12} {n_tokens / seconds:8,.0f} tokens/s")
    for way in ("padded", "sorted"):
        best = min(seconds for name, seconds in taken.items() if name.startswith(way))
        ratio = best / taken["packed"]
        goal = f" ({'reaches' if ratio >= TARGET else 'MISSES'} {TARGET})" if way == "padded" else ""
        print(f"  packed against {way}: {ratio:.2f} x{goal}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, metavar="DATA_DIR")
    parser.add_argument("--segments", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    lm = load_causal_lm("smollm2-135m")
    body = with_adapter(body_of(lm), Lora(rank=16))
    texts = passages(args.folder)
    for kind, segments in (
        ("passages", texts[: args.segments // 4]),
        ("sentences", sentences(texts)[: args.segments]),
    ):
        tokens = [one.ids[:LONGEST] for one in tokenize(lm, segments) if len(one.ids)]
        compare(kind, body, [embed(lm, torch.from_numpy(ids)).detach() for ids in tokens], args.repeats)


if __name__ == "__main__":
    main()
