"""Deaths: kills at any time cost nothing, and a document that kills the process is left alone."""

import json
import os
import random
import signal
import subprocess
import sys

import pytest
from corpus_parts import EXITS, Poisonous, assert_complete, failures, job, known, rows, sentences, write_lines

from kompakt.retrieval.corpus import files
from kompakt.retrieval.corpus.batches import DIED, Batches, Limits
from kompakt.retrieval.corpus.state import State

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks processes to kill them")

RUN = """
import sys
from pathlib import Path
from corpus_parts import Poisonous, job

job([sys.argv[1]], Path(sys.argv[2]), stages=(Poisonous(),))
"""
INTERRUPT = """
import os, signal, sys
from pathlib import Path
from corpus_parts import job


def interrupt(at):
    if at.documents > 40:
        os.kill(os.getpid(), signal.SIGINT)


job([sys.argv[1]], Path(sys.argv[2]), on_progress=interrupt)
"""
KILL = """
import os, random, signal, sys, time, traceback
from pathlib import Path
from corpus_parts import job
from kompakt.retrieval.corpus import batches

# two kills can come upon the same document by chance
batches.MAX_DEATHS = 1000
chance, n_kills = random.Random(int(sys.argv[3])), 0
while True:
    child = os.fork()
    if child == 0:
        try:
            job([sys.argv[1]], Path(sys.argv[2]))
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    # less each time, so that there are many; then enough to come to an end
    limit = chance.uniform(0.0, 0.15) if n_kills < 12 else 600
    began = time.monotonic()
    while time.monotonic() - began < limit:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            print(n_kills, os.waitstatus_to_exitcode(status))
            sys.exit()
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    n_kills += 1
"""


def python(code, *arguments):
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


@needs_fork
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_job_that_is_killed_again_and_again_ends_where_another_does(tmp_path, seed):
    folder = tmp_path / "in"
    lines = rows(300)
    for index, chunk in enumerate((lines[:200], [*lines[200:], "broken", *rows(5)])):
        write_lines(folder / f"{index}.jsonl", chunk)
    for index in range(10):
        (folder / f"file{index}.txt").write_text(sentences(f"file{index}"), encoding="utf-8")
    (tmp_path / "quiet").mkdir()
    expected = job([folder], tmp_path / "quiet")
    ran = python(KILL, folder, tmp_path, seed)
    n_kills, status = map(int, ran.stdout.split())
    assert status == 0, ran.stderr
    assert n_kills >= 3
    manifest = json.loads((tmp_path / "state" / "manifest.json").read_text("utf-8"))
    assert manifest["documents_sha256"] == expected["documents_sha256"]
    assert manifest["counts"] == expected["counts"]
    # killed between its last word and its end, a job that is started again is another run, with nothing to do
    assert (manifest["state"], manifest["run"]["number"] in (1, 2)) == ("finished", True)
    assert [one["source"] for one in failures(tmp_path)] == ["1.jsonl"]
    assert len(known(tmp_path)) == 310
    (folder / "1.jsonl").unlink()
    write_lines(folder / "1.jsonl", lines[200:])
    assert_complete([folder], tmp_path)


def test_a_document_that_kills_the_process_is_left_alone_in_the_end(tmp_path):
    lines = rows(30)
    lines[11]["text"] += f" {EXITS}"
    path = write_lines(tmp_path / "a.jsonl", lines)
    # in its batch, and twice alone
    assert [python(RUN, path, tmp_path).returncode for _ in range(4)] == [9, 9, 9, 0]
    assert failures(tmp_path) == [{"source": "a.jsonl", "position": 11, "id": "d11", "reason": DIED}]
    assert_complete([path], tmp_path, stages=(Poisonous(),), without={"d11"})
    # and stays so, until its text is another
    assert python(RUN, path, tmp_path).returncode == 0
    write_lines(path, rows(30))
    assert python(RUN, path, tmp_path).returncode == 0
    assert failures(tmp_path) == []
    assert_complete([path], tmp_path, stages=(Poisonous(),))


def test_two_documents_that_kill_the_process_are_both_found(tmp_path):
    lines = rows(20)
    for index in (2, 3):
        lines[index]["text"] += f" {EXITS}"
    path = write_lines(tmp_path / "a.jsonl", lines)
    assert [python(RUN, path, tmp_path).returncode for _ in range(6)] == [9, 9, 9, 9, 9, 0]
    assert [one["position"] for one in failures(tmp_path)] == [2, 3]
    assert_complete([path], tmp_path, stages=(Poisonous(),), without={"d2", "d3"})


def test_a_file_whose_parser_kills_the_process_is_left_alone(tmp_path, monkeypatch):
    for name in ("a.txt", "b.pdf", "c.txt"):
        (tmp_path / "in" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_text(sentences(name), encoding="utf-8")

    class Died(BaseException):
        """Stands for the end of the process: nothing is written down after it."""

    read_file = files.read_file

    def deadly(file, options, *, start):
        if file.name == "b.pdf":
            raise Died
        return read_file(file, options, start=start)

    monkeypatch.setattr(files, "read_file", deadly)
    with monkeypatch.context() as patch:
        patch.setattr(Batches, "stop", lambda self: None)
        for _ in range(2):
            with pytest.raises(Died):
                job([tmp_path / "in"], tmp_path)
    manifest = job([tmp_path / "in"], tmp_path)
    assert manifest["counts"]["documents"] == 2
    assert failures(tmp_path) == [{"source": "b.pdf", "position": 0, "id": "", "reason": DIED}]
    # on demand, it is tried again
    monkeypatch.setattr(files, "read_file", read_file)
    job([tmp_path / "in"], tmp_path, retry=True)
    assert DIED not in failures(tmp_path)[0]["reason"]


def test_suspects_are_tried_alone_and_cleared(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", rows(20))
    (tmp_path / "state").mkdir()
    state = State.open(tmp_path / "state", create=True)
    state.begin(["d5", "d6", "elsewhere"], is_alone=False, survived=[])
    state.close()
    added = []

    def watch(sink):
        add = sink.add
        sink.add = lambda documents: added.append([document.id for document in documents]) or add(documents)
        return sink

    manifest = job([path], tmp_path, sink=watch, limits=Limits(batch_documents=8))
    names = [f"d{index}" for index in range(20)]
    assert added == [names[:5], ["d5"], ["d6"], names[7:15], names[15:]]
    assert manifest["counts"]["documents"] == 20
    state = State.open(tmp_path / "state")
    assert state.attempts() == {}
    state.close()


@needs_fork
def test_an_interrupt_ends_a_process_after_a_checkpoint(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", rows(400))
    ran = python(INTERRUPT, path, tmp_path)
    assert ran.returncode in (-signal.SIGINT, 130)
    manifest = json.loads((tmp_path / "state" / "manifest.json").read_text("utf-8"))
    assert manifest["state"] == "interrupted"
    assert 40 < manifest["counts"]["documents"] < 400
    assert job([path], tmp_path)["counts"]["documents"] == 400


def test_random_stops_and_deaths_together(tmp_path, monkeypatch):
    """Whatever ends a part of a run, and wherever, the whole ends alike."""
    chance = random.Random(5)
    path = write_lines(tmp_path / "a.jsonl", [*rows(60), "broken", *rows(3), *rows(40, start=60)])
    (tmp_path / "quiet").mkdir()
    expected = job([path], tmp_path / "quiet")

    class Stopped(BaseException):
        pass

    def fragile(sink):
        left = chance.randint(1, 40)

        def checked(name):
            method = getattr(sink, name)

            def call(*arguments):
                nonlocal left
                left -= 1
                if left == 0:
                    raise Stopped
                return method(*arguments)

            return call

        sink.add, sink.save = checked("add"), checked("save")
        return sink

    stop = Batches.stop
    for _ in range(300):
        is_death = chance.random() < 0.5
        monkeypatch.setattr(Batches, "stop", (lambda self: None) if is_death else stop)
        try:
            manifest = job([path], tmp_path, sink=fragile)
            break
        except Stopped:
            continue
    assert manifest["documents_sha256"] == expected["documents_sha256"]
    assert manifest["counts"] == expected["counts"]
    assert_complete([write_lines(tmp_path / "a.jsonl", rows(100))], tmp_path)
