"""Tasks by name, and a choice of examples that is fair and stable."""

import json
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kompakt import ConfigError, InputError
from kompakt.compressor.evaluation.example import Example, TaskSettings
from kompakt.compressor.evaluation.task_registry import (
    TASKS,
    get_task,
    load_examples,
    sample_examples,
    task_names,
    tasks_of,
)
from kompakt.compressor.models.tokenizers import load_tokenizer

SETTINGS = TaskSettings(load_tokenizer("o200k_base"))

example_lists = st.lists(
    st.builds(
        lambda name, dataset, group: Example(str(name), "t", (), dataset=dataset, group=group),
        st.integers(0, 999),
        st.sampled_from(["", "a", "b", "c"]),
        st.sampled_from(["", "", "g", "h"]),
    ),
    max_size=40,
    unique_by=lambda example: example.id,
)


@pytest.mark.parametrize("name", task_names())
def test_tasks_are_found_under_their_names(name):
    task = get_task(name)
    assert task.name == name
    assert task.title
    assert task.summary
    assert task.files


def test_every_module_with_a_task_is_listed():
    from kompakt.compressor.evaluation.data import samples_folder

    folder = samples_folder().parent / "tasks"
    modules = {path.stem for path in folder.glob("*.py") if "TASK = " in path.read_text("utf-8")}
    assert modules == set(TASKS.values())


@pytest.mark.parametrize("name", ["needel", "nothing like it", "", 3, None])
def test_an_unknown_task(name):
    with pytest.raises(ConfigError, match="there is no task") as error:
        get_task(name)
    assert ("did you mean 'needle'?" in str(error.value)) is (name == "needel")
    assert "key-value" in str(error.value)


def test_a_folder_without_data_is_named(tmp_path):
    assert tasks_of(tmp_path) == []
    with pytest.raises(InputError, match=r"no data for the task needle; it reads haystack\*\.jsonl"):
        load_examples("needle", tmp_path, SETTINGS)


@pytest.mark.parametrize("limit", [0, -1])
def test_limits_are_checked(limit, tmp_path):
    with pytest.raises(ConfigError, match="max_context must be at least 1"):
        load_examples("needle", tmp_path, TaskSettings(SETTINGS.tokenizer, limit))
    with pytest.raises(ConfigError, match="limit must be at least 1"):
        sample_examples([], limit)
    with pytest.raises(ConfigError, match="per_group must be at least 1"):
        sample_examples([], 1, per_group=limit)


def longdoc(tmp_path, *questions):
    rows = [{"id": "d", "document": "The cat sat. The dog ran.", "questions": questions}]
    (tmp_path / "longdoc_x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return load_examples("long-document-qa", tmp_path, SETTINGS)


def test_answers_stand_in_the_context_letter_by_letter(tmp_path):
    questions = [
        {"id": name, "question": "?", "answers": answers}
        for name, answers in {"a": ["cat"], "b": ["Cat"], "c": ["sat.\n"], "d": ["bird", "dog"], "e": []}.items()
    ]
    assert [example.id for example in longdoc(tmp_path, *questions)] == ["a", "d"]


def test_ids_are_distinct(tmp_path):
    question = {"id": "a", "question": "?", "answers": ["cat"]}
    with pytest.raises(InputError, match="two examples of long-document-qa have the id 'a'"):
        longdoc(tmp_path, question, question)


@given(examples=example_lists, seed=st.integers(), per_group=st.integers(1, 4), data=st.data())
def test_a_smaller_choice_is_a_prefix(examples, seed, per_group, data):
    whole = sample_examples(examples, None, seed, per_group)
    limit = data.draw(st.integers(1, 50))
    assert sample_examples(examples, limit, seed, per_group) == whole[:limit]
    assert sample_examples(data.draw(st.permutations(examples)), limit, seed, per_group) == whole[:limit]


@given(examples=example_lists, seed=st.integers(), per_group=st.integers(1, 4))
def test_only_full_groups_lose_examples(examples, seed, per_group):
    def key(example):
        return example.dataset, example.group or example.id

    chosen = sample_examples(examples, None, seed, per_group)
    assert len({example.id for example in chosen}) == len(chosen)
    available = Counter(map(key, examples))
    assert Counter(map(key, chosen)) == {name: min(n, per_group) for name, n in available.items()}


@given(examples=example_lists, limit=st.integers(1, 40))
def test_datasets_take_turns(examples, limit):
    chosen = Counter(example.dataset for example in sample_examples(examples, limit, per_group=99))
    available = Counter(example.dataset for example in examples)
    most = max(chosen.values(), default=0)
    assert all(chosen[name] in (most, most - 1) or chosen[name] == n for name, n in available.items())


def test_groups_take_turns_within_a_dataset():
    examples = [Example(f"{group}{i}", "t", (), group=group) for group in "abcd" for i in range(9)]
    chosen = sample_examples(examples, None)
    assert [Counter(e.group for e in chosen[i : i + 4]) for i in range(0, 20, 4)] == [dict.fromkeys("abcd", 1)] * 5
    assert len(chosen) == 20


def test_the_seed_decides():
    examples = [Example(str(i), "t", ()) for i in range(50)]
    assert sample_examples(examples, 10, 0) != sample_examples(examples, 10, 1)
    assert (
        sample_examples([replace(e, question="?") for e in examples], 1)[0].id == sample_examples(examples, 1)[0].id
    )
