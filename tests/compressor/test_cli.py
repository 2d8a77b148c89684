import io
import json
import sys

import pytest

from kompakt.compressor import cli

TEXT = "Rome is old. A cat sat on the mat. The dog ran away. Nobody saw where it went.\n"
BASE = ["compress", "--compressor", "lexical"]
KEEP = ["--keep", "0.5"]


class Ran:
    """A run of the command line in this process."""

    def __init__(self, arguments, stdin=b""):
        stream = io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8")
        with pytest.MonkeyPatch.context() as patch:
            out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
            for name, value in (("stdin", stream), ("stdout", out), ("stderr", err)):
                patch.setattr(sys, name, value)
            self.status = cli.run([str(argument) for argument in arguments])
        self.out, self.err = out.buffer.getvalue().decode(), err.buffer.getvalue().decode()


def assert_one_error(ran, status, *words):
    assert ran.status == status
    assert ran.out == ""
    assert ran.err.startswith("error: ")
    assert ran.err.count("\n") == 1
    assert all(word in ran.err for word in words), ran.err


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "notes.md"
    path.write_text(TEXT, encoding="utf-8")
    return path


def test_result_alone_on_stdout_and_summary_on_stderr(text):
    ran = Ran([*BASE, text, "--max-tokens", 4, "--query", "How old is Rome?"])
    assert ran.status == 0
    assert ran.out == "Rome is old."
    assert ran.err.startswith("compressed: 22 -> 4 tokens (18.2% kept) in ")
    assert ran.err.endswith(" s, 1 of 1 documents\n")


def test_roomy_budget_is_byte_equal(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("Überall\r\nZeilen. No end".encode())
    ran = Ran([*BASE, path, "--max-tokens", 99, "--quiet"])
    assert (ran.status, ran.out, ran.err) == (0, "Überall\r\nZeilen. No end", "")


@pytest.mark.parametrize("names", [[], ["-"]])
def test_reads_stdin(names):
    assert Ran([*BASE, *names, "--max-tokens", 4, "-q", "Rome"], stdin=TEXT.encode()).out == "Rome is old."


def test_paths_become_ids_and_kinds(tmp_path, text):
    code = tmp_path / "a.py"
    code.write_text("import os\n\n\ndef f():\n    return os\n", encoding="utf-8")
    data = json.loads(Ran([*BASE, text, code, "--max-tokens", 99, "--json"]).out)
    assert [document["id"] for document in data["documents"]] == [str(text), str(code)]
    assert {span["kind"] for span in data["spans"] if span["document_id"] == str(code)} >= {"code"}


def test_json_spans_hold(text):
    data = json.loads(Ran([*BASE, text, *KEEP, "--json", "-q", "Rome"]).out)
    assert data["outcome"] == {"status": "compressed", "reason": ""}
    assert data["tokens_after"] < data["tokens_before"]
    assert data["trace"][0]["stage"] == "lexical"
    assert data["spans"]
    for span in data["spans"]:
        piece = data["text"][span["text_start"] : span["text_end"]]
        assert span["kind"] in ("omission", "separator") or piece == TEXT[span["start"] : span["end"]]


def test_explain_names_the_ranges_and_saves_the_text(text, tmp_path):
    output = tmp_path / "out.txt"
    ran = Ran([*BASE, text, "--max-tokens", 4, "-q", "Rome", "--explain", "--output", output])
    assert f"{text}[0:12] prose\n  Rome is old." in ran.out
    assert "stage lexical: 22 -> 4 tokens" in ran.out
    assert output.read_text(encoding="utf-8") == "Rome is old."


def test_explain_cannot_steer_the_terminal(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"Red \x1b[31m text. [bold]Not bold[/bold].\n")
    out = Ran([*BASE, path, "--max-tokens", 99, "--explain"]).out
    assert "Red \\x1b[31m text. [bold]Not bold[/bold]." in out


def test_protect_and_marks(text):
    ran = Ran([*BASE, text, "--max-tokens", 12, "--protect", "The dog ran away.", "--mark-omissions"])
    assert "The dog ran away." in ran.out
    assert "…" in ran.out or "omitted" in ran.out


def test_pipeline_file(tmp_path, text):
    path = tmp_path / "p.toml"
    path.write_text('[[stages]]\ncompressor = "lexical"\n', encoding="utf-8")
    arguments = ["compress", text, "--pipeline", path, "--max-tokens", 4, "-q", "Rome", "--strict"]
    assert Ran(arguments).out == "Rome is old."
    assert_one_error(Ran([*arguments, "-c", "lexical"]), 2, "not both")


def test_pipeline_file_with_budgets_of_its_own(tmp_path, text):
    path, rows = tmp_path / "p.toml", tmp_path / "rows.json"
    path.write_text('[keep]\nprose = 0.2\n[[stages]]\ncompressor = "lexical"\n', encoding="utf-8")
    rows.write_text(json.dumps([{"id": n} for n in range(9)]), encoding="utf-8")
    arguments = ["compress", text, rows, "--pipeline", path, "-q", "How old is Rome?"]
    assert Ran(arguments).out == f"Rome is old.\n\n{rows.read_text(encoding='utf-8')}"
    assert Ran([*arguments, "--max-tokens", 4]).out == "Rome is old."
    assert Ran([*arguments, "--keep", 1]).out.startswith(TEXT)
    assert_one_error(Ran([*arguments, "--keep", 1, "--max-tokens", 4]), 2, "exactly one")
    lines = b'{"text": "%s"}\n' % TEXT.strip().encode()
    ran = Ran(["compress", "--jsonl", "--pipeline", path, "-q", "How old is Rome?", "--quiet"], stdin=lines)
    assert (ran.status, json.loads(ran.out)["text"]) == (0, "Rome is old.")


def test_pipeline_file_without_budgets_needs_one(tmp_path, text):
    path = tmp_path / "p.toml"
    path.write_text('[[stages]]\ncompressor = "lexical"\n', encoding="utf-8")
    assert_one_error(Ran(["compress", text, "--pipeline", path]), 2, "exactly one of --max-tokens N and --keep F")


@pytest.mark.parametrize(
    ("content", "encoding", "words"),
    [
        (b"caf\xe9", "utf-8", ["0xe9", "offset 3", "--encoding"]),
        (b"\xef\xbb\xbfcaf\xe9", "utf-8", ["0xe9", "offset 6"]),
        (b"\x7fELF\0\0\xff\xfe", "utf-8", ["0xff", "offset 6", "binary"]),
        (b"a\0b", "utf-8", ["NUL", "offset 1"]),
        (b"\xff\xfea\0", "utf-8", ["utf-16"]),
        (b"text", "utf-99", ["utf-99"]),
        (b"text", "rot13", ["rot13"]),
        (b"text", "", ["encoding"]),
    ],
)
def test_bytes_that_are_not_text(tmp_path, content, encoding, words):
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    assert_one_error(Ran([*BASE, path, *KEEP, "--encoding", encoding]), 2, *words)


@pytest.mark.parametrize(
    ("content", "encoding"),
    [(b"caf\xe9", "latin-1"), ("\ufeffcafé".encode(), "utf-8"), ("café".encode("utf-16"), "utf-16")],
)
def test_other_encodings_and_marks(tmp_path, content, encoding):
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    assert Ran([*BASE, path, "--max-tokens", 99, "--encoding", encoding]).out == "café"


def test_empty_file_is_said(tmp_path):
    (tmp_path / "e.txt").touch()
    ran = Ran([*BASE, tmp_path / "e.txt", *KEEP])
    assert (ran.status, ran.out) == (0, "")
    assert "warning: " in ran.err
    assert "fits: 0 tokens" in ran.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--max-tokens", "0"], ["at least 1", "got 0"]),
        (["--max-tokens", "-5"], ["at least 1", "got -5"]),
        (["--max-tokens", "many"], ["--max-tokens", "integer"]),
        (["--keep", "nan"], ["nan"]),
        (["--keep", "0"], ["above 0"]),
        (["--keep", "1.5"], ["at most 1"]),
        (["--keep", "1e-9"], ["raise keep"]),
        (["--keep"], ["--keep"]),
        ([], ["--max-tokens", "--keep"]),
        (["--keep", ".5", "--max-tokens", "5"], ["exactly one"]),
        ([*KEEP, "-c", "lexicl"], ["lexicl", "did you mean 'lexical'"]),
        ([*KEEP, "--tokenizer", "no-such"], ["no-such"]),
        ([*KEEP, "--protect", ""], ["protect"]),
        ([*KEEP, "--json", "--explain"], ["at most one"]),
        ([*KEEP, "--output", "no/such/folder"], ["does not exist"]),
        ([*KEEP, "--output", "/"], ["folder"]),
        ([*KEEP, "/"], ["folder"]),
        ([*KEEP, "no-such-file.txt"], ["no-such-file.txt", "No such file"]),
        ([*KEEP, "--ouput", "x"], ["--ouput", "--output"]),
    ],
)
def test_wrong_usage_is_one_line(text, arguments, words):
    assert_one_error(Ran([*BASE, text, *arguments]), 2, *words)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("stages = [", ["p.toml", "not valid TOML"]),
        ('[[stages]]\ncompressor = "lexicl"', ["p.toml", "lexicl"]),
        ("", ["at least one [[stages]]"]),
        ('[keep]\nproze = 0.5\n[[stages]]\ncompressor = "lexical"', ["p.toml", "proze"]),
        ('[keep]\nprose = 2\n[[stages]]\ncompressor = "lexical"', ["p.toml", "[keep]", "keep of prose"]),
        (None, ["p.toml", "No such file"]),
    ],
)
def test_wrong_pipeline_file_is_one_line(tmp_path, text, content, words):
    path = tmp_path / "p.toml"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    assert_one_error(Ran(["compress", text, *KEEP, "--pipeline", path]), 2, *words)


@pytest.mark.parametrize("arguments", [["compres"], ["models"], ["models", "pull"], ["--no-such"]])
def test_wrong_command_is_one_line(arguments):
    assert_one_error(Ran(arguments), 2)


def test_same_file_twice(text):
    assert_one_error(Ran([*BASE, text, text, *KEEP]), 2, "two documents have the id")


def test_missing_model_names_the_pull_command(text, empty_cache):
    arguments = [*BASE, text, *KEEP, "--tokenizer", "smollm2-135m"]
    assert_one_error(Ran(arguments), 2, "kompakt models pull smollm2-135m")
    assert_one_error(Ran(["models", "path", "minilm-l6"]), 2, "kompakt models pull minilm-l6")


def test_models_list_and_path(empty_cache):
    from kompakt.compressor.models.locate import cached_path, get_spec

    folder = cached_path(get_spec("minilm-l6"))
    folder.mkdir(parents=True)
    (folder / "kompakt.json").write_text("{}", encoding="utf-8")
    rows = {line.split()[0]: line for line in Ran(["models", "list"]).out.splitlines()}
    assert " yes " in rows["minilm-l6"]
    assert " no " in rows["smollm2-135m"]
    assert Ran(["models", "path", "minilm-l6"]).out == f"{folder}\n"
    assert "already there" in Ran(["models", "pull", "minilm-l6"]).out


def test_models_pull_reports_stages(empty_cache, monkeypatch):
    from kompakt.compressor import cli_models

    def pull(name, *, source, force, progress):
        progress("download", 0.0)
        progress("download", 0.5)
        progress("done", 1.0)
        return empty_cache / name

    monkeypatch.setattr(cli_models, "pull", pull)
    ran = Ran(["models", "pull", "minilm-l6", "en-core-web-sm"])
    assert ran.err == "minilm-l6: download\nen-core-web-sm: download\n"
    assert [line.split(":")[0] for line in ran.out.splitlines()] == ["minilm-l6", "en-core-web-sm"]
    assert_one_error(Ran(["models", "pull", "minilm-l6", "no-such"]), 2, "no-such")
    assert_one_error(Ran(["models", "pull", "minilm-l6", "--source", "ftp"]), 2, "ftp")


def test_version_help_and_compressors():
    assert Ran(["--version"]).out.startswith("kompakt 0.")
    assert "Commands:" in Ran([]).out
    assert "--max-tokens" in Ran(["compress", "--help"]).out
    assert "\nlexical " in Ran(["compressors"]).out


def test_unexpected_error_is_one_line_without_debug(text, monkeypatch):
    from kompakt.compressor import cli_input

    def fail(*_):
        raise ZeroDivisionError("by\nzero")

    monkeypatch.setattr(cli_input, "read_documents", fail)
    assert_one_error(Ran([*BASE, text, *KEEP]), 1, "ZeroDivisionError: by zero", "--debug")
    assert "Traceback" in Ran([*BASE, text, *KEEP, "--debug"]).err
