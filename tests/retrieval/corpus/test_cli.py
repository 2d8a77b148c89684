"""``kompakt corpus`` as it is typed, and commands that other packages bring."""

import json
import os
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import typer
from command_line import Ran, assert_one_error
from corpus_parts import rows, sentences, write_lines

from kompakt.compressor import cli
from kompakt.retrieval.corpus import cli as corpus_cli
from kompakt.retrieval.corpus.estimate import Estimate, FormatEstimate

ROOT = Path(__file__).parents[3]
PROCESS = """
import sys
from importlib.metadata import EntryPoint
from kompakt.compressor import cli

cli._entries = lambda: {"corpus": EntryPoint("corpus", "kompakt.retrieval.corpus.cli:app", cli.GROUP)}
status = cli.run(sys.argv[1:])
is_loaded = any(name.startswith("kompakt.retrieval") for name in sys.modules)
print("retrieval" if is_loaded else "nothing", file=sys.stderr)
"""


@pytest.fixture(autouse=True)
def entries(monkeypatch):
    """The command as an entry point, whatever is installed here; and others, if a test adds some."""
    found = {"corpus": EntryPoint("corpus", "kompakt.retrieval.corpus.cli:app", cli.GROUP)}
    monkeypatch.setattr(cli, "_entries", lambda: found)
    return found


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory, with a corpus and a pipeline."""
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path / "in" / "a.jsonl", rows(12))
    (tmp_path / "in" / "b.txt").write_text(sentences("b"), encoding="utf-8")
    (tmp_path / "in" / "c.docx").write_bytes(b"PK")
    (tmp_path / "p.toml").write_text('tokenizer = "o200k_base"\n[[stages]]\ncompressor = "lexical"\n', "utf-8")
    return tmp_path


def corpus(command, *options, inputs=("in",), budget=("--keep", 0.5), **streams):
    where = ["--to", "s.sqlite", "--pipeline", "p.toml"]
    return Ran(["corpus", command, *inputs, *where, *budget, *options], **streams)


def fields(out):
    """Return the summary by its first column."""
    return {line[:15].strip(): line[15:].strip() for line in out.splitlines()}


def test_a_build_prints_what_came_of_it(folder):
    ran = corpus("build")
    assert ran.status == 0
    assert ran.err == ""
    found = fields(ran.out)
    assert (found["state"], found["documents"], found["quarantined"]) == ("finished", "13", "0")
    assert (found["added"], found["files skipped"]) == ("13", "1 (1 .docx)")
    assert found["tokens"].endswith("% kept)")
    assert (folder / "s.sqlite").is_file()
    assert (folder / "kompakt-corpus" / "manifest.json").is_file()


def test_an_update_says_what_changed(folder):
    corpus("build")
    (folder / "in" / "b.txt").unlink()
    write_lines(folder / "in" / "d.jsonl", rows(2, start=50))
    found = fields(corpus("update").out)
    assert [found[name] for name in ("added", "changed", "unchanged", "deleted")] == ["2", "0", "12", "1"]


def test_json_is_the_manifest_alone(folder):
    ran = corpus("build", "--json", "--state", "job")
    assert json.loads(ran.out) == json.loads((folder / "job" / "manifest.json").read_text("utf-8"))
    assert json.loads(ran.out)["settings"]["keep"] == 0.5


def test_options_reach_the_job(folder):
    lines = [{"body": sentences(index), "name": f"n{index}"} for index in range(3)]
    write_lines(folder / "own" / "a.jsonl", [*lines, {"body": "x " * 600_000}])
    options = ("--text-field", "body", "--id-field", "name", "--max-document-mb", "0.5", "--chunk-tokens", "64")
    ran = corpus(
        "build", *options, "--tokenizer", "cl100k_base", "--json", inputs=["own"], budget=["--max-tokens", 20]
    )
    manifest = json.loads(ran.out)
    assert (manifest["counts"]["documents"], manifest["counts"]["quarantined"]) == (3, 1)
    settings = manifest["settings"]
    assert (settings["max_tokens"], settings["chunk_tokens"], settings["tokenizer"]) == (20, 64, "cl100k_base")
    assert (settings["text_field"], settings["max_document_bytes"]) == ("body", 2**19)
    assert manifest["counts"]["tokens_after"] <= 20 * manifest["counts"]["segments"]
    [failure] = (folder / "kompakt-corpus" / "failures.jsonl").read_text("utf-8").splitlines()
    assert "max_document_bytes=524288" in failure


def test_a_pipeline_may_have_budgets_of_its_own(folder):
    (folder / "p.toml").write_text('[keep]\nprose = 0.3\n[[stages]]\ncompressor = "lexical"\n', "utf-8")
    manifest = json.loads(corpus("build", "--json", budget=()).out)
    assert manifest["counts"]["tokens_after"] < 0.4 * manifest["counts"]["tokens_before"]


@pytest.mark.parametrize("is_strict", [False, True])
def test_quarantined_documents_are_one_line(folder, is_strict):
    write_lines(folder / "in" / "a.jsonl", [*rows(3), "broken", "broken"])
    ran = corpus("build", *(["--strict"] if is_strict else []))
    assert ran.status == (2 if is_strict else 0)
    where = Path("kompakt-corpus", "failures.jsonl")
    assert ran.err == f"quarantined documents: 2; the reasons are in {where}\n"
    assert len(where.read_text("utf-8").splitlines()) == 2
    assert corpus("build", "--retry").err == ran.err


def test_status_of_a_job(folder):
    assert_one_error(Ran(["corpus", "status", "kompakt-corpus"]), 2, "no corpus job")
    write_lines(folder / "in" / "a.jsonl", [*rows(3), "broken"])
    built = corpus("build")
    ran = Ran(["corpus", "status", "kompakt-corpus"])
    assert (ran.status, ran.out, ran.err) == (0, built.out, built.err)
    # a folder of an index has the state in one of its own
    (folder / "index").mkdir()
    (folder / "kompakt-corpus").rename(folder / "index" / "corpus")
    assert json.loads(Ran(["corpus", "status", "index", "--json"]).out)["counts"]["documents"] == 4


def test_a_dry_run_estimates_and_writes_nothing(folder):
    before = sorted(folder.rglob("*"))
    ran = corpus("build", "--dry-run")
    assert sorted(folder.rglob("*")) == before
    assert ran.status == 0
    assert [line.split()[0] for line in ran.out.splitlines()[2:]] == ["jsonl", "text", "all"]
    assert ran.out.splitlines()[2].split()[1] == "1"
    assert ran.err == "estimated from a sample of 13 documents; nothing was written\n"
    found = json.loads(corpus("update", "--dry-run", "--json").out)
    assert found["total"]["documents"] == found["n_sampled"] == 13
    write_lines(folder / "in" / "a.jsonl", [*rows(3), "broken"])
    assert "5 documents, 1 of which cannot be used" in corpus("build", "--dry-run").err
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--index", "i", "--state", "s"], ["--index or --state"]),
        (["--to", "memory"], ["--to memory"]),
        (["--max-tokens", 9], ["exactly one of --max-tokens N and --keep F"]),
        (["--keep", 7], ["keep"]),
        (["--chunk-tokens", 0], ["chunk_tokens"]),
        (["--tokenizer", "nonesuch"], ["nonesuch"]),
        (["--pipeline", "nowhere.toml"], ["nowhere.toml"]),
        (["--encoding", "utf-99"], ["utf-99"]),
        (["--max-document-mb", 0], ["--max-document-mb"]),
        (["--max-document-mb", "nan"], ["--max-document-mb"]),
        (["--text-field", "id"], ["text_field"]),
        (["--to", "in"], ["is a folder"]),
        (["--to", "in/c.docx"], ["c.docx"]),
        (["--nonesuch"], ["--nonesuch"]),
    ],
)
def test_wrong_options_are_one_error_and_leave_nothing(folder, options, words):
    before = sorted(folder.rglob("*"))
    assert_one_error(corpus("build", *options), 2, *words)
    assert sorted(folder.rglob("*")) == before


def test_other_settings_are_an_error(folder):
    corpus("build")
    assert_one_error(corpus("update", budget=["--keep", 0.4]), 2, "keep = 0.5, not 0.4", "another folder")


def test_inputs_must_be_there(folder):
    assert_one_error(corpus("build", inputs=["nowhere"]), 2, "nowhere")
    (folder / "empty").mkdir()
    assert_one_error(corpus("build", inputs=["empty"]), 2, "no file")


def test_ctrl_c_keeps_what_was_done(folder, monkeypatch):
    from kompakt.retrieval.corpus import job

    read = job.records_of

    def interrupted(file, options, *, start):
        if file.name == "b.txt":
            raise KeyboardInterrupt
        return read(file, options, start=start)

    monkeypatch.setattr(job, "records_of", interrupted)
    ran = corpus("build")
    assert (ran.status, ran.err) == (130, "error: interrupted\n")
    assert fields(Ran(["corpus", "status", "kompakt-corpus"]).out)["state"] == "interrupted"
    monkeypatch.setattr(job, "records_of", read)
    assert fields(corpus("build").out)["documents"] == "13"


def test_progress_is_lines_where_nobody_watches(folder, monkeypatch):
    from kompakt.retrieval.corpus import job

    monkeypatch.setattr(corpus_cli, "_PLAIN_EVERY", 0.0)
    monkeypatch.setattr(job, "_SHOW_EVERY", 0.0)
    lines = corpus("build").err.splitlines()
    total = sum((folder / "in" / name).stat().st_size for name in ("a.jsonl", "b.txt"))
    assert all(line.startswith("progress done_bytes=") and f"total_bytes={total} " in line for line in lines)
    assert lines[-1].startswith(f"progress done_bytes={total} total_bytes={total} documents=13 quarantined=0 ")
    assert lines[-1].endswith("seconds_left=0")
    write_lines(folder / "in" / "new.jsonl", rows(3, start=99))
    assert corpus("build", "--quiet").err == ""


def test_progress_is_a_bar_on_a_terminal(folder):
    ran = corpus("build", width=200)
    assert ran.status == 0
    assert "━" in ran.err
    assert "tokens/s" in ran.err
    assert "progress done_bytes" not in ran.err


def test_a_full_store_is_told(folder, monkeypatch):
    from kompakt.compressor.store import places

    assert "is full" not in corpus("build").err
    with places.open_store("s.sqlite") as store:
        n_bytes = store.stats().n_bytes
    monkeypatch.setattr(places, "DEFAULT_FILE_BYTES", n_bytes)
    write_lines(folder / "in" / "more.jsonl", rows(3, start=50))
    ran = corpus("update")
    assert ran.status == 0
    assert "warning: the store" in ran.err
    assert "is full" in ran.err


def test_numbers_are_written_for_people():
    one = FormatEstimate("jsonl", 3, 5 << 40, 9, 1, 1_000_000, 2_000_000, 3_000, 2_000, 3725.4, 1536)
    table = corpus_cli.estimate_table(Estimate((one,), 9))
    cells = [next(iter(column.cells)) for column in table.columns]
    assert cells == ["jsonl", "3", "5.0 TiB", "1,000,000", "2,000,000", "3,000", "2,000", "1:02:05", "1.5 KiB"]
    assert [corpus_cli._time(seconds) for seconds in (0.04, 59.9, 61)] == ["0.0 s", "59.9 s", "1:01"]
    assert [corpus_cli._size(n) for n in (0, 1023, 1 << 20)] == ["0 B", "1023 B", "1.0 MiB"]


def test_help_lists_commands_and_their_options(folder):
    ran = Ran(["--help"])
    assert "  corpus  " in ran.out
    assert Ran([]).out == ran.out
    assert [word for word in ("build", "update", "status") if f"  {word}" in Ran(["corpus", "--help"]).out] == [
        "build",
        "update",
        "status",
    ]
    for command in ("build", "update"):
        text = Ran(["corpus", command, "--help"]).out
        assert all(option in text for option in ("--to", "--pipeline", "--dry-run", "--max-document-mb", "--strict"))
    assert "brought" not in ran.out


def test_the_entry_point_is_declared():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    target = project["entry-points"][cli.GROUP]["corpus"]
    assert EntryPoint("corpus", target, cli.GROUP).load() is corpus_cli.app


@pytest.mark.parametrize(
    ("arguments", "loaded"),
    [
        (["compressors"], "nothing"),
        (["models", "list"], "nothing"),
        (["nonesuch"], "nothing"),
        (["--version"], "nothing"),
        (["corpus", "--help"], "retrieval"),
        (["--help"], "retrieval"),
    ],
)
def test_other_commands_do_not_load_it(arguments, loaded):
    ran = subprocess.run(
        [sys.executable, "-c", PROCESS, *arguments], capture_output=True, text=True, check=True, env=os.environ
    )
    assert ran.stderr.splitlines()[-1] == loaded


def test_a_broken_command_breaks_no_other(folder, entries):
    entries["bad"] = EntryPoint("bad", "kompakt_nowhere:app", cli.GROUP)
    assert "cannot be loaded from" in Ran(["--help"]).out
    assert Ran(["compressors"]).status == 0
    ran = Ran(["bad", "--option", "word"])
    assert_one_error(ran, 2, "the command bad cannot be loaded", "kompakt_nowhere")


def test_a_command_cannot_take_the_place_of_ours(folder, entries, monkeypatch):
    other = typer.Typer()

    @other.command()
    def compressors():
        typer.echo("brought")

    monkeypatch.setattr(corpus_cli, "other", other, raising=False)
    entries["compressors"] = EntryPoint("compressors", "kompakt.retrieval.corpus.cli:other", cli.GROUP)
    entries["brought"] = EntryPoint("brought", "kompakt.retrieval.corpus.cli:other", cli.GROUP)
    assert "lexical" in Ran(["compressors"]).out
    assert Ran(["brought"]).out == "brought\n"
    assert Ran(["--help"]).out.count("\n  compressors ") == 1
