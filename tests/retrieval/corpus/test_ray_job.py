"""The job on a Ray cluster of two workers: what one process does, whoever dies meanwhile."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib.metadata import EntryPoint
from importlib.util import find_spec
from pathlib import Path
from threading import Thread

import pytest
from command_line import Ran
from corpus_parts import (
    EXITS,
    RAISES,
    TOKENIZER,
    Poisonous,
    assert_complete,
    compressor_for,
    failures,
    job,
    rows,
    sentences,
    write_lines,
)
from ray_parts import OPTIONS, OpenPoisonous, n_batches, ray_job

from kompakt.compressor import cli
from kompakt.compressor.errors import BackendError, ConfigError
from kompakt.compressor.store.places import open_store
from kompakt.compressor.types import Document
from kompakt.retrieval.corpus import ray_job as ray_job_module
from kompakt.retrieval.corpus.batches import DIED, MAX_DEATHS
from kompakt.retrieval.corpus.index_sink import IndexSink
from kompakt.retrieval.corpus.job import JobSettings, run_job
from kompakt.retrieval.corpus.ray_job import ray_runner
from kompakt.retrieval.corpus.ray_worker import (
    ANSWER,
    DOCUMENTS,
    NUMBER,
    Answer,
    Desk,
    OpenSink,
    Worker,
    decode_answer,
    encode_documents,
    hand_out,
)
from kompakt.retrieval.corpus.state import State

# Ray warns of what it will change itself
pytestmark = pytest.mark.filterwarnings("default")
needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="the extra ray is not installed")

DRIVER = """
import sys
from pathlib import Path
from ray_parts import ray_job

ray_job([sys.argv[1]], Path(sys.argv[2]), seconds=0.1)
"""


@pytest.fixture(autouse=True)
def entries(monkeypatch):
    """The command as an entry point, whatever is installed here."""
    found = {"corpus": EntryPoint("corpus", "kompakt.retrieval.corpus.cli:app", cli.GROUP)}
    monkeypatch.setattr(cli, "_entries", lambda: found)


@pytest.fixture(scope="module")
def cluster():
    """A cluster that jobs of this process use as it is: to start one takes longer than such a job."""
    import ray

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(
        address="local",
        num_cpus=2,
        object_store_memory=150 << 20,
        include_dashboard=False,
        _node_ip_address="127.0.0.1",
        log_to_driver=False,
    )
    yield
    ray.shutdown()


def documents_of(folder):
    """Return what the state in a folder says of each document, but when it was done."""
    state = State.open(folder / "state")
    columns = "id, source, position, sha256, status, reason, n_segments, n_bytes, tokens_before, tokens_after"
    try:
        return state._rows(f"SELECT {columns} FROM documents ORDER BY id")
    finally:
        state.close()


def content_of(store):
    """Return the values of a store by their keys."""
    with open_store(store) as opened:
        keys = sorted(opened.keys())
        return dict(zip(keys, opened.get_many(keys), strict=True))


def kill_one(folder, killed):
    """Kill the first worker that has put three batches into its sink."""
    end = time.monotonic() + 300
    while time.monotonic() < end and not killed:
        for pid, n in n_batches(folder).items() if folder.exists() else ():
            if n >= 3:
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
                break
        time.sleep(0.005)


@needs_ray
@pytest.mark.slow
def test_a_job_whose_worker_is_killed_ends_where_that_of_one_process_does(tmp_path, cluster):
    folder = tmp_path / "in"
    chance = random.Random(1)
    lines = rows(300)
    for line in lines:
        line["text"] += " " + sentences(line["id"], chance.randint(1, 40))
    write_lines(folder / "a.jsonl", lines[:180])
    write_lines(folder / "b.jsonl", [*lines[180:], "broken", *lines[:5]])
    (folder / "c.txt").write_text(sentences("c"), encoding="utf-8")
    (tmp_path / "alone").mkdir()
    expected = job([folder], tmp_path / "alone")
    killed = []
    killer = Thread(target=kill_one, args=(tmp_path / "workers", killed))
    killer.start()
    manifest = ray_job([folder], tmp_path)
    killer.join()
    # what was left for it is done by another process
    [pid] = killed
    done = n_batches(tmp_path / "workers")
    assert len(done) == 3
    assert done[pid] < sum(done.values()) / 2
    assert manifest["state"] == "finished"
    assert manifest["documents_sha256"] == expected["documents_sha256"]
    assert manifest["counts"] == expected["counts"]
    assert documents_of(tmp_path) == documents_of(tmp_path / "alone")
    assert failures(tmp_path) == failures(tmp_path / "alone")
    assert content_of(tmp_path / "store.sqlite") == content_of(tmp_path / "alone" / "store.sqlite")
    # one process goes on where the other stopped
    assert job([folder], tmp_path, is_update=True)["run"]["unchanged"] == 301


@needs_ray
@pytest.mark.slow
def test_documents_that_raise_or_kill_their_worker_are_found_and_left_alone(tmp_path, cluster):
    lines = rows(60)
    lines[7]["text"] += f" {EXITS}"
    lines[8]["text"] += f" {RAISES}"
    path = write_lines(tmp_path / "a.jsonl", lines)
    open_inner = OpenPoisonous(tmp_path / "store.sqlite")
    manifest = ray_job([path], tmp_path, open_inner=open_inner, stages=(Poisonous(),))
    assert (manifest["state"], manifest["counts"]["documents"]) == ("finished", 58)
    assert [(one["id"], one["reason"]) for one in failures(tmp_path)] == [
        ("d7", DIED),
        ("d8", "RuntimeError: it was poisoned"),
    ]
    assert_complete([path], tmp_path, stages=(Poisonous(),), without={"d7", "d8"})
    # it died twice with the others, and twice alone
    assert len(n_batches(tmp_path / "workers")) == 2 + 4


def children(pid):
    """Return the processes that a process has started, theirs included, but for agents that work on nothing."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            # the name before it may hold anything
            fields = path.read_text("utf-8").rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] != "Z":
            parents[int(path.parent.name)] = int(fields[1])
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    # after a kill, Ray's agents wait a minute for their node to come back
    return {one for one in found - {pid} if b"Agent" not in Path(f"/proc/{one}/cmdline").read_bytes()}


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(is_so, seconds=120):
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.05)


def n_done(folder):
    """Return how many documents a job's manifest counts."""
    try:
        return json.loads((folder / "state" / "manifest.json").read_text("utf-8"))["counts"]["documents"]
    except FileNotFoundError:
        return 0


@needs_ray
@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["killed", "interrupted"])
def test_a_driver_that_is_stopped_leaves_no_process_and_another_goes_on(tmp_path, how, request):
    path = write_lines(tmp_path / "a.jsonl", rows(400))
    (tmp_path / "alone").mkdir()
    expected = job([path], tmp_path / "alone")
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, path, tmp_path],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        wait_until(lambda: n_done(tmp_path) > 0 or driver.poll() is not None)
        started = children(driver.pid)
        # as a terminal does, to all that is in the foreground
        (os.kill if how == signal.SIGKILL else os.killpg)(driver.pid, how)
        _, err = driver.communicate(timeout=60)
    finally:
        driver.kill()
    assert driver.returncode == -how, err.decode()
    # the standard output is Ray's: it may tell there of the workers that it ended
    assert len(started) > 4
    wait_until(lambda: not any(map(is_alive, started)))
    state = json.loads((tmp_path / "state" / "manifest.json").read_text("utf-8"))["state"]
    assert state == ("running" if how == signal.SIGKILL else "interrupted")
    before = n_done(tmp_path)
    assert 0 < before < 400
    if how == signal.SIGKILL:
        request.getfixturevalue("cluster")
        manifest = ray_job([path], tmp_path)
    else:
        manifest = job([path], tmp_path)
    assert manifest["documents_sha256"] == expected["documents_sha256"]
    assert manifest["counts"] == expected["counts"]
    assert manifest["run"]["number"] == 1
    assert documents_of(tmp_path) == documents_of(tmp_path / "alone")
    assert content_of(tmp_path / "store.sqlite") == content_of(tmp_path / "alone" / "store.sqlite")


@pytest.fixture
def settings(tmp_path):
    """Settings of a job whose store is a file."""
    compressor = compressor_for(tmp_path / "s.sqlite")
    return JobSettings.of([tmp_path], compressor, tokenizer=TOKENIZER)


def ask(worker, *pieces):
    """Return a worker's answers to pieces, called in this process."""
    import pyarrow as pa

    table = worker(pa.table({NUMBER: list(range(len(pieces))), DOCUMENTS: list(pieces)}))
    assert table[NUMBER].to_pylist() == list(range(len(pieces)))
    return [decode_answer(text) for text in table[ANSWER].to_pylist()]


@needs_ray
@pytest.mark.slow
def test_what_a_worker_answers(tmp_path, settings, cluster):
    import ray

    desk = ray.remote(num_cpus=0)(Desk).remote()
    path = str(tmp_path / "s.sqlite")
    document = Document(sentences("x"), id="x")
    piece = encode_documents([document])
    worker = Worker(OpenSink(settings, path), desk)
    [answer, nothing] = ask(worker, piece, b"")
    assert (answer.report.documents[0].document_id, answer.report.n_compressed) == ("x", 1)
    assert nothing == Answer()
    # who survives is not blamed for it, however often it is asked
    assert [ask(worker, piece)[0].report.n_stored for _ in range(4)] == [1] * 4
    for _ in range(MAX_DEATHS):
        ray.get(desk.begin.remote(0))
    assert ask(worker, piece) == [Answer(is_deadly=True)]
    # what no document is to blame for
    other = replace(settings, pipeline_fingerprint="of another model")
    [answer] = ask(Worker(OpenSink(other, path), desk), piece)
    assert type(answer.error) is ConfigError
    assert "same models on every machine" in str(answer.error)
    for _ in range(10):
        ray.get(desk.begin.remote("opening None"))
    [answer] = ask(Worker(OpenSink(settings, path), desk), piece)
    assert type(answer.error) is BackendError
    assert "while it loaded its models" in str(answer.error)
    ray.kill(desk)


@needs_ray
@pytest.mark.slow
def test_a_desk_hands_out_its_pieces_again_without_those_that_are_done(cluster):
    import ray

    desk = ray.remote(num_cpus=0, max_concurrency=10)(Desk).remote()
    ray.get(desk.put.remote([[ray.put(b"a")], [ray.put(b"b")]]))
    ray.get(desk.put.remote([[ray.put(b"c")]]))
    later = desk.get.remote(3)
    ray.get(desk.drop.remote([0]))
    ray.get(desk.close.remote())
    assert ray.get(later) is None
    tables = [table.to_pydict() for table in hand_out(None, desk)]
    assert tables == [{NUMBER: [index], DOCUMENTS: [documents]} for index, documents in enumerate([b"", b"b", b"c"])]
    ray.kill(desk)


@needs_ray
@pytest.mark.slow
def test_the_command_line_prints_the_manifest_alone(tmp_path, monkeypatch, cluster):
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path / "a.jsonl", rows(20))
    (tmp_path / "p.toml").write_text('[[stages]]\ncompressor = "lexical"\n', "utf-8")
    common = ["a.jsonl", "--to", "s.sqlite", "--pipeline", "p.toml", "--keep", 0.5, "--json"]
    ran = Ran(["corpus", "build", *common, "--ray", "local", "--workers", 2])
    manifest = json.loads(ran.out)
    assert (ran.status, manifest["state"], manifest["counts"]["documents"]) == (0, "finished", 20)
    # what is done needs no cluster
    monkeypatch.setattr(ray_job_module, "Cluster", None)
    again = json.loads(Ran(["corpus", "update", *common, "--ray", "local", "--workers", 2]).out)
    assert again["run"]["unchanged"] == 20


@needs_ray
@pytest.mark.slow
@pytest.mark.models
def test_workers_make_what_the_driver_puts_into_the_index(tmp_path, cluster, monkeypatch):
    from kompakt.compressor.models.sentence_encoder import SentenceEncoder
    from kompakt.retrieval.index import SegmentIndex

    path = write_lines(tmp_path / "a.jsonl", rows(40))
    found = []
    for name in ("alone", "ray"):
        folder = tmp_path / name
        folder.mkdir()
        store = folder / "store.sqlite"
        compressor = compressor_for(store)
        settings = JobSettings.of([path], compressor, tokenizer=TOKENIZER, index=folder / "index")
        options = {} if name == "alone" else {"open_runner": ray_runner(settings, str(store), OPTIONS)}
        with monkeypatch.context() as patch:
            if options:
                # in this process
                patch.setattr(SentenceEncoder, "_forward", lambda *_: pytest.fail("the driver encodes"))
            run_job(
                settings,
                folder / "state",
                lambda: IndexSink(folder / "index", compressor, tokenizer=TOKENIZER),  # noqa: B023 (called at once)
                **options,
            )
        with SegmentIndex.open(folder / "index") as index:
            hits = index.search("Which lot of lamps went to town 7?", 10)
            found.append([(hit.segment.text, round(hit.score, 5)) for hit in hits])
            assert len(index.documents()) == 40
    stores = [content_of(tmp_path / name / "store.sqlite") for name in ("alone", "ray")]
    assert stores[0].keys() == stores[1].keys()
    assert len(found[0]) == 10
    assert found[0] == found[1]
