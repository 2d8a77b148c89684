"""The tables of docs/benchmarks.md, from the committed summary or another one.

python benchmarks/read_out.py [SUMMARY_JSON] [--table NAME]
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path

COMMITTED = Path(__file__).resolve().parent / "results" / "summary.json.gz"
KEEPS = (0.5, 0.25, 0.1)


class Run:
    """A summary, with its cells by task, method and budget."""

    def __init__(self, path: Path) -> None:
        data = path.read_bytes()
        self.data = json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)
        self.roles = {method["name"]: method["role"] for method in self.data["methods"]}
        self.cells = {(cell["task"], cell["method"], cell["keep"]): cell for cell in self.data["cells"]}
        self.tasks = [task["name"] for task in self.data["tasks"]]

    def methods(self, *roles: str) -> list[str]:
        return [name for role in roles for name, of in self.roles.items() if of == role]

    def estimate(self, task: str, method: str, keep: float, metric: str) -> dict | None:
        cell = self.cells.get((task, method, keep))
        return cell and cell["estimates"].get(metric)


def with_interval(found: dict | None) -> str:
    return f"{found['mean']:.3f} [{found['low']:.2f}, {found['high']:.2f}]" if found else ""


def plain(found: dict | None) -> str:
    return f"{found['mean']:.3f}" if found else ""


def markdown(heading: list[str], rows: list[list[str]]) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def recall(run: Run) -> str:
    """Answer recall, mean over the tasks that have answers, with the share of tokens really kept."""
    rows = []
    for method in run.methods("control", "kompakt", "peer"):
        line = [f"`{method}`"]
        for keep in KEEPS:
            cell = run.cells[("", method, keep)]
            line.append(f"{with_interval(cell['estimates'].get('answer_recall'))}, {cell['kept']:.0%}")
        rows.append(line)
    return markdown(["method", *(f"keep {keep:g}" for keep in KEEPS)], rows)


def by_task(run: Run) -> str:
    """Answer recall at keep 0.25 by task."""
    tasks = [task for task in run.tasks if run.estimate(task, "full", 1.0, "answer_recall")]
    rows = [
        [f"`{method}`", *(plain(run.estimate(task, method, 0.25, "answer_recall")) for task in tasks)]
        for method in run.methods("control", "kompakt", "peer")
    ]
    return markdown(["method", *(task.replace("-", " ") for task in tasks)], rows)


def reader(run: Run) -> str:
    """What the reader makes of it: log-likelihood of the right answer at each budget, and F1 at keep 0.25."""
    rows = []
    for method, keeps in (("full", [1.0] * 3), ("none", [0.0] * 3)):
        found = [run.estimate("", method, keep, "log_likelihood") for keep in keeps]
        f1 = run.estimate("", method, keeps[0], "f1")
        rows.append([f"`{method}`", with_interval(found[0]), "", "", plain(f1)])
    for method in run.methods("control", "kompakt", "peer"):
        found = [run.estimate("", method, keep, "log_likelihood") for keep in KEEPS]
        rows.append([f"`{method}`", *map(with_interval, found), plain(run.estimate("", method, 0.25, "f1"))])
    return markdown(["method", *(f"keep {keep:g}" for keep in KEEPS), "F1 at keep 0.25"], rows)


def promises(run: Run) -> str:
    """Results over the budget, broken structure, altered facts, over all tasks and budgets."""
    rows = []
    for method in run.methods("control", "kompakt", "peer"):
        cells = [run.cells[("", method, keep)] for keep in KEEPS]
        n, over, invalid, checked, failed = (
            sum(cell[name] for cell in cells) for name in ("n", "n_over_budget", "n_invalid", "n_checked", "n_failed")
        )
        unaltered = run.estimate("", method, 0.25, "unaltered")
        rows.append([f"`{method}`", str(n), str(over), f"{invalid} of {checked}", plain(unaltered), str(failed)])
    return markdown(
        ["method", "results", "over budget", "broken JSON or code", "unaltered, keep 0.25", "failed"], rows
    )


def speed(run: Run) -> str:
    """Median seconds of one compression at the largest budget, by task, in this run."""
    rows = []
    for method in run.methods("control", "kompakt", "peer"):
        seconds = [run.cells.get((task, method, 0.5), {}).get("seconds") for task in run.tasks]
        rows.append([f"`{method}`", *("" if value is None else f"{value:.3f}" for value in seconds)])
    return markdown(["method", *(task.replace("-", " ") for task in run.tasks)], rows)


def differences(run: Run) -> str:
    """``default`` less each rival, paired, mean over tasks, at keep 0.25."""
    rows = []
    for peer in run.methods("peer"):
        line = [f"`{peer}`"]
        for metric in ("answer_recall", "log_likelihood", "f1"):
            found = next((one["estimate"] for one in chosen(run, peer, metric)), None)
            line.append("" if found is None else f"{found['mean']:+.3f} [{found['low']:+.2f}, {found['high']:+.2f}]")
        rows.append(line)
    return markdown(["`default` less", "answer recall", "log-likelihood", "F1"], rows)


def chosen(run: Run, peer: str, metric: str) -> Iterator[dict]:
    for one in run.data["differences"]:
        where = (one["task"], one["method"], one["against"], one["keep"], one["metric"])
        if where == ("", "default", peer, 0.25, metric):
            yield one


TABLES: dict[str, Callable[[Run], str]] = {
    table.__name__: table for table in (recall, by_task, differences, reader, promises, speed)
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("summary", type=Path, nargs="?", default=COMMITTED)
    parser.add_argument("--table", choices=sorted(TABLES))
    args = parser.parse_args()
    run = Run(args.summary)
    for name, table in TABLES.items():
        if args.table in (None, name):
            print(f"{table.__doc__}\n\n{table(run)}\n")


if __name__ == "__main__":
    main()
