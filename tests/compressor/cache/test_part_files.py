"""Caches that are written to files, read again, and moved between number formats."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from kompakt import ConfigError, Document, ModelError, ModelNotFoundError
from kompakt.compressor.cache.part_files import load_cache, save_cache
from kompakt.compressor.parts import CachePart, Kind, Span, TextPart
from kompakt.compressor.results import to_part, whole
from kompakt.compressor.units.render import Fragment

SOURCE = to_part(
    [
        [
            Fragment("The treaty of 雪. ", Span("a", 3, 20, Kind.PROSE, protected=True)),
            Fragment("[…]", Span("a", 20, 44, Kind.OMISSION)),
        ],
        [whole(Document('{"b": 1}', id="b"))],
    ]
)
ROPES = ("unrotated", "as-is", (7, 9, 10))


def cache(rope="unrotated", *, dtype=torch.float32, n_layers=2, seed=0, source=SOURCE):
    generator = torch.Generator().manual_seed(seed)
    keys, values = (
        tuple(torch.randn(2, 3, 8, generator=generator).to(dtype) for _ in range(n_layers)) for _ in range(2)
    )
    return CachePart(keys, values, "f" * 64 + ":plain-rope", source, rope)


@pytest.mark.parametrize("rope", ROPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_what_was_written_is_read_again(tmp_path, rope, dtype):
    part = cache(rope, dtype=dtype)
    assert save_cache(part, tmp_path / "a.safetensors") == tmp_path / "a.safetensors"
    again = load_cache(str(tmp_path / "a.safetensors"))
    assert again == part
    assert again.rope == rope
    assert again.source == SOURCE
    assert again.spans[1] == Span("a", 20, 44, Kind.OMISSION)
    assert again.spans[0].protected
    assert again.spans[0].kind is Kind.PROSE
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_cache_without_positions_is_read_again(tmp_path):
    empty = tuple(torch.zeros(2, 0, 8) for _ in range(2))
    part = CachePart(empty, empty, "s", TextPart("", (), ()), ())
    assert load_cache(save_cache(part, tmp_path / "empty")) == part


def test_the_file_is_plain_safetensors(tmp_path):
    part = cache((7, 9, 10))
    save_cache(part, tmp_path / "a")
    tensors = load_file(tmp_path / "a")
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == dict.fromkeys(
        ("keys", "values"), (2, 2, 3, 8)
    )
    assert torch.equal(tensors["keys"][1], part.keys[1])
    with safe_open(tmp_path / "a", "pt") as opened:
        described = json.loads(opened.metadata()["kompakt_cache"])
    assert described["schema_version"] == 1
    assert described["space"] == part.space
    assert described["rope"] == [7, 9, 10]
    assert described["source"]["text"] == SOURCE.text


def test_caches_that_still_have_gradients_or_share_memory_are_written(tmp_path):
    whole_tensor = torch.randn(2, 2, 3, 8, requires_grad=True)
    part = CachePart(tuple(whole_tensor), tuple(whole_tensor), "s", SOURCE)
    again = load_cache(save_cache(part, tmp_path / "a"))
    assert torch.equal(again.keys[1], whole_tensor[1])
    assert not again.keys[0].requires_grad


def test_a_file_is_replaced_as_a_whole(tmp_path, monkeypatch):
    first, second = cache(seed=1), cache(seed=2)
    save_cache(first, tmp_path / "a")
    held = load_cache(tmp_path / "a")
    save_cache(second, tmp_path / "a")
    assert load_cache(tmp_path / "a") == second
    # what was read before does not change under its owner's hands
    assert held == first

    def fails(descriptor):
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(ModelError, match=r"a cannot be written: no space left"):
        save_cache(first, tmp_path / "a")
    assert load_cache(tmp_path / "a") == second
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_place_that_cannot_hold_a_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"no folder .*nowhere.*make it first"):
        save_cache(cache(), tmp_path / "nowhere" / "a")
    with pytest.raises(ConfigError, match="is a folder"):
        save_cache(cache(), tmp_path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ModelNotFoundError, match="nothing"):
        load_cache(tmp_path / "nothing")
    with pytest.raises(ModelNotFoundError):
        load_cache(tmp_path)


def changed(tmp_path, **changes):
    """Write a cache whose description is changed; None leaves an entry out."""
    part = cache()
    file = save_cache(part, tmp_path / "changed")
    with safe_open(file, "pt") as opened:
        described = json.loads(opened.metadata()["kompakt_cache"])
    described = {name: value for name, value in (described | changes).items() if value is not None}
    tensors = {"keys": torch.stack(part.keys), "values": torch.stack(part.values)}
    save_file(tensors, file, metadata={"kompakt_cache": json.dumps(described)})
    return file


@pytest.mark.parametrize("version", [2, "1", None])
def test_another_version_is_named(tmp_path, version):
    file = changed(tmp_path, schema_version=version)
    with pytest.raises(ModelError, match=rf"changed has the schema version {version!r}; .*reads 1"):
        load_cache(file)


@pytest.mark.parametrize(
    "changes",
    [
        {"rope": [1, 2]},
        {"rope": "turned"},
        {"rope": {"a": 1}},
        {"rope": None},
        {"space": None},
        {"space": 5},
        {"source": {}},
        {"source": {"text": "a", "spans": [["a", 0, 1, "poem", False]], "starts": [0]}},
        {"source": {"text": "a", "spans": [["a", 0, 1]], "starts": [0]}},
        {"source": {"text": "a", "spans": [["a", 0, 1, "prose", False]], "starts": []}},
        {"source": "text"},
    ],
    ids=str,
)
def test_a_damaged_description_is_no_cache(tmp_path, changes):
    with pytest.raises(ModelError, match=r"changed is damaged: .*write it again"):
        load_cache(changed(tmp_path, **changes))


def test_damaged_files_are_named(tmp_path):
    file = save_cache(cache(), tmp_path / "a")
    data = file.read_bytes()
    for damaged in (b"", b"text", data[: len(data) // 2], b"\xff" * 64):
        file.write_bytes(damaged)
        with pytest.raises(ModelError, match="a is damaged"):
            load_cache(file)
    keys = {"keys": torch.zeros(2, 2, 3, 8)}
    save_file(keys, file)
    with pytest.raises(ModelError, match="a is no cache of kompakt"):
        load_cache(file)
    described = {
        "schema_version": 1,
        "space": "s",
        "rope": "as-is",
        "source": {"text": "", "spans": [], "starts": []},
    }
    for tensors in (keys, keys | {"values": torch.zeros(2, 2, 4, 8)}, keys | {"values": torch.zeros(())}):
        save_file(tensors, file, metadata={"kompakt_cache": json.dumps(described)})
        with pytest.raises(ModelError, match="a is damaged"):
            load_cache(file)
    save_file(keys, file, metadata={"kompakt_cache": "{"})
    with pytest.raises(ModelError, match="a is damaged"):
        load_cache(file)


def test_a_file_is_read_in_another_process(tmp_path):
    part = cache((7, 9, 10))
    save_cache(part, tmp_path / "a")
    code = (
        "import sys; from kompakt.compressor.cache.part_files import load_cache; "
        "part = load_cache(sys.argv[1]); print(part.rope, float(sum(key.sum() for key in part.keys)))"
    )
    ran = subprocess.run([sys.executable, "-c", code, tmp_path / "a"], check=True, capture_output=True, text=True)
    assert ran.stdout == f"(7, 9, 10) {float(sum(key.sum() for key in part.keys))}\n"


@pytest.mark.parametrize("rope", ROPES, ids=str)
def test_a_cache_moves_to_another_number_format_and_device(rope):
    part = cache(rope)
    small = part.to(dtype=torch.bfloat16)
    assert {tensor.dtype for tensor in (*small.keys, *small.values)} == {torch.bfloat16}
    assert small.n_bytes == part.n_bytes // 2
    assert (small.space, small.source, small.rope) == (part.space, part.source, rope)
    assert torch.equal(small.keys[1], part.keys[1].bfloat16())
    away = part.to(device="meta", dtype=torch.float16)
    assert {(tensor.device.type, tensor.dtype) for tensor in away.values} == {("meta", torch.float16)}
    assert part.keys[0].dtype == torch.float32
    back = small.to(device=torch.device("cpu"), dtype=torch.float32)
    torch.testing.assert_close(back.values[0], part.values[0], rtol=2**-8, atol=0)


def test_nothing_is_copied_that_is_there_already():
    part = cache()
    for same in (part.to(), part.to(device="cpu"), part.to(dtype=torch.float32, device="cpu")):
        assert same == part
        assert all(one is two for one, two in zip(same.keys, part.keys, strict=True))


def test_formats_and_devices_that_cannot_be_are_named():
    with pytest.raises(ConfigError, match=r"floating point, .*got torch\.int8"):
        cache().to(dtype=torch.int8)
    with pytest.raises(ConfigError, match="no device 'nowhere'"):
        cache().to(device="nowhere")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="no device 'cuda'"):
            cache().to(device="cuda")
