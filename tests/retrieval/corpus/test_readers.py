"""Finding files: each once, in one order, under a name of its own. Reading them: by suffix."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from kompakt.compressor.errors import ConfigError, InputError
from kompakt.retrieval.corpus.readers import (
    SUFFIXES,
    ReadOptions,
    Record,
    SourceFile,
    find_files,
    read_file,
    skipped_files,
)


def make(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"This is {name}.", encoding="utf-8")
    return folder


def names(*inputs, **options):
    return [file.name for file in find_files(inputs, **options)]


def test_a_file_is_described(tmp_path):
    path = make(tmp_path, "a/b.txt") / "a" / "b.txt"
    os.utime(path, ns=(5, 1_700_000_000_123_456_789))
    assert list(find_files([tmp_path])) == [SourceFile(path.resolve(), "a/b.txt", 16, 1_700_000_000_123_456_789)]
    assert names(path) == ["b.txt"]
    assert names(str(path)) == ["b.txt"]


def test_paths_may_be_relative(tmp_path, monkeypatch):
    make(tmp_path, "docs/a.txt")
    monkeypatch.chdir(tmp_path / "docs")
    (file,) = find_files(["."])
    assert file.path == (tmp_path / "docs" / "a.txt").resolve()
    assert file.name == "a.txt"


def test_folders_are_walked_in_order_of_names(tmp_path):
    wanted = ["B.txt", "a/z.md", "a.txt", "b/a/c.html", "b/b.pdf", "c.jsonl"]
    for name in random.Random(0).sample(wanted, len(wanted)):
        make(tmp_path, name)
    assert names(tmp_path) == wanted
    assert names(tmp_path) == names(tmp_path)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_suffix_is_found_in_any_case(tmp_path, suffix):
    make(tmp_path, f"a{suffix}", f"b{suffix.upper()}", f"c{suffix}x")
    assert names(tmp_path) == [f"a{suffix}", f"b{suffix.upper()}"]


def test_suffixes_can_be_chosen(tmp_path):
    make(tmp_path, "a.txt", "b.md", "c.txt.gz", "d.pdf")
    assert names(tmp_path, suffixes={".md", ".txt"}) == ["a.txt", "b.md"]
    assert skipped_files([tmp_path], suffixes=[".md", ".txt"]) == {".pdf": 1, ".txt.gz": 1}


def test_hidden_files_and_folders_are_passed_over_unless_named(tmp_path):
    make(tmp_path, ".a.txt", ".b/c.txt", "d/.e/f.txt", "g.txt")
    assert names(tmp_path) == ["g.txt"]
    assert skipped_files([tmp_path]) == {}
    assert names(tmp_path / ".a.txt", tmp_path / ".b") == [".a.txt", "c.txt"]


def test_what_is_skipped_is_counted(tmp_path):
    make(tmp_path, "a.txt", "b.docx", "c/d.DOCX", "c/README", "e.md.gz", "f.tar.gz", "g.py", ".h.docx")
    (tmp_path / "broken.txt").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe.txt")
    counts = skipped_files([tmp_path, tmp_path / "c"])
    assert counts == {".docx": 2, "(unreadable)": 2, "(no suffix)": 1, ".md.gz": 1, ".py": 1, ".tar.gz": 1}
    assert list(counts)[:2] == ["(unreadable)", ".docx"]
    assert names(tmp_path) == ["a.txt"]


def test_loops_of_links_end(tmp_path):
    make(tmp_path, "a/b/c.txt")
    (tmp_path / "a" / "b" / "up").symlink_to(tmp_path)
    (tmp_path / "self.txt").symlink_to("self.txt")
    assert names(tmp_path) == ["a/b/c.txt"]
    assert skipped_files([tmp_path]) == {"(unreadable)": 1}


def test_links_are_followed_and_give_their_own_name(tmp_path):
    store = make(tmp_path / "store", "0001.bin", "more/x.md")
    docs = make(tmp_path / "docs", "a.txt")
    (docs / "b.txt").symlink_to(store / "0001.bin")
    (docs / "c").symlink_to(store / "more")
    found = list(find_files([docs]))
    assert [(file.name, file.path.name) for file in found] == [
        ("a.txt", "a.txt"),
        ("b.txt", "0001.bin"),
        ("c/x.md", "x.md"),
    ]
    assert [next(read_file(file, ReadOptions())).document.text for file in found] == [
        "This is a.txt.",
        "This is 0001.bin.",
        "This is more/x.md.",
    ]


def test_a_file_is_found_once(tmp_path):
    make(tmp_path, "a/b.txt", "a/c.txt", "d.txt")
    (tmp_path / "z.txt").symlink_to(tmp_path / "d.txt")
    assert names(tmp_path, tmp_path / "a", tmp_path / "a" / "b.txt", tmp_path) == ["a/b.txt", "a/c.txt", "d.txt"]
    assert names(tmp_path / "a", tmp_path) == ["b.txt", "c.txt", "d.txt"]
    assert names(tmp_path / "a" / "c.txt", tmp_path / "a") == ["c.txt", "b.txt"]


def test_names_are_distinct(tmp_path):
    inputs = [make(tmp_path / name, "x.txt") for name in ("one", "two", "deep/two", "deeper/two")]
    found = names(*inputs)
    assert found[:2] == ["x.txt", "two/x.txt"]
    assert all(name.startswith("two~") and name.endswith("/x.txt") for name in found[2:])
    assert len(set(found)) == 4
    assert names(*inputs) == found
    assert names(*(path / "x.txt" for path in inputs)) == found


def test_a_name_may_be_taken_by_a_file_below(tmp_path):
    first = make(tmp_path / "first", "two/x.txt", "x.txt")
    second = make(tmp_path / "two", "x.txt")
    found = names(first, second)
    assert found[:2] == ["two/x.txt", "x.txt"]
    assert found[2].startswith("two~")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere names of files are text")
def test_names_that_are_no_text_are_spelt_out(tmp_path):
    folder = os.fsencode(tmp_path)
    for name in (b"caf\xe9.txt", b"caf\\xe9.txt"):
        Path(os.fsdecode(folder + b"/" + name)).write_bytes(b"One.")
    found = list(find_files([tmp_path]))
    assert len({file.name for file in found}) == 2
    for file in found:
        file.name.encode()
        assert [record.error for record in read_file(file, ReadOptions())] == [""]


@pytest.mark.parametrize("suffix", [".docx", "", ".gz"])
def test_a_named_file_must_have_a_known_suffix(tmp_path, suffix):
    path = make(tmp_path, f"a{suffix}") / f"a{suffix}"
    with pytest.raises(InputError, match=r"has none of the suffixes that are read: \.jsonl, .*\.pdf"):
        find_files([path])
    with pytest.raises(InputError, match="has none of the suffixes"):
        skipped_files([path])


def test_a_named_file_must_have_a_chosen_suffix(tmp_path):
    make(tmp_path, "a.txt")
    with pytest.raises(InputError, match=r"a\.txt has none of the suffixes that are read: \.md"):
        find_files([tmp_path / "a.txt"], suffixes=[".md"])


def test_inputs_are_checked_before_any_file_is_given(tmp_path):
    make(tmp_path, "a.txt")
    with pytest.raises(InputError, match=r"there is no file or folder '.*/b\.txt'"):
        find_files([tmp_path, tmp_path / "b.txt"])
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(InputError, match="neither a file nor a folder"):
        find_files([tmp_path / "pipe.txt"])


@pytest.mark.parametrize("inputs", ["docs", Path("docs"), b"docs", [], [b"docs"], [3], [""], ["a\0b"]])
def test_inputs_must_be_a_list_of_paths(inputs):
    with pytest.raises(InputError, match="file or folder"):
        find_files(inputs)


@pytest.mark.parametrize("suffixes", [".txt", [], ["txt"], [".docx"]])
def test_suffixes_must_be_known(tmp_path, suffixes):
    with pytest.raises(ConfigError, match="suffix"):
        find_files([tmp_path], suffixes=suffixes)


def test_the_format_is_that_of_the_name(tmp_path):
    path = make(tmp_path, "a.txt") / "a.txt"
    file = SourceFile(path, "other.docx", 1, 0)
    with pytest.raises(InputError, match=r"other\.docx has no suffix that can be read. Known: \.jsonl, "):
        read_file(file, ReadOptions())


@pytest.mark.parametrize("suffix", [".txt", ".md", ".html", ".pdf", ".jsonl", ".jsonl.gz", ".parquet"])
def test_a_file_that_has_gone_is_a_record(tmp_path, suffix):
    file = SourceFile(tmp_path / f"gone{suffix}", f"gone{suffix}", 1, 0)
    (record,) = read_file(file, ReadOptions())
    assert (record.source, record.position, record.document) == (file.name, 0, None)
    assert "No such file" in record.error
    assert list(read_file(file, ReadOptions(), start=1)) == []


def test_a_whole_file_is_one_record(tmp_path):
    (file,) = find_files([make(tmp_path, "a.txt")])
    (record,) = read_file(file, ReadOptions())
    assert record == Record("a.txt", 0, record.document)
    assert list(read_file(file, ReadOptions(), start=1)) == []


def test_start_is_not_negative(tmp_path):
    (file,) = find_files([make(tmp_path, "a.txt")])
    with pytest.raises(ConfigError, match="start must be at least 0, got -1"):
        read_file(file, ReadOptions(), start=-1)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("text_field", ""),
        ("id_field", None),
        ("id_field", "text"),
        ("encoding", "no-such"),
        ("encoding", "base64"),
        ("encoding", 8),
        ("max_document_bytes", 0),
        ("max_document_bytes", 1.5),
        ("max_document_bytes", True),
    ],
)
def test_options_are_checked(option, value):
    with pytest.raises(ConfigError, match=option):
        ReadOptions(**{option: value})


def test_importing_the_readers_loads_none_of_their_packages():
    heavy = ["inscriptis", "lxml", "pyarrow", "pypdfium2", "markdown_it"]
    code = f"import sys, kompakt.retrieval.corpus.readers; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
