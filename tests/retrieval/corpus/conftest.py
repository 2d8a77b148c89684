"""Files of a corpus, written and read back."""

import gzip

import pytest
from corpus_parts import Watched, rows, sentences, write_lines

from kompakt.retrieval.corpus.readers import ReadOptions, find_files, read_file


@pytest.fixture
def read(tmp_path):
    """Write bytes under a name, and return the records that they are read as."""

    def read(name, data, *, start=0, **options):
        path = tmp_path / name
        path.write_bytes(data)
        (file,) = find_files([path])
        return list(read_file(file, ReadOptions(**options), start=start))

    return read


@pytest.fixture
def read_one(read):
    """The same for a file of one record that could be read: its document."""

    def read_one(name, data, **options):
        (record,) = read(name, data, **options)
        assert record.error == ""
        assert (record.source, record.position) == (name, 0)
        return record.document

    return read_one


@pytest.fixture
def read_error(read):
    """The same for a file of one record that could not be read: the reason."""

    def read_error(name, data, **options):
        (record,) = read(name, data, **options)
        assert record.document is None
        assert (record.source, record.position) == (name, 0)
        return record.error

    return read_error


@pytest.fixture
def corpus(tmp_path):
    """A folder of files of several formats."""
    folder = tmp_path / "in"
    write_lines(folder / "a.jsonl", rows(25))
    write_lines(folder / "sub" / "b.jsonl", rows(25, start=25))
    (folder / "c.txt").write_text(sentences("c"), encoding="utf-8")
    (folder / "d.md").write_text(f"# Title\n\n{sentences('d')}", encoding="utf-8")
    (folder / "e.txt.gz").write_bytes(gzip.compress(sentences("e").encode()))
    (folder / "f.docx").write_bytes(b"PK")
    return folder


@pytest.fixture
def watch():
    """Return a wrapper of sinks, and the sinks that it wrapped."""
    sinks = []

    def wrap(inner):
        sinks.append(Watched(inner))
        return sinks[-1]

    return wrap, sinks
