import dataclasses
import json
from pathlib import Path

import pytest
from evaluation_parts import Reader, Told, without_times

from kompakt.compressor.errors import ConfigError, InputError, ModelNotFoundError
from kompakt.compressor.evaluation import evaluate as module
from kompakt.compressor.evaluation import runner
from kompakt.compressor.evaluation.evaluate import Settings, evaluate, load_reader
from kompakt.compressor.evaluation.rows import RunFolder
from kompakt.compressor.evaluation.runner import Contender
from kompakt.compressor.registry import compressor_class, compressor_names

TOLL = "Rome is old. The toll was three groats. A mill burned."
TOWER = "The tower is tall. Parler built it. It stands on a rock."
MILL = ["The mill burned in 1689.", "It rained all day long, and nobody came to see the river."]
ROWS = [
    {"id": "toll", "query": "What was the toll?", "text": TOLL, "answer": "three groats"},
    {"id": "year", "query": "When was the mill burned?", "documents": MILL, "answers": ["1689"]},
    {"id": "name", "query": "Who built something?", "text": TOWER, "answer": "Parler"},
]


@pytest.fixture
def data(tmp_path):
    return write(tmp_path / "questions.jsonl", ROWS)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def settings(data, tmp_path):
    return Settings(
        tmp_path / "run", data, compressors=("lexical",), keeps=(0.5,), tokenizer="o200k_base", reader=None
    )


@pytest.fixture
def planned(monkeypatch):
    """Nothing is run, and the plan stands where the summary would be."""
    monkeypatch.setattr(module, "run", lambda *_, **__: None)
    monkeypatch.setattr(module, "_summary", lambda plan, *_: plan)


def changed(settings, **changes):
    return dataclasses.replace(settings, **changes)


def rows(settings):
    return list(RunFolder(settings.output).rows())


def counts(summary):
    return {(cell.method, cell.keep): cell.n for cell in summary.cells if not cell.task}


def test_a_file_of_questions(settings):
    done = evaluate(settings)
    assert done.folder == settings.output
    assert done.left_out == {}
    assert [(task.name, task.n) for task in done.summary.tasks] == [("questions", 3)]
    assert {(method.name, method.role) for method in done.summary.methods} == {
        ("full", "reference"), ("none", "reference"), ("truncate", "control"), ("random", "control"),
        ("lexical", "kompakt"),
    }  # fmt: skip
    recall = {cell.method: cell.estimates["answer_recall"].mean for cell in done.summary.cells if not cell.task}
    assert (recall["full"], recall["none"], recall["lexical"]) == (1, 0, 1)
    assert len(rows(settings)) == 15


def test_pipelines_are_called_by_their_files(settings, tmp_path):
    path = tmp_path / "short.toml"
    path.write_text('[[stages]]\ncompressor = "lexical"\n', encoding="utf-8")
    done = evaluate(changed(settings, pipelines=(path,)))
    assert [method.name for method in done.summary.methods if method.role == "kompakt"] == ["lexical", "short"]
    recall = {cell.method: cell.estimates["answer_recall"].mean for cell in done.summary.cells if not cell.task}
    assert recall["short"] == recall["lexical"] == 1
    alone = evaluate(changed(settings, output=tmp_path / "alone", pipelines=(path,), compressors=()))
    assert [method.name for method in alone.summary.methods if method.role == "kompakt"] == ["short"]
    # the file decides the rows, whatever it is called
    path.write_text('[[stages]]\ncompressor = "structured"\n', encoding="utf-8")
    with pytest.raises(ConfigError, match="method short = "):
        evaluate(changed(settings, pipelines=(path,)))
    with pytest.raises(ConfigError, match="two methods are called 'short'"):
        evaluate(changed(settings, pipelines=(path, path)))
    with pytest.raises(ConfigError, match=r"cannot read .*gone\.toml"):
        evaluate(changed(settings, pipelines=(tmp_path / "gone.toml",)))


def test_the_summary_says_where_its_numbers_come_from(settings):
    stamp = evaluate(changed(settings, seed=3, max_context=500)).summary.stamp
    assert {"time", "processor", "system", "kompakt"} <= set(stamp)
    assert (stamp["seed"], stamp["budgets"], stamp["reader"]) == ("3", "0.5", "none")
    assert (stamp["tokens counted by"], stamp["contexts"]) == ("o200k_base", "at most 500 tokens")


def test_the_same_seed_gives_the_same_numbers_to_the_digit(settings, tmp_path):
    made = [changed(settings, output=tmp_path / name, seed=5, keeps=(0.5, 0.3)) for name in "ab"]
    summaries = [evaluate(one).summary for one in made]
    first, same = ([cell.estimates for cell in summary.cells] for summary in summaries)
    assert first == same
    assert summaries[0].differences == summaries[1].differences != ()
    assert without_times(rows(made[0])) == without_times(rows(made[1]))


def test_a_second_call_computes_nothing_and_says_the_same(settings):
    method = Told()
    first = evaluate(settings, contenders=[Contender(method)])
    n = len(method.calls)
    assert n == 3
    second = evaluate(settings, contenders=[Contender(method)])
    assert len(method.calls) == n
    assert second.summary == first.summary


def test_a_summary_has_only_what_this_call_asked_for(settings):
    evaluate(changed(settings, compressors=("lexical", "structured"), keeps=(0.5, 0.8)))
    few = evaluate(changed(settings, limit=2)).summary
    assert counts(few) == {
        ("full", 1): 2,
        ("none", 0): 2,
        ("truncate", 0.5): 2,
        ("random", 0.5): 2,
        ("lexical", 0.5): 2,
    }
    assert few.tasks[0].n == 2
    assert {view.keep for one in few.examples for view in one.views} == {1, 0, 0.5}
    assert {view.method for one in few.examples for view in one.views}.isdisjoint({"structured"})


def test_rows_of_other_data_are_never_mixed_in(settings, tmp_path):
    evaluate(settings)
    other = write(tmp_path / "questions_other.jsonl", [ROWS[0] | {"id": "new"}])
    assert set(counts(evaluate(changed(settings, data=other)).summary).values()) == {1}
    same_id = write(tmp_path / "questions_changed.jsonl", [ROWS[0] | {"query": "What else?"}])
    with pytest.raises(ConfigError, match="another example with the id 'toll'"):
        evaluate(changed(settings, data=same_id))


def test_the_stamp_is_that_of_the_machines_that_computed_the_rows(settings, monkeypatch):
    monkeypatch.setattr(runner, "stamp", lambda: {"time": "1", "processor": "old", "commit": "a", "torch": "2"})
    evaluate(settings)
    monkeypatch.setattr(runner, "stamp", lambda: {"time": "2", "processor": "new", "commit": "a"})
    again = evaluate(settings).summary.stamp
    assert (again["processor"], again["time"]) == ("old", "1")
    more = evaluate(changed(settings, keeps=(0.5, 0.8))).summary.stamp
    assert (more["processor"], more["commit"], more["torch"]) == ("old; new", "a", "2")


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"seed": 9}, "seed"), ({"tokenizer": "cl100k_base"}, "tokenizer"), ({"max_context": 300}, "max_context")],
)
def test_other_settings_need_another_folder(settings, changes, words):
    evaluate(settings)
    with pytest.raises(ConfigError, match=f"holds a run with {words}.*another folder"):
        evaluate(changed(settings, **changes))


def test_a_budget_given_twice_is_one(settings):
    evaluate(changed(settings, keeps=(0.5, 0.8, 0.5)))
    lines = (settings.output / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 3 * (2 + 3 * 2)


def test_the_samples_of_the_package(settings):
    done = evaluate(changed(settings, data=None, tasks=("needle", "key-value"), limit=1, n_shown=1))
    assert [(task.name, task.n) for task in done.summary.tasks] == [("needle", 1), ("key-value", 1)]
    assert [(one.task, len(one.views)) for one in done.summary.examples] == [("needle", 5), ("key-value", 5)]
    assert done.summary.examples[0].question
    assert {point.task for point in done.summary.grid} == {"needle"}
    checked = {cell.method: cell.n_checked for cell in done.summary.cells if cell.task == "key-value"}
    assert checked.pop("none") == 0
    assert set(checked.values()) == {1}


def test_all_tasks_but_reconstruction_if_none_is_named(settings, planned):
    assert list(evaluate(changed(settings, data=None, limit=1)).summary.examples) == [
        "multi-document-qa", "long-document-qa", "filings-qa", "agent-transcripts", "needle", "key-value",
        "demonstrations", "language-modelling", "questions",
    ]  # fmt: skip


def test_tasks_that_do_not_fit_are_left_out_with_the_reason(settings, planned):
    small = changed(settings, data=None, limit=1, max_context=300)
    left_out = evaluate(small).left_out
    assert "max_context" in left_out["long-document-qa"]
    assert "needle" not in left_out
    with pytest.raises(InputError, match="long-document-qa: no example can be used"):
        evaluate(changed(small, tasks=("needle", "long-document-qa")))
    with pytest.raises(InputError, match="no example can be used"):
        evaluate(changed(small, max_context=1))


def test_single_tasks_may_have_longer_contexts(settings):
    mixed = changed(
        settings, data=None, tasks=("needle", "key-value"), limit=1, max_context=300, max_context_of={"needle": 900}
    )
    done = evaluate(mixed)
    sizes = {row.task: row.tokens_before for row in rows(mixed)}
    assert sizes["key-value"] <= 300 < sizes["needle"] <= 900
    assert done.summary.stamp["contexts"] == "at most 300 tokens, needle 900"


def test_what_cannot_be_used_here_is_left_out_with_the_reason(settings, empty_cache, planned):
    done = evaluate(changed(settings, compressors=()))
    not_text = {name for name in compressor_names() if compressor_class(name).emits != "text"}
    assert set(done.left_out) == not_text | {"extractive", "gemfilter", "selective-context"}
    assert {done.left_out[name] for name in not_text} == {"it does not give text"}
    assert "kompakt models pull minilm-l6" in done.left_out["extractive"]
    assert {"lexical", "structured", "dedup", "default"} <= {one.name for one in done.summary.contenders}


@pytest.mark.parametrize(
    "changes", [{"compressors": ("extractive",)}, {"reader": "smollm2-135m"}, {"tokenizer": "smollm2-135m"}]
)
def test_a_model_that_was_asked_for_must_be_here(settings, changes, empty_cache):
    with pytest.raises(ModelNotFoundError, match="kompakt models pull"):
        evaluate(changed(settings, **changes))


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"compressors": ("lexicl",)}, ConfigError, "did you mean 'lexical'"),
        ({"tasks": ("needle",)}, ConfigError, "a file holds questions of one's own, not needle"),
        ({"tasks": ("neddle",), "data": None}, ConfigError, "did you mean 'needle'"),
        ({"keeps": (1.5,)}, ConfigError, "above 0 and below 1"),
        ({"keeps": ()}, ConfigError, "above 0 and below 1"),
        ({"limit": 0}, ConfigError, "limit must be at least 1"),
        ({"limit": -3}, ConfigError, "limit must be at least 1"),
        ({"data": Path("no/such/folder")}, InputError, "no/such/folder"),
        ({"tokenizer": "no-such"}, ModelNotFoundError, "no-such"),
        ({"max_context": 2}, InputError, "none fits max_context"),
    ],
)
def test_what_makes_no_sense(settings, changes, error, words):
    with pytest.raises(error, match=words):
        evaluate(changed(settings, **changes))
    assert not (settings.output / "rows.jsonl").exists()


def test_a_folder_without_any_task(settings, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"has no file of any task: .*needle"):
        evaluate(changed(settings, data=tmp_path / "empty"))


def test_a_question_without_an_answer_is_named(settings, tmp_path):
    bad = write(
        tmp_path / "bad.jsonl", [ROWS[0], {"query": "Why?", "text": "Because.", "answers": [" "], "id": "why"}]
    )
    with pytest.raises(InputError, match=r"bad\.jsonl: the question 'why' has no answer"):
        evaluate(changed(settings, data=bad))


def test_a_folder_of_data_by_name(settings, data, tmp_path):
    assert evaluate(changed(settings, data=data.parent)).summary.tasks[0].name == "questions"
    assert evaluate(changed(settings, tasks=("questions",))).summary.tasks[0].n == 3


def test_a_reader_reads_what_it_may(settings, monkeypatch):
    backend = Reader("three groats")
    monkeypatch.setattr(module, "load_reader", lambda name: backend if name == "mine" else None)
    done = evaluate(changed(settings, reader="mine", reader_limit=1, reader_positions=900))
    texts = ["".join(part.text for part in prompt.parts) for prompt, _, _ in backend.calls]
    # what several methods leave alike is read once
    assert len(texts) == len(set(texts)) == 4
    assert done.summary.stamp["reader"] == "mine, the first 1 examples of a task, contexts of at most 900 tokens"
    found = [cell for cell in done.summary.cells if cell.task and "f1" in cell.estimates]
    assert {cell.estimates["f1"].n for cell in found} == {1}
    assert {cell.estimates["log_likelihood"].mean for cell in found} == {-1.5}
    # a model on this machine is asked in plain text, where its own context length is the limit
    assert not backend.calls[0][0].is_chat


def test_an_endpoint_is_asked_in_chat_and_a_small_model_only_what_fits(settings, monkeypatch):
    backend = Reader()
    backend.tokenizer, backend.max_positions = None, 9
    monkeypatch.setattr(module, "load_reader", lambda name: backend)
    evaluate(changed(settings, reader="http://127.0.0.1#m"))
    assert {prompt.is_chat for prompt, _, _ in backend.calls} == {True}
    assert {row.not_read for row in rows(settings) if row.method == "full"} == {
        f"the context has {n} tokens, more than 9" for n in {r.tokens_before for r in rows(settings)}
    }


def test_the_reader_may_only_tell_likelihoods(settings, monkeypatch):
    backend = Reader()
    monkeypatch.setattr(module, "load_reader", lambda name: backend)
    summary = evaluate(changed(settings, reader="mine", reader_answers=False)).summary
    assert {new for _, new, _ in backend.calls} == {0}
    assert {"log_likelihood", "f1"} & set(summary.metrics) == {"log_likelihood"}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("http://127.0.0.1:8080/v1#m", "http"),
        ("https://host/v1", "http"),
        ("smollm2-135m", "transformers"),
        ("./folder", "transformers"),
    ],
)
def test_urls_are_endpoints_and_the_rest_models(monkeypatch, name, kind):
    monkeypatch.setattr(module, "load_backend", lambda *given: given)
    assert load_reader(name) == (kind, name)


def test_progress_reaches_its_end(settings):
    seen = []
    evaluate(settings, on_progress=lambda *told: seen.append(told[:2]))
    assert seen[-1] == (15, 15)
