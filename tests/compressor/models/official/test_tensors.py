import json

import pytest
import torch
from official_layouts import random, write_weights
from safetensors.torch import save_file

from kompakt import ModelError
from kompakt.compressor.errors import ModelNotFoundError
from kompakt.compressor.models.official import tensors
from kompakt.compressor.models.official.tensors import open_file, open_model, write_model

FORMS = ["safetensors", "bin", "bin-legacy", "safetensors-shards", "bin-shards"]
ORIGINAL = random({"a": (3, 4), "b": (5,), "c": (2, 2)})


class Thief:
    """What unpickling would run."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return (open, (str(self.trace), "w"))


@pytest.mark.parametrize("form", FORMS)
def test_every_layout_is_read(tmp_path, form):
    write_weights(tmp_path, ORIGINAL, form)
    found = open_model(tmp_path)
    assert set(found) == set(ORIGINAL)
    for name, one in found.items():
        assert one.shape == tuple(ORIGINAL[name].shape)
        assert one.n_bytes == ORIGINAL[name].nbytes
        assert torch.equal(one.read(), ORIGINAL[name])


def test_safetensors_win_over_torch_files(tmp_path):
    write_weights(tmp_path, ORIGINAL, "safetensors")
    (tmp_path / "pytorch_model.bin").write_bytes(b"never opened")
    assert set(open_model(tmp_path)) == set(ORIGINAL)


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_torch_file_never_runs(tmp_path, legacy):
    trace = tmp_path / "trace"
    file = tmp_path / "pytorch_model.bin"
    torch.save({"a": torch.ones(2), "b": Thief(trace)}, file, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ModelError, match=r"pytorch_model\.bin .*never unpickled") as caught:
        open_model(tmp_path)
    assert "weights_only" not in str(caught.value)
    assert not trace.exists()


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_damaged_files_are_named(tmp_path, name):
    (tmp_path / name).write_bytes(b"PK\x03\x04 not weights")
    with pytest.raises(ModelError, match=name):
        open_model(tmp_path)


@pytest.mark.parametrize("content", [[torch.ones(1)], {"epoch": 3}, {1: torch.ones(1)}])
def test_what_holds_no_named_tensors_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(ModelError, match="tensors by name"):
        open_file(tmp_path / "x.pt")


def test_numbers_that_are_no_weights_are_refused(tmp_path):
    save_file({"a": torch.ones(2, dtype=torch.int8)}, tmp_path / "x.safetensors")
    with pytest.raises(ModelError, match=r"a in .*int8"):
        open_file(tmp_path / "x.safetensors")["a"].read()


def test_missing_pieces_are_named(tmp_path):
    with pytest.raises(ModelNotFoundError, match="holds no weights"):
        open_model(tmp_path)
    write_weights(tmp_path, ORIGINAL, "safetensors-shards")
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelNotFoundError, match="model-00002-of-00002"):
        open_model(tmp_path)


def test_contradictory_indices_are_refused(tmp_path):
    write_weights(tmp_path, ORIGINAL, "safetensors-shards")
    index = tmp_path / "model.safetensors.index.json"
    data = json.loads(index.read_text())
    for weight_map, words in [
        (data["weight_map"] | {"lost": "model-00001-of-00002.safetensors"}, "lost"),
        (data["weight_map"] | {"x": "../elsewhere.safetensors"}, "outside its folder"),
        ({}, "weight_map"),
        (None, "weight_map"),
    ]:
        index.write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(ModelError, match=words):
            open_model(tmp_path)
    index.unlink()
    save_file({"a": torch.ones(1)}, tmp_path / "model-00003-of-00003.safetensors")
    with pytest.raises(ModelError, match="as another file"):
        open_model(tmp_path)


@pytest.mark.parametrize(("most", "n_files"), [(1 << 30, 1), (60, 2), (1, 3)])
def test_weights_are_written_in_shards(tmp_path, monkeypatch, most, n_files):
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    # two names of the same memory, as torch files have them
    shared = ORIGINAL | {"d": ORIGINAL["a"].T}
    torch.save(shared, source / "pytorch_model.bin")
    monkeypatch.setattr(tensors, "SHARD_BYTES", most)
    write_model(target, {name: open_model(source)[name] for name in "abc"})
    assert len(list(target.glob("*.safetensors"))) == n_files
    assert (target / "model.safetensors.index.json").exists() == (n_files > 1)
    found = open_model(target)
    assert {name: one.read().tolist() for name, one in found.items()} == {
        name: one.tolist() for name, one in ORIGINAL.items()
    }
    everything = tmp_path / "everything"
    everything.mkdir()
    write_model(everything, open_model(source))
    assert torch.equal(open_model(everything)["d"].read(), ORIGINAL["a"].T)


def test_errors_of_writing_name_the_file(tmp_path):
    write_weights(tmp_path, ORIGINAL, "safetensors")
    with pytest.raises(ModelError, match="cannot be written"):
        write_model(tmp_path / "nowhere", open_model(tmp_path))
