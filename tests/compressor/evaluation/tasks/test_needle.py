"""The grid is whole, and the needle stands where the grid says."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import proses, texts

from kompakt.compressor.evaluation.data import rows_of, samples_folder
from kompakt.compressor.evaluation.example import TaskSettings
from kompakt.compressor.evaluation.task_registry import load_examples
from kompakt.compressor.evaluation.tasks.needle import DEPTHS, LENGTHS, TASK
from kompakt.compressor.evaluation.tasks.sentences import counted, stretches
from kompakt.compressor.models.tokenizers import load_tokenizer

TOKENIZER = load_tokenizer("o200k_base")
ROWS = rows_of(samples_folder(), TASK.files)
NEEDLES = {row["id"]: row["needle"] for row in ROWS["needles_sample"]}


def grid(max_context=None, seed=0, rows=ROWS):
    return list(TASK.examples(rows, TaskSettings(TOKENIZER, max_context, seed)))


@pytest.mark.parametrize(
    ("max_context", "lengths", "per_point"),
    [
        (None, LENGTHS, 2),
        (8000, LENGTHS, 2),
        (7999, LENGTHS[:3], 3),
        (2000, LENGTHS[:2], 4),
        (1000, LENGTHS[:1], 8),
        (500, (500,), 8),
    ],
)
def test_the_grid_is_full(max_context, lengths, per_point):
    points = [(example.axes["length"], example.axes["depth"]) for example in grid(max_context)]
    assert points == [point for point in product(lengths, DEPTHS) for _ in range(per_point)]
    assert len(points) >= 40


@pytest.mark.parametrize("seed", range(3))
def test_length_and_depth_are_about_right(seed):
    for example in grid(seed=seed):
        text, length = example.documents[0].text, example.axes["length"]
        assert 0.93 * length <= TOKENIZER.count(text) <= length
        needle = NEEDLES[example.id.split("-", 2)[2]]
        before, after = text.split(needle)
        n_before, n_after = TOKENIZER.count(before), TOKENIZER.count(after)
        # a sentence has up to about ninety tokens
        assert abs(n_before - example.axes["depth"] * (n_before + n_after)) <= 60
        assert example.axes["depth"] > 0 or not before
        assert example.axes["depth"] < 1 or not after


def test_the_needle_stands_between_sentences():
    source = "\n\n".join(row["text"] for row in ROWS["haystack_sample"])
    for example in grid(2000):
        needle = NEEDLES[example.id.split("-", 2)[2]]
        before, after = example.documents[0].text.split(needle)
        assert before.strip() in source
        assert after.strip() in source
        assert not before or (before.rstrip()[-1] not in ",;" and before[-1].isspace())
        assert not after or after.startswith(" ")


def test_the_answer_stands_once():
    rows = {**ROWS, "needles_sample": [*ROWS["needles_sample"]]}
    # the haystack is full of this one
    rows["needles_sample"].append({"id": "no", "needle": "It was he.", "question": "Who?", "answers": ["the "]})
    found = grid(rows=rows)
    assert len(found) == 40
    assert not any(example.id.endswith("-no") for example in found)
    assert all(example.documents[0].text.count(example.answers[0]) == 1 for example in found)


def test_the_seed_moves_needles_and_haystack():
    assert {example.id for example in grid(1000, 0)} != {example.id for example in grid(1000, 1)}
    assert len({example.documents[0].text[:80] for example in grid(1000)}) > 5


@pytest.mark.parametrize("missing", ["haystack_sample", "needles_sample"])
def test_without_haystack_or_needles_there_is_nothing(missing):
    assert grid(rows={name: rows for name, rows in ROWS.items() if name != missing}) == []


def test_a_short_haystack_makes_a_smaller_grid():
    rows = {**ROWS, "haystack_sample": ROWS["haystack_sample"][:2]}
    assert {example.axes["length"] for example in grid(rows=rows)} == {1000.0}


def test_load_keeps_them_all():
    assert len(load_examples("needle", samples_folder(), TaskSettings(TOKENIZER))) == 40


@given(
    text=proses | texts, n=st.integers(1, 4), size=st.integers(1, 80), spare=st.integers(0, 20), seed=st.integers()
)
def test_stretches_keep_their_length(text, n, size, spare, seed):
    source = counted(text, TOKENIZER)
    found = list(stretches(source, n, size, seed, spare=spare))
    assert len(found) <= n
    assert len({first for first, _ in found}) == len(found)
    for first, last in found:
        assert source.cut(first, last) in text
        assert TOKENIZER.count(source.cut(first, last)) <= size
