"""kompakt's cache methods and kvpress' versions of them: answers, seconds and memory at equal numbers of positions.

    kompakt models pull smollm2-135m
    python benchmarks/peers/make_environments.py PEERS_DIR kvpress
    python benchmarks/cache_quality.py DATA_DIR --output ROWS.csv --peers PEERS_DIR

DATA_DIR holds ``niah_built``, ``longdoc_main`` and ``kv_retrieval`` as ``.jsonl`` or ``.jsonl.gz``. Each question is
asked of the same model, in the same tokens, number format and number of threads: kompakt here, kvpress in its own
environment in another process. Only one of them computes at a time; they take turns on each question, and who begins
changes from one to the next. After a short warm-up each run is: the context is read and compressed (timed), the
question and the answer's beginning are read behind it and a greedy answer is written (timed), and, untimed, the
log-likelihood of a token of the right answer is computed.

kompakt is given the question. kvpress is asked twice: with the question ``seen`` behind the context, as its own
query-aware evaluation does, and ``unseen``, as its pipeline does. Its FINCH cannot do without; Expected Attention
uses no question on either side. It has no GemFilter. Both hold the same number of positions when the answer is asked
for. Controls: the full context on both sides, no context, and positions by lot.

Peak memory is the resident set of the process, counted anew for each run; ``more MiB`` in the tables is what it grew
by. A run that was interrupted goes on if it is started again with the same options; ``--only-tables`` computes
nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent / "peers"))

from cache_examples import TASKS, chosen_examples
from cache_runs import Kompakt, Kvpress, Measurement, Run, blocks, in_turns
from cache_tables import Row, Rows, tables
from peers import CACHE_PEERS, Peer

from kompakt.compressor.evaluation.example import Example, TaskSettings
from kompakt.compressor.evaluation.stamp import stamp
from kompakt.compressor.models.tokenizers import load_tokenizer
from kompakt.compressor.types import Document

METHODS = ("snapkv", "finch", "gemfilter", "expected-attention")
WARM_UP = Example(
    "warm-up",
    "warm-up",
    (Document("Ada wrote the first program. It ran on paper, years before there was a machine. " * 10, id="0"),),
    question="Who wrote the first program?",
    answers=("Ada",),
)


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--output", type=Path, required=True, help="the rows, to which new ones are added")
    parser.add_argument(
        "--peers", type=Path, help="the folder that make_environments.py filled; without, kompakt alone"
    )
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--keeps", nargs="+", type=float, default=[0.5, 0.25, 0.1])
    parser.add_argument("--limit", type=int, default=20, help="questions of a task")
    parser.add_argument("--max-context", type=int, default=2000, help="the most tokens of a context")
    parser.add_argument("--max-new-tokens", type=int, default=24)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only-tables", action="store_true")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> None:
    args = arguments(given)
    # read by libraries of either process when they start
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    rows = Rows(args.output, settings_of(args))
    if not args.only_tables:
        compute(args, rows)
    print(tables(rows.mine(), seed=args.seed))


def settings_of(args: argparse.Namespace) -> str:
    """Return what must be equal for rows to be compared."""
    names = ("model", "dtype", "threads", "max_context", "max_new_tokens", "seed")
    return " ".join(f"{name}={getattr(args, name)}" for name in names)


def compute(args: argparse.Namespace, rows: Rows) -> None:
    """Compute the rows that are not there yet."""
    settings = TaskSettings(load_tokenizer(args.model), args.max_context, args.seed)
    examples = {task: chosen_examples(args.data, task, settings, args.limit) for task in args.tasks}
    planned = blocks(args.methods, args.keeps, with_kvpress=args.peers is not None)
    total = sum(map(len, planned)) * sum(map(len, examples.values()))
    with ExitStack() as open_peers:
        ours = Kompakt(args.model, args.dtype, args.threads, args.seed, args.max_new_tokens)
        theirs = None
        if args.peers is not None:
            spec = dataclasses.replace(
                CACHE_PEERS["kvpress"], arguments=(args.dtype, str(args.threads)), models=(args.model,)
            )
            theirs = Kvpress(open_peers.enter_context(Peer(spec, args.peers)), ours, args.max_new_tokens)
        bench = _Bench(ours, theirs)
        bench.warm_up(planned)
        place = stamp()
        done = 0
        for task, chosen in examples.items():
            for index, example in enumerate(chosen):
                for run in in_turns(planned, index):
                    done += 1
                    if rows.has(task, example.id, run):
                        continue
                    rows.add(_row(rows.settings, task, example, run, bench.measure(run, example), place))
                    print(f"{done} of {total}: {task} {example.id} {run.label}", file=sys.stderr, flush=True)


@dataclasses.dataclass(frozen=True)
class _Bench:
    ours: Kompakt
    theirs: Kvpress | None

    def measure(self, run: Run, example: Example) -> Measurement:
        tool = self.theirs if run.tool == "kvpress" else self.ours
        assert tool is not None
        return tool.measure(run, example)

    def warm_up(self, planned: Sequence[Sequence[Run]]) -> None:
        """Run each method once on a short context, so that no row pays for what is loaded on demand."""
        first = {(run.tool, run.method, run.mode): run for block in planned for run in block}
        for run in first.values():
            self.measure(run, WARM_UP)


def _row(settings: str, task: str, example: Example, run: Run, made: Measurement, place: dict[str, str]) -> Row:
    kept = {"kompakt": "kompakt", "torch": "torch", "transformers": "transformers", "commit": "commit"}
    own = ", ".join(f"{label} {place[name]}" for name, label in kept.items() if name in place)
    return Row(
        date=datetime.now(UTC).strftime("%Y-%m-%d"),
        device=place["processor"],
        versions=made.versions or own,
        settings=settings,
        task=task,
        example=example.id,
        group=example.group or example.id,
        tool=run.tool,
        method=run.method,
        mode=run.mode,
        keep=run.keep,
        n_context=made.n_context,
        n_kept=made.n_kept,
        n_held=made.n_held,
        log_likelihood=made.log_likelihood,
        recall=float(says(made.answer, example.answers)),
        answer=json.dumps(made.answer, ensure_ascii=False),
        n_steps=made.n_steps,
        compress_seconds=made.compress_seconds,
        answer_seconds=made.answer_seconds,
        base_mib=made.base_mib,
        peak_mib=made.peak_mib,
    )


def says(answer: str, wanted: Sequence[str]) -> bool:
    """Return whether a right answer stands in what was said, letter by letter but for case and white space."""
    said = _plain(answer)
    return any(_plain(one) in said for one in wanted)


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


if __name__ == "__main__":
    main()
