"""The benchmark of kernels times what agrees with its reference, and nothing else."""

import csv
import importlib
import os
import re
import sys
import textwrap
import time
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs kompakt[local]")

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
FOLDERS = (str(BENCHMARKS / "kernels"), str(BENCHMARKS))
SCRIPTS = ("cases", "limits", "timing", "run")

EXAMPLE = """
import torch
from cases import Case

def cases(device):
    x = torch.arange(1.0, 65.0, device=device)
    def case(size, call, **changes):
        usual = {"dtype": torch.float32, "tolerance": 1e-6, "flops": 64, "n_bytes": 512}
        return Case("doubled", size, call=call, reference=lambda: 2 * x, **(usual | changes))
"""


def example(body):
    return EXAMPLE + textwrap.indent(textwrap.dedent(body), "    ")


@pytest.fixture
def scripts(monkeypatch, tmp_path):
    """The benchmark, which imports its neighbours by their plain names, with a folder for other operations."""
    known = set(sys.modules)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *FOLDERS, *sys.path])
    hidden = {name: sys.modules.pop(name) for name in SCRIPTS if name in sys.modules}
    yield {name: importlib.import_module(name) for name in SCRIPTS}
    for name in set(sys.modules) - known:
        if str(getattr(sys.modules[name], "__file__", "")).startswith((str(tmp_path), *FOLDERS)):
            del sys.modules[name]
    sys.modules.update(hidden)


@pytest.fixture
def run(scripts, monkeypatch, tmp_path):
    """Run the benchmark over operations that are given as source text; return exit code and rows."""
    monkeypatch.delenv("KOMPAKT_KERNELS", raising=False)
    # what limits.py measures is tested below; whole ones take seconds
    monkeypatch.setattr(scripts["run"], "matmul_flops", lambda *args, **options: 1e9)
    monkeypatch.setattr(scripts["run"], "copy_bandwidth", lambda **options: 1e9)
    # the examples need not be timed well
    monkeypatch.setattr(scripts["timing"], "BLOCK_SECONDS", 1e-4)

    def ran(*arguments, **sources):
        for name, body in sources.items():
            (tmp_path / f"{name}.py").write_text(example(body), encoding="utf-8")
        output = tmp_path / "rows.csv"
        argv = [*arguments, "--device", "cpu", "--repeats", "3", "--output", str(output)]
        code = scripts["run"].main(argv, tmp_path)
        return code, list(csv.DictReader(output.read_text(encoding="utf-8").splitlines()))

    return ran


def test_a_call_that_agrees_is_timed_in_each_implementation_that_runs_here(run, capsys):
    code, rows = run(doubled='yield case("64", lambda: x + x)')
    assert code == 0
    assert [row["implementation"] for row in rows] == ["auto", "reference"]
    for row in rows:
        seconds = float(row["median_seconds"])
        assert 0 < seconds < 1
        assert float(row["spread"]) >= 0
        assert float(row["gflops"]) == pytest.approx(64 / seconds / 1e9)
        assert float(row["gbytes"]) == pytest.approx(512 / seconds / 1e9)
        # at 1e9 bytes and operations a second, memory takes longer
        assert float(row["fraction_of_limit"]) == pytest.approx(512e-9 / seconds)
        assert row["bound_by"] == "memory"
        assert (row["operation"], row["size"], row["dtype"]) == ("doubled", "64", "float32")
        assert (row["torch"], row["threads"]) == (torch.__version__, str(torch.get_num_threads()))
        assert all(row[name] for name in ("device", "kompakt", "date"))
    assert "doubled" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("call", "told"),
    [
        ("x + x + 0.001", "differs from the reference by 0.001"),
        ("torch.where(x == 3, float('nan'), x + x)", "differs from the reference by nan"),
        ("(x + x)[:63]", "has shape [63], and the reference [64]"),
        ("x @ x.reshape(1, 64)", "raises RuntimeError"),
    ],
    ids=["value", "nan", "shape", "error"],
)
def test_a_call_that_differs_is_named_and_not_timed(call, told, run, capsys):
    code, rows = run(doubled=f'yield case("right", lambda: x + x)\nyield case("wrong", lambda: {call})')
    assert code == 1
    assert {row["size"] for row in rows} == {"right"}
    error = capsys.readouterr().err
    assert "not timed: doubled wrong torch.float32 KOMPAKT_KERNELS=auto" in error
    assert told in error


def test_only_the_implementation_that_differs_is_refused(run, capsys):
    body = """
    import os
    yield case("64", lambda: x + x + (os.environ["KOMPAKT_KERNELS"] == "auto"))
    """
    code, rows = run(doubled=body)
    assert code == 1
    assert [row["implementation"] for row in rows] == ["reference"]
    assert "KOMPAKT_KERNELS=auto differs" in capsys.readouterr().err


def test_the_setting_is_as_before_afterwards(run, monkeypatch):
    monkeypatch.setenv("KOMPAKT_KERNELS", "reference")
    run(doubled='yield case("64", lambda: x + x)')
    assert os.environ["KOMPAKT_KERNELS"] == "reference"


def test_named_operations_run_alone(run):
    one, other = 'yield case("one", lambda: x + x)', 'yield case("other", lambda: x + x)'
    _, rows = run("first", first=one, second=other)
    assert {row["size"] for row in rows} == {"one"}


def test_an_unknown_operation_ends_the_run_with_the_names_there_are(run, capsys):
    with pytest.raises(SystemExit) as caught:
        run("third", first='yield case("one", lambda: x)')
    assert caught.value.code == 2
    assert "no operation is called third; there are first" in capsys.readouterr().err


def test_infinities_and_empty_results_agree_with_themselves(scripts):
    fault = scripts["run"].fault
    infinite = torch.tensor([1.0, float("-inf")])
    assert fault(infinite, infinite.clone(), 1e-6) == ""
    assert fault(infinite, -infinite, 1e-6) != ""
    assert fault(torch.zeros(0, 3), torch.zeros(0, 3), 1e-6) == ""
    assert fault(torch.tensor([True, False]), torch.tensor([True, True]), 0.0) != ""


def test_limits_count_every_operation_and_byte(scripts, monkeypatch):
    limits, calls = scripts["limits"], []

    def half_a_second(call, device, repeats):
        calls.append(call())
        return scripts["timing"].Timing(0.5, 0.0)

    monkeypatch.setattr(limits, "timed", half_a_second)
    assert limits.matmul_flops(torch.float32, 4, 3, 5) == 2 * 4 * 3 * 5 / 0.5
    assert limits.matmul_flops(torch.bfloat16, 4, 3, 5) == 2 * 4 * 3 * 5 / 0.5
    assert limits.copy_bandwidth(n_bytes=1000) == 2 * 1000 / 0.5
    assert [(list(made.shape), made.dtype) for made in calls] == [
        ([4, 5], torch.float32),
        ([4, 5], torch.bfloat16),
        ([1000], torch.uint8),
    ]


def test_a_call_is_timed_by_the_clock(scripts):
    def call():
        time.sleep(0.01)

    timing = scripts["timing"].timed(call, torch.device("cpu"), repeats=3)
    assert 0.01 <= timing.median < 1


def test_the_spread_is_that_of_the_extremes(scripts):
    timing = scripts["timing"].Timing.of([2.0, 5.0, 4.0])
    assert (timing.median, timing.spread) == (4.0, 0.75)


def test_the_limits_of_this_machine_are_printed(scripts, monkeypatch, capsys):
    monkeypatch.setattr(scripts["limits"], "SHAPES", ((8, 4, 2),))
    monkeypatch.setattr(scripts["limits"], "COPIED_BYTES", 1 << 20)
    monkeypatch.setattr(scripts["timing"], "BLOCK_SECONDS", 1e-4)
    monkeypatch.setattr(sys, "argv", ["limits.py", "--device", "cpu"])
    scripts["limits"].main()
    told = capsys.readouterr().out
    assert "[8, 4] x [4, 2]" in told
    assert "copy of 1 MiB" in told


OPERATIONS = sorted(path.stem for path in (BENCHMARKS / "kernels").glob("*.py") if path.stem not in SCRIPTS)


@pytest.mark.slow
@pytest.mark.parametrize("name", OPERATIONS)
def test_the_first_case_of_each_operation_agrees_with_its_reference(name, scripts):
    case = next(importlib.import_module(name).cases(torch.device("cpu")))
    good, faults = scripts["run"].passing(case, torch.device("cpu"))
    assert (good, faults) == (["auto", "reference"], [])
    assert case.n_bytes > 0


def test_the_page_about_kernels_lists_the_operations_there_are():
    root = BENCHMARKS.parent
    sources = [path.read_text(encoding="utf-8") for path in (root / "kernels").glob("*.py")]
    asked = {name for source in sources for name in re.findall(r'choose\(\s*"(\w+)"', source)}
    page = (root / "docs" / "adding-a-kernel.md").read_text(encoding="utf-8").partition("\n## ")[0]
    rows = re.findall(r"^\| (`[^|]+`) \|", page, re.MULTILINE)
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == asked
