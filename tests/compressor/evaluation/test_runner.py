import dataclasses

import pytest
from evaluation_parts import FACTS, TEXT, TOKENIZER, Reader, Told, example, plan, without_times

from kompakt.compressor.errors import (
    BackendError,
    BudgetError,
    CompressionError,
    ConfigError,
    InputError,
    MissingExtraError,
    ModelNotFoundError,
    ValidityError,
)
from kompakt.compressor.evaluation import runner
from kompakt.compressor.evaluation.rows import RunFolder
from kompakt.compressor.evaluation.runner import Contender, digest_of, run
from kompakt.compressor.models.tokenizers import load_tokenizer
from kompakt.compressor.types import Document

ALWAYS = [("full", 1.0), ("none", 0.0), ("truncate", 0.5), ("truncate", 0.25), ("random", 0.5), ("random", 0.25)]


def done(a_plan, path, **options):
    folder = RunFolder(path)
    run(a_plan, folder, **options)
    return list(folder.rows())


def of(rows, method):
    return [row for row in rows if row.method == method]


def read_by(backend, **options):
    return runner.Reader(backend, **options)


def two():
    return [example("q1"), example("q2", " ".join(FACTS[1:]), "When did the mill burn?", ("1689",))]


def test_controls_and_references_always_run(tmp_path):
    assert [(row.method, row.keep) for row in done(plan(), tmp_path)] == ALWAYS
    rows = done(plan(contenders=[Told()]), tmp_path / "more")
    assert [(row.method, row.keep) for row in rows] == [*ALWAYS, ("told", 0.5), ("told", 0.25)]


def test_rows_say_what_happened(tmp_path):
    one = example(dataset="bridges", group="g", axes={"depth": 0.5})
    rows = done(plan([one], [Told()]), tmp_path)
    n = TOKENIZER.count(TEXT)
    full, nothing = of(rows, "full")[0], of(rows, "none")[0]
    assert (full.status, full.tokens_before, full.tokens_after, full.max_tokens) == ("fits", n, n, n)
    assert (nothing.tokens_before, nothing.tokens_after, nothing.max_tokens, nothing.n_bytes) == (n, 0, 0, 0)
    assert (full.metrics["answer_recall"], nothing.metrics["answer_recall"]) == (1, 0)
    assert (full.metrics["numbers_kept"], nothing.metrics["numbers_kept"]) == (1, 0)
    for row in rows:
        assert (row.task, row.example, row.dataset, row.group) == ("questions", "q1", "bridges", "g")
        assert (row.axes, row.digest) == ({"depth": 0.5}, digest_of(one))
        assert row.metrics["unaltered"] == 1
        assert row.is_valid is None
        assert (row.answer, row.n_positions, row.not_read) == ("", 0, "")
    for row in rows[2:]:
        assert row.max_tokens == int(row.keep * n)
        assert 0 < row.tokens_after <= row.max_tokens
        assert row.status == "compressed"
    assert of(rows, "told")[0].metrics["answer_recall"] == 1


def test_an_example_without_a_group_is_its_own(tmp_path):
    assert {row.group for row in done(plan(two()), tmp_path)} == {"q1", "q2"}


def test_recall_is_told_only_where_the_answer_stands_in_the_context(tmp_path):
    rows = done(plan([example(answers=("Karl Gott",)), example("q2", target="continuation")]), tmp_path)
    assert not any("answer_recall" in row.metrics for row in rows)


def test_broken_json_is_told(tmp_path):
    text = '{"bridge": {"built": {"year": 1402, "month": 7}}, "tower": 1380, "mill": 1689, "tram": 1908, "toll": 3}'
    rows = done(
        plan([example(text=[Document(text, id="a.json")], answers=("1380",))], [Told()], keeps=(0.5,)), tmp_path
    )
    assert {row.is_valid for row in of(rows, "truncate")} == {False}
    assert {row.is_valid for row in of(rows, "told")} == {True}


def test_a_second_run_computes_nothing(tmp_path):
    method, backend = Told(), Reader()
    a_plan = plan(two(), [method], reader=read_by(backend))
    first = done(a_plan, tmp_path)
    content = (tmp_path / "rows.jsonl").read_bytes()
    n_calls = len(method.calls), len(backend.calls)
    assert n_calls == (4, 16)
    assert done(a_plan, tmp_path) == first
    assert (len(method.calls), len(backend.calls)) == n_calls
    assert (tmp_path / "rows.jsonl").read_bytes() == content


@pytest.mark.parametrize("n_bytes", [0, 1, 700, 2500, 6000])
def test_a_run_that_was_cut_off_anywhere_ends_with_the_same_rows(tmp_path, n_bytes):
    a_plan = plan(two(), [Told(), Told("shared", uses_query=False)], reader=read_by(Reader()))
    whole = done(a_plan, tmp_path / "whole")
    done(a_plan, tmp_path / "cut")
    file = tmp_path / "cut" / "rows.jsonl"
    file.write_bytes(file.read_bytes()[:n_bytes])
    n_left = file.read_bytes().count(b"\n")
    seen = []
    rows = done(a_plan, tmp_path / "cut", on_progress=lambda *told: seen.append(told[:2]))
    assert without_times(rows) == without_times(whole)
    assert n_left < len(rows)
    assert seen[-1] == (len(whole), len(whole))


def test_a_run_with_the_same_seed_gives_the_same_numbers(tmp_path):
    runs = [done(plan(two(), [Told()], seed=seed), tmp_path / name) for name, seed in (("a", 3), ("b", 3), ("c", 4))]
    assert without_times(runs[0]) == without_times(runs[1])
    drawn = [[row.metrics | {"n": row.tokens_after} for row in of(rows, "random")] for rows in runs]
    assert drawn[0] == drawn[1] != drawn[2]


def test_further_budgets_and_methods_are_added(tmp_path):
    method = Told()
    done(plan(contenders=[method], keeps=(0.5,)), tmp_path)
    rows = done(plan(contenders=[method, Told("new")], keeps=(0.25, 0.5)), tmp_path)
    assert [keep for _, keep in method.calls] == [0.5, 0.25]
    assert [(row.method, row.keep) for row in rows[5:]] == [
        ("truncate", 0.25), ("random", 0.25), ("told", 0.25), ("new", 0.5), ("new", 0.25),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 1}, "seed = 0, not 1"),
        ({"contenders": [Told(version=2)]}, "method told = "),
        ({"contenders": [Contender(Told(), fingerprint="other")]}, "method told = .*not 'other'"),
        ({"reader": read_by(Reader(fingerprint="another"))}, "reader = .*a reader.*not.*another"),
        ({"reader": None}, "reader = .*a reader.*not None"),
        ({"reader": read_by(Reader(), is_chat=True)}, "reader = .*'is_chat': False.*not.*'is_chat': True"),
        ({"reader": read_by(Reader(), max_new_tokens=0)}, "reader = .*'max_new_tokens': 32.*'max_new_tokens': 0"),
        ({"settings": {"max_context": 5}}, "max_context = None, not 5"),
        ({"examples": [example(question="Who paid?")]}, "another example with the id 'q1' of questions"),
        ({"examples": [example(text=TEXT + " ")]}, "another example with the id 'q1' of questions"),
        ({"examples": [example(answers=("Nuremberg",))]}, "another example with the id 'q1' of questions"),
    ],
)
def test_what_is_not_the_same_run_is_refused(tmp_path, changes, words):
    settled = {"contenders": [Told()], "reader": read_by(Reader()), "settings": {"max_context": None}}
    done(plan(**settled), tmp_path)
    content = (tmp_path / "rows.jsonl").read_bytes()
    with pytest.raises(ConfigError, match=words) as raised:
        done(plan(**(settled | changes)), tmp_path)
    assert str(tmp_path) in str(raised.value)
    assert (tmp_path / "rows.jsonl").read_bytes() == content


def test_another_tokenizer_is_refused(tmp_path):
    done(plan(), tmp_path)
    other = dataclasses.replace(plan(), tokenizer=load_tokenizer("cl100k_base"))
    with pytest.raises(ConfigError, match="tokenizer = "):
        done(other, tmp_path)


@pytest.mark.parametrize(
    "error",
    [
        CompressionError("no way"),
        BudgetError("no way"),
        InputError("no way"),
        ValidityError("no way"),
        BackendError("no way"),
    ],
)
def test_a_method_that_fails_is_a_row_and_the_rest_goes_on(tmp_path, error):
    failing = Told("failing", error=error, where="Petr Parler drew the plans of the tower. The statue")
    odd = example("odd", " ".join(FACTS[1:3]), "When did the mill burn?", ("flood",))
    rows = done(plan([example(), odd], [failing, Told()], reader=read_by(Reader())), tmp_path)
    assert len(rows) == 20
    found = of(rows, "failing")
    assert [row.status for row in found] == ["failed", "failed", "compressed", "compressed"]
    assert found[0].reason == f"{type(error).__name__}: no way"
    assert (found[0].metrics, found[0].tokens_after, found[0].seconds, found[0].answer) == ({}, 0, None, "")
    assert found[0].max_tokens == int(0.5 * found[0].tokens_before)
    assert all(row.status != "failed" for row in rows if row.method != "failing")
    again = Told("failing")
    assert done(plan([example(), odd], [again, Told()], reader=read_by(Reader())), tmp_path) == rows
    assert again.calls == []


def test_a_method_that_always_fails_to_compress_is_rows_too(tmp_path):
    rows = done(plan(contenders=[Told("failing", error=CompressionError("never"))]), tmp_path)
    assert [row.reason for row in of(rows, "failing")] == ["CompressionError: never"] * 2


@pytest.mark.parametrize(
    "error", [ConfigError("wrong"), MissingExtraError("it", "local"), ModelNotFoundError("pull it")]
)
@pytest.mark.parametrize("where", ["", "Petr Parler"])
def test_what_every_example_would_suffer_is_raised(tmp_path, error, where):
    with pytest.raises(type(error), match=str(error)[:5]):
        done(plan(contenders=[Told(error=error, where=where)]), tmp_path)


def test_a_reader_that_fails_stops_the_run_which_then_goes_on(tmp_path):
    with pytest.raises(BackendError, match="gone"):
        done(plan(reader=read_by(Reader(error=BackendError("gone")))), tmp_path)
    assert len(done(plan(reader=read_by(Reader())), tmp_path)) == len(ALWAYS)


def test_questions_on_one_context_share_what_does_not_depend_on_them(tmp_path):
    questions = [example(f"q{n}", question=f"Who was {n}?", group="g") for n in range(3)]
    shared, aware = Told("shared", uses_query=False), Told("aware")
    rows = done(plan(questions, [shared, aware]), tmp_path)
    assert [keep for _, keep in shared.calls] == [0.5, 0.25]
    assert aware.calls == [(f"Who was {n}?", keep) for n in range(3) for keep in (0.5, 0.25)]
    texts = {(row.keep, row.tokens_after, row.n_bytes) for row in of(rows, "shared")}
    assert len(texts) == 2
    # seconds are those of a first time, and only where nothing was remembered
    assert [row.seconds is not None for row in of(rows, "shared")] == [True] + [False] * 5
    assert [row.seconds is not None for row in of(rows, "aware")] == [True, False] * 3
    assert (shared.n_forgotten, aware.n_forgotten) == (3, 3)


def test_other_contexts_share_nothing(tmp_path):
    shared = Told("shared", uses_query=False)
    rows = done(plan(two(), [shared], keeps=(0.5,)), tmp_path)
    assert len(shared.calls) == 2
    assert len({row.n_bytes for row in of(rows, "shared")}) == 2
    assert all(row.seconds is not None for row in of(rows, "shared"))


def test_a_contender_may_get_fewer_examples(tmp_path):
    rows = done(plan(two(), [Contender(Told(), role="peer", limit=1), Told("other")]), tmp_path)
    assert {row.example for row in of(rows, "told")} == {"q1"}
    assert {row.example for row in of(rows, "other")} == {"q1", "q2"}


def test_the_reader_reads_the_first_of_each_task(tmp_path):
    tasks = {"questions": two(), "needle": [dataclasses.replace(one, task="needle") for one in two()]}
    backend = Reader()
    rows = done(plan(tasks, reader=read_by(backend, n_examples=1)), tmp_path)
    assert {(row.task, row.example) for row in rows if row.answer} == {("questions", "q1"), ("needle", "q1")}
    assert len(backend.calls) == 2 * len(ALWAYS)
    row = of(rows, "full")[0]
    assert row.metrics["f1"] == row.metrics["exact_match"] == row.metrics["answer_recall"] == 1
    assert (row.n_positions, row.seconds_to_first, row.tokens_per_second) == (40, 0.25, 50.0)


def test_contexts_too_long_for_the_reader_are_said(tmp_path):
    rows = done(plan(reader=read_by(Reader(), max_positions=30)), tmp_path)
    assert "more than 30" in of(rows, "full")[0].not_read
    assert "f1" not in of(rows, "full")[0].metrics
    assert of(rows, "truncate")[1].not_read == ""
    assert of(rows, "truncate")[1].metrics["f1"] == 1


def test_the_first_examples_can_be_looked_at(tmp_path):
    done(plan(two(), [Told()], n_shown=1, reader=read_by(Reader("nobody"))), tmp_path)
    views = dict(RunFolder(tmp_path).views())
    assert {key[1] for key in views} == {"q1"}
    assert len(views) == len(ALWAYS) + 2
    shown = views["questions", "q1", "told", 0.5]
    assert (shown.has_answer, shown.reader_answer, shown.query) == (True, "nobody", "Who drew the plans?")
    assert [piece.stage for piece in shown.documents[0].pieces] == ["lexical"] * len(shown.documents[0].pieces)
    assert views["questions", "q1", "none", 0.0].has_answer is False


def test_progress_counts_every_row_up_to_the_last(tmp_path):
    seen = []
    done(plan(two(), [Told()]), tmp_path, on_progress=lambda *told: seen.append(told))
    counts = [count for count, _, _ in seen]
    assert counts == sorted(counts)
    assert {total for _, total, _ in seen} == {16} == {counts[-1]}
    assert {label for _, _, label in seen} == {"questions 1 of 2", "questions 2 of 2"}


@pytest.mark.parametrize("keeps", [(), (0,), (1,), (0.5, -0.1), (float("nan"),)])
def test_wrong_budgets_are_refused(keeps):
    with pytest.raises(ConfigError, match="above 0 and below 1"):
        plan(keeps=keeps)


@pytest.mark.parametrize("name", ["full", "random", "told"])
def test_two_methods_of_one_name_are_refused(name):
    with pytest.raises(ConfigError, match=f"two methods are called '{name}'"):
        plan(contenders=[Told(name), Told("told")])


def test_rows_point_at_the_stamp_of_their_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "stamp", lambda: {"processor": "first"})
    done(plan(keeps=(0.5,)), tmp_path)
    monkeypatch.setattr(runner, "stamp", lambda: {"processor": "second"})
    rows = done(plan(), tmp_path)
    assert [row.stamp for row in rows] == [0, 0, 0, 0, 1, 1]
