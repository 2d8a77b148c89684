"""Training of the smaller scorer: it learns, and an interruption leaves no trace in what comes out."""

from __future__ import annotations

import csv
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from tiny_models import save_model
from torch.testing import assert_close

from kompakt.compressor.errors import ConfigError, ModelError
from kompakt.compressor.models.causal_lm import load_causal_lm, tokenize
from kompakt.compressor.models.locate import weights_fingerprint
from kompakt.compressor.models.scorers import recent_scorer
from kompakt.compressor.models.self_information import (
    language_model_scorer,
    rows_of,
    self_information,
    self_information_reference,
)
from kompakt.compressor.models.surprisal_lite import LiteSettings, SurprisalLite
from kompakt.compressor.training.surprisal_batches import batch_of, endless_batches
from kompakt.compressor.training.surprisal_labels import Labelled, label, read_labels, write_labels
from kompakt.compressor.training.surprisal_lite import LiteTraining, train_surprisal_lite
from kompakt.compressor.training.surprisal_student import spearman, surprisal_loss

CONTEXT = 64
SHORT = LiteTraining(
    n_layers=2,
    window=32,
    overlap=8,
    d_correction=32,
    tokens_per_step=512,
    learning_rate=4e-3,
    warm_up_steps=4,
    max_tokens=5_000,
    checkpoint_every=4,
)
WORDS = ["the", "harbour", "letter", "of", "winter", "is", "slow", "and", "a", "brass", "clock", "42", "rain."]


def texts(n, seed):
    draws = random.Random(seed)
    return [" ".join(draws.choices(WORDS, k=draws.randint(6, 40))) for _ in range(n)]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "base"
    sizes = {"num_hidden_layers": 3, "max_position_embeddings": CONTEXT, "tie_word_embeddings": True}
    save_model(folder, "llama", **sizes)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        # surprisals as far apart as those of a model that has learnt
        model.model.norm.weight *= 6
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def teacher(base):
    return language_model_scorer(load_causal_lm(base, dtype="float32"))


@pytest.fixture(scope="module")
def labelled(teacher):
    return list(label(texts(150, 1), teacher, window=48, min_tokens=8))


@pytest.fixture(scope="module")
def validation(teacher):
    return list(label(texts(30, 2), teacher, window=48, min_tokens=8))


@pytest.fixture(scope="module")
def train(base, labelled, validation):
    def run(folder, settings=SHORT, **options):
        return train_surprisal_lite(
            labelled, folder, base=base, settings=settings, validation=validation, dtype="float32", **options
        )

    return run


@pytest.fixture(scope="module")
def whole(tmp_path_factory, train):
    """A run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    train(folder)
    return folder


def curve(folder):
    with (folder / "curve.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def without_time(rows):
    return [{name: value for name, value in row.items() if name != "minutes"} for row in rows]


def weights(folder):
    # hidden is what a reader remembers of the files
    return {file.name: file.read_bytes() for file in (folder / "weights").glob("[!.]*")}


class Stop(BaseException):
    """What a test interrupts training with."""


def stop_after(n_steps):
    calls = []

    def progress(done, total, what):
        calls.append(done)
        if len(calls) == n_steps:
            raise Stop

    return progress


def test_the_loss_falls_and_the_order_comes_near_to_the_whole_models(tmp_path, train):
    folder = tmp_path / "run"
    told = []
    train(folder, replace(SHORT, max_tokens=20_000, checkpoint_every=10), progress=lambda *news: told.append(news))
    rows = curve(folder)
    losses = [float(row["loss"]) for row in rows[1:]]
    orders = [float(row["spearman"]) for row in rows]
    assert losses[-1] < losses[0] / 3
    # untrained, the first layers know something already
    assert orders[-1] > max(0.7, orders[0] + 0.15)
    assert told[-1][:2] == (20_000, 20_000)
    assert len(told) == int(rows[-1]["step"])


def test_the_curve_says_what_was_done(whole):
    rows = curve(whole)
    assert list(rows[0]) == ["step", "tokens", "loss", "spearman", "learning_rate", "minutes"]
    assert [int(row["step"]) for row in rows][:3] == [0, 4, 8]
    assert rows[0]["loss"] == ""
    assert int(rows[-1]["tokens"]) >= SHORT.max_tokens > int(rows[-2]["tokens"])
    # at the end of the cosine
    assert float(rows[-1]["learning_rate"]) == pytest.approx(0.05 * SHORT.learning_rate)
    assert float(rows[1]["learning_rate"]) == pytest.approx(SHORT.rate(4, int(rows[1]["tokens"])))


def test_what_comes_out_scores_as_the_curve_says(whole, base, validation):
    scorer = recent_scorer(whole / "weights")
    assert isinstance(scorer, SurprisalLite)
    assert scorer.settings == LiteSettings(
        base=str(base),
        base_fingerprint=weights_fingerprint(base),
        n_layers=2,
        window=32,
        overlap=8,
        d_correction=32,
    )
    scores = self_information(scorer, [one.ids for one in validation], window=scorer.longest, overlap=8)
    order = spearman(np.concatenate(scores), np.concatenate([one.nats for one in validation]))
    # what was trained in fp32 is stored in int4 and may be read in bf16
    assert order == pytest.approx(float(curve(whole)[-1]["spearman"]), abs=0.05)


@pytest.mark.parametrize("n_steps", [2, 7, 8], ids=["before a checkpoint", "between two", "at one"])
def test_an_interrupted_run_ends_as_one_that_was_not(tmp_path, train, whole, n_steps):
    folder = tmp_path / "run"
    with pytest.raises(Stop):
        train(folder, progress=stop_after(n_steps))
    assert not (folder / "weights").exists()
    done = []
    train(folder, progress=lambda *news: done.append(news))
    assert len(done) == int(curve(whole)[-1]["step"]) - (n_steps - 1) // 4 * 4
    assert without_time(curve(folder)) == without_time(curve(whole))
    assert weights(folder) == weights(whole)


def test_bf16_copies_resume_exactly_as_well(tmp_path, base, labelled, validation):
    settings = replace(SHORT, max_tokens=2500, checkpoint_every=2)
    options = {"base": base, "settings": settings, "validation": validation[:10], "dtype": "bfloat16"}
    train_surprisal_lite(labelled, tmp_path / "whole", **options)
    with pytest.raises(Stop):
        train_surprisal_lite(labelled, tmp_path / "run", progress=stop_after(4), **options)
    train_surprisal_lite(labelled, tmp_path / "run", **options)
    rows = curve(tmp_path / "whole")
    assert without_time(curve(tmp_path / "run")) == without_time(rows)
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")
    assert float(rows[-1]["loss"]) < float(rows[1]["loss"])


KILLED = """
import json, os, signal, sys
from kompakt.compressor.training.surprisal_labels import read_labels
from kompakt.compressor.training.surprisal_lite import LiteTraining, train_surprisal_lite

train, held_out, folder, base, values = sys.argv[1:]
steps = []

def progress(*news):
    steps.append(news)
    if len(steps) == 6:
        os.kill(os.getpid(), signal.SIGKILL)

settings = LiteTraining(**json.loads(values))
options = {"base": base, "settings": settings, "validation": read_labels(held_out), "dtype": "float32"}
train_surprisal_lite(read_labels(train), folder, progress=progress, **options)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="kills a process")
def test_a_killed_process_leaves_a_run_that_goes_on(tmp_path, base, labelled, validation, train, whole):
    write_labels(tmp_path / "train.safetensors", labelled)
    write_labels(tmp_path / "held-out.safetensors", validation)
    folder = tmp_path / "run"
    files = [tmp_path / "train.safetensors", tmp_path / "held-out.safetensors", folder, base]
    values = json.dumps(vars(SHORT))
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, *map(str, files), values],
        env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())},
        capture_output=True,
        text=True,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert [row["step"] for row in curve(folder)] == ["0", "4"]
    # what it was writing when it died
    (folder / ".step-000008.safetensors.0123abcd.new").write_bytes(b"half")
    train(folder)
    assert without_time(curve(folder)) == without_time(curve(whole))
    assert weights(folder) == weights(whole)
    assert not (folder / ".step-000008.safetensors.0123abcd.new").exists()


def test_minutes_end_a_run_with_weights_that_score(tmp_path, train):
    settings = replace(SHORT, max_tokens=10**9, max_minutes=1 / 60, checkpoint_every=10**6)
    began = time.monotonic()
    folder = train(tmp_path / "run", settings)
    assert time.monotonic() - began < 30
    first = curve(tmp_path / "run")
    assert int(first[-1]["step"]) > 0
    assert float(first[-1]["minutes"]) >= settings.max_minutes
    assert np.isfinite(self_information(recent_scorer(folder), [[5, 6, 7, 8]])[0]).all()

    # the time of the call before counts, and more can be given
    train(tmp_path / "run", settings)
    assert curve(tmp_path / "run") == first
    train(tmp_path / "run", replace(settings, max_minutes=float(first[-1]["minutes"]) + 1 / 60))
    assert int(curve(tmp_path / "run")[-1]["step"]) > int(first[-1]["step"])


def test_a_finished_run_is_finished(whole, train):
    before = curve(whole), weights(whole)
    folder = train(whole, progress=stop_after(1))
    assert folder == whole / "weights"
    assert (curve(whole), weights(whole)) == before


def test_the_base_stays_as_it_was(base, tmp_path, train):
    lm = load_causal_lm(base, dtype="float32")
    before = {name: value.clone() for name, value in lm.model.named_parameters()}
    train(tmp_path / "run", replace(SHORT, max_tokens=1000))
    for name, value in lm.model.named_parameters():
        assert torch.equal(value, before[name])
        assert not value.requires_grad


def test_a_folder_of_another_run_is_refused(whole, train):
    with pytest.raises(ConfigError, match=r"holds a run with learning_rate = 0\.004, not 0\.002"):
        train(whole, replace(SHORT, learning_rate=2e-3))


def test_a_folder_of_other_labels_is_refused(whole, base, labelled, validation):
    with pytest.raises(ConfigError, match="holds a run with labelled"):
        train_surprisal_lite(labelled[1:], whole, base=base, settings=SHORT, validation=validation, dtype="float32")


def test_a_folder_of_other_files_is_refused(tmp_path, train):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="holds other files"):
        train(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_two_runs_in_one_folder_are_refused(tmp_path, train):
    folder = tmp_path / "run"
    refused = []

    def progress(*news):
        with pytest.raises(ConfigError, match="is in use"):
            train(folder)
        refused.append(news)
        raise Stop

    with pytest.raises(Stop):
        train(folder, progress=progress)
    assert refused


def test_a_damaged_checkpoint_is_named(tmp_path, train):
    folder = tmp_path / "run"
    with pytest.raises(Stop):
        train(folder, progress=stop_after(5))
    (file,) = folder.glob("step-*.safetensors")
    file.write_bytes(b"\0" * 40)
    with pytest.raises(ModelError, match=r"is damaged: .* delete checkpoint\.json"):
        train(folder)


def test_labels_that_are_no_numbers_end_the_run(tmp_path, base, labelled, validation):
    broken = [Labelled(one.ids, np.full_like(one.nats, np.nan)) for one in labelled[:20]]
    with pytest.raises(ModelError, match="the loss of step 1 is nan"):
        train_surprisal_lite(broken, tmp_path / "run", base=base, settings=SHORT, validation=validation)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"n_layers": 0}, "n_layers must be at least 1, got 0"),
        ({"window": 0}, "window must be at least 1, got 0"),
        ({"overlap": 512}, r"overlap must be in \[0, window\), got 512 with a window of 512"),
        ({"overlap": -1}, "overlap must be in"),
        ({"d_correction": 0}, "d_correction must be at least 1"),
        ({"tokens_per_step": 0}, "tokens_per_step must be at least 1"),
        ({"learning_rate": math.nan}, "learning_rate must be a number above 0, got nan"),
        ({"learning_rate": math.inf}, "learning_rate must be a number above 0, got inf"),
        ({"warm_up_steps": -1}, "warm_up_steps must be at least 0, got -1"),
        ({"max_tokens": 0}, "max_tokens must be at least 1"),
        ({"max_minutes": 0.0}, "max_minutes must be a number above 0, got 0"),
        ({"checkpoint_every": 0}, "checkpoint_every must be at least 1"),
        ({"seed": -1}, "seed must be at least 0"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_settings_that_make_no_sense(values, message):
    with pytest.raises(ConfigError, match=message):
        LiteTraining(**values)


def test_what_the_base_cannot_do_is_refused(tmp_path, train):
    with pytest.raises(ConfigError, match="window must be below 64"):
        train(tmp_path / "run", replace(SHORT, window=64))
    with pytest.raises(ModelError, match="the model has 3 layers, so 4 of them cannot be used"):
        train(tmp_path / "run", replace(SHORT, n_layers=4))


def test_nothing_to_train_on_is_refused(tmp_path, base, labelled):
    with pytest.raises(ConfigError, match="labelled must hold some tokens"):
        train_surprisal_lite([], tmp_path / "run", base=base, validation=labelled)
    with pytest.raises(ConfigError, match="validation must hold some tokens"):
        train_surprisal_lite(labelled, tmp_path / "run", base=base, validation=[])


def test_labels_are_what_the_whole_model_says(teacher):
    read = list(label(texts(5, 3), teacher, window=40, windows_per_text=3, min_tokens=8))
    assert read
    expected = self_information_reference(teacher.lm, [one.ids for one in read])
    for one, nats in zip(read, expected, strict=True):
        assert_close(torch.from_numpy(one.nats), torch.from_numpy(nats), atol=1e-4, rtol=1e-4)


def test_windows_are_parts_of_their_texts(teacher):
    some = texts(20, 4)
    read = list(label(some, teacher, window=24, windows_per_text=2, min_tokens=10))
    ids = [tokenize(teacher.lm, [text])[0].ids.tolist() for text in some]
    cuts = [[one[start : start + 24] for start in range(0, len(one), 24)] for one in ids]
    usable = [{tuple(cut) for cut in own if len(cut) >= 10} for own in cuts]
    assert {tuple(one.ids.tolist()) for one in read} <= set().union(*usable)
    assert 0 < len(read) <= 40
    assert all(len(one) >= 10 for one in read)
    again = list(label(some, teacher, window=24, windows_per_text=2, min_tokens=10))
    assert [one.ids.tolist() for one in again] == [one.ids.tolist() for one in read]


@pytest.mark.parametrize("options", [{"windows_per_text": 0}, {"min_tokens": 0}, {"window": 8, "min_tokens": 9}])
def test_windows_that_make_no_sense(teacher, options):
    with pytest.raises(ConfigError, match="windows_per_text must be at least 1 and min_tokens in"):
        label(["a text"], teacher, **options)


def test_written_labels_are_read_back(tmp_path, labelled):
    write_labels(tmp_path / "labels.safetensors", labelled)
    read = read_labels(tmp_path / "labels.safetensors")
    assert len(read) == len(labelled)
    for one, other in zip(read, labelled, strict=True):
        assert one.ids.dtype == np.int64
        assert np.array_equal(one.ids, other.ids)
        assert np.array_equal(one.nats, other.nats)
    with pytest.raises(ConfigError, match="at least one labelled window"):
        write_labels(tmp_path / "labels.safetensors", [])
    (tmp_path / "labels.safetensors").write_bytes(b"\0" * 20)
    with pytest.raises(ModelError, match="cannot be read"):
        read_labels(tmp_path / "labels.safetensors")


def test_a_window_has_a_label_for_each_token():
    with pytest.raises(ConfigError, match=r"got \[2\] and \[3\]"):
        Labelled(np.array([1, 2]), np.zeros(3, np.float32))


def test_each_epoch_has_every_row_once():
    rows = [range(length) for length in random.Random(0).choices(range(1, 40), k=900)]
    batches = endless_batches(rows, max_tokens=100, seed=3)
    orders = []
    for _ in range(2):
        seen = []
        while len(seen) < len(rows):
            batch = next(batches)
            assert max(map(len, batch)) * len(batch) <= 100
            seen += batch
        assert sorted(map(len, seen)) == sorted(map(len, rows))
        orders.append(seen)
    assert orders[0] != orders[1]


def test_each_token_counts_once(labelled):
    rows = rows_of([len(one) for one in labelled], window=32, overlap=8, longest=32)
    batch = batch_of(labelled, rows, prefix_id=0, device=torch.device("cpu"))
    assert batch.ids[:, 0].eq(0).all()
    assert batch.ids[:, 1:][batch.is_scored].tolist() == [int(item) for one in labelled for item in one.ids]
    assert batch.nats.tolist() == [float(item) for one in labelled for item in one.nats]


def test_the_loss_is_that_of_its_definition():
    nats, wanted = [0.2, 3.0, 9.0], [0.5, 3.5, 4.0]
    squares = [(math.log(a + 0.1) - math.log(b + 0.1)) ** 2 for a, b in zip(nats, wanted, strict=True)]
    gaps = [abs(a - b) for a, b in zip(nats, wanted, strict=True)]
    smooth = [gap - 0.5 if gap > 1 else gap**2 / 2 for gap in gaps]
    expected = sum(squares) / 3 + 0.3 * sum(smooth) / 3
    assert float(surprisal_loss(torch.tensor(nats), torch.tensor(wanted))) == pytest.approx(expected)


def test_ranks_that_are_equal_share_their_mean():
    draws = random.Random(5)
    first = [draws.randint(0, 9) for _ in range(60)]
    second = [one + draws.randint(0, 6) for one in first]

    def ranks(values):
        return [sum(b < a for b in values) + (sum(b == a for b in values) + 1) / 2 for a in values]

    a, b = ranks(first), ranks(second)
    mean = (len(a) + 1) / 2
    products = sum((x - mean) * (y - mean) for x, y in zip(a, b, strict=True))
    squares = [sum((x - mean) ** 2 for x in own) for own in (a, b)]
    assert spearman(np.array(first), np.array(second)) == pytest.approx(products / math.sqrt(squares[0] * squares[1]))
    assert spearman(np.ones(4), np.arange(4)) == 0.0
