"""``kompakt fit`` from a file of text to a file that a reader reads."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from command_line import Ran, assert_one_error

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from reader_parts import ask, reader_of  # noqa: E402 (needs torch)
from soft_parts import save_decoder  # noqa: E402

from kompakt.compressor.cache.part_files import load_cache  # noqa: E402

TEXT = "The ferry leaves at seven. Its captain is called Anna Brun, and she pays no toll. In winter it stays there."
SMALL = ["--positions", 12, "--conversations", 10, "--held-out", 2, "--max-window", 40, "--max-conversation", 24]


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    return save_decoder(tmp_path_factory.mktemp("decoders") / "llama")


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "ferry.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture
def command(decoder, corpus):
    return ["fit", corpus, "--decoder", decoder, "--dtype", "float32", "--device", "cpu", *SMALL]


@pytest.mark.parametrize("targets", ["chat", "text"])
def test_the_file_is_read_by_the_local_backend(command, decoder, tmp_path, targets):
    file = tmp_path / "ferry.safetensors"
    ran = Ran([*command, "--targets", targets, "--steps", 3, "--output", file])
    assert ran.status == 0, ran
    assert ran.out.startswith(f"{file}: 12 positions, ")
    assert "3 steps, held-out loss " in ran.out
    assert str(tmp_path / "ferry.run") in ran.err
    part = load_cache(file)
    assert part.source.text == TEXT
    reader = reader_of(decoder)
    made = reader.generate(ask(part, "Who?", is_chat=True), max_new_tokens=3)
    # the token that a text begins with, the cache, and the question
    assert made.n_positions == 1 + 12 + 4


def test_a_folder_holds_run_and_cache(command, tmp_path):
    ran = Ran([*command, "--targets", "text", "--steps", 2, "--output", tmp_path / "ferry", "--quiet"])
    assert (ran.status, ran.err) == (0, "")
    names = {path.name for path in (tmp_path / "ferry").iterdir()}
    assert {"cartridge.safetensors", "checkpoint.json", "run.json", "conversations-00000.jsonl"} <= names


def test_more_steps_go_on_with_the_same_run(command, tmp_path):
    options = [*command, "--targets", "text", "--quiet", "--output"]
    assert Ran([*options, tmp_path / "once", "--steps", 6]).status == 0
    assert Ran([*options, tmp_path / "twice", "--steps", 2]).status == 0
    assert Ran([*options, tmp_path / "twice", "--steps", 6]).status == 0
    once, twice = (tmp_path / name for name in ("once", "twice"))
    assert load_cache(once / "cartridge.safetensors") == load_cache(twice / "cartridge.safetensors")
    losses = [json.loads((folder / "checkpoint.json").read_text())["losses"] for folder in (once, twice)]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 6


def test_time_that_is_up_is_told(command, tmp_path):
    options = [*command, "--targets", "text", "--output", tmp_path / "ferry.safetensors"]
    assert Ran([*options, "--steps", 2]).status == 0
    ran = Ran([*options, "--steps", 500, "--minutes", 1e-9])
    assert ran.status == 0
    assert "stopped after 2 of 500 steps: run it again to go on" in ran.err
    assert load_cache(tmp_path / "ferry.safetensors").n_positions == 12


def test_a_cache_is_not_replaced_if_time_was_up_before_the_first_step(command, tmp_path):
    file = tmp_path / "ferry.safetensors"
    file.write_bytes(b"an earlier one")
    ran = Ran([*command, "--steps", 500, "--minutes", 1e-9, "--output", file, "--quiet"])
    folder = tmp_path / "ferry.run"
    assert_one_error(
        ran, 2, "no step was done within 1e-09 minutes", f"the run is in {folder}: run it again to go on"
    )
    assert file.read_bytes() == b"an earlier one"
    assert (folder / "run.json").exists()
    # without a step to be done, the cache as it begins is what was asked for
    assert Ran([*command, "--steps", 0, "--output", file, "--quiet"]).status == 0
    assert load_cache(file).n_positions == 12


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_a_process_that_was_ended_goes_on_with_the_same_losses(command, tmp_path, sent, status):
    options = [*command, "--targets", "text", "--checkpoint-every", 3, "--output"]
    folder = tmp_path / "ended"
    process = subprocess.Popen(
        [sys.executable, "-m", "kompakt", *map(str, [*options, folder, "--steps", 100_000])],
        stderr=subprocess.PIPE,
        # sums of as many threads as here, to the last bit
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
    )
    with process:
        while not (folder / "checkpoint.json").exists() and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(sent)
        err = process.stderr.read()
        assert process.wait(timeout=60) == status, err
    assert sent == signal.SIGKILL or err.endswith(b"error: interrupted\n")
    step = json.loads((folder / "checkpoint.json").read_text())["step"]
    assert 3 <= step < 100_000
    for place in (folder, tmp_path / "whole"):
        assert Ran([*options, place, "--steps", step + 2, "--quiet"]).status == 0
    resumed, whole = (json.loads((place / "checkpoint.json").read_text()) for place in (folder, tmp_path / "whole"))
    assert len(resumed["losses"]) == step + 2
    assert resumed["losses"] == whole["losses"]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (["--targets", "words"], ["'chat' or 'text'", "words"]),
        (["--dtype", "int8"], ["dtype", "int8"]),
        (["--positions", 400], ["the text has", "400"]),
        (["--positions", 4000], ["do not fit", "4001"]),
        (["--minutes", 0], ["minutes"]),
        (["--decoder", "no-such-model"], ["no-such-model"]),
        (["--encoding", "no-such"], ["no-such"]),
        (["--output", "missing/deep/file.safetensors"], ["its folder does not exist"]),
        (["--conversations", 2], ["n_held_out", "2"]),
    ],
)
def test_wrong_input_is_one_line(command, tmp_path, changed, words):
    assert_one_error(Ran([*command, "-o", tmp_path / "ferry", "--steps", 1, "--quiet", *changed]), 2, *words)


def test_places_that_are_taken_are_refused(command, corpus, tmp_path):
    assert_one_error(Ran([*command, "--output", corpus]), 2, "it is a file")
    folder = tmp_path / "ferry"
    assert Ran([*command, "--targets", "text", "--steps", 1, "-o", folder, "--quiet"]).status == 0
    ran = Ran([*command, "--targets", "text", "--steps", 1, "-o", folder, "--quiet", "--seed", 3])
    assert_one_error(ran, 2, "seed = 0, not 3", "another folder")


def test_progress_is_a_bar_on_a_terminal(command, tmp_path):
    ran = Ran([*command, "--targets", "text", "--steps", 2, "-o", tmp_path / "ferry"], width=80)
    assert ran.status == 0
    assert "steps, loss" in ran.err
