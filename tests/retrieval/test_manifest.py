"""The folder of an index: its manifest is whole or as it was, and one object may change it."""

import pytest

from kompakt.compressor.errors import StoreError
from kompakt.retrieval.manifest import Manifest, WriterLock, replace_file

MANIFEST = Manifest("minilm-l6", "a" * 64, "o200k_base", "b" * 64, 256, 3, "c" * 64)


def test_a_manifest_is_read_as_it_was_written(tmp_path):
    assert not Manifest.is_in(tmp_path)
    MANIFEST.write(tmp_path)
    assert Manifest.is_in(tmp_path)
    assert Manifest.read(tmp_path) == MANIFEST
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


def test_others_are_named_with_what_the_index_was_made_with():
    MANIFEST.check_encoder("other name", "a" * 64)
    MANIFEST.check_tokenizer("other name", "b" * 64)
    with pytest.raises(StoreError, match=r"encoder: minilm-l6 \(a{64}\), and this is e5 \(dd\)"):
        MANIFEST.check_encoder("e5", "dd")
    with pytest.raises(StoreError, match=r"tokenizer: o200k_base \(b{64}\), and this is gpt2 \(dd\)"):
        MANIFEST.check_tokenizer("gpt2", "dd")


def test_one_object_has_the_right_to_write(tmp_path):
    with WriterLock(tmp_path):
        for _ in range(2):
            with pytest.raises(StoreError, match="being written by another"):
                WriterLock(tmp_path)
    WriterLock(tmp_path).release()
    with pytest.raises(StoreError, match="cannot write"):
        WriterLock(tmp_path / "missing")


@pytest.mark.parametrize("error", [OSError("disk full"), RuntimeError("disk full")])
def test_a_file_that_cannot_be_replaced_stays(tmp_path, error):
    path = tmp_path / "file"
    replace_file(path, lambda temporary: temporary.write_text("old"))

    def fail(temporary):
        temporary.write_text("ne")
        raise error

    with pytest.raises(StoreError, match=r"cannot write .*file: disk full"):
        replace_file(path, fail)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    replace_file(path, lambda temporary: temporary.write_text("new"))
    assert path.read_text() == "new"
