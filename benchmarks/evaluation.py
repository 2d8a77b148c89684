"""Every text compressor of kompakt, the controls and the peers, on every task, in one run with one reader.

    python benchmarks/peers/make_environments.py PEERS_DIR
    python benchmarks/evaluation.py DATA_DIR --output RUN_DIR --peers PEERS_DIR

DATA_DIR holds the files that docs/evaluation.md describes. A run that was interrupted goes on if it is started again
with the same options; ``--only`` runs some of the methods, and a later call adds the others to the same folder.
LLMLingua, LongLLMLingua and Selective Context take seconds for a thousand tokens on a CPU: ``--slow-limit`` gives
them fewer examples. The quality numbers depend on the seed alone, the seconds on the machine.
"""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "peers"))

from peers import PEERS, Peer

from kompakt.compressor.cli_eval import table
from kompakt.compressor.evaluation.evaluate import Settings, evaluate
from kompakt.compressor.evaluation.output import write_outputs
from kompakt.compressor.evaluation.runner import Contender
from kompakt.compressor.registry import compressor_names

SLOW = ("llmlingua", "longllmlingua", "selective-context-0.1.4")
MAX_CONTEXT = {"long-document-qa": 4000, "needle": 2000}
"""Tasks that make no sense on short contexts."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--peers", type=Path, help="the folder that make_environments.py filled")
    parser.add_argument("--only", nargs="+", help="methods to run; the others' rows stay as they are")
    parser.add_argument("--tasks", nargs="+", default=[])
    parser.add_argument("--limit", type=int, default=40)
    parser.add_argument("--reader-limit", type=int, default=8)
    parser.add_argument("--slow-limit", type=int, default=None, help="examples of a task for the slow peers")
    parser.add_argument("--max-context", type=int, default=700)
    parser.add_argument("--reader", default="smollm2-135m")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    settings = Settings(
        output=args.output,
        data=args.data,
        tasks=tuple(args.tasks),
        compressors=tuple(name for name in compressor_names() if args.only is None or name in args.only),
        limit=args.limit,
        reader=None if args.reader == "none" else args.reader,
        reader_limit=args.reader_limit,
        reader_positions=4096,
        max_context=args.max_context or None,
        max_context_of=MAX_CONTEXT if args.max_context else {},
        seed=args.seed,
    )
    last = 0.0

    def show(done: int, total: int, label: str) -> None:
        nonlocal last
        if time.monotonic() - last > 10:
            last = time.monotonic()
            print(f"{done} of {total}: {label}", file=sys.stderr, flush=True)

    with ExitStack() as open_peers:
        contenders = [
            Contender(
                open_peers.enter_context(Peer(spec, args.peers)),
                role="peer",
                note=spec.note,
                limit=args.slow_limit if name in SLOW else None,
            )
            for name, spec in (PEERS.items() if args.peers else ())
            if args.only is None or name in args.only
        ]
        done = evaluate(settings, contenders=contenders, on_progress=show)
    write_outputs(done.summary, done.folder)
    from kompakt.compressor import cli_render

    cli_render.show(table(done.summary))


if __name__ == "__main__":
    main()
