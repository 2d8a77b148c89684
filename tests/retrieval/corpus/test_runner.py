"""Batches that are in work several at once: what is written down, and when."""

import random
from collections import deque

import pytest
from corpus_parts import Poisonous, assert_complete, failures, job, known, rows, sentences, write_lines

from kompakt.retrieval.corpus.batches import Batches, Limits
from kompakt.retrieval.corpus.sink import add_batch
from kompakt.retrieval.corpus.state import State

LIMITS = Limits(batch_documents=4, checkpoint_records=10)


class Ahead:
    """Puts batches into a sink as late as it may, and fails when it has done so often enough."""

    is_isolated = True

    def __init__(self, sink, n_ahead=3, fails_after=10**9, error=KeyboardInterrupt):
        self.sink, self.n_ahead, self.left, self.error = sink, n_ahead, fails_after, error
        self.batches, self.largest, self.is_closed = deque(), 0, False

    def start(self, documents):
        self.batches.append(list(documents))
        self.largest = max(self.largest, len(self.batches))

    def finish(self):
        if self.left == 0:
            raise self.error
        self.left -= 1
        return add_batch(self.sink, self.batches.popleft())

    def close(self):
        self.is_closed = True


@pytest.fixture
def runners():
    return []


@pytest.fixture
def ahead(runners):
    """Return what opens such a runner; those that were opened are in ``runners``."""

    def with_options(**options):
        def opened(sink):
            runners.append(Ahead(sink, **options))
            return runners[-1]

        return opened

    return with_options


def test_a_job_ends_alike_however_many_batches_are_in_work(tmp_path, runners, ahead):
    lines = [*rows(60), "broken", *rows(3), *rows(40, start=60)]
    for index in range(4):
        write_lines(tmp_path / "in" / f"{index}.jsonl", lines[26 * index : 26 * index + 26])
    (tmp_path / "in" / "x.txt").write_text(sentences("x"), encoding="utf-8")
    expected = None
    for n_ahead in (0, 1, 3, 1000):
        folder = tmp_path / str(n_ahead)
        folder.mkdir()
        manifest = job([tmp_path / "in"], folder, limits=LIMITS, open_runner=ahead(n_ahead=n_ahead))
        found = manifest["documents_sha256"], manifest["counts"], failures(folder), known(folder)
        expected = expected or found
        assert found == expected
        assert runners[-1].is_closed
    # one more is started before what came of the earliest one is asked for
    assert [one.largest for one in runners[:3]] == [1, 2, 4]
    assert runners[3].largest > 20


def test_an_id_that_comes_again_while_the_first_is_in_work_is_a_duplicate(tmp_path, ahead):
    # a checkpoint lies between them, and does not wait for the first
    lines = [*rows(12), *rows(12), {**rows(1)[0], "text": "of its own"}]
    path = write_lines(tmp_path / "a.jsonl", lines)
    manifest = job([path], tmp_path, limits=LIMITS, open_runner=ahead(n_ahead=1000))
    counts = manifest["counts"]
    assert (counts["documents"], counts["duplicates"], counts["quarantined"]) == (12, 12, 1)
    assert [one["position"] for one in failures(tmp_path)] == [24]


def test_a_document_that_moves_while_it_is_in_work_is_not_deleted(tmp_path, ahead):
    a, b = tmp_path / "in" / "a.jsonl", tmp_path / "in" / "b.jsonl"
    write_lines(a, rows(9))
    write_lines(b, rows(3, start=20))
    job([tmp_path / "in"], tmp_path, limits=LIMITS)
    write_lines(a, [*rows(9, start=30)])
    write_lines(b, [*rows(3, start=20), *rows(9)])
    manifest = job([tmp_path / "in"], tmp_path, limits=LIMITS, is_update=True, open_runner=ahead(n_ahead=1000))
    assert {name: manifest["run"][name] for name in ("added", "changed", "unchanged", "deleted")} == {
        "added": 9,
        "changed": 0,
        "unchanged": 12,
        "deleted": 0,
    }
    assert_complete([tmp_path / "in"], tmp_path)


@pytest.mark.parametrize("n_ahead", [1, 3])
def test_what_was_in_work_at_a_stop_is_done_again(tmp_path, n_ahead, ahead, runners):
    path = write_lines(tmp_path / "a.jsonl", rows(50))
    with pytest.raises(KeyboardInterrupt):
        job([path], tmp_path, limits=LIMITS, open_runner=ahead(n_ahead=n_ahead, fails_after=3))
    n_done = sum(one.status == "ok" for one in known(tmp_path).values())
    assert 0 < n_done <= 12
    assert runners[0].is_closed
    # other processes died, or none: nothing is tried alone
    state = State.open(tmp_path / "state")
    assert state.attempts() == {}
    state.close()
    job([path], tmp_path, limits=LIMITS, open_runner=ahead(n_ahead=n_ahead))
    assert_complete([path], tmp_path)


@pytest.mark.parametrize("seed", range(3))
def test_stops_and_deaths_at_random_end_where_a_quiet_job_does(tmp_path, seed, monkeypatch, ahead):
    chance = random.Random(seed)
    lines = [*rows(60), "broken", *rows(3), *rows(40, start=60)]
    lines[20]["text"] += " This raises."
    path = write_lines(tmp_path / "a.jsonl", lines)
    (tmp_path / "quiet").mkdir()
    expected = job([path], tmp_path / "quiet", stages=(Poisonous(),))

    class Stopped(BaseException):
        pass

    stop = Batches.stop
    for _ in range(300):
        is_death = chance.random() < 0.5
        monkeypatch.setattr(Batches, "stop", (lambda self: None) if is_death else stop)
        options = {"n_ahead": chance.randint(0, 4), "fails_after": chance.randint(0, 12), "error": Stopped}
        try:
            manifest = job([path], tmp_path, stages=(Poisonous(),), limits=LIMITS, open_runner=ahead(**options))
            break
        except Stopped:
            continue
    assert manifest["documents_sha256"] == expected["documents_sha256"]
    assert manifest["counts"] == expected["counts"]
    assert failures(tmp_path) == failures(tmp_path / "quiet")
