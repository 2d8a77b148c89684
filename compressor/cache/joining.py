"""Caches that were made independently, joined into one."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, pairwise
from typing import cast

import torch

from kompakt.compressor.cache.rotary import rotated_to
from kompakt.compressor.errors import InputError
from kompakt.compressor.models.causal_lm import CausalLM, has_scaled_rope
from kompakt.compressor.parts import CachePart, Rope, Span, TextPart, made_for_another
from kompakt.compressor.results import fragments_of, to_part
from kompakt.compressor.units.render import Fragment


def joined(parts: Sequence[CachePart], *, lm: CausalLM | None = None) -> CachePart:
    """Return several caches of one decoder as one, in the order given.

    Keys without a rotation stay without one, and those that stay ``as-is`` do. Rotated keys, and those without a
    rotation beside them, are put one behind another from where the first ones stand if ``lm`` is given; without it,
    they must stand side by side already, each behind those before it. Keys that move are rounded once: those in bf16
    change by up to 2^-8 of their size.

    Args:
        parts: The caches.
        lm: The decoder that reads them, whose rotations are needed to move keys.

    Returns:
        The cache; its source is that of all parts, with an empty line between documents. Documents that were
        compressed without an id of their own share one: give them ids, to tell them apart in the source's spans.

    Raises:
        InputError: If there are none, they are of different decoders, shapes, number formats or devices, or their
            keys would have to move and cannot.
    """
    if not parts:
        raise InputError("there are no caches to join: give at least one")
    _check_alike(parts)
    if lm is not None:
        _check_decoder(parts[0], lm)
    placed, rope = _placed(parts, lm)
    keys, values = (
        tuple(torch.cat(layers, dim=1) for layers in zip(*several, strict=True))
        for several in ([part.keys for part in placed], [part.values for part in placed])
    )
    return CachePart(keys, values, parts[0].space, _joined_source(parts), rope)


def _check_alike(parts: Sequence[CachePart]) -> None:
    for number, part in enumerate(parts):
        if reason := _why_apart(part, parts[0]):
            raise InputError(f"cache {number} cannot be joined to cache 0: {reason}")


def _why_apart(part: CachePart, first: CachePart) -> str:
    if part.space != first.space:
        return f"{made_for_another(part.space, first.space)}; join those of one decoder alone"
    if _shape(part) != _shape(first):
        return f"it has {_shape(part)} layers, heads and dimensions of a head, and cache 0 {_shape(first)}"
    own, theirs = (f"{one.keys[0].dtype} on {one.keys[0].device}" for one in (part, first))
    return "" if own == theirs else f"it is {own}, and cache 0 {theirs}: bring them together with CachePart.to"


def _shape(part: CachePart) -> tuple[int, int, int]:
    return len(part.keys), int(part.keys[0].shape[0]), int(part.keys[0].shape[2])


def _check_decoder(part: CachePart, lm: CausalLM) -> None:
    # behind the first colon stands what was made of the decoder
    if ":plain-rope" in part.space and isinstance(part.rope, tuple) and has_scaled_rope(lm.model.config):
        raise InputError("these caches are of a decoder with plain rotations: load it with plain_rope=True for lm")
    if part.space.partition(":")[0] != lm.fingerprint:
        raise InputError(f"lm does not read these caches: {made_for_another(part.space, lm.fingerprint)}")


def _placed(parts: Sequence[CachePart], lm: CausalLM | None) -> tuple[Sequence[CachePart], Rope]:
    """Return the caches with their keys where they are to stand, and what is said of all keys together."""
    kinds = {part.rope if isinstance(part.rope, str) else "rotated" for part in parts}
    if kinds in ({"unrotated"}, {"as-is"}):
        return parts, parts[0].rope
    if "as-is" in kinds:
        raise InputError(
            "keys that stay as they are wherever they stand cannot be joined with keys that move: put these caches "
            "side by side into the prompt instead"
        )
    if lm is not None:
        return _moved(parts, lm)
    if "unrotated" in kinds:
        raise InputError("some keys have rotations and others have none: give lm=, the decoder, to rotate them all")
    positions = tuple(chain.from_iterable(cast("tuple[int, ...]", part.rope) for part in parts))
    if any(later <= earlier for earlier, later in pairwise(positions)):
        stand = "; ".join(f"{part.rope[0]} to {part.rope[-1]}" for part in parts if part.n_positions)
        raise InputError(
            f"the keys of these caches do not stand one behind another (at {stand}): give lm=, the decoder, to move "
            "them there"
        )
    return parts, positions


def _moved(parts: Sequence[CachePart], lm: CausalLM) -> tuple[Sequence[CachePart], Rope]:
    first = next((part.rope for part in parts if part.n_positions), ())
    start = position = 0 if isinstance(first, str) or not first else first[0]
    own = parts[0].keys[0]
    moved = []
    for part in parts:
        moved.append(rotated_to(part, position, lm).to(device=own.device))
        position += part.n_positions
    return moved, tuple(range(start, position))


def _joined_source(parts: Sequence[CachePart]) -> TextPart:
    """Return the text of all parts; what goes on with the last document of the part before follows at once."""
    groups: list[list[Fragment]] = []
    for pieces in map(list, map(fragments_of, parts)):
        if groups and pieces and _goes_on(groups[-1][-1].span, pieces[0].span):
            groups[-1] += pieces
        elif pieces:
            groups.append(pieces)
    return to_part(groups)


def _goes_on(before: Span, span: Span) -> bool:
    # requests number their documents, so that two may have one name: what begins again is another
    return before.document_id == span.document_id and before.end <= span.start
