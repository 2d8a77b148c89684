"""500xCompressor: an adapter for a base model, and the embeddings of its memory tokens."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Final

from kompakt.compressor.cache.five_hundred_x_compressor import FiveHundredXCompressor
from kompakt.compressor.errors import ModelError
from kompakt.compressor.models.locate import model_path
from kompakt.compressor.models.official.folders import outline, reference_to
from kompakt.compressor.models.official.peft_layout import adapter_layout, adapter_of, weights_file, without_base
from kompakt.compressor.models.official.tensors import Shape, check_shapes, open_file
from kompakt.compressor.soft.checkpoint import Checkpoint
from kompakt.compressor.soft.lora import Lora

_ALPHA: Final = 32.0
"""What the authors train with; no file says so."""

_DROPOUT: Final = 0.05
_WHOLE: Final = "llama.base_model.model."
_MEMORY: Final = "memory_embeddings"
_USUAL_SLOTS: Final = 16
_LENGTHS: Final = (96, 192, 480)
"""Tokens of a segment, of those lengths that the authors compress into their memory tokens."""


def convert(source: Path, folder: Path, *, base: str | os.PathLike[str], alpha: float | None = None) -> Checkpoint:
    """Return the checkpoint of a release; its folder needs no model inside.

    Args:
        source: The release: a file, or a folder with one.
        folder: The checkpoint's folder.
        base: The model that it was trained for: a named model, or the path of its folder.
        alpha: The scale of the adapter, 32 by default.

    Source: Li et al. 2025, "500xCompressor: Generalized Prompt Compression for Large Language Models", and what the
    authors' code writes.

    Raises:
        ConfigError: If an option makes no sense.
        ModelError: If the release is not what it should be.
    """
    del folder
    file = weights_file(source)
    empty = outline(model_path(base))
    stored = without_base(open_file(file), _WHOLE, empty)
    targets, rank = adapter_of(stored, _WHOLE, file)
    names, expected = adapter_layout(empty, _WHOLE, targets, rank)
    given: Shape = stored[_MEMORY].shape if _MEMORY in stored else ()
    n_slots = given[1] if len(given) == 3 else _USUAL_SLOTS
    expected[_MEMORY] = (1, n_slots, empty.hidden_size)
    check_shapes(expected, stored, str(file), "Copy it again, or name the model that it was trained for as the base")
    if not n_slots:
        raise ModelError(f"{_MEMORY} in {file} holds no memory token")
    lora = Lora(rank=rank, alpha=_ALPHA if alpha is None else alpha, targets=targets, dropout=_DROPOUT)
    settings = {
        "rates": sorted({max(1, length // n_slots) for length in _LENGTHS}),
        "n_slots": n_slots,
        "pad_to": 0,
        "lora": asdict(lora),
    }
    tensors = {own: stored[name].read() for name, own in names.items()} | {_MEMORY: stored[_MEMORY].read()[0]}
    return Checkpoint(FiveHundredXCompressor.name, settings, {"base": reference_to(base)}, tensors)
