"""Every task on the data that comes with the package: what it promises of its examples."""

from collections import Counter

import pytest

from kompakt.compressor.evaluation.data import samples_folder
from kompakt.compressor.evaluation.example import TaskSettings
from kompakt.compressor.evaluation.task_registry import get_task, load_examples, sample_examples, task_names, tasks_of
from kompakt.compressor.models.tokenizers import load_tokenizer
from kompakt.compressor.types import as_documents

TOKENIZER = load_tokenizer("o200k_base")
LIMITS = (None, 1000, 300)
NO_CHANCE = {"long-document-qa", "questions"}
"""Tasks whose documents are the user's own, so that there is nothing to choose."""


def examples(task, max_context=None, seed=0):
    return load_examples(task, samples_folder(), TaskSettings(TOKENIZER, max_context, seed))


def joined(example):
    return "\n\n".join(document.text for document in example.documents)


@pytest.mark.parametrize("task", task_names())
def test_there_are_enough(task):
    assert len(examples(task)) >= 8


def test_all_tasks_have_samples():
    assert tasks_of(samples_folder()) == task_names()


@pytest.mark.parametrize("max_context", LIMITS)
@pytest.mark.parametrize("task", task_names())
def test_promises(task, max_context):
    found = examples(task, max_context)
    assert len({example.id for example in found}) == len(found)
    for example in found:
        text = joined(example)
        assert example.task == task
        assert example.dataset
        assert max_context is None or TOKENIZER.count(text) <= max_context
        assert as_documents(example.documents) == example.documents
        assert all(document.text.strip() for document in example.documents)
        assert bool(example.question) is get_task(task).has_query
        assert example.answers
        assert example.target != "answer" or any(answer in text for answer in example.answers)
        assert set(example.axes) == set(get_task(task).axes)


@pytest.mark.parametrize("task", task_names())
def test_chance_is_the_seed_s(task):
    first, again, other = ([*examples(task, 300, seed), *examples(task, 700, seed)] for seed in (1, 1, 2))
    assert first == again
    assert task in NO_CHANCE or first != other


@pytest.mark.parametrize("task", task_names())
def test_a_group_shares_its_context(task):
    contexts = {}
    for example in examples(task):
        if example.target == "answer":
            name = example.group or example.id
            assert contexts.setdefault(name, example.documents) == example.documents


def test_groups():
    assert len({example.group for example in examples("long-document-qa")}) == 2
    assert len({example.group for example in examples("demonstrations")}) == 2
    assert len({example.group for example in examples("agent-transcripts")}) == 3
    assert {example.group for example in examples("multi-document-qa")} == {""}
    # contexts that were cut for one question are its own
    cut = [example for example in examples("agent-transcripts", 1000) if not example.group]
    assert cut


def test_continuations_follow_their_context():
    texts = [row["document"] if "document" in row else row["text"] for row in plain_rows()]
    for limit in LIMITS:
        for example in examples("language-modelling", limit):
            context, following = joined(example), example.answers[0]
            (text,) = (text for text in texts if context in text)
            gap = text[text.index(context) + len(context) :]
            assert gap.lstrip().startswith(following)
            assert gap.lstrip()[len(following)].isspace()
            assert 50 <= TOKENIZER.count(following) <= 64
            assert TOKENIZER.count(context) >= (limit or 2048) / 4 - 5


def plain_rows():
    from kompakt.compressor.evaluation.data import rows_of

    return [row for rows in rows_of(samples_folder(), get_task("reconstruction").files).values() for row in rows]


def test_passages_are_answers_of_about_the_same_length():
    for example in examples("reconstruction"):
        assert example.answers == (joined(example),)
        assert 128 <= TOKENIZER.count(joined(example)) <= 256


def test_demonstrations_show_every_label_that_is_asked_for():
    for limit in (None, 300, 100):
        found = examples("demonstrations", limit)
        assert found
        for example in found:
            labels = {document.text.rpartition("\nOutput: ")[2] for document in example.documents}
            assert example.answers[0] in labels


def test_titles_name_the_call():
    titles = {
        document.metadata["title"] for example in examples("agent-transcripts") for document in example.documents
    }
    assert {"cat -n ledger/upload.py", 'get_refund({"order_id": "o-89004"})'} <= titles


def test_a_small_choice_is_spread():
    found = sample_examples(examples("needle"), 8, seed=3)
    assert Counter(example.dataset for example in found) == dict.fromkeys(
        ("1000-tokens", "2000-tokens", "4000-tokens", "8000-tokens"), 2
    )
