"""A row that lacks something is named, and users may write theirs in several ways."""

import json

import pytest

from kompakt import Document, InputError
from kompakt.compressor.evaluation.data import read_rows, samples_folder
from kompakt.compressor.evaluation.example import TaskSettings
from kompakt.compressor.evaluation.task_registry import get_task, load_examples, task_names
from kompakt.compressor.evaluation.tasks.questions import read_questions
from kompakt.compressor.models.tokenizers import load_tokenizer

SETTINGS = TaskSettings(load_tokenizer("o200k_base"))
REQUIRED = {
    "multidoc_sample": ("multi-document-qa", ("id", "question", "answers", "docs", "docs.title", "docs.text")),
    "rag_sample": ("filings-qa", ("id", "question", "answers", "docs")),
    "longdoc_sample": ("long-document-qa", ("id", "document", "questions", "questions.id", "questions.answers")),
    "haystack_sample": ("language-modelling", ("text",)),
    "needles_sample": ("needle", ("id", "needle", "question", "answers")),
    "kv_retrieval_sample": ("key-value", ("id", "records", "value", "gold_index")),
    "icl_sample": ("demonstrations", ("id", "task", "instruction", "demos", "queries", "demos.output", "queries.id")),
    "agent_sample": ("agent-transcripts", ("id", "messages", "questions", "questions.question")),
    "questions_sample": ("questions", ("query", "documents", "answers")),
}
CASES = [(file, task, field) for file, (task, fields) in REQUIRED.items() for field in fields]


def without(row, field):
    outer, _, inner = field.partition(".")
    if not inner:
        return {name: value for name, value in row.items() if name != outer}
    return {**row, outer: [without(item, inner) for item in row[outer]]}


@pytest.mark.parametrize(("file", "task", "field"), CASES)
def test_a_missing_field_is_named_with_file_and_line(tmp_path, file, task, field):
    rows = read_rows(samples_folder() / f"{file}.jsonl")
    lines = [json.dumps(rows[0]), "", json.dumps(without(rows[1], field))]
    path = tmp_path / f"{file}.jsonl"
    path.write_text("\n".join(lines))
    name = {"documents": "text", "answers": "answer"}.get(field, field) if task == "questions" else field
    with pytest.raises(InputError, match=rf"{file}\.jsonl, line 3.* '{name.rpartition('.')[2]}' ") as error:
        load_examples(task, tmp_path, SETTINGS)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("task", task_names())
def test_rows_of_one_s_own_need_no_file(task):
    name = get_task(task).files[0].replace("*", "x")
    rows = {name: [{"wrong": 1}], "needles": []}
    with pytest.raises(InputError, match=f"{name}, row 1: the field"):
        list(get_task(task).examples(rows, SETTINGS))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gold_index": 3}, "position of a record"),
        ({"gold_index": -1}, "position of a record"),
        ({"gold_index": True}, "position of a record"),
        ({"records": [["a"]]}, "pairs of strings"),
        ({"records": [["a", 1]]}, "pairs of strings"),
        ({"value": "other"}, "as in the record"),
    ],
)
def test_key_value_rows_are_checked(change, message):
    row = {"id": "k", "records": [["a", "1"], ["b", "2"]], "value": "2", "gold_index": 1, **change}
    with pytest.raises(InputError, match=message):
        list(get_task("key-value").examples({"kv_retrieval": [row]}, SETTINGS))


def questions(tmp_path, *rows):
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_questions(path)


def test_questions_may_be_short(tmp_path):
    short, full = questions(
        tmp_path,
        {"query": "Who?", "text": "It was she.", "answer": "she"},
        {
            "id": 7,
            "query": "Who?",
            "answers": ["he", ""],
            "dataset": "d",
            "documents": ["a", {"text": "b", "id": 3, "title": "T", "metadata": {"path": "p"}}, {"text": "c"}],
        },
    )
    assert (short.id, short.question, short.answers, short.dataset) == ("mine-1", "Who?", ("she",), "mine")
    assert short.documents == (Document("It was she.", id="0"),)
    assert (full.id, full.answers, full.dataset) == ("7", ("he",), "d")
    assert full.documents == (
        Document("a", id="0"),
        Document("b", id="3", metadata={"path": "p", "title": "T"}),
        Document("c", id="1"),
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"documents": []}, "line 1: .*a document in it"),
        ({"documents": [3]}, "line 1: .*strings and objects"),
        ({"documents": [{"id": "x"}]}, r"line 1, documents\[0\]: .*'text' is missing"),
        (
            {"documents": [{"text": "a", "metadata": []}, {"text": "a", "metadata": [1]}]},
            r"documents\[1\].*an object",
        ),
        ({"documents": [{"text": "a", "id": "x"}, {"text": "b", "id": "x"}]}, "line 1: two documents have the id"),
        ({"id": 1.5}, "'id' must be a string"),
        ({"answers": "a"}, "'answers' must be a list"),
    ],
)
def test_a_wrong_question_is_named(tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        questions(tmp_path, {"query": "?", "documents": ["a"], "answers": ["a"], **change})


def test_ids_of_questions_are_distinct(tmp_path):
    row = {"id": "x", "query": "?", "text": "a", "answer": "a"}
    with pytest.raises(InputError, match="questions have the id 'x'"):
        questions(tmp_path, row, row)


def test_questions_that_do_not_fit_are_left_out():
    rows = {
        "questions": [{"query": "?", "text": "a " * 100, "answer": "a"}, {"query": "?", "text": "a", "answer": "a"}]
    }
    settings = TaskSettings(SETTINGS.tokenizer, 50)
    assert [example.id for example in get_task("questions").examples(rows, settings)] == ["questions-2"]
