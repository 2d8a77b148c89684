"""What an index keeps on disk: found again by every process, whatever happened to the one that wrote it."""

import logging
import subprocess
import sys

import pytest
from index_parts import DOCUMENTS, answers, create, reopen

from kompakt import ConfigError, Document
from kompakt.compressor.errors import StoreError
from kompakt.retrieval.index import SegmentIndex

pytest.importorskip("faiss")


@pytest.mark.parametrize("memory_map", [True, False])
def test_a_reopened_index_answers_the_same(index, tmp_path, memory_map):
    before = answers(index)
    index.close()
    with reopen(tmp_path / "index", memory_map=memory_map) as again:
        assert answers(again) == before
        again.delete(["bridge"])
        assert answers(again) != before
        again.add(DOCUMENTS[3])
        assert answers(again) == before


def damage_a_bit(path):
    data = bytearray(path.read_bytes())
    data[-7] ^= 4
    path.write_bytes(data)


def damage_half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    "damage", [damage_a_bit, damage_half, lambda path: path.unlink(), lambda path: path.write_bytes(b"")]
)
def test_lost_vectors_are_made_again(index, tmp_path, caplog, damage):
    before = answers(index)
    index.close()
    [path] = (tmp_path / "index").glob("vectors-*.faiss")
    damage(path)
    with caplog.at_level(logging.WARNING), reopen(tmp_path / "index") as again:
        assert answers(again) == before
    [record] = caplog.records
    assert "encoding 5 segments again" in record.getMessage()
    assert str(path) in record.getMessage()
    caplog.clear()
    with reopen(tmp_path / "index") as again:
        assert answers(again) == before
    assert not caplog.records


def test_lost_vectors_stay_in_memory_while_another_writes(index, tmp_path, caplog):
    before = answers(index)
    index.save()
    [path] = (tmp_path / "index").glob("vectors-*.faiss")
    path.unlink()
    for _ in range(2):
        with reopen(tmp_path / "index") as again:
            assert answers(again) == before
    assert len(caplog.records) == 2
    index.delete(["food"])
    index.save()
    with reopen(tmp_path / "index") as again:
        assert len(again) == 4
    assert len(caplog.records) == 2


def test_readers_see_what_was_saved_last(index, tmp_path):
    index.save()
    before = answers(index)
    with reopen(tmp_path / "index") as reader:
        index.delete(["rivers"])
        index.add(Document("The Danube is long.", id="new"))
        assert answers(reader) == before
        assert len(reader) == 5
        index.save()
        assert answers(reader) == answers(index) != before
        assert len(reader) == 5 - 2 + 1


def test_only_one_object_writes(index, tmp_path):
    index.save()
    with reopen(tmp_path / "index") as other:
        for change in (lambda: other.add(Document("x", id="x")), lambda: other.delete(["food"])):
            with pytest.raises(StoreError, match="being written by another"):
                change()
        index.add(Document("A late tower.", id="late"))
        index.close()
        # it goes on from what the first one wrote
        other.add(Document("Another tower.", id="x"))
        assert {hit.segment.document_id for hit in other.search("tower", mode="vector", k=3)} == {
            "tower",
            "late",
            "x",
        }
    with reopen(tmp_path / "index") as again:
        assert len(again) == 7


CHILD = """
import os
from index_parts import Document, reopen
from kompakt.compressor.errors import StoreError
index = reopen({folder!r})
{code}
"""


def child(folder, code):
    code = CHILD.format(folder=str(folder), code=code)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return result.returncode, result.stdout.strip(), result.stderr


def test_another_process_may_search_but_not_write(index, tmp_path):
    index.save()
    code = """
print(index.search("iron tower")[0].segment.document_id)
try:
    index.add(Document("x", id="x"))
except StoreError as error:
    print("refused")
"""
    assert child(tmp_path / "index", code)[:2] == (0, "tower\nrefused")
    index.close()
    assert child(tmp_path / "index", "print(index.add(Document('x', id='x')).n_added); index.close()")[:2] == (0, "1")
    with reopen(tmp_path / "index") as again:
        assert len(again) == 6


@pytest.mark.parametrize(
    ("code", "expected", "n_encoded"),
    [
        ("", 5, None),
        ("index._catalogue.commit()", 5, 1),
        ("index._vectors.save(2)", 5, None),
        ("index._vectors.save(2); index._catalogue.set_state(2, 'x' * 64); index._catalogue.commit()", 5, 5),
    ],
)
def test_a_crash_leaves_an_index_that_opens(index, tmp_path, caplog, code, expected, n_encoded):
    index.close()
    died = f"index.delete(['rivers']); index.add([Document('Iron boats.', id=str(n)) for n in range(2)]); {code}"
    assert child(tmp_path / "index", f"{died}\nos._exit(7)")[0] == 7
    with reopen(tmp_path / "index") as again:
        is_kept = "commit" in code
        assert len(again) == expected
        assert {known.id for known in again.documents()} == (
            {"tower", "food", "bridge", "0", "1"} if is_kept else {"rivers", "tower", "food", "bridge"}
        )
        with create(tmp_path / "fresh") as fresh:
            fresh.add(DOCUMENTS[1:] if is_kept else DOCUMENTS)
            fresh.add([Document("Iron boats.", id=str(n)) for n in range(2)] if is_kept else [])
            assert answers(again) == answers(fresh)
        again.add(Document("Life goes on.", id="later"))
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == (n_encoded is not None)
    with reopen(tmp_path / "index") as again:
        assert len(again) == expected + 1
    assert len(caplog.records) == len(messages)


def test_old_files_are_removed(index, tmp_path):
    for n in range(4):
        index.add(Document(f"Text {n}", id=str(n)))
        index.save()
        index.save()
    names = sorted(path.name for path in (tmp_path / "index").glob("*") if "sqlite-" not in path.name)
    assert names == ["manifest.json", "segments.sqlite", "vectors-3.faiss", "vectors-4.faiss", "writer.lock"]


def test_an_exception_in_a_block_discards_what_was_not_saved(index, tmp_path):
    index.close()

    def change():
        with reopen(tmp_path / "index") as other:
            other.delete(["tower"])
            other.save()
            other.delete(["food"])
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        change()
    with reopen(tmp_path / "index") as again:
        assert [known.id for known in again.documents()] == ["rivers", "food", "bridge"]
        assert len(again.search("bread", k=9, mode="vector")) == 4


def test_folders_that_cannot_be_used_are_named(index, tmp_path):
    with pytest.raises(StoreError, match="holds an index already"):
        create(tmp_path / "index")
    with pytest.raises(StoreError, match=r"no index in .*none"):
        reopen(tmp_path / "none")
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="cannot make the folder"):
        create(tmp_path / "file" / "index")
    with pytest.raises(ConfigError, match="chunk_tokens"):
        create(tmp_path / "new", chunk_tokens=0)
    with pytest.raises(ConfigError, match="encoder must be"):
        SegmentIndex.create(tmp_path / "new", encoder=3)
    assert not (tmp_path / "new").exists()
    index.close()
    index.close()
    with pytest.raises(StoreError, match="closed"):
        index.add(Document("x", id="x"))
    with pytest.raises(StoreError, match="closed"):
        index.search("x")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[:50], "cannot read"),
        (lambda text: "[]", "schema None"),
        (lambda text: text.replace('"schema_version": 1', '"schema_version": 2'), "schema 2"),
        (
            lambda text: text.replace('"chunk_tokens": 32', '"chunk_tokens": "32"'),
            "chunk_tokens must be int, got '32'",
        ),
    ],
)
def test_a_damaged_manifest_is_named(index, tmp_path, change, message):
    index.close()
    path = tmp_path / "index" / "manifest.json"
    path.write_text(change(path.read_text()))
    with pytest.raises(StoreError, match=message):
        reopen(tmp_path / "index")
