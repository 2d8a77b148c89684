"""A corpus into an index, with the real encoder."""

import json
import signal
import subprocess
import sys

import pytest

import kompakt
from kompakt.compressor.errors import ConfigError
from kompakt.compressor.models.tokenizers import load_tokenizer
from kompakt.retrieval.compressed import SegmentCompressor
from kompakt.retrieval.corpus.cli import app
from kompakt.retrieval.corpus.index_sink import IndexSink
from kompakt.retrieval.retriever import Retriever

pytestmark = pytest.mark.models

PIPELINE = 'schema_version = 1\n\n[[stages]]\ncompressor = "lexical"\n'
TEXTS = {
    "valve": "The relief valve opens above 55 bar. It was replaced in 2021. The spare part is kept in hall 3.",
    "soup": "Soup costs two euros and bread is free. The canteen opens at noon. On Fridays there is fish.",
    "change": "Emergency changes are approved by the duty manager. Normal changes wait for the board on Tuesday.",
}


@pytest.fixture
def corpus(tmp_path):
    lines = [json.dumps({"id": name, "text": text, "year": 2024}) for name, text in TEXTS.items()]
    (tmp_path / "corpus.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "pipeline.toml").write_text(PIPELINE, encoding="utf-8")
    return tmp_path


def command(folder, name="build"):
    return [
        name, str(folder / "corpus.jsonl"), "--to", str(folder / "store.sqlite"), "--index", str(folder / "index"),
        "--pipeline", str(folder / "pipeline.toml"), "--keep", "0.5", "--json", "--quiet",
    ]  # fmt: skip


def run(folder, name="build"):
    result = subprocess.run(
        [sys.executable, "-c", "from kompakt.retrieval.corpus.cli import app; app()", *command(folder, name)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def retriever(folder):
    pipeline = kompakt.Pipeline(["lexical"], tokenizer="o200k_base", store=folder / "store.sqlite")
    return Retriever.open(folder / "index", pipeline=pipeline, keep=0.5)


def test_what_was_built_is_found_with_its_stored_segments(corpus):
    manifest = run(corpus)
    assert manifest["counts"]["documents"] == 3
    opened = retriever(corpus)
    (found,) = opened.search("When does the relief valve open?", k=1, where={"year": 2024})
    assert found.hit.segment.document_id == "valve"
    assert found.compressed.trace[-1].cache_misses == 0
    span = found.citations[0]
    assert TEXTS["valve"][span.start : span.end] in found.text


def test_an_update_follows_the_corpus(corpus):
    run(corpus)
    lines = [
        {"id": "soup", "text": "There is no soup today."},
        {"id": "new", "text": "The pump runs at 40 bar. Always."},
    ]
    (corpus / "corpus.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    run(corpus, "update")
    opened = retriever(corpus)
    assert {document.id for document in opened.index.documents()} == {"soup", "new"}
    assert "no soup" in opened.search("Is there soup?", k=1)[0].hit.segment.text


CHILD = """
import os, signal, sys
import kompakt
from kompakt.compressor.models.tokenizers import load_tokenizer
from kompakt.retrieval.compressed import SegmentCompressor
from kompakt.retrieval.corpus.index_sink import IndexSink

folder, *texts = sys.argv[1:]
pipeline = kompakt.Pipeline(["lexical"], store=f"{folder}/store.sqlite")
sink = IndexSink(f"{folder}/index", SegmentCompressor(pipeline, keep=0.5), tokenizer=load_tokenizer())
sink.add([kompakt.Document(text, id=str(number)) for number, text in enumerate(texts)])
sink.save()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_documents_that_were_saved_are_found_after_a_kill(corpus):
    died = subprocess.run([sys.executable, "-c", CHILD, str(corpus), *TEXTS.values()], check=False)
    assert died.returncode == -signal.SIGKILL
    found = retriever(corpus).search("Who approves emergency changes?", k=1, mode="vector")
    assert found[0].hit.segment.document_id == "2"


def test_an_index_of_other_segments_is_refused(corpus):
    compressor = SegmentCompressor(kompakt.Pipeline(["lexical"], store=corpus / "store.sqlite"), keep=0.5)
    IndexSink(corpus / "index", compressor, tokenizer=load_tokenizer()).close()
    with pytest.raises(ConfigError, match="256"):
        IndexSink(corpus / "index", compressor, tokenizer=load_tokenizer(), chunk_tokens=64)


def test_the_command_is_the_one_of_the_package():
    assert app.info.name == "corpus"
