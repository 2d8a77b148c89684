import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from command_line import Ran, assert_one_error
from evaluation_parts import without_times

from kompakt.compressor import cli_eval
from kompakt.compressor.evaluation import evaluate as evaluation
from kompakt.compressor.evaluation.rows import RunFolder
from kompakt.compressor.evaluation.stamp import stamp
from kompakt.compressor.evaluation.summary import Cell, Estimate, Method, Summary
from kompakt.compressor.models.tokenizers import load_tokenizer

METHODS = ["--reader", "none", "-c", "lexical", "-c", "structured"]
SAMPLES = ["--task", "multi-document-qa", "--task", "key-value", "--task", "questions", "--limit", "5", *METHODS]
TOLL = "Rome is old. The toll was three groats. A mill burned."
TOWER = "The tower is tall. Parler built it. It stands on a rock."
QUESTIONS = [
    {"id": "toll", "query": "What was the toll?", "text": TOLL, "answer": "three groats"},
    {"id": "name", "query": "Who built it?", "text": TOWER, "answer": "Parler"},
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "own.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """A run over own questions: its folder and what the command wrote."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    return folder, Ran(["eval", data, "-o", folder, "--keep", "0.5", *METHODS])


def rows(folder):
    return list(RunFolder(folder).rows())


def cells(out):
    """Return the first two columns of a printed table, with the rest of each line."""
    lines = out.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("method"))
    return {tuple(line.split()[:2]): line for line in lines[start + 1 :] if line.strip()}


def test_a_table_on_stdout_and_the_rest_on_stderr(finished, data):
    folder, ran = finished
    assert ran.status == 0, ran
    found = cells(ran.out)
    assert list(found) == [
        ("full", "1"),
        ("none", "0"),
        *((method, "0.5") for method in ("truncate", "random", "lexical", "structured")),
    ]
    assert "1.000 [1.00, 1.00]" in found["full", "1"]
    assert "0.000 [0.00, 0.00]" in found["none", "0"]
    for heading in ("kept", "recall", "over", "broken", "failed", "seconds"):
        assert heading in ran.out
    *_, files, link = ran.err.splitlines()
    assert re.fullmatch(rf"\d+ s; summary.json, summary.csv, report.html in {re.escape(str(folder))}", files)
    assert link == f"open {(folder / 'report.html').as_uri()}"


def test_the_table_of_the_run_is_stamped(finished):
    folder, _ = finished
    with (folder / "summary.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    here = {name: value for name, value in stamp().items() if name != "time"}
    assert {"processor", "system", "kompakt"} <= set(here)
    for line in lines:
        assert {name: line[name] for name in here} == here
        assert (line["seed"], line["reader"]) == ("0", "none")
    assert {line["method"] for line in lines} >= {"full", "none", "truncate", "random", "lexical"}


def test_the_summary_is_json_and_the_report_names_the_methods(finished):
    folder, _ = finished
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert [task["n"] for task in summary["tasks"]] == [2]
    report = (folder / "report.html").read_text(encoding="utf-8")
    assert "structured" in report
    assert "The toll was three groats." in report


def test_a_second_call_computes_nothing_and_says_the_same(finished, data):
    folder, first = finished
    content = (folder / "rows.jsonl").read_bytes()
    again = Ran(["eval", data, "-o", folder, "--keep", "0.5", *METHODS, "--quiet"])
    assert (again.out, again.err) == (first.out, "")
    assert (folder / "rows.jsonl").read_bytes() == content


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--seed", "1"], ["seed = 0, not 1"]),
        (["--tokenizer", "cl100k_base"], ["tokenizer"]),
        (["--max-context", "900"], ["max_context of questions = None, not 900"]),
    ],
)
def test_another_run_needs_another_folder(finished, data, arguments, words):
    folder, _ = finished
    ran = Ran(["eval", data, "-o", folder, "--keep", "0.5", *METHODS, *arguments])
    assert_one_error(ran, 2, str(folder), "give another folder", *words)


def start(*arguments):
    command = [sys.executable, "-m", "kompakt", "eval", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def n_lines(file):
    return file.read_bytes().count(b"\n") if file.exists() else 0


@pytest.mark.slow
@pytest.mark.parametrize("is_torn", [False, True])
def test_a_killed_run_goes_on_and_ends_with_the_same_rows(tmp_path, whole_samples, is_torn):
    folder = tmp_path / "killed"
    file = folder / "rows.jsonl"
    with start("-o", folder, *SAMPLES) as process:
        limit = time.monotonic() + 120
        while n_lines(file) < 40 and process.poll() is None and time.monotonic() < limit:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    n_done = n_lines(file)
    assert 40 <= n_done < len(whole_samples)
    if is_torn:
        file.write_bytes(file.read_bytes()[:-7])
    before = file.read_bytes()
    before = before[: before.rfind(b"\n") + 1]
    ran = Ran(["eval", "-o", folder, *SAMPLES])
    assert ran.status == 0, ran
    # what was done stands there as it was, and was not computed again
    assert file.read_bytes().startswith(before)
    assert n_lines(file) == len(whole_samples)
    assert without_times(rows(folder)) == without_times(whole_samples)


@pytest.fixture(scope="module")
def whole_samples(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    assert Ran(["eval", "-o", folder, *SAMPLES, "--quiet"]).status == 0
    return rows(folder)


@pytest.mark.slow
def test_an_interrupted_run_says_so_on_one_line_and_goes_on(tmp_path, whole_samples):
    folder = tmp_path / "interrupted"
    with start("-o", folder, *SAMPLES, "--quiet") as process:
        limit = time.monotonic() + 120
        while n_lines(folder / "rows.jsonl") < 20 and process.poll() is None and time.monotonic() < limit:
            time.sleep(0.002)
        process.send_signal(signal.SIGINT)
        err = process.stderr.read()
    assert (process.returncode, err) == (130, b"error: interrupted\n")
    assert Ran(["eval", "-o", folder, *SAMPLES, "--quiet"]).status == 0
    assert without_times(rows(folder)) == without_times(whole_samples)


def test_what_was_not_compared_is_named_with_the_reason(data, tmp_path, empty_cache):
    ran = Ran(["eval", data, "-o", tmp_path / "run", "--keep", "0.5"])
    assert ran.status == 0, ran
    notes = ran.err.splitlines()
    assert any(line.startswith("no reader: ") and "kompakt models pull smollm2-135m" in line for line in notes)
    for name, model in (("extractive", "minilm-l6"), ("selective-context", "smollm2-135m")):
        assert any(line.startswith(f"not compared: {name}: ") and f"pull {model}" in line for line in notes)
    assert {name for name, _ in cells(ran.out)} == {
        "full", "none", "truncate", "random", "dedup", "default", "lexical", "mmr", "structured",
    }  # fmt: skip
    assert json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))["settings"]["reader"] is None


@pytest.fixture
def captured(monkeypatch):
    """The settings that the command would have evaluated."""
    found = []

    def stop(settings, **_):
        found.append(settings)
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluation, "evaluate", stop)
    return found


def test_options_become_settings(captured, tmp_path):
    arguments = [
        "-o", tmp_path / "x", "-t", "needle", "-t", "key-value", "-c", "lexical", "--keep", "0.3", "--keep", "0.2",
        "--reader", "none", "--limit", "7", "--reader-limit", "3", "--reader-positions", "99", "--max-context", "500",
        "--seed", "4", "--tokenizer", "cl100k_base", "--pipeline", "a/p.toml",
    ]  # fmt: skip
    assert Ran(["eval", tmp_path, *arguments]).status == 130
    [found] = captured
    assert (found.output, found.data) == (tmp_path / "x", tmp_path)
    assert (found.tasks, found.compressors, found.keeps) == (("needle", "key-value"), ("lexical",), (0.3, 0.2))
    assert found.pipelines == (Path("a/p.toml"),)
    assert (found.reader, found.tokenizer, found.seed) == (None, "cl100k_base", 4)
    assert (found.limit, found.reader_limit, found.reader_positions, found.max_context) == (7, 3, 99, 500)


def test_zero_means_no_limit(captured):
    Ran(["eval", "--reader", "none", "--limit", "0", "--reader-limit", "0", "--max-context", "0"])
    assert (captured[0].limit, captured[0].reader_limit, captured[0].max_context) == (None, None, None)


@pytest.mark.parametrize(
    ("arguments", "tokenizer"),
    [
        (["--reader", "none"], "o200k_base"),
        (["--reader", "http://127.0.0.1:1/v1#m"], "o200k_base"),
        (["--reader", "./model"], "./model"),
        (["--reader", "./model", "--tokenizer", "gpt-4o"], "gpt-4o"),
    ],
)
def test_the_readers_tokens_count_unless_others_are_named(captured, arguments, tokenizer):
    Ran(["eval", *arguments])
    assert captured[0].tokenizer == tokenizer


def test_every_sample_task_has_examples_in_a_quick_run(captured):
    Ran(["eval", "--quick", "--reader", "none"])
    [settings] = captured
    assert settings.data is None
    assert settings.limit <= 4
    chosen, left_out = evaluation._examples(settings, load_tokenizer("o200k_base"))
    assert len(chosen) == 8
    # two thousand words are too many for a quick run
    assert list(left_out) == ["long-document-qa"]


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(cli_eval, "time", SimpleNamespace(perf_counter=lambda: now.seconds))
    return now


def shown(clock, told, capsys):
    with cli_eval.progress(quiet=False) as show:
        for seconds, done in told:
            clock.seconds = seconds
            show(done, 1000, "needle 1 of 2")
    return capsys.readouterr().err.splitlines()


def test_where_nobody_watches_a_line_every_few_seconds(clock, capsys):
    lines = shown(clock, [(0, 0), (1, 10), (6, 20), (7, 30), (16, 120), (17, 130)], capsys)
    assert lines == [
        "progress done=20 total=1000 at='needle 1 of 2'",
        "progress done=120 total=1000 seconds_left=88 at='needle 1 of 2'",
    ]


def test_rows_of_an_earlier_run_do_not_make_this_one_seem_faster(clock, capsys):
    lines = shown(clock, [(0, 0), (0.1, 800), (5, 800), (15, 810)], capsys)
    assert [re.findall(r"seconds_left=\d+", line) for line in lines] == [[], ["seconds_left=190"]]


def test_a_count_that_starts_again_is_measured_anew(clock, capsys):
    lines = shown(clock, [(5, 500), (10, 100), (20, 200)], capsys)
    assert [re.findall(r"seconds_left=\d+", line) for line in lines] == [[], [], ["seconds_left=80"]]


def test_a_terminal_gets_a_bar(data, tmp_path):
    ran = Ran(["eval", data, "-o", tmp_path, "--keep", "0.5", *METHODS], width=120)
    assert ran.status == 0
    assert "━" in ran.err
    assert "progress done" not in ran.err


def test_quiet_shows_nothing(capsys):
    with cli_eval.progress(quiet=True) as show:
        assert show is None
    assert capsys.readouterr().err == ""


def test_the_table_says_what_went_wrong():
    cell = Cell(
        "", "rival", 0.25, 9, 0.3333, {"answer_recall": Estimate(0.5, 0.25, 0.75, 8)}, n_over_budget=3, n_invalid=2,
        n_checked=4, n_failed=1, seconds=0.12349,
    )  # fmt: skip
    single = Cell("qa", "rival", 0.25, 9, 0.5, {})
    nothing = Cell("", "other", 0.5, 9, 0.5, {})
    metrics = {"answer_recall": "", "numbers_kept": ""}
    made = cli_eval.table(
        Summary("T", {}, (), (Method("other", "kompakt"), Method("rival", "peer")), metrics, (cell, single, nothing))
    )
    assert [column.header for column in made.columns][:5] == ["method", "keep", "kept", "answer\nrecall", "numbers"]
    columns = [list(column.cells) for column in made.columns]
    assert [column[0] for column in columns] == ["other", "0.5", "50%", "", "", "0", "", "0", ""]
    assert [column[1] for column in columns] == [
        "rival", "0.25", "33%", "0.500 [0.25, 0.75]", "", "3", "2 of 4", "1", "0.123",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--quick", "own"], ["--quick", "leave out"]),
        (["no-such-folder"], ["no-such-folder", "no such file or folder"]),
        (["own", "--keep", "2"], ["above 0 and below 1", "2.0"]),
        (["own", "--keep", "much"], ["--keep"]),
        (["own", "--limit", "-1"], ["--limit"]),
        (["own", "--reader-limit", "-1"], ["--reader-limit"]),
        (["own", "--reader-positions", "0"], ["--reader-positions"]),
        (["own", "--max-context", "-9"], ["--max-context"]),
        (["own", "--max-context", "1"], ["no example can be used"]),
        (["own", "--task", "needle"], ["questions of one's own"]),
        (["--task", "neddle"], ["did you mean 'needle'"]),
        (["own", "-c", "lexicl"], ["did you mean 'lexical'"]),
        (["own", "--tokenizer", "no-such"], ["no-such"]),
        (["own", "--reader", "no-such-model"], ["no-such-model"]),
        (["own", "-o", "own"], ["cannot use"]),
        (["own", "--readr", "none"], ["--readr"]),
        (["own", "own"], ["own"]),
        (["broken"], ["line 1", "not JSON"]),
    ],
)
def test_wrong_usage_is_one_line(data, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.jsonl").write_text("{oops\n", encoding="utf-8")
    files = {"own": data, "broken": tmp_path / "broken.jsonl"}
    named = [files.get(argument, argument) for argument in arguments]
    assert_one_error(Ran(["eval", "--reader", "none", "-c", "lexical", *named]), 2, *words)
    assert os.listdir(tmp_path) == ["broken.jsonl"]


@pytest.mark.models
@pytest.mark.slow
def test_a_quick_run_with_all_compressors_and_a_reader(tmp_path):
    ran = Ran(["eval", "--quick", "-o", tmp_path / "quick"])
    assert ran.status == 0, ran
    summary = json.loads((tmp_path / "quick" / "summary.json").read_text(encoding="utf-8"))
    means = {(cell["method"], cell["keep"]): cell for cell in summary["cells"] if not cell["task"]}
    likelihood = {key: cell["estimates"]["log_likelihood"]["mean"] for key, cell in means.items()}
    assert likelihood["full", 1.0] > likelihood["default", 0.25] > likelihood["none", 0.0]
    assert {method for method, _ in means} >= {"default", "extractive", "selective-context", "truncate", "random"}
    assert all(cell["n_over_budget"] == 0 == cell["n_failed"] for cell in means.values())
    kept = [cell for (method, _), cell in means.items() if method != "truncate"]
    assert all(cell["n_invalid"] == 0 for cell in kept)
    assert (tmp_path / "quick" / "report.html").stat().st_size > 100_000
