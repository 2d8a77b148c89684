"""What needs no cluster: options, pieces, what travels between processes, and what is refused."""

from dataclasses import replace
from importlib.metadata import EntryPoint

import pytest
from command_line import Ran, assert_one_error
from corpus_parts import TOKENIZER, compressor_for, rows, write_lines
from hypothesis import given
from hypothesis import strategies as st

from kompakt.compressor import cli
from kompakt.compressor.errors import ConfigError, InputError, MissingExtraError, ModelNotFoundError
from kompakt.compressor.types import Document
from kompakt.retrieval.corpus import ray_job as ray_job_module
from kompakt.retrieval.corpus.job import JobSettings
from kompakt.retrieval.corpus.ray_cluster import RayOptions, require_reachable
from kompakt.retrieval.corpus.ray_job import RayRunner, pieces_of, ray_runner
from kompakt.retrieval.corpus.ray_worker import (
    Answer,
    OpenSink,
    decode_answer,
    decode_documents,
    encode_answer,
    encode_documents,
)
from kompakt.retrieval.corpus.sink import DocumentReport, SinkReport


@pytest.fixture(autouse=True)
def entries(monkeypatch):
    """The command as an entry point, whatever is installed here."""
    found = {"corpus": EntryPoint("corpus", "kompakt.retrieval.corpus.cli:app", cli.GROUP)}
    monkeypatch.setattr(cli, "_entries", lambda: found)


@pytest.fixture
def settings(tmp_path):
    """Settings of a job whose store is a file."""
    compressor = compressor_for(tmp_path / "s.sqlite")
    return JobSettings.of([tmp_path], compressor, tokenizer=TOKENIZER)


texts = st.lists(st.text(min_size=1, max_size=30).filter(str.strip), max_size=40)


@given(texts, st.integers(1, 60), st.integers(1, 9))
def test_pieces_hold_every_document_once_within_their_bounds(texts, n_bytes, n_documents):
    documents = [Document(text, id=str(index)) for index, text in enumerate(texts)]
    pieces = pieces_of(documents, n_bytes=n_bytes, n_documents=n_documents)
    sizes = [[len(document.text.encode()) for document in piece] for piece in pieces]
    assert sorted(document.id for piece in pieces for document in piece) == sorted(one.id for one in documents)
    assert all(0 < len(piece) <= n_documents for piece in pieces)
    assert all(sum(piece) <= n_bytes or len(piece) == 1 for piece in sizes)
    # similar ones together, the longest first
    in_order = [size for piece in sizes for size in piece]
    assert in_order == sorted(in_order, reverse=True)


values = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=5)


@given(st.text(), st.text(), st.dictionaries(st.text(), values, max_size=3), st.integers(0, 5))
def test_documents_are_read_back_as_they_were_written(text, name, metadata, start):
    protected = ((min(start, len(text)), len(text)),)
    document = Document(text, id=name, metadata=metadata, protected=protected)
    odd = Document("text", id="\ud800")
    assert decode_documents(encode_documents([document, odd])) == [document, odd]


@pytest.mark.parametrize(
    "answer",
    [
        Answer(),
        Answer(is_deadly=True),
        Answer(SinkReport()),
        Answer(SinkReport((DocumentReport("a", 3, 90, 40, 1, 2),), (("b\ud800", "ValueError: no"),))),
    ],
)
def test_answers_are_read_back_as_they_were_written(answer):
    assert decode_answer(encode_answer(answer)) == answer


@pytest.mark.parametrize(
    "error", [ConfigError("c"), ModelNotFoundError("m"), InputError("i"), MissingExtraError("PDF", "corpus")]
)
def test_errors_keep_class_and_message(error):
    read = decode_answer(encode_answer(Answer(error=error))).error
    assert (type(read), str(read)) == (type(error), str(error))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"address": "ray://host:10001"}, "host:port"),
        ({"address": ""}, "host:port"),
        ({"address": "host:6379"}, "--workers N"),
        ({"address": "auto"}, "--workers N"),
        ({"workers": 0}, "workers"),
        ({"workers": 1.5}, "workers"),
        ({"gpus": -1}, "gpus"),
        ({"gpus": float("nan")}, "gpus"),
        ({"piece_bytes": 0}, "piece_bytes"),
        ({"object_store_bytes": True}, "object_store_bytes"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        RayOptions(**options)


def test_what_is_in_work_at_once_grows_with_the_workers():
    few, many = RayOptions(workers=1).limits, RayOptions(workers=200).limits
    assert (few.checkpoint_records, few.checkpoint_bytes) == (5000, 64 << 20)
    assert many.batch_bytes == 200 * few.batch_bytes
    assert many.batch_documents == 200 * few.batch_documents
    assert many.checkpoint_bytes >= 4 * many.batch_bytes


def test_a_store_must_be_reached_by_every_machine(settings):
    with pytest.raises(ConfigError, match=r"s\.sqlite is a file.*redis://host"):
        ray_runner(settings, "s.sqlite", RayOptions("head:6379", workers=8))
    with pytest.raises(ConfigError, match="memory of this process"):
        ray_runner(settings, "memory", RayOptions())
    ray_runner(settings, "redis://host:6379/0", RayOptions("head:6379", workers=8))
    ray_runner(settings, "s.sqlite", RayOptions("auto", workers=8))
    with pytest.raises(ConfigError, match="is a file"):
        require_reachable("s.sqlite", is_shared=True)


def test_a_pipeline_must_have_a_name_for_its_stages(settings):
    with pytest.raises(ConfigError, match="TOML"):
        ray_runner(replace(settings, pipeline_toml=None), "s.sqlite", RayOptions())


def test_without_ray_the_message_names_the_extra(monkeypatch, settings, tmp_path):
    monkeypatch.setattr(ray_job_module, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"the corpus job on Ray needs .*kompakt\[ray\]"):
        RayRunner(None, OpenSink(settings, "s.sqlite"), RayOptions())


def test_a_worker_needs_what_the_driver_has(settings, tmp_path):
    for name in ("release", "tokenizer_fingerprint", "pipeline_fingerprint"):
        with pytest.raises(ConfigError, match=f"{name} = .* and the job 'other'"):
            OpenSink(replace(settings, **{name: "other"}), str(tmp_path / "s.sqlite"))()
    with pytest.raises(ModelNotFoundError):
        OpenSink(settings, str(tmp_path / "s.sqlite"), "no-such-encoder")()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--workers", 2], ["--ray"]),
        (["--worker-gpus", 1], ["--ray"]),
        (["--ray", "auto"], ["--workers N"]),
        (["--ray", "head:6379", "--workers", 2], ["redis://", "--ray local"]),
        (["--ray", "ray://head:6379", "--workers", 2], ["host:port"]),
    ],
)
def test_wrong_options_are_one_error_and_leave_nothing(tmp_path, monkeypatch, options, words):
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path / "a.jsonl", rows(2))
    (tmp_path / "p.toml").write_text('[[stages]]\ncompressor = "lexical"\n', "utf-8")
    before = sorted(tmp_path.rglob("*"))
    ran = Ran(["corpus", "build", "a.jsonl", "--to", "s.sqlite", "--pipeline", "p.toml", "--keep", 0.5, *options])
    assert_one_error(ran, 2, *words)
    assert sorted(tmp_path.rglob("*")) == before
