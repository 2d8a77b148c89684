"""Answer recall: the share of questions for which a gold answer string stands in the compressed context.

    python benchmarks/answer_recall.py DATA_DIR --compressor default --keep 0.25 0.10

DATA_DIR holds the nine sets as gzip'd JSON lines. Every set is read whole, or its first ``--limit`` questions of
an order that a fixed hash shuffles.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import kompakt
from kompakt.compressor.base import make_request
from kompakt.compressor.registry import load
from kompakt.compressor.units.json_tree import is_json

SETS = (
    "multidoc_nq", "multidoc_squad", "multidoc_hotpotqa", "multidoc_musique", "rag_tatqa",
    "longdoc_main", "niah_built", "kv_retrieval", "agent_local_tools",
)  # fmt: skip


@dataclass(frozen=True)
class Example:
    id: str
    documents: tuple[kompakt.Document, ...]
    question: str
    answers: tuple[str, ...]


def read(path: Path) -> Iterator[dict]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def examples(data: Path, name: str) -> Iterator[Example]:
    for row in read(data / f"{name}.jsonl.gz"):
        if name.startswith(("multidoc", "rag")):
            documents = tuple(
                kompakt.Document(f"{doc['title']}\n\n{doc['text']}", id=str(i), metadata={"title": doc["title"]})
                for i, doc in enumerate(row["docs"])
            )
            yield Example(row["id"], documents, row["question"], tuple(row["answers"]))
        elif name.startswith("longdoc"):
            document = (kompakt.Document(row["document"], id=row["id"]),)
            for item in row["questions"]:
                if item.get("answer_type") == "extractive":
                    yield Example(item["id"], document, item["question"], tuple(item["answers"]))
        elif name.startswith("niah"):
            yield Example(
                row["id"], (kompakt.Document(row["context"], id="0"),), row["question"], tuple(row["answers"])
            )
        elif name.startswith("kv"):
            text = json.dumps(dict(row["records"]), indent=1)
            key = row["records"][row["gold_index"]][0]
            question = f'Extract the value of the key "{key}" from the JSON object.'
            yield Example(row["id"], (kompakt.Document(text, id="0"),), question, (row["value"],))
        else:
            documents = tuple(transcript(row["messages"]))
            for item in row["questions"]:
                yield Example(item["id"], documents, item["question"], tuple(item["answers"]))


def transcript(messages: list[dict]) -> Iterator[kompakt.Document]:
    """Tool outputs, each titled with the command that made it, as an agent's context holds them."""
    calls = {
        call["id"]: next(iter(json.loads(call["function"]["arguments"]).values()), "")
        for message in messages
        for call in message.get("tool_calls") or ()
    }
    for message in messages:
        if message["role"] == "tool":
            command = str(calls.get(message["tool_call_id"], ""))
            yield kompakt.Document(message["content"], id=message["tool_call_id"], metadata={"title": command})


def has_answer(text: str, answers: tuple[str, ...]) -> bool:
    return any(answer in text for answer in answers)


def answerable(data: Path, name: str, limit: int, part: str) -> list[Example]:
    """The questions with an answer in their full context, in hashed order; ``part`` is a half of them or all."""
    found = [ex for ex in examples(data, name) if has_answer("\n\n".join(d.text for d in ex.documents), ex.answers)]
    found.sort(key=lambda ex: hashlib.sha256(ex.id.encode()).hexdigest())
    if part != "all":
        found = [
            ex for ex in found if (hashlib.sha256(b"half" + ex.id.encode()).digest()[0] % 2 == 0) == (part == "a")
        ]
    return found[:limit] if limit else found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--compressor", nargs="+", default=["default"])
    parser.add_argument("--keep", type=float, nargs="+", default=[0.25, 0.10])
    parser.add_argument("--sets", nargs="+", default=SETS)
    parser.add_argument("--limit", type=int, default=0, help="questions a set; 0 reads all")
    parser.add_argument("--part", choices=("a", "b", "all"), default="all")
    parser.add_argument("--tokenizer", default="smollm2-135m")
    parser.add_argument("--misses", type=Path, help="write the missed questions here, one a line")
    args = parser.parse_args()
    misses = args.misses.open("w") if args.misses else None
    for compressor_name in args.compressor:
        compressor = load(compressor_name)
        means: dict[float, list[float]] = {keep: [] for keep in args.keep}
        overshoots = json_documents = json_broken = 0
        for name in args.sets:
            chosen = answerable(args.data, name, args.limit, args.part)
            began, tokens, cells = time.perf_counter(), 0, []
            for keep in args.keep:
                hits, used = 0, []
                for ex in chosen:
                    request = make_request(
                        ex.documents, query=ex.question, budget=kompakt.Budget(keep=keep), tokenizer=args.tokenizer
                    )
                    result = compressor.compress_batch([request])[0]
                    ceiling = request.budget.resolve(result.tokens_before)
                    overshoots += result.tokens_after > ceiling
                    used.append(result.tokens_after / ceiling)
                    hit = has_answer(result.text, ex.answers)
                    hits += hit
                    tokens += result.tokens_before
                    if misses and not hit:
                        misses.write(
                            json.dumps({"set": name, "keep": keep, "id": ex.id, "q": ex.question, "a": ex.answers})
                            + "\n"
                        )
                    sources = {source.id: source.text for source in ex.documents}
                    for document in result.documents:
                        if is_json(sources[document.id]):
                            json_documents += 1
                            json_broken += not is_json(document.text)
                means[keep].append(hits / len(chosen))
                cells.append(f"{hits / len(chosen):.3f} (uses {statistics.fmean(used):.0%}, least {min(used):.0%})")
            speed = tokens / (time.perf_counter() - began)
            print(
                f"{compressor_name:12} {name:20} n={len(chosen):4}  " + "  ".join(cells) + f"  {speed:,.0f} tok/s",
                flush=True,
            )
        summary = "  ".join(f"keep {keep}: {statistics.fmean(values):.4f}" for keep, values in means.items())
        promises = f"overshoots {overshoots}  broken JSON {json_broken} of {json_documents}"
        print(f"{compressor_name:12} MEAN  {summary}  {promises}")


if __name__ == "__main__":
    main()
