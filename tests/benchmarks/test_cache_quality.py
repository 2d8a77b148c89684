"""The comparison of cache methods: examples, kompakt's side on a tiny model, the other side's protocol, tables."""

import dataclasses
import gzip
import importlib
import json
import math
import sys
import textwrap
from pathlib import Path

import pytest
from reader_parts import Twin
from soft_parts import save_decoder

from kompakt.compressor.errors import CompressionError, InputError
from kompakt.compressor.evaluation.example import Example, TaskSettings
from kompakt.compressor.models.tokenizers import load_tokenizer
from kompakt.compressor.types import Document

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
MODULES = (
    "peers",
    "serve",
    "measuring",
    "run_kvpress",
    "cache_examples",
    "cache_runs",
    "cache_tables",
    "cache_quality",
)


@pytest.fixture(scope="module")
def modules():
    """The scripts, which import one another by their plain names."""
    path, known = list(sys.path), {name: sys.modules.pop(name) for name in MODULES if name in sys.modules}
    sys.path[:0] = [str(BENCHMARKS), str(BENCHMARKS / "peers")]
    yield {name: importlib.import_module(name) for name in MODULES}
    sys.path[:] = path
    for name in MODULES:
        del sys.modules[name]
    sys.modules.update(known)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    return save_decoder(tmp_path_factory.mktemp("cache-quality") / "decoder", num_hidden_layers=2)


SENTENCES = [f"Line {number} tells of a town called T{number:03d}." for number in range(60)]
TEXT = " ".join(SENTENCES)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache-data")
    needle = "The gate opens at 4711."
    text = " ".join([*SENTENCES[:40], needle, *SENTENCES[40:]])
    niah = {
        "id": "n0",
        "context": text,
        "needle": needle,
        "question": "When does the gate open?",
        "answers": ["4711"],
    }
    other = {"id": "n1", "context": TEXT, "needle": needle, "question": "When?", "answers": ["4711"]}
    asked = {"id": "q0", "question": "Which town has line 7?", "answers": ["T007"], "answer_type": "extractive"}
    long = {"id": "d0", "document": TEXT, "questions": [asked, asked | {"id": "q1", "answer_type": "yesno"}]}
    pairs = [[f"key-{number}", f"value-{number}"] for number in range(40)]
    pair = {"id": "k0", "records": pairs, "value": "value-9", "gold_index": 9}
    with gzip.open(folder / "niah_built.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in (niah, other))
    (folder / "longdoc_main.jsonl").write_text(json.dumps(long) + "\n")
    (folder / "kv_retrieval.jsonl").write_text(json.dumps(pair) + "\n")
    return folder


def settings_of(decoder, max_context, seed=0):
    return TaskSettings(load_tokenizer(decoder), max_context, seed)


def test_a_cut_holds_its_place_and_nearly_fills_its_length(modules, decoder):
    beginnings = [TEXT.index(sentence) for sentence in SENTENCES]
    for number in (0, 1, 30, 58, 59):
        for seed in range(6):
            place = (beginnings[number], beginnings[number] + len(SENTENCES[number]))
            cut = modules["cache_examples"].cut_around(TEXT, place, settings_of(decoder, 400, seed), "name")
            assert SENTENCES[number] in cut
            assert cut in TEXT
            assert 340 < load_tokenizer(decoder).count(cut) <= 400


def test_a_cut_does_not_always_begin_alike(modules, decoder):
    start = TEXT.index(SENTENCES[30])
    cuts = {
        modules["cache_examples"].cut_around(TEXT, (start, start + 10), settings_of(decoder, 400, seed), "name")
        for seed in range(8)
    }
    assert len(cuts) > 3


def test_what_fits_is_not_cut_and_a_sentence_that_does_not_fit_gives_nothing(modules, decoder):
    cut_around = modules["cache_examples"].cut_around
    assert cut_around(TEXT, (5, 9), settings_of(decoder, len(TEXT)), "name") == TEXT
    assert cut_around(TEXT, (5, 9), settings_of(decoder, 20), "name") == ""


def test_of_several_places_the_one_near_the_words_of_the_question_is_meant(modules):
    text = "In Rome 5 men sat. " + "x " * 400 + "The bridge has 5 arches. " + "y " * 400 + "There are 5 more."
    start, end = modules["cache_examples"].answer_place(text, "How many arches has the bridge?", ("five", "5"))
    assert text[start:end] == "5"
    assert text[:start].endswith("The bridge has ")
    assert modules["cache_examples"].answer_place(text, "Who?", ("nobody",)) == (-1, -1)


def test_examples_of_each_set_hold_their_answer_and_no_more_than_the_limit(modules, decoder, data):
    for task in modules["cache_examples"].TASKS:
        (example,) = modules["cache_examples"].chosen_examples(data, task, settings_of(decoder, 300), 5)
        text = example.documents[0].text
        assert load_tokenizer(decoder).count(text) <= 300
        assert example.answers[0] in text
        assert example.question
    assert example.id == "k0"


def test_a_missing_set_is_named(modules, decoder, tmp_path):
    with pytest.raises(InputError, match="niah_built"):
        modules["cache_examples"].chosen_examples(tmp_path, "niah_built", settings_of(decoder, 300), 5)


N_CONTEXT, N_KEPT = 283, 70
"""Tokens of the context below, and a quarter of them."""

EXAMPLE = Example(
    "one", "niah_built", (Document(TEXT[:300], id="0"),), question="Which town has line 7?", answers=("T007",)
)


@pytest.fixture
def ours(modules, decoder):
    return modules["cache_runs"].Kompakt(str(decoder), "float32", 1, 0, 4)


def test_both_sides_are_given_the_tokens_that_the_reader_reads(modules, decoder, ours):
    tokens = ours.tokens(EXAMPLE)
    read = [*tokens.before, *tokens.context, *tokens.question, *tokens.prompt]
    twin = Twin(decoder)
    made = ours.measure(modules["cache_runs"].Run("kompakt", "full", 1.0), EXAMPLE)
    assert made.log_likelihood == pytest.approx(twin.likelihood(read, tokens.target) / len(tokens.target), abs=1e-4)
    assert made.answer == twin.tokenizer.decode(twin.greedy(read, n=4)).strip()
    assert made.n_held == len(read) - len(tokens.prompt)
    assert made.n_context == len(tokens.context) == N_CONTEXT


def test_each_cache_method_keeps_the_same_number(modules, ours):
    for method in ("snapkv", "finch", "expected-attention", "random-positions"):
        made = ours.measure(modules["cache_runs"].Run("kompakt", method, 0.25), EXAMPLE)
        tokens = ours.tokens(EXAMPLE)
        assert made.n_kept == N_KEPT
        assert made.n_held == len(tokens.before) + N_KEPT + len(tokens.question)
        assert made.log_likelihood < 0
        assert made.compress_seconds > 0 < made.answer_seconds


def test_positions_by_lot_depend_on_the_seed_alone(modules, decoder):
    likelihoods = []
    for seed in (0, 0, 1):
        ours = modules["cache_runs"].Kompakt(str(decoder), "float32", 1, seed, 1)
        run = modules["cache_runs"].Run("kompakt", "random-positions", 0.1)
        likelihoods.append(ours.measure(run, EXAMPLE).log_likelihood)
    assert likelihoods[0] == likelihoods[1] != likelihoods[2]


def test_those_to_be_compared_follow_one_another_and_take_turns(modules):
    runs = modules["cache_runs"]
    planned = runs.blocks(["snapkv", "gemfilter"], [0.5], with_kvpress=True)
    labels = [[run.label for run in runs.in_turns(planned, index)] for index in (0, 1)]
    snapkv = ["kompakt snapkv keep 0.5", "kvpress snapkv seen keep 0.5", "kvpress snapkv unseen keep 0.5"]
    assert labels[0][:3] == ["kompakt full keep 1", "kvpress full unseen keep 1", "kompakt none keep 0"]
    assert labels[0][4:] == [*snapkv, "kompakt gemfilter keep 0.5"]
    assert labels[1][4:] == [*reversed(snapkv), "kompakt gemfilter keep 0.5"]
    alone = runs.blocks(["snapkv"], [0.5], with_kvpress=False)
    assert {run.tool for block in alone for run in block} == {"kompakt"}


RUNNER = """
import json, sys
sys.path.insert(0, {folder!r})
from serve import serve

def load(arguments):
    def answer(request):
        if request["method"] == "finch":
            raise ValueError("no finch here")
        n_cached = len(request["before"]) + request["n_kept"] + request["is_seen"] * len(request["question"])
        numbers = dict.fromkeys(["compress_seconds", "answer_seconds", "base_mib", "peak_mib"], 1.0)
        said = " ".join(map(str, request["target"]))
        made = {{"n_cached": n_cached, "log_likelihood": -2.0, "answer": said, "n_steps": 3, "versions": "one 1"}}
        return json.dumps(made | numbers)
    return answer

serve("pytest", load, warms_up=False)
"""


@pytest.fixture
def theirs(modules, ours, tmp_path):
    runner = tmp_path / "runner.py"
    runner.write_text(textwrap.dedent(RUNNER.format(folder=str(BENCHMARKS / "peers"))))
    spec = dataclasses.replace(
        modules["peers"].CACHE_PEERS["kvpress"],
        distribution="pytest", version=pytest.__version__, runner=str(runner), arguments=(), models=(),
    )  # fmt: skip
    with modules["peers"].Peer(spec, tmp_path, seconds=60, python=sys.executable) as peer:
        yield modules["cache_runs"].Kvpress(peer, ours, 4)


def test_the_other_side_is_asked_for_as_many_positions(modules, ours, theirs):
    tokens = ours.tokens(EXAMPLE)
    held = len(tokens.before) + N_KEPT + len(tokens.question)
    for mode in ("seen", "unseen"):
        made = theirs.measure(modules["cache_runs"].Run("kvpress", "snapkv", 0.25, mode), EXAMPLE)
        assert (made.n_kept, made.n_held) == (N_KEPT, held)
        assert made.answer == " ".join(map(str, tokens.target))
        assert made.versions == "one 1"
    with pytest.raises(CompressionError, match="no finch here"):
        theirs.measure(modules["cache_runs"].Run("kvpress", "finch", 0.25, "seen"), EXAMPLE)


def test_the_share_that_is_removed_leaves_the_wanted_number(modules):
    for n_read in (2, 67, 100, 1999):
        for n_wanted in range(1, n_read + 1):
            removed = modules["run_kvpress"].removed_share(n_wanted, n_read)
            assert max(1, int(n_read * (1 - removed))) == n_wanted


def test_the_pins_of_the_other_side_are_exact(modules):
    spec = modules["peers"].CACHE_PEERS["kvpress"]
    assert (BENCHMARKS / "peers" / spec.runner).is_file()
    assert f"{spec.distribution}=={spec.version}" in spec.requirements[1]
    assert all("==" in pin for step in spec.requirements for pin in step)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is counted by Linux")
def test_memory_of_one_call_is_not_that_of_the_one_before(modules):
    measured = modules["measuring"].measured
    size = 64 << 20
    _, large = measured(lambda: len(b"\1" * size))
    _, small = measured(lambda: len(b"\1" * 1000))
    assert 60 < large.peak_mib - large.base_mib < 80
    assert small.peak_mib - small.base_mib < 30
    assert large.seconds > 0


def command(data, decoder, output, *more):
    options = ["--output", str(output), "--model", str(decoder), "--dtype", "float32", "--limit", "1"]
    return [str(data), *options, "--max-context", "300", "--max-new-tokens", "2", "--keeps", "0.5", *more]


def test_a_run_writes_each_row_once_and_goes_on_where_it_ended(modules, data, decoder, tmp_path, capsys):
    output = tmp_path / "rows.csv"
    main = modules["cache_quality"].main
    main(command(data, decoder, output, "--tasks", "niah_built", "--methods", "snapkv"))
    first = output.read_text()
    assert first.count("\n") == 1 + 4
    main(command(data, decoder, output, "--tasks", "niah_built", "--methods", "snapkv", "gemfilter"))
    assert output.read_text().startswith(first)
    assert output.read_text().count("\n") == 1 + 5
    capsys.readouterr()
    main(command(data, decoder, output, "--only-tables"))
    said = capsys.readouterr().out
    for method in ("full", "none", "random-positions", "snapkv", "gemfilter"):
        assert f"| kompakt {method} | 1 |" in said
    main([*command(data, decoder, output, "--only-tables"), "--seed", "1"])
    assert capsys.readouterr().out == "no rows\n"


def test_an_answer_is_found_whatever_its_case_and_white_space(modules):
    says = modules["cache_quality"].says
    assert says("It is  the\nRed Gate.", ["a door", "red gate"])
    assert not says("It is a gate.", ["red gate"])


def row(modules, tool, method="snapkv", mode="", example="e0", log_likelihood=-1.0, seconds=1.0, task="t", keep=0.5):
    return modules["cache_tables"].Row(
        date="2026-01-01", device="d", versions=tool, settings="s", task=task, example=example, group=example,
        tool=tool, method=method, mode=mode, keep=keep, n_context=10, n_kept=5, n_held=8,
        log_likelihood=log_likelihood, recall=1.0, answer='"a, b"', n_steps=2, compress_seconds=seconds,
        answer_seconds=2 * seconds, base_mib=100.0, peak_mib=100.0 + seconds,
    )  # fmt: skip


def test_the_better_mode_of_the_rival_is_compared_with_on_the_same_examples(modules):
    rows = [
        *(row(modules, "kompakt", example=f"e{i}", log_likelihood=-1.0, seconds=2.0 * 4**i) for i in range(2)),
        *(row(modules, "kvpress", mode="seen", example=f"e{i}", log_likelihood=-1.5) for i in range(2)),
        *(row(modules, "kvpress", mode="unseen", example=f"e{i}", log_likelihood=-3.0) for i in range(2)),
        row(modules, "kompakt", example="alone", log_likelihood=-9.0),
    ]
    said = modules["cache_tables"].tables(rows, seed=0)
    (line,) = [one for one in said.splitlines() if one.startswith("| t | 0.5 | snapkv |")]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[3:7] == ["kvpress snapkv seen", "2", "+0.500 [+0.500, +0.500]", "better"]
    # 2 and 8 times as long: 4 in the geometric mean
    assert cells[8] == cells[9] == cells[10] == cells[11] == "4.00 [2.00, 8.00]"
    assert "| t | 0.5 | kvpress snapkv unseen | 2 |" in said


def test_tasks_count_alike_in_the_mean(modules):
    rows = []
    for task, n, difference in (("a", 1, 1.0), ("b", 4, -1.0)):
        for i in range(n):
            rows.append(row(modules, "kompakt", example=f"e{i}", task=task, log_likelihood=-2.0 + difference))
            rows.append(row(modules, "kvpress", mode="seen", example=f"e{i}", task=task, log_likelihood=-2.0))
    said = modules["cache_tables"].tables(rows, seed=0)
    (line,) = [one for one in said.splitlines() if one.startswith("| mean | 0.5 | snapkv |")]
    assert "+0.000 [" in line
    assert "equal" in line


def test_rows_come_back_from_the_file_as_they_were(modules, tmp_path):
    path = tmp_path / "rows.csv"
    made = row(modules, "kompakt", log_likelihood=-1 / 3)
    modules["cache_tables"].Rows(path, "s").add(made)
    again = modules["cache_tables"].Rows(path, "s")
    assert again.mine() == [made]
    run = modules["cache_runs"].Run("kompakt", "snapkv", 0.5)
    assert again.has("t", "e0", run)
    assert not again.has("t", "e1", run)
    assert modules["cache_tables"].Rows(path, "other").mine() == []
    assert math.isclose(again.mine()[0].log_likelihood, -1 / 3)
