"""Tensors of released weights: looked at by shape, read one at a time, written in shards."""

from __future__ import annotations

import json
import math
import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from kompakt.compressor.errors import ModelError, ModelNotFoundError
from kompakt.compressor.soft.lora import check_tensors

Shape: TypeAlias = tuple[int, ...]

SHARD_BYTES: Final = 2 << 30
"""Most bytes of a written file, so that no more than this of a model is in memory at a time."""

_FORMATS: Final = {"F16": 2, "BF16": 2, "F32": 4, "F64": 8}
_DTYPES: Final = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_TORCH_SUFFIXES: Final = (".bin", ".pt", ".pth")


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor that lies in a file.

    Args:
        shape: Its shape.
        n_bytes: What it takes in memory.
        read: Returns it.
    """

    shape: Shape
    n_bytes: int
    read: Callable[[], torch.Tensor]


def open_model(folder: Path) -> dict[str, Stored]:
    """Return the tensors of a Hugging Face folder, in one file or several.

    Args:
        folder: It holds ``model*.safetensors`` or else ``pytorch_model*.bin``, with an index where there are several.

    Raises:
        ModelNotFoundError: If there are no weights, or a file that the index names is not there.
        ModelError: If a file cannot be read, or files contradict each other.
    """
    for stem, suffix in (("model", ".safetensors"), ("pytorch_model", ".bin")):
        index = folder / f"{stem}{suffix}.index.json"
        names = _indexed(index) if index.is_file() else {}
        files = sorted({folder / name for name in names.values()}) or sorted(folder.glob(f"{stem}*{suffix}"))
        if files:
            found = open_files(files)
            lost = sorted(set(names) - set(found))
            if lost:
                raise ModelError(f"{index} names {_few(lost)}, which no file holds: copy the whole release again")
            return found
    raise ModelNotFoundError(
        f"{folder} holds no weights: no model*.safetensors and no pytorch_model*.bin; name the folder of the release"
    )


def open_files(files: list[Path]) -> dict[str, Stored]:
    """Return the tensors of several files.

    Raises:
        ModelNotFoundError: If one is not there.
        ModelError: If one cannot be read, or two hold the same tensor.
    """
    found: dict[str, Stored] = {}
    for file in files:
        own = open_file(file)
        twice = sorted(set(own) & set(found))
        if twice:
            raise ModelError(f"{file} holds {_few(twice)}, as another file beside it does: remove one of them")
        found |= own
    return found


def open_file(file: Path) -> dict[str, Stored]:
    """Return the tensors of a safetensors or torch file.

    Of a torch file, nothing but tensors is ever unpickled.

    Raises:
        ModelNotFoundError: If it is not there.
        ModelError: If it cannot be read, or holds anything else.
    """
    if not file.is_file():
        raise ModelNotFoundError(f"there is no file {file}: copy the whole release again")
    if file.suffix == ".safetensors":
        return _open_safetensors(file)
    if file.suffix in _TORCH_SUFFIXES:
        return _open_torch(file)
    raise ModelError(f"{file} is neither a safetensors file nor a torch file ({', '.join(_TORCH_SUFFIXES)})")


def _open_safetensors(file: Path) -> dict[str, Stored]:
    try:
        # it stays open as long as its tensors are known, which are read later
        opened: Any = safe_open(file, framework="pt")  # type: ignore[no-untyped-call, unused-ignore]
        slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 (it is no mapping)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{file} cannot be read: {error}; copy it again") from error

    def reader(name: str) -> Callable[[], torch.Tensor]:
        return lambda: _numbers(opened.get_tensor(name), name, file)

    return {
        name: Stored(shape, math.prod(shape) * _FORMATS.get(one.get_dtype(), 4), reader(name))
        for name, one in slices.items()
        for shape in [tuple(one.get_shape())]
    }


def _open_torch(file: Path) -> dict[str, Stored]:
    try:
        # only archives of the current format can be mapped into memory
        loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError) as error:
        raise ModelError(
            f"{file} is damaged or holds more than tensors, which could run code and is never unpickled: "
            "have its owner save the tensors as safetensors"
        ) from error
    if not isinstance(loaded, Mapping):
        raise ModelError(f"{file} must hold tensors by name, got {type(loaded).__name__}: save the state dict itself")

    def reader(name: str, tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
        return lambda: _numbers(tensor, name, file)

    found = {}
    for name, tensor in loaded.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            kind = type(tensor).__name__
            raise ModelError(
                f"{file} must hold tensors by name, and {name!r} is of type {kind}: save the state dict itself"
            )
        found[name] = Stored(tuple(tensor.shape), tensor.numel() * tensor.element_size(), reader(name, tensor))
    return found


def _numbers(tensor: torch.Tensor, name: str, file: Path) -> torch.Tensor:
    if tensor.dtype not in _DTYPES or tensor.layout != torch.strided:
        raise ModelError(
            f"{name} in {file} is of type {tensor.dtype}: take weights in floating point that are not quantised"
        )
    # tensors of one file can share its memory, which no safetensors file can say
    return tensor.detach().clone(memory_format=torch.contiguous_format)


def _indexed(index: Path) -> dict[str, str]:
    """Return the file of each tensor."""
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise ModelError(f"{index} has no weight_map of file names: copy it again")
    outside = sorted(name for name in set(names.values()) if Path(name).name != name)
    if outside:
        raise ModelError(f"{index} names files outside its folder: {_few(outside)}")
    return names


def _few(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def read_json(file: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        ModelNotFoundError: If there is no such file.
        ModelError: If it holds something else.
    """
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelNotFoundError(f"there is no file {file}: name the folder of the release") from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} cannot be read: {error}; copy it again") from error
    if not isinstance(data, dict):
        raise ModelError(f"{file} must hold an object, got {type(data).__name__}")
    return data


def write_json(file: Path, data: Mapping[str, Any]) -> None:
    """Write an object as JSON."""
    file.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def check_shapes(expected: Mapping[str, Shape], given: Mapping[str, Stored], where: str, hint: str) -> None:
    """Raise unless tensors are just those that are expected.

    Args:
        expected: Shapes by the names in the release.
        given: What the release holds.
        where: The release, for messages.
        hint: How to mend it.

    Raises:
        ModelError: Naming what is missing, superfluous or of another shape.
    """
    outlines = {name: torch.empty(one.shape, device="meta") for name, one in given.items()}
    try:
        check_tensors(expected, outlines, where)
    except ModelError as error:
        raise ModelError(f"{error}. {hint}") from error


def write_model(folder: Path, tensors: Mapping[str, Stored]) -> None:
    """Write the weights of a Hugging Face folder, a shard at a time.

    Args:
        folder: It exists already.
        tensors: The weights by their names in the model.

    Raises:
        ModelError: If a tensor cannot be read, or a file not be written.
    """
    shards = list(_shards(tensors))
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        several = len(shards) > 1
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors" if several else "model.safetensors"
        try:
            save_file({one: tensors[one].read() for one in names}, folder / name, metadata={"format": "pt"})
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{folder / name} cannot be written: {error}; is the disk full?") from error
        weight_map |= dict.fromkeys(names, name)
    if len(shards) > 1:
        total = sum(one.n_bytes for one in tensors.values())
        write_json(
            folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map}
        )


def _shards(tensors: Mapping[str, Stored]) -> Iterator[list[str]]:
    names: list[str] = []
    n_bytes = 0
    for name, one in tensors.items():
        if names and n_bytes + one.n_bytes > SHARD_BYTES:
            yield names
            names, n_bytes = [], 0
        names.append(name)
        n_bytes += one.n_bytes
    if names:
        yield names
