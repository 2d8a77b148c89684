"""Activation Beacon: a decoder with all its weights, and beacons with projections of their own."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch

from kompakt.compressor.cache.activation_beacon import ActivationBeacon
from kompakt.compressor.cache.beacon_config import BeaconConfig
from kompakt.compressor.errors import ConfigError, ModelError
from kompakt.compressor.models.locate import model_path
from kompakt.compressor.models.official.beacon_release import beacon_config, without_beacons
from kompakt.compressor.models.official.decoder_weights import decoder_and_own
from kompakt.compressor.models.official.folders import (
    Outline,
    copy_tokenizer,
    outline,
    reference_inside,
    reference_to,
)
from kompakt.compressor.models.official.tensors import (
    Shape,
    Stored,
    check_shapes,
    open_model,
    read_json,
    write_json,
    write_model,
)
from kompakt.compressor.soft.checkpoint import Checkpoint, ModelReference

_DECODER: Final = "decoder"
_TABLE: Final = "model.beacon_embed_tokens.weight"
_NO_MATTER: Final = ("_name_or_path", "architectures", "attention_dropout", "dtype", "pad_token_id", "use_cache")
"""Fields of a configuration that change no result; their number format is that of the weights."""


def convert(
    source: Path, folder: Path, *, base: str | os.PathLike[str] | None = None, tokenizer: Path | None = None
) -> Checkpoint:
    """Return the checkpoint of a release, and write the decoder into its folder unless it is the base unchanged.

    Args:
        source: The release: a Hugging Face folder.
        folder: The checkpoint's folder.
        base: The model that it was trained for: a named model, or the path of its folder.
        tokenizer: The folder of its tokenizer, if not the release.

    Source: Zhang et al. 2024, "Long Context Compression with Activation Beacon", "Soaring from 4K to 400K: Extending
    LLM's Context with Activation Beacon", and the authors' releases.

    Raises:
        ConfigError: If the release holds the beacons alone and no base is named.
        ModelError: If the release is not what it should be.
        ModelNotFoundError: If the base or the tokenizer is not on this machine.
    """
    raw = read_json(source / "config.json")
    config = beacon_config(raw, source / "config.json")
    decoder = folder / _DECODER
    decoder.mkdir()
    write_json(decoder / "config.json", without_beacons(raw))
    empty = outline(decoder)
    stored = open_model(source)
    own_shapes = _own_shapes(empty, config)
    if any(name in empty.shapes for name in stored):
        weights, own = decoder_and_own(stored, empty, own_shapes, source)
    else:
        check_shapes(own_shapes, stored, str(source), "Copy the whole release again")
        weights, own = {}, stored
    reference = _reference(source, folder, empty, weights, base=base, tokenizer=tokenizer)
    settings = {"rates": _rates(config), "beacon": config.to_json()}
    tensors = {name: own[name].read() for name in own_shapes}
    return Checkpoint(ActivationBeacon.name, settings, {"base": reference}, tensors)


def _own_shapes(empty: Outline, config: BeaconConfig) -> dict[str, Shape]:
    """Return the shapes of the beacons' tensors; their projections are like those of tokens."""
    shapes: dict[str, Shape] = {_TABLE: (1, empty.hidden_size)}
    for layer in range(empty.model.config.num_hidden_layers):
        for param in config.params:
            for kind in ("weight", "bias"):
                of_tokens = f"model.layers.{layer}.self_attn.{param}_proj.{kind}"
                if of_tokens in empty.shapes:
                    shapes[f"model.layers.{layer}.self_attn.beacon_{param}_proj.{kind}"] = empty.shapes[of_tokens]
    return shapes


def _reference(
    source: Path,
    folder: Path,
    empty: Outline,
    weights: Mapping[str, Stored],
    *,
    base: str | os.PathLike[str] | None,
    tokenizer: Path | None,
) -> ModelReference:
    """Return the reference to the decoder: the base if the release holds just that, else what is written here."""
    decoder = folder / _DECODER
    if not weights and base is None:
        raise ConfigError(f"{source} holds the beacons alone: name the model that they were trained for with --base")
    if base is not None and _is_the_same(empty, weights, model_path(base)):
        shutil.rmtree(decoder)
        return reference_to(base)
    if not weights:
        raise ModelError(f"{source} was trained for another model than {os.fspath(base or '')!r}: name the right one")
    rows = weights["model.embed_tokens.weight"].shape[0]
    copy_tokenizer(tokenizer or source, decoder, n_rows=rows)
    write_model(decoder, weights)
    return reference_inside(folder, _DECODER)


def _is_the_same(empty: Outline, weights: Mapping[str, Stored], base: Path) -> bool:
    """Tell whether a base is the decoder: of the same configuration and the same weights, as far as there are any."""
    if _described(empty) != _described(outline(base)):
        return False
    theirs = open_model(base) if weights else {}
    return all(name in theirs and _are_equal(one.read(), theirs[name].read()) for name, one in weights.items())


def _are_equal(one: torch.Tensor, two: torch.Tensor) -> bool:
    return one.dtype == two.dtype and torch.equal(one, two)


def _described(empty: Outline) -> dict[str, Any]:
    config = empty.model.config
    # what the library does not know, a release may say or not
    known = type(config)().to_dict()
    given = config.to_dict()
    return {"model_type": config.model_type} | {name: given[name] for name in known if name not in _NO_MATTER}


def _rates(config: BeaconConfig) -> list[int]:
    """Return the ratios that a budget can choose among."""
    own = {ratio for ratio in config.ratios if ratio}
    for ratios in (own, set(ActivationBeacon.default_settings["rates"])):
        if fitting := sorted(ratio for ratio in ratios if config.window % ratio == 0):
            return fitting
    return [1]
