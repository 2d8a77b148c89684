"""Every script in examples/ runs, and the demo's answer stands in what it keeps."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kompakt.compressor.types import Document
from kompakt.compressor.units.segment import recognise

EXAMPLES = Path(__file__).parents[1] / "examples"
NEED_MODELS = ("demo.py", "long_document_chat.py", "rag.py", "soft_prompt.py")
OFFLINE = sorted(path.name for path in EXAMPLES.glob("*.py") if path.name not in NEED_MODELS)


def run(name, folder, *arguments, **environment):
    result = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONSAFEPATH": "1", "PYTHONIOENCODING": "utf-8", **environment},
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    return result.stdout


@pytest.mark.parametrize("name", OFFLINE)
def test_runs_without_any_model(name, tmp_path, empty_cache):
    assert run(name, tmp_path)


@pytest.mark.models
@pytest.mark.parametrize("name", OFFLINE)
def test_runs_with_models(name, tmp_path):
    assert run(name, tmp_path)


@pytest.mark.models
def test_rag_keeps_the_answer_cites_it_and_knows_the_documents_again(tmp_path):
    out = run("rag.py", tmp_path, "--index", str(tmp_path / "index"))
    assert "4 documents added" in out
    text = (EXAMPLES / "data" / "handbook.md").read_text(encoding="utf-8")
    (line,) = (line for line in out.splitlines() if "Ines Marquardt, head of payments" in line)
    start, end = map(int, line.partition("[")[2].partition("]")[0].split(":"))
    assert "Ines Marquardt" in text[start:end]
    assert "0 documents added, 4 known" in run("rag.py", tmp_path, "--index", str(tmp_path / "index"))


@pytest.mark.models
@pytest.mark.slow
def test_soft_prompt_encodes_a_document_once(tmp_path):
    text = (EXAMPLES / "data" / "handbook.md").read_text(encoding="utf-8")
    (tmp_path / "short.md").write_text(text[:1200], encoding="utf-8")
    first = run("soft_prompt.py", tmp_path, "short.md", "--store", "vectors.sqlite")
    assert "as vectors" in first
    assert "14 segments encoded, untrained weights" in first
    assert first.count("    vectors:") == 5
    again = run("soft_prompt.py", tmp_path, "short.md", "--store", "vectors.sqlite")
    assert " 0 segments encoded" in again


@pytest.mark.models
@pytest.mark.slow
def test_long_document_chat_reads_the_document_once_for_a_question(tmp_path):
    texts = [(EXAMPLES / "data" / name).read_text(encoding="utf-8") for name in ("handbook.md", "postmortem.md")]
    (tmp_path / "report.md").write_text("\n\n".join(texts), encoding="utf-8")
    question = "Who approves emergency changes?"
    asked = ["--ask", question, "--ask", "What was the cause?", "--ask", question, "--positions", "300"]
    out = run("long_document_chat.py", tmp_path, "report.md", *asked, "--store", "caches.sqlite")
    told = [line for line in out.splitlines() if "of keys and values" in line]
    assert ["found in the store" in line for line in told] == [False, False, True]
    assert all(line.strip().startswith("[300 of 21") for line in told)


@pytest.mark.models
def test_demo_keeps_the_answer_and_checks_its_offsets(tmp_path):
    out = run("demo.py", tmp_path)
    assert "all point at exactly that text" in out
    told = " ".join(out.split())
    assert "silently fell back to the default of 4 connections" in told
    assert "Ines Marquardt" in told


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("changes.json", "json"),
        ("checkout.log", "log"),
        ("checkout_metrics.csv", "table"),
        ("handbook.md", "prose"),
        ("kundenservice.txt", "prose"),
        ("pool.py", "code"),
        ("postmortem.md", "prose"),
    ],
)
def test_data_is_what_it_claims(name, kind):
    text = (EXAMPLES / "data" / name).read_text(encoding="utf-8")
    assert recognise(Document(text, metadata={"path": name})).kind == kind
