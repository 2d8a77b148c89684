"""Releases of an adapter beside a module's own tensors, as PEFT names them: one file, with or without the base."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from kompakt.compressor.errors import ModelError
from kompakt.compressor.models.official.folders import Outline
from kompakt.compressor.models.official.tensors import Shape, Stored

_SUFFIXES: Final = (".safetensors", ".pt", ".bin", ".pth")


def weights_file(source: Path) -> Path:
    """Return the file of a release: the source itself, or the only one of weights in that folder.

    Raises:
        ModelError: If the folder holds none or several.
    """
    if not source.is_dir():
        return source
    files = sorted(path for path in source.iterdir() if path.suffix in _SUFFIXES)
    if len(files) != 1:
        listed = ", ".join(path.name for path in files) or "none"
        raise ModelError(
            f"{source} must hold one file of weights ({', '.join(_SUFFIXES)}), got {listed}: name the file itself"
        )
    return files[0]


def without_base(stored: Mapping[str, Stored], whole: str, empty: Outline) -> dict[str, Stored]:
    """Return what is not a weight of the base, which releases may hold beside the adapter.

    Args:
        stored: The release.
        whole: What precedes the names of the base model's tensors.
        empty: The base.
    """

    def is_base(name: str) -> bool:
        inner = name.removeprefix(whole).replace(".base_layer.", ".")
        return name.startswith(whole) and (inner in empty.shapes or inner.endswith("rotary_emb.inv_freq"))

    return {name: one for name, one in stored.items() if not is_base(name)}


def adapter_of(stored: Mapping[str, Stored], whole: str, file: Path) -> tuple[tuple[str, ...], int]:
    """Return the names of the adapted layers and the rank that most of them have.

    Raises:
        ModelError: If there are none.
    """
    pattern = re.compile(r"(\w+)\.lora_A\.default\.weight$")
    found = [(match[1], one.shape) for name, one in stored.items() if (match := pattern.search(name))]
    ranks = Counter(shape[0] for _, shape in found if shape and shape[0])
    if not ranks:
        example = f"{whole}model.layers.0.self_attn.q_proj.lora_A.default.weight"
        raise ModelError(f"{file} holds no adapter: a key such as {example} is missing; name the file of a release")
    return tuple(sorted({target for target, _ in found})), ranks.most_common(1)[0][0]


def adapter_layout(
    empty: Outline, whole: str, targets: tuple[str, ...], rank: int
) -> tuple[dict[str, str], dict[str, Shape]]:
    """Return the names of an adapter in checkpoints of this package, and its shapes, by the names in the release."""
    names: dict[str, str] = {}
    shapes: dict[str, Shape] = {}
    for layer, linear in empty.linear_layers().items():
        if layer.rpartition(".")[2] in targets:
            for side, shape in (("A", (rank, linear.in_features)), ("B", (linear.out_features, rank))):
                name = f"{whole}{empty.model.base_model_prefix}.{layer}.lora_{side}.default.weight"
                names[name], shapes[name] = f"lora.{layer}.lora_{side}.weight", shape
    return names, shapes
