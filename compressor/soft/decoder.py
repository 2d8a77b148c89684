"""Decoders whose input embeddings soft compressors write, and that lend them their weights."""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Iterator, Sequence
from typing import Final, cast

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from kompakt.compressor.errors import InputError, ModelError
from kompakt.compressor.models.batches import equal_width_batches, packed_batches, padded_width
from kompakt.compressor.models.causal_lm import BATCH_TOKENS, CausalLM, Dtype, load_causal_lm
from kompakt.compressor.models.packed_decoder import PackedDecoder, packed_decoder

NO_POSITION: Final = {"opt": -1}
"""Position id that selects the padding row of a table of learned positions, by type of model."""

_LAYERS: Final = ("layers", "h")
_FINAL_NORMS: Final = ("norm", "final_layer_norm", "ln_f")


def load_decoder(
    name_or_path: str | os.PathLike[str],
    *,
    dtype: Dtype = "auto",
    device: str | None = None,
    plain_rope: bool = False,
) -> CausalLM:
    """Load a model that reads embeddings; see ``load_causal_lm``.

    Raises:
        ModelError: If it cannot be loaded or cannot read embeddings; the message says why.
        ModelNotFoundError: If it is not on this machine.
    """
    lm = load_causal_lm(name_or_path, dtype=dtype, device=device, plain_rope=plain_rope)
    check_reads_embeddings(lm)
    return lm


@functools.lru_cache(maxsize=16)
def check_reads_embeddings(lm: CausalLM) -> None:
    """Raise if a model does not give the same for token ids and for their embeddings.

    Raises:
        ModelError: Naming what stands in the way.
    """
    config = lm.model.config.get_text_config()
    kind = config.model_type
    table = lm.model.get_input_embeddings()
    width = getattr(table, "embedding_dim", None)
    if width is None:
        raise ModelError(f"models of type {kind!r} are not supported here: they have no table of input embeddings")
    if width != config.hidden_size:
        raise ModelError(
            f"this {kind!r} model is not supported here: its embeddings are {width} wide and its hidden states "
            f"{config.hidden_size}, so that its outputs cannot be its inputs"
        )
    ids = torch.arange(1, 5, device=lm.model.device)[None] % config.vocab_size
    mask = torch.ones_like(ids)
    body = body_of(lm)
    with torch.no_grad():
        expected = body(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        try:
            got = body(inputs_embeds=table(ids), attention_mask=mask, use_cache=False).last_hidden_state
        except (TypeError, ValueError, RuntimeError) as error:
            raise ModelError(
                f"models of type {kind!r} are not supported here: they read no embeddings: {error}"
            ) from error
    if not torch.allclose(expected.float(), got.float(), rtol=0.02, atol=0.02):
        raise ModelError(f"models of type {kind!r} are not supported here: they need token ids beside the embeddings")


def body_of(lm: CausalLM) -> PreTrainedModel:
    """Return a decoder without its head."""
    return cast("PreTrainedModel", lm.model.base_model)


def cache_shape(lm: CausalLM) -> tuple[int, int, int]:
    """Return a decoder's number of layers, heads of keys, and dimensions of a head."""
    config = lm.model.config.get_text_config()
    n_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(config.num_hidden_layers), int(n_heads), int(width)


def embed(lm: CausalLM, ids: Sequence[int] | torch.Tensor) -> torch.Tensor:
    """Return the input embeddings of tokens, ``[T, D]``."""
    tokens = torch.as_tensor(ids, dtype=torch.long, device=lm.model.device)
    vectors: torch.Tensor = lm.model.get_input_embeddings()(tokens)
    return vectors


def shared_copy(module: PreTrainedModel) -> PreTrainedModel:
    """Return a module of the same parameters whose structure can be changed without changing the original's.

    No weight is held twice, and threads that use the original never see the change.
    """
    tensors = [*module.parameters(), *module.buffers()]
    return copy.deepcopy(module, {id(tensor): tensor for tensor in tensors})


def truncated(body: PreTrainedModel, n_layers: int, *, final_norm: bool = False) -> PreTrainedModel:
    """Return the first layers of a decoder, of the same parameters.

    Args:
        body: A decoder without its head.
        n_layers: How many layers stay.
        final_norm: Whether the normalisation after the last layer stays.

    Raises:
        ModelError: If it has not that many layers, or is built in a way that is not known here.
    """
    short = shared_copy(body)
    inner = getattr(short, "decoder", short)
    name = next((name for name in _LAYERS if hasattr(inner, name)), None)
    norm = next((name for name in _FINAL_NORMS if hasattr(inner, name)), None)
    if name is None or norm is None:
        raise ModelError(
            f"models of type {body.config.model_type!r} cannot be truncated: their layers are not known here"
        )
    layers = getattr(inner, name)
    if not 0 < n_layers <= len(layers):
        raise ModelError(f"the model has {len(layers)} layers, so {n_layers} of them cannot be used")
    setattr(inner, name, layers[:n_layers])
    if not final_norm:
        setattr(inner, norm, nn.Identity())
    short.config.num_hidden_layers = n_layers
    return short


def hidden_states(
    body: PreTrainedModel,
    rows: Sequence[torch.Tensor],
    positions: Sequence[torch.Tensor] | None = None,
    *,
    max_positions: int,
) -> list[torch.Tensor]:
    """Run rows of embeddings through a causal decoder, each from position 0 on and blind to the others.

    Where no gradient is wanted, rows of decoders that are known are packed without padding. Others are filled up
    behind their end, where a causal model does not look, so that no mask is needed; rows of nearly the same length
    share a batch. No row's result depends on its company, but for the rounding of processors with AMX.

    Args:
        body: A decoder without its head.
        rows: Embeddings, ``[T_i, D]`` each.
        positions: The position ids of each row ``[T_i]``, 0, 1, ... by default.
        max_positions: The most positions that the model reads.

    Returns:
        The states after the final normalisation, ``[T_i, D]`` for each row.

    Raises:
        InputError: If a row is longer than the model reads.
    """
    packed = packed_decoder(body) if positions is None and not torch.is_grad_enabled() else None
    if packed is not None:
        return _packed_states(packed, body, rows, max_positions=max_positions)
    results: dict[int, torch.Tensor] = {}
    for places, inputs in embedding_batches(body, rows, positions, max_positions=max_positions):
        output = body(**inputs, use_cache=False)
        for place, states in zip(places, output.last_hidden_state, strict=True):
            results[place] = states[: len(rows[place])]
    return [results[place] for place in range(len(rows))]


def _packed_states(
    packed: PackedDecoder, body: PreTrainedModel, rows: Sequence[torch.Tensor], *, max_positions: int
) -> list[torch.Tensor]:
    lengths = [len(row) for row in rows]
    _check_lengths(lengths, max_positions)
    results: dict[int, torch.Tensor] = {}
    for places in packed_batches(lengths, max_tokens=BATCH_TOKENS["cpu"]):
        own = [lengths[place] for place in places]
        states = packed(torch.cat([rows[place].to(body.dtype) for place in places]), own)
        results.update(zip(places, torch.split(states, own), strict=True))
    return [results[place] for place in range(len(rows))]


def _check_lengths(lengths: Sequence[int], max_positions: int) -> None:
    if lengths and max(lengths) > max_positions:
        raise InputError(f"a segment takes {max(lengths)} positions and the model reads at most {max_positions}")


def embedding_batches(
    body: PreTrainedModel,
    rows: Sequence[torch.Tensor],
    positions: Sequence[torch.Tensor] | None = None,
    *,
    max_positions: int,
) -> Iterator[tuple[list[int], dict[str, torch.Tensor]]]:
    """Yield batches of rows of embeddings, filled up behind their end; see ``hidden_states``.

    Yields:
        The places of a batch's rows, and what the decoder is to read.

    Raises:
        InputError: If a row is longer than the model reads.
    """
    lengths = [len(row) for row in rows]
    _check_lengths(lengths, max_positions)
    limit = BATCH_TOKENS["cuda" if body.device.type == "cuda" else "cpu"]
    for places in equal_width_batches(lengths, longest=max_positions, max_tokens=limit):
        width = padded_width(lengths[places[0]], longest=max_positions)
        embeds = _padded([rows[place].to(body.device, body.dtype) for place in places], width)
        if positions is None:
            ids = torch.arange(width, device=body.device).expand(len(places), width)
        else:
            ids = _padded([positions[place].to(body.device) for place in places], width)
        # a mask of ones tells the model that positions which begin anew are not texts packed into one row
        mask = torch.ones(len(places), width, dtype=torch.long, device=body.device)
        yield places, {"inputs_embeds": embeds, "attention_mask": mask, "position_ids": ids}


def _padded(rows: Sequence[torch.Tensor], width: int) -> torch.Tensor:
    batch = pad_sequence(list(rows), batch_first=True)
    missing = batch.new_zeros(len(rows), width - batch.shape[1], *batch.shape[2:])
    return torch.cat([batch, missing], dim=1)


def end_of_text(lm: CausalLM) -> int:
    """Return the token that ends a text; of several, the first."""
    configured = lm.model.config.get_text_config().eos_token_id
    if configured is None:
        return lm.prefix_id
    return int(configured[0] if isinstance(configured, list) else configured)


def end_tokens(lm: CausalLM) -> frozenset[int]:
    """Return all tokens that end an answer: what the configurations say, and what separates texts."""
    configured = [lm.model.config.get_text_config().eos_token_id]
    if lm.model.generation_config is not None:
        configured.append(lm.model.generation_config.eos_token_id)
    flat = [item for one in configured for item in (one if isinstance(one, list) else [one])]
    return frozenset({int(item) for item in flat if item is not None} | {lm.prefix_id})
