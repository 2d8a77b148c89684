"""Keys of a cache and the positions that they are rotated for."""

from __future__ import annotations

import functools
import inspect
from dataclasses import replace
from typing import Any, Final

import torch

from kompakt.compressor.errors import InputError
from kompakt.compressor.models.causal_lm import CausalLM
from kompakt.compressor.models.key_value_caches import cache_argument, new_cache
from kompakt.compressor.parts import CachePart
from kompakt.compressor.soft.decoder import body_of
from kompakt.kernels.rotary import rerotate_, rerotated

_TRIED: Final = 4
"""Tokens whose keys are moved to see whether they can be."""


def rotated_to(part: CachePart, start: int, lm: CausalLM) -> CachePart:
    """Return a cache whose keys have the rotation of positions ``start``, ``start + 1``, ...

    Keys that are to stay ``as-is`` do.

    Raises:
        InputError: If the decoder's keys cannot be moved.
    """
    wanted = tuple(range(start, start + part.n_positions))
    if part.rope in (wanted, "as-is") or (part.rope == "unrotated" and not has_rotations(lm)):
        return part
    reason = why_immovable(lm)
    if reason:
        where = "without a rotation" if part.rope == "unrotated" else f"at positions from {part.rope[0]} on"
        raise InputError(
            f"the keys of a cache stand {where} and would have to stand at {start}, which a decoder of type "
            f"{lm.model.config.model_type!r} does not allow: {reason}"
        )
    given = None if isinstance(part.rope, str) else torch.tensor(part.rope)
    keys = tuple(moved(one, given, torch.tensor(wanted), layer, lm) for layer, one in enumerate(part.keys))
    return replace(part, keys=keys, rope=wanted)


def moved(
    keys: torch.Tensor, old: torch.Tensor | None, new: torch.Tensor | None, layer: int, lm: CausalLM
) -> torch.Tensor:
    """Return keys with the rotation of other positions, rounded once.

    Args:
        keys: ``[H, m, D_head]``.
        old: The positions that they are rotated for, ``[m]`` or those of each head ``[H, m]``; None for keys without
            a rotation.
        new: The positions that they are to be rotated for, likewise.
        layer: The layer that they are of.
        lm: The decoder.
    """
    if old is None and new is None:
        return keys
    before, after = (None if positions is None else _tables(positions, layer, lm) for positions in (old, new))
    return rerotated(keys.to(lm.model.device), before, after)


def rotated(keys: torch.Tensor, positions: torch.Tensor, layer: int, lm: CausalLM) -> torch.Tensor:
    """Return keys ``[H, m, D_head]`` with the rotation of ``positions``, ``[m]`` or one for each head ``[H, m]``."""
    return moved(keys, None, positions, layer, lm)


def unrotated(keys: torch.Tensor, positions: torch.Tensor | None, layer: int, lm: CausalLM) -> torch.Tensor:
    """Return keys ``[H, m, D_head]`` without the rotation of ``positions``; None for keys that have none."""
    return moved(keys, positions, None, layer, lm)


def mean_rotation(positions: torch.Tensor, width: int, layer: int, lm: CausalLM) -> torch.Tensor:
    """Return the mean of the rotations of ``positions`` as a matrix ``[D_head, D_head]`` in fp32."""
    cos, sin = (table.mean(dim=1, keepdim=True) for table in _tables(positions, layer, lm))
    # row by row the images of the unit vectors, which are the columns of the matrix
    return rerotate_(torch.eye(width, device=lm.model.device)[:, None], None, (cos, sin))[:, 0].T


@functools.lru_cache(maxsize=4)
def why_immovable(lm: CausalLM) -> str:
    """Return why the rotations of a decoder's keys cannot be undone and made anew; empty if they can."""
    rotary = _rotary(lm)
    if rotary is None:
        return "its keys have no rotations, or none that are known here"
    scalings = {getattr(rotary, name) for name in vars(rotary) if name.endswith("attention_scaling")}
    if scalings - {1.0}:
        return f"it scales its keys by {max(scalings):.4g} as it rotates them"
    kinds = getattr(rotary, "rope_type", "default")
    if any("dynamic" in one or one == "longrope" for one in (kinds.values() if isinstance(kinds, dict) else [kinds])):
        return "its rotations depend on the length of the text"
    # models differ in which dimensions of which layers they rotate, and how: what they do decides
    shift = max(1, min(64, lm.context_length - _TRIED))
    near, far = torch.arange(_TRIED), torch.arange(shift, shift + _TRIED)
    try:
        for layer, (key, expected) in enumerate(zip(_keys_at(near, lm), _keys_at(far, lm), strict=True)):
            width, n_rotated = key.shape[-1], _tables(near, layer, lm)[0].shape[-1]
            if n_rotated != width:
                return f"it rotates its keys in a way that is not known here: {n_rotated} of {width} dimensions"
            moved_key = moved(key, near, far, layer, lm)
            if torch.linalg.norm(moved_key.float() - expected.float()) > 0.05 * torch.linalg.norm(expected.float()):
                return f"it rotates the keys of layer {layer} in a way that is not known here"
    except RuntimeError as error:
        return f"it rotates its keys in a way that is not known here: {error}"
    return ""


def has_rotations(lm: CausalLM) -> bool:
    """Tell whether a decoder rotates its keys by their positions."""
    config = lm.model.config.get_text_config()
    # some models rotate within their layers, and name only the dimensions
    named = (getattr(config, "rope_parameters", None), getattr(config, "rotary_dim", None))
    return _rotary(lm) is not None or any(named)


def _keys_at(positions: torch.Tensor, lm: CausalLM) -> list[torch.Tensor]:
    """Return the keys of some tokens at some positions, ``[H_kv, m, D_head]`` for each layer."""
    body, cache = body_of(lm), new_cache()
    device = lm.model.device
    # each token stands alone, so that its states do not depend on its position, not even by rounding
    ids = torch.arange(1, len(positions) + 1, device=device)[:, None] % lm.model.config.get_text_config().vocab_size
    with torch.no_grad():
        body(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            position_ids=positions[:, None].to(device),
            **cache_argument(body, cache),
            use_cache=True,
        )
    layers: list[Any] = list(cache.layers)
    return [layer.keys[:, :, 0].transpose(0, 1) for layer in layers]


def _rotary(lm: CausalLM) -> Any:  # noqa: ANN401 (each model has its own class)
    return getattr(lm.model.base_model, "rotary_emb", None)


def _tables(positions: torch.Tensor, layer: int, lm: CausalLM) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cosines and sines ``[*, m, D_head]``; some models have others for layers with a window."""
    rotary = _rotary(lm)
    ids = positions.to(lm.model.device)
    ids = ids if ids.dim() == 2 else ids[None]
    kind = {}
    if "layer_type" in inspect.signature(rotary.forward).parameters:
        kind = {"layer_type": lm.model.config.get_text_config().layer_types[layer]}
    # a number in fp32 asks for tables in fp32
    cos, sin = rotary(torch.zeros(1, device=lm.model.device), ids, **kind)
    return cos.float(), sin.float()
