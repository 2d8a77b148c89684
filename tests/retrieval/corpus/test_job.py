"""Builds and updates: what is read, what is done again, what is counted, and what stops a job."""

import json
import os
import random
import tracemalloc

import pytest
from corpus_parts import (
    RAISES,
    TOKENIZER,
    Poisonous,
    Watched,
    assert_complete,
    compressor_for,
    failures,
    job,
    known,
    rewrite,
    rows,
    sentences,
    write_lines,
)

from kompakt.compressor.errors import ConfigError, InputError, StoreError
from kompakt.retrieval.corpus import job as job_module
from kompakt.retrieval.corpus.batches import Limits
from kompakt.retrieval.corpus.job import JobSettings, job_status, run_job
from kompakt.retrieval.corpus.readers import ReadOptions
from kompakt.retrieval.corpus.sink import open_sink
from kompakt.retrieval.manifest import WriterLock


def touch(path, seconds=10):
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + seconds * 10**9))


def changes(manifest):
    return {name: manifest["run"][name] for name in ("added", "changed", "unchanged", "deleted")}


def test_a_corpus_is_compressed_and_counted(corpus, tmp_path):
    manifest = job([corpus], tmp_path)
    assert_complete([corpus], tmp_path)
    assert manifest["state"] == "finished"
    counts = manifest["counts"]
    assert (counts["files"], counts["documents"], counts["quarantined"], counts["duplicates"]) == (5, 53, 0, 0)
    paths = [path for path in corpus.rglob("*") if path.is_file() and path.suffix != ".docx"]
    assert counts["bytes_in"] == sum(path.stat().st_size for path in paths)
    assert counts["segments"] >= 53
    assert 0 < counts["tokens_after"] <= counts["tokens_before"] / 2
    assert manifest["skipped"] == {".docx": 1}
    assert changes(manifest) == {"added": 53, "changed": 0, "unchanged": 0, "deleted": 0}
    assert json.loads((tmp_path / "state" / "manifest.json").read_text("utf-8")) == manifest
    assert failures(tmp_path) == []


def test_batches_are_filled_across_files_up_to_their_limits(tmp_path, watch):
    wrap, sinks = watch
    for index in range(10):
        write_lines(tmp_path / "in" / f"{index}.jsonl", rows(3, start=3 * index))
    job([tmp_path / "in"], tmp_path, sink=wrap, limits=Limits(batch_documents=8))
    assert [len(batch) for batch in sinks[0].added] == [8, 8, 8, 6]
    size = len(rows(1)[0]["text"])
    (tmp_path / "other").mkdir()
    limits = Limits(batch_bytes=4 * size - size // 2)
    job([tmp_path / "in"], tmp_path / "other", sink=wrap, limits=limits)
    assert {len(batch) for batch in sinks[1].added[:-1]} == {4}


@pytest.mark.parametrize(
    ("limits", "n"),
    [({"checkpoint_records": 10}, 4), ({"checkpoint_bytes": 1}, 10), ({"checkpoint_seconds": 1e-9}, 40)],
)
def test_a_checkpoint_comes_after_records_bytes_or_seconds(tmp_path, watch, limits, n):
    wrap, sinks = watch
    write_lines(tmp_path / "a.jsonl", rows(40))
    job([tmp_path / "a.jsonl"], tmp_path, sink=wrap, limits=Limits(**{"batch_documents": 4, **limits}))
    assert n <= sinks[0].n_saves <= n + 1
    assert sinks[0].is_closed


@pytest.mark.parametrize("name", Limits.__slots__)
def test_limits_of_nothing_are_refused(name):
    with pytest.raises(ConfigError, match=name):
        Limits(**{name: 0})


def test_a_job_that_is_finished_reads_nothing_again(corpus, tmp_path, watch, monkeypatch):
    wrap, sinks = watch
    first = job([corpus], tmp_path)
    monkeypatch.setattr(job_module, "records_of", lambda *_, **__: pytest.fail("a file was read"))
    monkeypatch.setattr(job_module, "content_hash", lambda *_: pytest.fail("a file was read"))
    for is_update in (False, True):
        manifest = job([corpus], tmp_path, is_update=is_update, sink=wrap)
        assert changes(manifest) == {"added": 0, "changed": 0, "unchanged": 53, "deleted": 0}
        assert manifest["documents_sha256"] == first["documents_sha256"]
        assert manifest["counts"] == first["counts"]
    assert [sink.added for sink in sinks] == [[], []]


def test_an_update_does_what_changed(corpus, tmp_path, watch):
    wrap, sinks = watch
    job([corpus], tmp_path)
    lines = rows(25)
    lines[3]["text"] += " One more lot."
    lines[4]["lot"] = "other metadata"
    rewrite(corpus / "a.jsonl", [*lines[:10], *lines[12:], {"id": "new", "text": sentences("new")}])
    (corpus / "c.txt").unlink()
    (corpus / "g.txt").write_text(sentences("g"), encoding="utf-8")
    touch(corpus / "d.md")
    manifest = job([corpus], tmp_path, is_update=True, sink=wrap)
    assert_complete([corpus], tmp_path)
    assert [name for batch in sinks[0].added for name in batch] == ["d3", "d4", "new", "g.txt"]
    assert sorted(sinks[0].deleted) == ["c.txt", "d10", "d11"]
    assert changes(manifest) == {"added": 2, "changed": 2, "unchanged": 48, "deleted": 3}
    (tmp_path / "fresh").mkdir()
    fresh = job([corpus], tmp_path / "fresh")
    assert manifest["documents_sha256"] == fresh["documents_sha256"]
    counts = ("files", "documents", "segments", "bytes_in", "text_bytes", "tokens_before", "tokens_after")
    assert [manifest["counts"][name] for name in counts] == [fresh["counts"][name] for name in counts]


def test_a_build_adds_and_never_deletes(corpus, tmp_path, watch):
    wrap, sinks = watch
    job([corpus], tmp_path)
    (corpus / "c.txt").unlink()
    (corpus / "g.txt").write_text(sentences("g"), encoding="utf-8")
    manifest = job([corpus], tmp_path, sink=wrap)
    assert (sinks[0].added, sinks[0].deleted) == ([["g.txt"]], [])
    assert changes(manifest) == {"added": 1, "changed": 0, "unchanged": 53, "deleted": 0}
    assert "c.txt" in known(tmp_path)
    assert changes(job([corpus], tmp_path, is_update=True)) == {
        "added": 0,
        "changed": 0,
        "unchanged": 53,
        "deleted": 1,
    }


def test_a_file_that_was_only_touched_is_not_parsed(corpus, tmp_path, monkeypatch):
    job([corpus], tmp_path)
    touch(corpus / "a.jsonl")
    monkeypatch.setattr(job_module, "records_of", lambda *_, **__: pytest.fail("a file was read"))
    assert changes(job([corpus], tmp_path, is_update=True))["unchanged"] == 53
    # and not even hashed the next time
    monkeypatch.setattr(job_module, "content_hash", lambda *_: pytest.fail("a file was read"))
    assert changes(job([corpus], tmp_path, is_update=True))["unchanged"] == 53


def test_a_document_that_moves_is_not_done_again(tmp_path, watch):
    wrap, sinks = watch
    a, b = tmp_path / "in" / "a.jsonl", tmp_path / "in" / "b.jsonl"
    write_lines(a, rows(5))
    write_lines(b, rows(5, start=5))
    job([tmp_path / "in"], tmp_path)
    rewrite(a, rows(4))
    rewrite(b, [*rows(1, start=4), *rows(5, start=5)])
    manifest = job([tmp_path / "in"], tmp_path, is_update=True, sink=wrap)
    assert (sinks[0].added, sinks[0].deleted) == ([], [])
    assert changes(manifest) == {"added": 0, "changed": 0, "unchanged": 10, "deleted": 0}
    assert known(tmp_path)["d4"].source == "b.jsonl"
    a.unlink()
    manifest = job([tmp_path / "in"], tmp_path, is_update=True, sink=wrap)
    assert sorted(sinks[1].deleted) == ["d0", "d1", "d2", "d3"]
    assert_complete([tmp_path / "in"], tmp_path)


def test_a_document_that_stands_twice_is_done_once_and_counted(tmp_path, watch):
    wrap, sinks = watch
    lines = rows(4)
    write_lines(tmp_path / "in" / "a.jsonl", [*lines, lines[1]])
    write_lines(tmp_path / "in" / "b.jsonl", lines[2:])
    manifest = job([tmp_path / "in"], tmp_path, sink=wrap)
    assert sinks[0].added == [["d0", "d1", "d2", "d3"]]
    assert (manifest["counts"]["documents"], manifest["counts"]["duplicates"]) == (4, 3)


def test_what_vanishes_from_one_file_and_stands_in_another_stays(tmp_path, watch):
    wrap, sinks = watch
    a, b = tmp_path / "in" / "a.jsonl", tmp_path / "in" / "b.jsonl"
    write_lines(a, rows(4))
    write_lines(b, rows(2, start=2))
    job([tmp_path / "in"], tmp_path)
    rewrite(a, rows(3))
    manifest = job([tmp_path / "in"], tmp_path, is_update=True, sink=wrap)
    assert (sinks[0].added, sinks[0].deleted) == ([], [])
    assert manifest["counts"]["documents"] == 4
    # d2 stands in both, d3 in b alone
    assert (known(tmp_path)["d2"].source, known(tmp_path)["d3"].source) == ("a.jsonl", "b.jsonl")
    b.unlink()
    manifest = job([tmp_path / "in"], tmp_path, is_update=True, sink=wrap)
    assert sinks[1].deleted == ["d3"]
    assert manifest["counts"]["duplicates"] == 0


def test_of_two_documents_with_one_id_the_first_counts(tmp_path):
    a, b = tmp_path / "in" / "a.jsonl", tmp_path / "in" / "b.jsonl"
    write_lines(a, [{"id": "x", "text": sentences(1)}])
    write_lines(b, [{"id": "x", "text": sentences(2)}, {"id": "y", "text": sentences(3)}])
    manifest = job([tmp_path / "in"], tmp_path)
    assert (manifest["counts"]["documents"], manifest["counts"]["quarantined"]) == (2, 1)
    [failure] = failures(tmp_path)
    assert (failure["source"], failure["position"], failure["id"]) == ("b.jsonl", 0, "x")
    assert "another document has the id 'x': a.jsonl, position 0" in failure["reason"]
    # with the first gone, the second is the one
    rewrite(a, [{"id": "z", "text": sentences(4)}])
    manifest = job([tmp_path / "in"], tmp_path, is_update=True)
    assert (manifest["counts"]["documents"], manifest["counts"]["quarantined"]) == (3, 0)
    assert known(tmp_path)["x"].source == "b.jsonl"


def test_equal_texts_under_different_ids_are_compressed_once(tmp_path):
    write_lines(tmp_path / "a.jsonl", [{"id": f"d{index}", "text": sentences(index % 4)} for index in range(20)])
    manifest = job([tmp_path / "a.jsonl"], tmp_path)
    assert (manifest["counts"]["documents"], manifest["counts"]["equal_texts"]) == (20, 16)
    assert (manifest["run"]["segments_compressed"], manifest["run"]["segments_stored"]) == (4, 16)


@pytest.mark.parametrize("seed", range(4))
def test_any_sequence_of_updates_ends_where_a_build_does(tmp_path, seed):
    chance = random.Random(seed)
    folder = tmp_path / "in"

    def shuffle():
        for name in ("a.jsonl", "b.jsonl", "c.jsonl"):
            if chance.random() < 0.3 and name != "a.jsonl":
                (folder / name).unlink(missing_ok=True)
            elif chance.random() < 0.6 or not (folder / name).exists():
                chosen = chance.sample(range(12), chance.randint(1, 8))
                lines = [
                    {"id": f"d{index}", "text": sentences(index + 100 * chance.randint(0, 1))} for index in chosen
                ]
                rewrite(folder / name, [*lines, *(["broken"] if chance.random() < 0.3 else [])])

    folder.mkdir()
    for _ in range(6):
        shuffle()
        updated = job([folder], tmp_path, is_update=True)
        fresh_folder = tmp_path / f"fresh{chance.random()}"
        fresh_folder.mkdir()
        fresh = job([folder], fresh_folder)
        assert set(known(tmp_path)) == set(known(fresh_folder))
        ours, theirs = updated["counts"], fresh["counts"]
        assert ours["documents"] == theirs["documents"]
        assert ours["duplicates"] + ours["quarantined"] == theirs["duplicates"] + theirs["quarantined"]


def test_documents_that_cannot_be_read_are_listed_and_passed_over(tmp_path):
    lines = [*rows(2), "not JSON", {"id": "empty", "text": " "}, *rows(2, start=2)]
    write_lines(tmp_path / "in" / "a.jsonl", lines)
    (tmp_path / "in" / "b.txt").write_bytes(b"\xff\xfe\xff")
    manifest = job([tmp_path / "in"], tmp_path)
    assert (manifest["counts"]["documents"], manifest["counts"]["quarantined"]) == (4, 3)
    assert [(one["source"], one["position"], one["id"]) for one in failures(tmp_path)] == [
        ("a.jsonl", 2, ""),
        ("a.jsonl", 3, ""),
        ("b.txt", 0, ""),
    ]
    assert "not JSON" in failures(tmp_path)[0]["reason"]
    # once they can be read, they are no longer listed
    lines[2] = {"id": "now", "text": sentences("now")}
    rewrite(tmp_path / "in" / "a.jsonl", lines)
    manifest = job([tmp_path / "in"], tmp_path, is_update=True)
    assert (manifest["counts"]["documents"], manifest["counts"]["quarantined"]) == (5, 2)


def test_a_document_whose_compression_fails_is_quarantined(tmp_path):
    lines = rows(30)
    for index in (3, 4, 20):
        lines[index]["text"] += f" {RAISES}"
    write_lines(tmp_path / "a.jsonl", lines)
    stages = (Poisonous(),)
    manifest = job([tmp_path / "a.jsonl"], tmp_path, stages=stages)
    assert (manifest["counts"]["documents"], manifest["counts"]["quarantined"]) == (27, 3)
    assert failures(tmp_path) == [
        {"source": "a.jsonl", "position": index, "id": f"d{index}", "reason": "RuntimeError: it was poisoned"}
        for index in (3, 4, 20)
    ]
    # it is not tried again as long as it is the same, and what was good is not lost
    assert changes(job([tmp_path / "a.jsonl"], tmp_path, stages=stages, is_update=True))["added"] == 0
    lines[4] = rows(5)[4]
    rewrite(tmp_path / "a.jsonl", lines)
    manifest = job([tmp_path / "a.jsonl"], tmp_path, stages=stages, is_update=True)
    assert (manifest["counts"]["documents"], manifest["counts"]["quarantined"]) == (28, 2)


def test_a_document_that_was_good_and_is_bad_now_leaves_the_sink(tmp_path, watch):
    wrap, sinks = watch
    lines, stages = rows(5), (Poisonous(),)
    write_lines(tmp_path / "a.jsonl", lines)
    job([tmp_path / "a.jsonl"], tmp_path, stages=stages)
    lines[2]["text"] += f" {RAISES}"
    rewrite(tmp_path / "a.jsonl", lines)
    manifest = job([tmp_path / "a.jsonl"], tmp_path, stages=stages, sink=wrap)
    assert sinks[0].deleted == ["d2"]
    assert (manifest["counts"]["documents"], manifest["counts"]["quarantined"]) == (4, 1)


def test_what_was_quarantined_is_tried_again_on_demand(tmp_path, watch):
    wrap, sinks = watch
    lines = rows(10)
    lines[3]["text"] += f" {RAISES}"
    path = write_lines(tmp_path / "a.jsonl", [*lines, "broken"])

    class Broken(Watched):
        def add(self, documents):
            if any(RAISES in document.text for document in documents):
                raise OSError("the disk was full")
            return super().add(documents)

    assert job([path], tmp_path, sink=Broken)["counts"]["quarantined"] == 2
    manifest = job([path], tmp_path, sink=wrap, retry=True)
    assert sinks[0].added == [["d3"]]
    assert (manifest["counts"]["documents"], manifest["counts"]["quarantined"]) == (10, 1)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"keep": 0.4}, "keep = 0.5, not 0.4"),
        ({"chunk_tokens": 100}, "chunk_tokens = 256, not 100"),
        ({"stages": ("structured",)}, "pipeline_fingerprint = "),
        ({"read": ReadOptions(text_field="body")}, "text_field = 'text', not 'body'"),
        ({"read": ReadOptions(max_document_bytes=9)}, "max_document_bytes"),
    ],
)
@pytest.mark.parametrize("is_update", [False, True])
def test_a_folder_keeps_its_settings(corpus, tmp_path, change, name, is_update):
    job([corpus], tmp_path)
    before = (tmp_path / "state" / "manifest.json").read_bytes()
    with pytest.raises(ConfigError, match="another folder") as raised:
        job([corpus], tmp_path, is_update=is_update, **change)
    assert name in str(raised.value)
    assert (tmp_path / "state" / "manifest.json").read_bytes() == before


def test_inputs_store_and_tokenizer_are_settings_as_well(corpus, tmp_path, monkeypatch):
    job([corpus], tmp_path)
    with pytest.raises(ConfigError, match="inputs = "):
        job([corpus / "sub"], tmp_path)
    (tmp_path / "state").rename(tmp_path / "moved")
    (tmp_path / "other").mkdir()
    (tmp_path / "moved").rename(tmp_path / "other" / "state")
    with pytest.raises(ConfigError, match="store = "):
        job([corpus], tmp_path / "other")
    (tmp_path / "other" / "state").rename(tmp_path / "state")
    monkeypatch.setattr("kompakt.retrieval.corpus.manifest.release", lambda: "0.2")
    with pytest.raises(ConfigError, match=r"release = '0\.1', not '0\.2'"):
        job([corpus], tmp_path)


def test_nothing_is_made_if_an_input_is_missing_or_the_sink_cannot_be_opened(corpus, tmp_path):
    with pytest.raises(InputError, match="nowhere"):
        job([corpus, tmp_path / "nowhere"], tmp_path)

    def refuse(sink):
        raise ConfigError("no such sink")

    with pytest.raises(ConfigError, match="no such sink"):
        job([corpus], tmp_path, sink=refuse)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_a_corpus_that_looks_empty_deletes_nothing(corpus, tmp_path, watch):
    wrap, sinks = watch
    job([corpus], tmp_path)
    corpus.rename(tmp_path / "away")
    corpus.mkdir()
    with pytest.raises(InputError, match="no file"):
        job([corpus], tmp_path, is_update=True, sink=wrap)
    assert sinks[0].deleted == []
    corpus.rmdir()
    (tmp_path / "away").rename(corpus)
    assert changes(job([corpus], tmp_path, is_update=True))["unchanged"] == 53


def test_the_job_s_own_files_are_no_part_of_the_corpus(tmp_path):
    write_lines(tmp_path / "a.jsonl", [*rows(3), "broken"])
    for is_update in (False, False, True):
        manifest = job([tmp_path], tmp_path, is_update=is_update)
        assert (manifest["counts"]["files"], manifest["counts"]["documents"]) == (1, 3)


def test_a_second_job_in_a_folder_is_refused(corpus, tmp_path):
    job([corpus], tmp_path)
    lock = WriterLock(tmp_path / "state")
    with pytest.raises(StoreError, match="another process"):
        job([corpus], tmp_path)
    assert job_status(tmp_path / "state")["state"] == "running"
    lock.release()


def test_a_job_works_with_a_budget_by_kind(tmp_path):
    from kompakt.compressor.pipeline import Pipeline
    from kompakt.retrieval.compressed import SegmentCompressor

    write_lines(tmp_path / "in" / "a.jsonl", rows(3))
    pipeline = Pipeline(["lexical"], keep={"prose": 0.4}, tokenizer="o200k_base", store=tmp_path / "s.sqlite")
    compressor = SegmentCompressor(pipeline)
    settings = JobSettings.of([tmp_path / "in"], compressor, tokenizer=TOKENIZER)
    manifest = run_job(settings, tmp_path / "state", lambda: open_sink(compressor, tokenizer=TOKENIZER))
    assert manifest["counts"]["tokens_after"] <= 0.4 * manifest["counts"]["tokens_before"]
    assert "prose = 0.4" in manifest["pipeline_toml"]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_corpus(tmp_path):
    # few texts, so that the bounded caches of the compressor are full from the beginning
    texts = [sentences(index) for index in range(50)]

    def peak(n):
        folder = tmp_path / str(n)
        lines = ({"id": f"document {index}", "text": texts[index % 50], "n": index} for index in range(n))
        path = write_lines(folder / "a.jsonl", lines)
        tracemalloc.start()
        job([path], folder, limits=Limits(batch_documents=32, checkpoint_records=160))
        _, found = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return found

    peak(200)
    small, large = peak(1500), peak(4500)
    assert large < 1.25 * small
    # the corpus itself would not fit
    assert (tmp_path / "4500" / "a.jsonl").stat().st_size > large


def test_the_store_serves_what_was_built(corpus, tmp_path):
    job([corpus], tmp_path)
    compressor = compressor_for(tmp_path / "store.sqlite")
    [found] = compressor.pipeline.compress_each(sentences("c"), keep=0.5)
    assert found.trace[-1].cache_hits == 1
