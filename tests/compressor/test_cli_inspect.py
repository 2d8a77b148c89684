import re

import pytest
from command_line import Ran, assert_one_error

TEXT = "Rome is old. A cat sat on the mat.\nThe dog ran away. Nobody saw where it went.\n"
BASE = ["inspect", "-c", "lexical", "-q", "How old is Rome?"]


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "notes.md"
    path.write_text(TEXT, encoding="utf-8")
    return path


def lines(ran):
    assert ran.status == 0, ran
    return ran.out.splitlines()


@pytest.mark.parametrize("more", [[], ["--scores"]])
def test_a_line_a_piece_where_nobody_watches(text, more):
    head, *pieces = lines(Ran([*BASE, text, "--max-tokens", 4, *more]))
    assert re.fullmatch(rf"{re.escape(str(text))}  \d+% of the characters kept", head)
    assert [re.sub(r" +-?\d\.\d{3} +", "|", piece) for piece in pieces] == [
        "+ lexical|Rome is old.",
        "- lexical|A cat sat on the mat.",
        "- lexical|The dog ran away.",
        "- lexical|Nobody saw where it went.",
    ]


def test_higher_scores_were_kept(text):
    pieces = lines(Ran([*BASE, text, "--keep", 0.5, "--scores"]))[1:]
    scores = {sign: [float(line.split()[2]) for line in pieces if line[0] == sign] for sign in "+-"}
    assert min(scores["+"]) >= max(scores["-"])


def test_the_summary_goes_to_the_standard_error(text):
    err = Ran([*BASE, text, "--max-tokens", 4]).err
    assert err.startswith("compressed: 22 -> 4 tokens (18.2% kept) in ")
    assert err.count("\n") == 1


def test_a_terminal_gets_the_text_in_place_and_in_colours(text):
    out = Ran([*BASE, text, "--max-tokens", 4], width=200).out
    assert "\x1b[32mRome is old.\x1b[0m" in out
    assert re.search(r"\x1b\[2;9m A cat sat on the mat\.", out)
    plain = re.sub(r"\x1b\[[\d;]*m", "", out)
    assert plain.partition("\n")[2].split() == TEXT.split()


def test_scores_on_a_terminal_too(text):
    out = re.sub(r"\x1b\[[\d;]*m", "", Ran([*BASE, text, "--max-tokens", 4, "--scores"], width=200).out)
    assert out.splitlines()[1].startswith("+ lexical ")


def test_every_document_stands_there_even_an_empty_one(tmp_path, text):
    empty = tmp_path / "empty.txt"
    empty.touch()
    found = lines(Ran([*BASE, text, empty, "--max-tokens", 4]))
    assert [line for line in found if line and line[0] not in "+-"] == [
        f"{text}  15% of the characters kept", f"{empty}  empty",
    ]  # fmt: skip


def test_reads_the_standard_input():
    assert lines(Ran([*BASE, "--max-tokens", 4], stdin=TEXT.encode()))[0].startswith("-  ")


def test_a_page_instead(text, tmp_path):
    page = tmp_path / "view.html"
    ran = Ran([*BASE, text, "--max-tokens", 4, "--html", page])
    assert (ran.status, ran.out) == (0, "")
    assert ran.err.startswith("compressed: 22 -> 4 tokens")
    content = page.read_text(encoding="utf-8")
    assert content.startswith("<!DOCTYPE html>")
    for words in ("Rome is old.", "Nobody saw where it went.", "How old is Rome?", str(text), "lexical"):
        assert words in content


def test_a_page_on_the_standard_output(text):
    assert Ran([*BASE, text, "--max-tokens", 4, "--html", "-"]).out.startswith("<!DOCTYPE html>")


def test_the_page_shows_markup_and_controls_as_text(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"Rome <b>is</b> old\x1b[31m. </script><img src=x onerror=alert(1)>\n")
    content = Ran([*BASE, path, "--max-tokens", 99, "--html", "-"]).out
    assert "<img" not in content
    assert "&lt;b&gt;is" in content
    assert "\x1b" not in content


def test_text_cannot_steer_the_terminal(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"Red \x1b[31m text. [bold]Not bold[/bold].\n")
    ran = Ran([*BASE, path, "--max-tokens", 99])
    assert "\x1b" not in ran.out
    assert "Red \\x1b[31m text. [bold]Not bold[/bold]." in ran.out


def test_what_fits_is_all_kept(text):
    ran = Ran([*BASE, text, "--max-tokens", 99])
    assert "100% of the characters kept" in ran.out
    assert not any(line.startswith("-") for line in ran.out.splitlines())
    assert ran.err.startswith("fits: 22 tokens")


@pytest.mark.parametrize("more", [[], ["--keep", "0.9"]])
def test_a_pipeline_with_its_own_budget_or_another(text, tmp_path, more):
    path = tmp_path / "p.toml"
    path.write_text('[keep]\nprose = 0.2\n\n[[stages]]\ncompressor = "lexical"\n', encoding="utf-8")
    ran = Ran(["inspect", text, "--pipeline", path, "-q", "How old is Rome?", *more])
    kept = [line for line in lines(ran) if line.startswith("+")]
    assert len(kept) == (3 if more else 1)
    page = Ran(["inspect", text, "--pipeline", path, "-q", "How old is Rome?", "--html", "-", *more])
    assert (page.status, str(path) in page.out) == (0, True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["--max-tokens", "--keep"]),
        (["--keep", ".5", "--max-tokens", "5"], ["exactly one"]),
        (["--keep", "2"], ["at most 1"]),
        (["--keep", ".5", "-c", "lexicl"], ["did you mean 'lexical'"]),
        (["--keep", ".5", "--pipeline", "no.toml"], ["not both"]),
        (["--keep", ".5", "--html", "no/such/file"], ["does not exist"]),
        (["--keep", ".5", "--html", "/"], ["folder"]),
        (["--keep", ".5", "--encoding", "utf-99"], ["utf-99"]),
        (["--keep", ".5", "no-such-file"], ["no-such-file"]),
        (["--keep", ".5", "--tokenizer", "no-such"], ["no-such"]),
        (["--keep", ".5", "--score"], ["--score"]),
    ],
)
def test_wrong_usage_is_one_line(text, arguments, words):
    assert_one_error(Ran([*BASE, text, *arguments]), 2, *words)
