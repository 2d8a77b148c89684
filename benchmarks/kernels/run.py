"""Every operation of kompakt.kernels: checked against its definition, timed, and set beside the machine's limits.

    python benchmarks/kernels/run.py [OP ...] [--device cpu|cuda] [--threads N] [--repeats 5] [--output FILE.csv]

Without names all operations run; a name is that of a file beside this one. Each is timed as KOMPAKT_KERNELS chooses
it: the reference, and what ``auto`` takes; Triton only on a GPU, since its interpreter's time means nothing. What
differs from the reference is named and not timed, and the exit code is then 1.

The fraction of the limit is the time that this machine needs at least, by its matrix products (2048 cubed) or by its
copies, whichever is longer, over the time that was measured. Both limits are measured first. A fraction above 1
means that the inputs fit in a processor's caches.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import datetime
import importlib
import importlib.metadata
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias, get_args

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from cases import Case
from limits import copy_bandwidth, device_name, matmul_flops
from timing import Timing, block, calls_per_block

from kompakt.kernels.dispatch import VARIABLE, KernelUnavailableError, Setting

HERE = Path(__file__).resolve().parent
NOT_OPERATIONS = ("cases", "run")


@dataclasses.dataclass(frozen=True)
class Limits:
    """What the machine was measured to do: operations a second, and bytes a second."""

    fp32: float
    bf16: float
    copy: float

    @classmethod
    def measured(cls, device: torch.device, repeats: int) -> Limits:
        fp32, bf16 = (
            matmul_flops(dtype, 2048, 2048, 2048, device=device, repeats=repeats)
            for dtype in (torch.float32, torch.bfloat16)
        )
        return cls(fp32, bf16, copy_bandwidth(device=device, repeats=repeats))

    def flops(self, dtype: torch.dtype) -> float:
        return self.bf16 if dtype in (torch.bfloat16, torch.float16) else self.fp32


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the results; rates in 1e9 a second."""

    operation: str
    size: str
    dtype: str
    implementation: str
    median_seconds: float
    spread: float
    gflops: float
    gbytes: float
    fraction_of_limit: float
    bound_by: str
    limit_gflops: float
    limit_gbytes: float

    @classmethod
    def of(cls, case: Case, implementation: str, timing: Timing, limits: Limits) -> Row:
        needed = {"arithmetic": case.flops / limits.flops(case.dtype), "memory": case.n_bytes / limits.copy}
        bound = max(needed, key=needed.__getitem__)
        return cls(
            operation=case.operation,
            size=case.size,
            dtype=str(case.dtype).removeprefix("torch."),
            implementation=implementation,
            median_seconds=timing.median,
            spread=timing.spread,
            gflops=case.flops / timing.median / 1e9,
            gbytes=case.n_bytes / timing.median / 1e9,
            fraction_of_limit=needed[bound] / timing.median,
            bound_by=bound,
            limit_gflops=limits.flops(case.dtype) / 1e9,
            limit_gbytes=limits.copy / 1e9,
        )


Stamp: TypeAlias = dict[str, str | int]


def stamp(device: torch.device) -> Stamp:
    """Return where and with what the rows were made."""
    return {
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        **{name: version(name) for name in ("torch", "triton", "kompakt")},
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit(),
    }


def version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def commit() -> str:
    """Return the commit, ``-dirty`` behind it if kernels or cases are not committed; nothing outside a repository."""
    name = git("rev-parse", "--short=12", "HEAD")
    is_dirty = bool(git("status", "--porcelain", "--", ".", "../../kernels"))
    return f"{name}-dirty" if name and is_dirty else name


def git(*arguments: str) -> str:
    command = ["git", "--no-optional-locks", *arguments]
    try:
        told = subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return told.stdout.strip() if told.returncode == 0 else ""


def operations(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.py") if path.stem not in NOT_OPERATIONS)


def settings(device: torch.device) -> list[str]:
    # on a CPU the automatic choice is torch
    return [name for name in get_args(Setting) if name not in ("torch", "triton") or device.type == "cuda"]


@contextmanager
def chosen(setting: str) -> Iterator[None]:
    """Let KOMPAKT_KERNELS be ``setting`` for a while."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = setting
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before


def fault(made: torch.Tensor, expected: torch.Tensor, tolerance: float) -> str:
    """Return what is wrong with a result, or nothing."""
    if made.shape != expected.shape:
        return f"has shape {list(made.shape)}, and the reference {list(expected.shape)}"
    if not expected.numel():
        return ""
    ours, theirs = made.double(), expected.double()
    # equal first: infinities have no difference
    differences = torch.where(ours == theirs, 0.0, (ours - theirs).abs())
    scale = theirs[theirs.isfinite()].square().mean().sqrt()
    worst = float(differences.max())
    allowed = tolerance * float(scale)
    # not "worst > allowed", which NaN would pass
    return "" if worst <= allowed else f"differs from the reference by {worst:.3g}, allowed are {allowed:.3g}"


def passing(case: Case, device: torch.device) -> tuple[list[str], list[str]]:
    """Return the settings under which a case agrees with its reference, and what the others do."""
    good, faults = [], []
    expected = case.reference()
    for setting in settings(device):
        name = f"{case.operation} {case.size} {case.dtype} {VARIABLE}={setting}"
        try:
            with chosen(setting):
                wrong = fault(case.call(), expected, case.tolerance)
        except KernelUnavailableError as error:
            print(f"left out: {name}: {error}", file=sys.stderr)
            continue
        except Exception as error:
            wrong = f"raises {type(error).__name__}: {error}"
        if wrong:
            faults.append(f"{name} {wrong}")
        else:
            good.append(setting)
    return good, faults


def timings(case: Case, names: Sequence[str], device: torch.device, repeats: int) -> dict[str, Timing]:
    """Time a case under each setting, one after the other and round after round: what slows a machine slows all."""
    sizes, samples = {}, {name: [] for name in names}
    for name in names:
        with chosen(name):
            sizes[name] = calls_per_block(case.call, device)
    for _ in range(repeats):
        for name in names:
            with chosen(name):
                samples[name].append(block(case.call, sizes[name], device))
    return {name: Timing.of(values) for name, values in samples.items()}


def show(row: Row) -> None:
    print(
        f"{row.operation:<22} {row.size:<44} {row.dtype:<9} {row.implementation:<10} "
        f"{row.median_seconds * 1e6:11.1f} {row.spread:7.1%} {row.gflops:9.1f} {row.gbytes:8.2f} "
        f"{row.fraction_of_limit:6.3f} {row.bound_by}",
        flush=True,
    )


def write(path: Path, rows: Sequence[Row], where: Stamp) -> None:
    fields = [field.name for field in dataclasses.fields(Row)]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [*fields, *where], lineterminator="\n")
        writer.writeheader()
        writer.writerows(dataclasses.asdict(row) | where for row in rows)


def arguments(argv: Sequence[str] | None, known: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="OP", help=f"of {', '.join(known)}")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="threads of a CPU; torch's choice by default")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, help="a CSV file, written anew")
    args = parser.parse_args(argv)
    unknown = [name for name in args.names if name not in known]
    if unknown:
        parser.error(f"no operation is called {', '.join(unknown)}; there are {', '.join(known)}")
    if args.repeats < 1 or (args.threads is not None and args.threads < 1):
        parser.error("--repeats and --threads must be above 0")
    return args


def main(argv: Sequence[str] | None = None, folder: Path = HERE) -> int:
    known = operations(folder)
    args = arguments(argv, known)
    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    where = stamp(device)
    print(", ".join(f"{name} {value}" for name, value in where.items()))
    limits = Limits.measured(device, args.repeats)
    print(f"fp32 {limits.fp32 / 1e9:.0f}, bf16 {limits.bf16 / 1e9:.0f} GFLOP/s; copy {limits.copy / 1e9:.1f} GB/s\n")
    print(
        f"{'operation':<22} {'size':<44} {'dtype':<9} {'kernels':<10} "
        f"{'us':>11} {'spread':>7} {'GFLOP/s':>9} {'GB/s':>8} {'of limit':>6}"
    )
    rows, faults = [], []
    for name in args.names or known:
        for case in importlib.import_module(name).cases(device):
            good, wrong = passing(case, device)
            faults += wrong
            made = [Row.of(case, *item, limits) for item in timings(case, good, device, args.repeats).items()]
            for row in made:
                show(row)
            rows += made
    if args.output:
        write(args.output, rows, where)
    for text in faults:
        print(f"not timed: {text}", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
