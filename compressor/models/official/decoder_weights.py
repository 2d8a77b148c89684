"""Releases that hold a whole decoder and tensors of the method beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch

from kompakt.compressor.errors import ModelError
from kompakt.compressor.models.official.folders import Outline
from kompakt.compressor.models.official.tensors import Shape, Stored, check_shapes

_HEAD: Final = "lm_head.weight"
_HINT: Final = "Copy the whole release again, with the config.json that belongs to it"


def decoder_and_own(
    stored: Mapping[str, Stored], empty: Outline, own: Mapping[str, Shape], where: Path
) -> tuple[dict[str, Stored], dict[str, Stored]]:
    """Return a release's tensors: those of the decoder, and those of the method.

    Args:
        stored: The release; tables of rotary frequencies, which old releases hold, are left out.
        empty: The decoder.
        own: The shapes of the method's tensors.
        where: The release, for messages.

    Raises:
        ModelError: Naming what is missing, superfluous or of another shape.
    """
    given = {name: one for name, one in stored.items() if not name.endswith("rotary_emb.inv_freq")}
    expected = dict(empty.shapes)
    # a file of tied weights may hold them once or twice
    is_tied = empty.model.config.get_text_config().tie_word_embeddings
    if is_tied and _HEAD not in given:
        expected.pop(_HEAD, None)
    check_shapes(expected | dict(own), given, str(where), _HINT)
    if is_tied and _HEAD in given:
        _check_tied(given, where)
        expected.pop(_HEAD)
    return {name: given[name] for name in expected}, {name: given[name] for name in own}


def _check_tied(given: Mapping[str, Stored], where: Path) -> None:
    name = next(name for name in given if name.endswith(".embed_tokens.weight"))
    if not torch.equal(given[_HEAD].read(), given[name].read()):
        raise ModelError(
            f"{_HEAD} and {name} in {where} differ, and its config.json says that they are one "
            "(tie_word_embeddings): set that to false there if it is wrong"
        )
