"""ICAE: an adapter for a base model, and a table of memory slots and markers."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Final

from kompakt.compressor.errors import ConfigError, ModelError
from kompakt.compressor.models.locate import model_path
from kompakt.compressor.models.official.folders import outline, reference_to
from kompakt.compressor.models.official.peft_layout import adapter_layout, adapter_of, weights_file, without_base
from kompakt.compressor.models.official.tensors import check_shapes, open_file
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
    file = weights_file(source)
    empty = outline(model_path(base))
    stored = without_base(open_file(file), _WHOLE, empty)
    targets, rank = adapter_of(stored, _WHOLE, file)
    n_rows = stored[_TABLE].shape[0] if _TABLE in stored and stored[_TABLE].shape else _USUAL_SLOTS + _N_MARKERS
    names, expected = adapter_layout(empty, _WHOLE, targets, rank)
    names[_TABLE], expected[_TABLE] = _TABLE, (n_rows, empty.hidden_size)
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
