"""ICAE: an adapter for a base model, and a table of memory slots and markers."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Final

from kompakt.compressor.errors import ConfigError, ModelError
from kompakt.compressor.models.locate import model_path
from kompakt.compressor.models.official.folders import Outline, outline, reference_to
from kompakt.compressor.models.official.tensors import Shape, Stored, check_shapes, open_file
from kompakt.compressor.soft.checkpoint import Checkpoint
from kompakt.compressor.soft.icae import ICAE
from kompakt.compressor.soft.lora import Lora

MARKERS: Final = ("ae", "lm", "ft", "none")
"""What can follow the memory of a context."""

_ALPHA: Final = 32.0
"""What all releases were trained with; no file says so."""

_DROPOUT: Final = 0.05
_TABLE: Final = "memory_token_embed.weight"
_N_MARKERS: Final = 3
_USUAL_SLOTS: Final = 128
_WHOLE: Final = "icae.base_model.model."
_SUFFIXES: Final = (".safetensors", ".pt", ".bin", ".pth")


def convert(
    source: Path,
    folder: Path,
    *,
    base: str | os.PathLike[str],
    alpha: float | None = None,
    marker: str | None = None,
) -> Checkpoint:
    """Return the checkpoint of a release; its folder needs no model inside.

    Args:
        source: The release: a file, or a folder with one.
        folder: The checkpoint's folder.
        base: The model that it was trained for: a named model, or the path of its folder.
        alpha: The scale of the adapter, 32 by default.
        marker: What follows the memory of a context by default; none by default. Fine-tuned weights expect ``ft``.

    Source: Ge et al. 2024, "In-context Autoencoder for Context Compression in a Large Language Model", and the
    authors' releases.

    Raises:
        ConfigError: If an option makes no sense.
        ModelError: If the release is not what it should be.
    """
    del folder
    if marker is not None and marker not in MARKERS:
        raise ConfigError(f"marker must be one of {', '.join(MARKERS)}, got {marker!r}")
    file = _file(source)
    empty = outline(model_path(base))
    stored = _without_base(open_file(file), empty)
    targets, rank = _adapter(stored, file)
    n_rows = stored[_TABLE].shape[0] if _TABLE in stored and stored[_TABLE].shape else _USUAL_SLOTS + _N_MARKERS
    names, expected = _layout(empty, targets, rank, n_rows)
    check_shapes(expected, stored, str(file), "Copy it again, or name the model that it was trained for as the base")
    if n_rows <= _N_MARKERS:
        raise ModelError(
            f"{_TABLE} in {file} has {n_rows} rows, the last {_N_MARKERS} of them markers: no slot is left"
        )
    lora = Lora(rank=rank, alpha=_ALPHA if alpha is None else alpha, targets=targets, dropout=_DROPOUT)
    settings = {
        "rates": list(ICAE.default_settings["rates"]),
        "n_slots": n_rows - _N_MARKERS,
        "marker": marker or "none",
        "lora": asdict(lora),
    }
    tensors = {own: stored[name].read() for name, own in names.items()}
    return Checkpoint(ICAE.name, settings, {"base": reference_to(base)}, tensors)


def _file(source: Path) -> Path:
    if not source.is_dir():
        return source
    files = sorted(path for path in source.iterdir() if path.suffix in _SUFFIXES)
    if len(files) != 1:
        listed = ", ".join(path.name for path in files) or "none"
        raise ModelError(
            f"{source} must hold one file of weights ({', '.join(_SUFFIXES)}), got {listed}: name the file itself"
        )
    return files[0]


def _without_base(stored: Mapping[str, Stored], empty: Outline) -> dict[str, Stored]:
    """Return what is not a weight of the base, which releases may hold beside the adapter."""

    def is_base(name: str) -> bool:
        inner = name.removeprefix(_WHOLE).replace(".base_layer.", ".")
        return name.startswith(_WHOLE) and (inner in empty.shapes or inner.endswith("rotary_emb.inv_freq"))

    return {name: one for name, one in stored.items() if not is_base(name)}


def _adapter(stored: Mapping[str, Stored], file: Path) -> tuple[tuple[str, ...], int]:
    """Return the names of the adapted layers and the rank that most of them have."""
    pattern = re.compile(r"(\w+)\.lora_A\.default\.weight$")
    found = [(match[1], one.shape) for name, one in stored.items() if (match := pattern.search(name))]
    ranks = Counter(shape[0] for _, shape in found if shape and shape[0])
    if not ranks:
        example = f"{_WHOLE}model.layers.0.self_attn.q_proj.lora_A.default.weight"
        raise ModelError(f"{file} holds no adapter: a key such as {example} is missing; name the file of a release")
    return tuple(sorted({target for target, _ in found})), ranks.most_common(1)[0][0]


def _layout(
    empty: Outline, targets: tuple[str, ...], rank: int, n_rows: int
) -> tuple[dict[str, str], dict[str, Shape]]:
    """Return the names in checkpoints of this package, and the shapes, by the names in the release."""
    names = {_TABLE: _TABLE}
    shapes: dict[str, Shape] = {_TABLE: (n_rows, empty.hidden_size)}
    for layer, linear in empty.linear_layers().items():
        if layer.rpartition(".")[2] in targets:
            for side, shape in (("A", (rank, linear.in_features)), ("B", (linear.out_features, rank))):
                name = f"{_WHOLE}{empty.model.base_model_prefix}.{layer}.lora_{side}.default.weight"
                names[name], shapes[name] = f"lora.{layer}.lora_{side}.weight", shape
    return names, shapes
