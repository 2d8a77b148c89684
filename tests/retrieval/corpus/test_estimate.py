"""Estimates: close to what a job then does, from a sample, and without a trace."""

import gzip
import json

import pytest
from corpus_parts import TOKENIZER, compressor_for, job, rows, sentences, write_lines

from kompakt.compressor.errors import ConfigError, InputError
from kompakt.retrieval.corpus import estimate as estimate_module
from kompakt.retrieval.corpus.estimate import estimate


def estimated(inputs, folder, **options):
    return estimate(inputs, compressor_for(folder / "store.sqlite"), tokenizer=TOKENIZER, **options)


def without_times(found):
    def plain(value):
        if isinstance(value, dict):
            return {name: plain(inner) for name, inner in value.items() if name != "seconds"}
        return value

    return plain(found.as_json())


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "in"
    lines = rows(400)
    write_lines(folder / "a.jsonl", lines[:250])
    (folder / "b.jsonl.gz").write_bytes(
        gzip.compress(b"".join(json.dumps(line).encode() + b"\n" for line in lines[250:]))
    )
    for index in range(30):
        (folder / f"{index}.txt").write_text(sentences(f"t{index}", 5 + index), encoding="utf-8")
    return folder


def test_an_estimate_is_near_what_a_job_does(corpus, tmp_path):
    found = estimated([corpus], tmp_path)
    counts = job([corpus], tmp_path)["counts"]
    assert [(one.format, one.n_files) for one in found.formats] == [("jsonl", 2), ("text", 30)]
    total = found.total
    assert total.n_bytes == counts["bytes_in"]
    for name in ("documents", "segments", "tokens_before", "tokens_after"):
        assert getattr(total, name) == pytest.approx(counts[name], rel=0.25), name
    assert total.seconds > 0
    assert total.store_bytes > counts["tokens_after"]
    assert 40 <= found.n_sampled <= 60


def test_a_corpus_within_the_sample_is_counted_exactly(tmp_path):
    write_lines(tmp_path / "in" / "a.jsonl", ["", *rows(20), "broken"])
    (tmp_path / "in" / "b.md").write_text(f"# Title\n\n{sentences(1)}", encoding="utf-8")
    found = estimated([tmp_path / "in"], tmp_path)
    counts = job([tmp_path / "in"], tmp_path)["counts"]
    assert (found.n_sampled, found.total.n_failed) == (22, 1)
    for name in ("documents", "segments", "tokens_before", "tokens_after"):
        assert getattr(found.total, name) == counts[name], name


def test_parquet_is_counted_by_its_rows(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    (tmp_path / "in").mkdir()
    parquet.write_table(pa.Table.from_pylist(rows(900)), tmp_path / "in" / "a.parquet")
    (tmp_path / "in" / "b.parquet").write_bytes(b"PAR1 broken")
    found = estimated([tmp_path / "in"], tmp_path, n_sample=20)
    assert found.total.documents == pytest.approx(900, rel=0.05)
    assert found.total.n_failed == 1


def test_an_estimate_is_the_same_each_time_and_writes_nothing(corpus, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    first, second = (estimated([corpus], tmp_path, n_sample=30) for _ in range(2))
    assert without_times(first) == without_times(second)
    assert sorted(tmp_path.rglob("*")) == before


def test_files_that_cannot_be_read_at_all_are_told(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xff\xff")
    (tmp_path / "b.jsonl").write_bytes(b"")
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(b'{"text": "x y z"}\n' * 5)[:-9])
    found = estimated([tmp_path], tmp_path)
    by_format = {one.format: one for one in found.formats}
    assert (by_format["text"].documents, by_format["text"].n_failed, by_format["text"].n_sampled) == (0, 1, 1)
    assert by_format["jsonl"].n_failed >= 1


def test_no_more_is_read_than_fits_into_memory_well(tmp_path, monkeypatch):
    monkeypatch.setattr(estimate_module, "_READ_CHARACTERS", 5000)
    path = write_lines(tmp_path / "a.jsonl", [{"text": sentences(index, 20)} for index in range(30)])
    found = estimated([path], tmp_path)
    assert 3 <= found.n_sampled < 9
    assert found.total.documents == pytest.approx(30, abs=2)


def test_what_cannot_be_estimated_is_an_error(tmp_path):
    with pytest.raises(InputError, match="no file"):
        estimated([tmp_path], tmp_path)
    write_lines(tmp_path / "a.jsonl", rows(1))
    with pytest.raises(ConfigError, match="chunk_tokens"):
        estimated([tmp_path], tmp_path, chunk_tokens=0)
