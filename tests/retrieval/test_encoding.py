"""Vectors of segments: unit length, and in step with the catalogue."""

import logging
import shutil

import numpy as np
import pytest

from kompakt import ConfigError, Document, ModelNotFoundError
from kompakt.compressor.errors import StoreError
from kompakt.compressor.models.locate import model_path
from kompakt.retrieval.catalogue import Catalogue
from kompakt.retrieval.chunks import Chunk
from kompakt.retrieval.encoding import SegmentVectors, as_encoder, embedded

pytest.importorskip("faiss")


class LetterEncoder:
    """Counts letters."""

    fingerprint = "letters"

    def encode(self, texts):
        return [[text.count(letter) for letter in "abcd"] for text in texts]


@pytest.fixture
def catalogue(tmp_path):
    made = Catalogue.create(tmp_path / "segments.sqlite")
    yield made
    made.close()


def add(catalogue, *texts):
    return [
        catalogue.add_document(Document(text, id=text), [Chunk(text, 0, len(text), text, "")])[0] for text in texts
    ]


def vectors(folder):
    return SegmentVectors(folder, LetterEncoder(), memory_map=True)


def test_vectors_have_unit_length(tmp_path):
    found = vectors(tmp_path).embed(["aab", "", "cccc"])
    assert found.dtype == np.float32
    assert np.allclose(found, [[2 / 5**0.5, 1 / 5**0.5, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0]])


def test_they_follow_the_catalogue_whatever_was_saved(tmp_path, catalogue, caplog):
    one, two, three = add(catalogue, "aaa", "bbb", "ccc")
    first = vectors(tmp_path)
    assert first.is_empty
    with caplog.at_level(logging.WARNING):
        assert first.load(catalogue)
    assert "there are segments without a vector; encoding 3 segments again" in caplog.text
    catalogue.set_state(1, first.save(1))
    assert not vectors(tmp_path).load(catalogue)
    catalogue.delete_documents(["bbb"])
    [four] = add(catalogue, "dddb")
    second = vectors(tmp_path)
    caplog.clear()
    assert second.load(catalogue)
    assert "encoding 1 segments again" in caplog.text
    query = second.embed(["b"])[0]
    assert [name for name, _ in second.search(query, 9)] == [four, one, three]
    assert second.search(query, 9, allowed=[three, two]) == [(three, 0.0)]
    second.drop([four])
    assert [name for name, _ in second.search(query, 9)] == [one, three]


def test_what_is_encoded_is_the_text_below_its_context():
    assert embedded("Rivers > Danube", "It is long.") == "Rivers > Danube\nIt is long."
    assert embedded("", "It is long.") == "It is long."


def test_encoders_have_a_name_or_are_objects(empty_cache, tmp_path):
    encoder = LetterEncoder()
    assert as_encoder(encoder) == ("", encoder)
    with pytest.raises(ConfigError, match="got 3"):
        as_encoder(3)
    with pytest.raises(ModelNotFoundError, match="kompakt models pull minilm-l6"):
        as_encoder("minilm-l6")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    name, named = as_encoder(tmp_path)
    assert name == str(tmp_path)
    assert len(named.fingerprint) == 64


@pytest.mark.models
def test_a_model_that_was_replaced_encodes_nothing_for_this_index(tmp_path):
    folder = tmp_path / "minilm"
    shutil.copytree(model_path("minilm-l6"), folder)
    _, named = as_encoder(folder)
    assert named.encode(["a"]).shape == (1, 384)
    with (folder / "config.json").open("a") as file:
        file.write(" ")
    with pytest.raises(StoreError, match="has changed since the index was opened"):
        named.encode(["b"])
