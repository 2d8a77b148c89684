"""Jobs that end before their time, and what is told of those under way."""

import json

import pytest
from corpus_parts import Watched, assert_complete, failures, job, known, rewrite, rows, write_lines

from kompakt.compressor.errors import MissingExtraError, StoreError
from kompakt.retrieval.corpus import job as job_module
from kompakt.retrieval.corpus.batches import Limits
from kompakt.retrieval.corpus.job import job_status


class Stopping(Watched):
    """A sink that fails when it has taken so many documents."""

    def __init__(self, inner, after, error):
        super().__init__(inner)
        self.after, self.error = after, error

    def add(self, documents):
        if sum(map(len, self.added)) >= self.after:
            raise self.error
        return super().add(documents)


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), StoreError("full"), MissingExtraError("x", "corpus"), SystemExit(3)]
)
@pytest.mark.parametrize("after", [0, 8, 30])
def test_a_job_that_is_stopped_keeps_what_it_did(tmp_path, watch, error, after):
    wrap, sinks = watch
    path = write_lines(tmp_path / "in" / "a.jsonl", ["", *rows(25), "broken", *rows(25, start=25)])
    limits = Limits(batch_documents=8)
    with pytest.raises(type(error)):
        job([path], tmp_path, sink=lambda inner: Stopping(inner, after, error), limits=limits)
    manifest = json.loads((tmp_path / "state" / "manifest.json").read_text("utf-8"))
    n_done = -(-after // 8) * 8
    assert (manifest["state"], manifest["counts"]["documents"]) == ("interrupted", n_done)
    assert len(failures(tmp_path)) == manifest["counts"]["quarantined"] == int(n_done > 25)
    assert manifest["finished"] is None
    # a stop is no death: nothing is tried alone
    finished = job([path], tmp_path, sink=wrap, limits=limits)
    assert sinks[0].added[0][0] == f"d{n_done}"
    assert [name for batch in sinks[0].added for name in batch] == [f"d{index}" for index in range(n_done, 50)]
    assert {len(batch) for batch in sinks[0].added[:-1]} == {8}
    (tmp_path / "fresh").mkdir()
    fresh = job([path], tmp_path / "fresh")
    assert finished["documents_sha256"] == fresh["documents_sha256"]
    assert finished["counts"] == fresh["counts"]
    assert finished["run"]["number"] == 1


def test_a_sink_that_cannot_save_leaves_the_documents_undone(tmp_path):
    class Unsaved(Watched):
        def save(self):
            raise StoreError("the disk is full")

    path = write_lines(tmp_path / "a.jsonl", rows(10))
    with pytest.raises(StoreError, match="disk is full"):
        job([path], tmp_path, sink=Unsaved)
    assert known(tmp_path) == {}
    assert job([path], tmp_path)["counts"]["documents"] == 10


def test_a_file_that_changes_between_two_parts_of_a_run_is_read_from_its_beginning(tmp_path):
    path = write_lines(tmp_path / "in" / "a.jsonl", rows(30))
    with pytest.raises(KeyboardInterrupt):
        job([path], tmp_path, sink=lambda inner: Stopping(inner, 16, KeyboardInterrupt()))
    rewrite(path, rows(25, start=10))
    manifest = job([path], tmp_path, is_update=True)
    assert_complete([path], tmp_path)
    assert (manifest["counts"]["documents"], manifest["counts"]["duplicates"]) == (25, 0)
    assert manifest["run"]["deleted"] == 10


def test_progress_reaches_the_end(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(job_module, "_SHOW_EVERY", 0.0)
    seen = []
    job([corpus], tmp_path, on_progress=seen.append)
    assert [one.done_bytes for one in seen] == sorted(one.done_bytes for one in seen)
    assert seen[-1].done_bytes == seen[-1].total_bytes == job_status(tmp_path / "state")["counts"]["bytes_in"]
    assert (seen[-1].documents, seen[-1].quarantined, seen[-1].eta_seconds) == (53, 0, 0)
    assert seen[-1].tokens_per_second > 0
    assert any(0 < one.done_bytes < one.total_bytes and one.eta_seconds > 0 for one in seen)


def test_progress_goes_on_after_an_interruption(tmp_path, monkeypatch):
    monkeypatch.setattr(job_module, "_SHOW_EVERY", 0.0)
    path = write_lines(tmp_path / "a.jsonl", rows(40))
    with pytest.raises(KeyboardInterrupt):
        job([path], tmp_path, sink=lambda inner: Stopping(inner, 24, KeyboardInterrupt()))
    seen = []
    job([path], tmp_path, on_progress=seen.append)
    total = path.stat().st_size
    assert total / 3 < seen[0].done_bytes < total
    assert (seen[-1].done_bytes, seen[-1].total_bytes, seen[-1].documents) == (total, total, 40)


def test_the_status_of_a_job_is_read_from_its_state(corpus, tmp_path):
    manifest = job([corpus], tmp_path)
    assert job_status(tmp_path / "state") == manifest
    for name in ("manifest.json", "failures.jsonl"):
        (tmp_path / "state" / name).write_bytes(b"torn \xff")
    again = job_status(tmp_path / "state")
    assert again["counts"] == manifest["counts"]
    assert json.loads((tmp_path / "state" / "manifest.json").read_text("utf-8")) == again
    assert failures(tmp_path) == []


def test_there_must_be_a_job_to_have_a_status(tmp_path):
    with pytest.raises(StoreError, match="no corpus job"):
        job_status(tmp_path)
    assert list(tmp_path.iterdir()) == []
