"""Formats by name, files that fail in the middle, and how far a file is read."""

import gzip
from hashlib import sha256
from pathlib import Path

import pytest
from corpus_parts import rows, write_lines

from kompakt.compressor.errors import MissingExtraError
from kompakt.retrieval.corpus import files
from kompakt.retrieval.corpus.files import bytes_read, content_hash, format_of, is_one_document, records_of
from kompakt.retrieval.corpus.readers import SUFFIXES, ReadOptions, Record, SourceFile, find_files


@pytest.mark.parametrize(("suffix", "kind"), SUFFIXES.items())
def test_the_format_is_told_by_the_name(suffix, kind):
    assert format_of(f"a/b{suffix.upper()}") == kind
    assert is_one_document(f"b{suffix}") == (kind not in ("jsonl", "parquet"))


def test_other_names_have_no_format():
    assert format_of("a.docx") == ""


def test_records_are_those_of_the_reader(tmp_path):
    [file] = find_files([write_lines(tmp_path / "a.jsonl", [*rows(3), "broken"])])
    records = list(records_of(file, ReadOptions(), start=1))
    assert [record.position for record in records] == [1, 2, 3]
    assert records[-1].error.startswith("not JSON")


@pytest.mark.parametrize(("error", "is_fatal"), [(OSError("gone"), False), (MissingExtraError("x", "corpus"), True)])
def test_a_reader_that_fails_ends_its_file_with_a_record(monkeypatch, error, is_fatal):
    def failing(file, options, *, start):
        yield Record(file.name, start, None, "first")
        raise error

    monkeypatch.setattr(files, "read_file", failing)
    found = records_of(SourceFile(Path("a.jsonl"), "a.jsonl", 1, 1), ReadOptions(), start=7)
    assert next(found).error == "first"
    if is_fatal:
        with pytest.raises(type(error)):
            next(found)
    else:
        assert list(found) == [Record("a.jsonl", 8, None, "OSError: gone")]


def test_progress_in_a_file_is_never_beyond_its_end():
    plain, packed = (SourceFile(Path(name), name, 100, 0) for name in ("a.jsonl", "a.jsonl.gz"))
    assert [bytes_read(plain, n) for n in (0, 50, 500)] == [0, 50, 100]
    assert [bytes_read(packed, n) for n in (0, 150, 500)] == [0, 50, 100]


def test_the_hash_is_that_of_the_bytes(tmp_path):
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(b"text" * 100_000))
    assert content_hash(path) == sha256(path.read_bytes()).hexdigest()
    assert content_hash(tmp_path / "none") == content_hash(tmp_path) == ""
