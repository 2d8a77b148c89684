"""Settings as they are compared, and the files that say what came of a job."""

import json
import os
import platform

import pytest
from corpus_parts import RAISES, TOKENIZER, Poisonous, compressor_for, failures, job, rows, write_lines

import kompakt
from kompakt.compressor.config import parse_pipeline
from kompakt.compressor.errors import ConfigError
from kompakt.compressor.pipeline import Pipeline
from kompakt.retrieval.compressed import SegmentCompressor
from kompakt.retrieval.corpus.manifest import JobSettings, check_settings, read_manifest, write_manifest
from kompakt.retrieval.corpus.readers import ReadOptions


def settings_of(pipeline, inputs=("in",), **options):
    return JobSettings.of(inputs, SegmentCompressor(pipeline, keep=0.5), tokenizer=TOKENIZER, **options)


def test_settings_say_what_decides_the_results(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pipeline = Pipeline(["lexical"], store="s.sqlite", tenant="t")
    found = settings_of(pipeline, ["in", tmp_path / "b"], read=ReadOptions(text_field="body"), index="i").as_json()
    assert found == {
        "inputs": [str(tmp_path / "in"), str(tmp_path / "b")],
        "store": str(tmp_path / "s.sqlite"),
        "index": str(tmp_path / "i"),
        "keep": 0.5,
        "max_tokens": None,
        "chunk_tokens": 256,
        "tokenizer": "o200k_base",
        "tokenizer_fingerprint": TOKENIZER.fingerprint,
        "pipeline_fingerprint": pipeline.fingerprint,
        "tenant": "t",
        "release": "0.1",
        "text_field": "body",
        "id_field": "id",
        "encoding": "utf-8",
        "max_document_bytes": 64 * 2**20,
    }
    assert json.loads(json.dumps(found)) == found


def test_the_pipeline_is_written_without_its_store():
    pipeline = Pipeline(["lexical", "structured"], store="redis://:secret@host/0", tokenizer="o200k_base")
    settings = settings_of(pipeline)
    assert "secret" not in f"{settings.pipeline_toml}{settings.as_json()}"
    assert parse_pipeline(settings.pipeline_toml).fingerprint == pipeline.fingerprint


def test_a_pipeline_that_cannot_be_written_can_still_be_used(tmp_path):
    assert settings_of(Pipeline([Poisonous()], store=tmp_path / "s")).pipeline_toml is None


def test_the_first_setting_that_differs_is_named(tmp_path):
    known = {"keep": 0.5, "chunk_tokens": 256, "gone": 1}
    check_settings(tmp_path, known, {"keep": 0.5, "chunk_tokens": 256})
    with pytest.raises(ConfigError, match=r"chunk_tokens = 256, not 128; give another folder") as raised:
        check_settings(tmp_path, known, {"keep": 0.5, "chunk_tokens": 128, "other": 2})
    assert str(tmp_path) in str(raised.value)
    with pytest.raises(ConfigError, match="other = None, not 2"):
        check_settings(tmp_path, known, {"other": 2})


def test_a_manifest_says_with_what_where_and_when(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", rows(12))
    manifest = job([path], tmp_path)
    assert manifest["kompakt"] == kompakt.__version__
    assert manifest["python"] == platform.python_version()
    assert manifest["machine"] == {"platform": platform.platform(), "cpus": os.cpu_count()}
    assert parse_pipeline(manifest["pipeline_toml"]).fingerprint == manifest["settings"]["pipeline_fingerprint"]
    assert manifest["settings"]["pipeline_fingerprint"] == compressor_for(tmp_path / "x").pipeline.fingerprint
    assert manifest["started"] <= manifest["finished"]
    assert manifest["seconds"] > 0
    assert len(manifest["documents_sha256"]) == 64
    assert {path.name for path in (tmp_path / "state").iterdir()} == {
        "corpus.sqlite",
        "failures.jsonl",
        "manifest.json",
        "writer.lock",
    }


def test_a_manifest_stands_there_while_a_job_runs(tmp_path):
    seen = []

    def look(sink):
        save = sink.save
        sink.save = lambda: seen.append(read_manifest(tmp_path / "state")) or save()
        return sink

    path = write_lines(tmp_path / "a.jsonl", [{"text": RAISES, "id": "bad"}, "broken", *rows(60)])
    job([path], tmp_path, stages=(Poisonous(),), sink=look)
    assert len(seen) > 2
    assert {one["state"] for one in seen} == {"running"}
    assert {one["documents_sha256"] for one in seen} == {None}
    documents = [one["counts"]["documents"] for one in seen]
    assert documents[0] == 0
    assert documents == sorted(set(documents))
    assert seen[-1]["counts"]["quarantined"] == 2
    assert [one["id"] for one in failures(tmp_path)] == ["bad", ""]


def test_equal_corpora_have_equal_hashes_whatever_their_files(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    write_lines(one / "a.jsonl", rows(20))
    write_lines(other / "x.jsonl", rows(10, start=10))
    write_lines(other / "y.jsonl", rows(10))
    first, second = job([one], one), job([other], other)
    assert first["documents_sha256"] == second["documents_sha256"]
    write_lines(other / "z.jsonl", rows(1, start=20))
    assert job([other], other)["documents_sha256"] != first["documents_sha256"]


def test_a_manifest_is_written_whole_or_not_at_all(tmp_path):
    write_manifest(tmp_path, {"a": "ä"})
    assert read_manifest(tmp_path) == {"a": "ä"}
    with pytest.raises(TypeError):
        write_manifest(tmp_path, {"a": object()})
    assert read_manifest(tmp_path) == {"a": "ä"}
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


@pytest.mark.parametrize("content", [b"", b"{torn", b"[]", b"\xff"])
def test_a_torn_manifest_is_none(tmp_path, content):
    (tmp_path / "manifest.json").write_bytes(content)
    assert read_manifest(tmp_path) == {}
    assert read_manifest(tmp_path / "nowhere") == {}
