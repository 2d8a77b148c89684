"""Decoders that read parts: which parts they understand, and decoders with an adapter of their own."""

from __future__ import annotations

import dataclasses
import os
from typing import Final

from kompakt.compressor.errors import ModelError
from kompakt.compressor.models.causal_lm import CausalLM
from kompakt.compressor.parts import CachePart, EmbedsPart, made_for_another
from kompakt.compressor.soft.checkpoint import read_checkpoint, space_of
from kompakt.compressor.soft.decoder import NO_POSITION, body_of, cache_shape, check_reads_embeddings, shared_copy
from kompakt.compressor.soft.lora import Lora, adapter_parameters, check_tensors, with_adapter

_OF_THE_DECODER: Final = frozenset({"auto-compressor"})
"""Methods whose adapter belongs to the decoder too; the others' is the encoder's alone."""


def why_unreadable(part: EmbedsPart | CachePart, lm: CausalLM, space: str) -> str:
    """Return why a decoder cannot read a part; empty if it can.

    Args:
        part: The part.
        lm: The decoder.
        space: Its fingerprint, with that of its adapter.
    """
    if part.space != space:
        return made_for_another(part.space, space)
    if isinstance(part, CachePart):
        return _why_not_cache(part, lm)
    try:
        check_reads_embeddings(lm)
    except ModelError as error:
        return str(error)
    width = lm.model.get_input_embeddings().embedding_dim
    if part.vectors.shape[1] != width:
        return f"its vectors are {part.vectors.shape[1]} wide and the decoder's embeddings {width}"
    if part.placement == "none" and lm.model.config.model_type not in NO_POSITION:
        return f"its vectors have no positions, which decoders of type {lm.model.config.model_type!r} do not know"
    return ""


def _why_not_cache(part: CachePart, lm: CausalLM) -> str:
    own = cache_shape(lm)
    given = (len(part.keys), part.keys[0].shape[0], part.keys[0].shape[2])
    if own != given:
        return f"it has {given} layers, heads and dimensions of a head, and the decoder {own}"
    return ""


def load_adapted(lm: CausalLM, checkpoint: str | os.PathLike[str], *, plain_rope: bool) -> tuple[CausalLM, str]:
    """Return a decoder with the adapter of a checkpoint, and what the parts for it name as their decoder.

    The weights are shared with the decoder as it was, which stays as it is.

    Args:
        lm: The decoder that the checkpoint was made for.
        checkpoint: The checkpoint's folder.
        plain_rope: Whether the scaling of the decoder's rotary frequencies is switched off.

    Raises:
        ModelNotFoundError: If there is no checkpoint.
        ModelError: If it was made for another decoder, or has no adapter.
    """
    weights = read_checkpoint(checkpoint)
    lora = Lora.from_json(weights.settings.get("lora", dataclasses.asdict(Lora(rank=0))))
    if not lora.rank:
        raise ModelError(f"the checkpoint {weights.folder} has no adapter: name its decoder as the model instead")
    if weights.method not in _OF_THE_DECODER:
        raise ModelError(
            f"the adapter of the checkpoint {weights.folder} is not the decoder's: {weights.method!r} leaves its "
            "decoder as it is, so read its output without adapter="
        )
    if weights.models["base"].fingerprint != lm.fingerprint:
        reason = made_for_another(weights.models["base"].fingerprint, lm.fingerprint)
        raise ModelError(
            f"the checkpoint {weights.folder} is of no use here: {reason}. Its decoder was called "
            f"{weights.models['base'].name!r}"
        )
    body = with_adapter(body_of(lm), lora)
    own = adapter_parameters(body)
    given = {name: tensor for name, tensor in weights.tensors.items() if name.startswith("lora.")}
    check_tensors({name: tuple(value.shape) for name, value in own.items()}, given, str(weights.folder))
    for name, parameter in own.items():
        parameter.data = given[name].to(body.device, body.dtype)
        # a reader is not trained, and its results would keep all that they were computed from
        parameter.requires_grad_(False)
    whole = shared_copy(lm.model)
    setattr(whole, whole.base_model_prefix, body)
    space = space_of(lm.fingerprint, plain_rope=plain_rope, adapter=weights.fingerprint)
    return dataclasses.replace(lm, model=whole), space
