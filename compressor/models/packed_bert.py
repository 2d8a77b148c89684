"""BERT encoders over rows that are packed one behind the other: padding for attention alone, and little of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import Any, Final

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from kompakt.compressor.models.packed_linear import PackedLinear, merged_weight
from kompakt.kernels.packed_attention import packed_attention

_STEP: Final = 16
"""Rows attend at widths in these steps: between them, fused attention on CPUs takes up to twice as long a token."""
_TRIED: Final = (18, 16, 7, 3)
"""Lengths of the rows that a new packed encoder is tried on."""


class _GeluLinear(PackedLinear):
    """A linear layer that is followed by a Gaussian error linear unit."""

    def gelu(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return ``gelu(self(inputs))``, with the exact error function."""
        if not self._fused:
            return functional.gelu(self(inputs))
        result: torch.Tensor = self._fused._linear_pointwise(inputs, self._weight, self._bias, "gelu", [], "none")
        return result


@dataclass(frozen=True, slots=True)
class _Layer:
    qkv: PackedLinear
    out: PackedLinear
    out_norm: nn.LayerNorm
    up: _GeluLinear
    down: PackedLinear
    down_norm: nn.LayerNorm


@dataclass(frozen=True, slots=True)
class _Group:
    """Neighbouring rows that attend together.

    Args:
        start: The group's first token.
        end: The token after its last.
        n_rows: How many rows it has.
        width: Tokens of each, padding included.
        taken: Which token stands in each place ``[n_rows * width]``; any token in a place of padding. None without
            padding.
        places: The place of each token ``[end - start]``; None without padding.
        mask: What is added to the scores of keys ``[n_rows, 1, 1, width]``: minus infinity for padding, else 0.
    """

    start: int
    end: int
    n_rows: int
    width: int
    taken: torch.Tensor | None = None
    places: torch.Tensor | None = None
    mask: torch.Tensor | None = None


class PackedBert:
    """A BERT encoder for inference: rows stand one behind the other and cannot see each other.

    It computes what ``model(input_ids, attention_mask)`` computes of each row, from a copy of the layers' weights:
    queries, keys and values come from one product, and nothing but attention sees padding.

    Args:
        model: An encoder of the type ``bert``, without a head.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        inner: Any = model  # the attributes of its type are those of BERT
        self.n_heads = int(model.config.num_attention_heads)
        self.d_head = int(model.config.hidden_size) // self.n_heads
        embeddings = inner.embeddings
        self._words = embeddings.word_embeddings.weight.detach()
        # a text alone is of the first type throughout
        places = embeddings.position_embeddings.weight.float() + embeddings.token_type_embeddings.weight[0].float()
        self._places = places.to(self._words.dtype).detach()
        self._norm = embeddings.LayerNorm
        self._layers = [_packed(layer) for layer in inner.encoder.layer]

    def __call__(self, ids: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        """Run rows.

        Args:
            ids: Their tokens, one row behind the other ``[sum(lengths)]``.
            lengths: Tokens of each row. Rows of similar length that follow each other are attended to together.

        Returns:
            The states of the last layer ``[sum(lengths), D]``.
        """
        longest = torch.arange(max(lengths), device=ids.device)
        positions = torch.cat([longest[:length] for length in lengths])
        embedded = functional.embedding(ids, self._words) + functional.embedding(positions, self._places)
        hidden: torch.Tensor = self._norm(embedded)
        groups = _groups(lengths, hidden.dtype) if ids.device.type == "cpu" else []
        for layer in self._layers:
            heads = layer.qkv(hidden).view(len(ids), 3, self.n_heads, self.d_head)
            attended = _in_groups(heads, groups) if groups else _in_kernel(heads, lengths)
            hidden = layer.out_norm(layer.out.plus(attended.view(len(ids), -1), hidden))
            hidden = layer.down_norm(layer.down.plus(layer.up.gelu(hidden), hidden))
        return hidden


def _packed(layer: Any) -> _Layer:  # noqa: ANN401 (transformers types its layers loosely)
    attention = layer.attention.self
    weights, biases = zip(*map(merged_weight, (attention.query, attention.key, attention.value)), strict=True)
    return _Layer(
        PackedLinear(torch.cat(weights), torch.cat(biases)),
        PackedLinear(*merged_weight(layer.attention.output.dense)),
        layer.attention.output.LayerNorm,
        _GeluLinear(*merged_weight(layer.intermediate.dense)),
        PackedLinear(*merged_weight(layer.output.dense)),
        layer.output.LayerNorm,
    )


def _groups(lengths: Sequence[int], dtype: torch.dtype) -> list[_Group]:
    starts = [0, *accumulate(lengths)]
    groups = []
    for width, members in groupby(range(len(lengths)), key=lambda row: -(-lengths[row] // _STEP) * _STEP):
        rows = list(members)
        first, last = starts[rows[0]], starts[rows[-1] + 1]
        if last - first == len(rows) * width:
            groups.append(_Group(first, last, len(rows), width))
            continue
        own = torch.tensor([lengths[row] for row in rows])
        columns = torch.arange(width)
        is_real = columns < own[:, None]
        begins = torch.tensor([starts[row] for row in rows])[:, None]
        taken = torch.where(is_real, begins + columns, begins).flatten()
        mask = torch.zeros(is_real.shape, dtype=dtype).masked_fill_(~is_real, float("-inf"))
        groups.append(
            _Group(first, last, len(rows), width, taken, is_real.flatten().nonzero()[:, 0], mask[:, None, None])
        )
    return groups


def _in_groups(heads: torch.Tensor, groups: Sequence[_Group]) -> torch.Tensor:
    """Return the attention ``[T, H, D_head]`` of queries, keys and values ``[T, 3, H, D_head]``, group by group."""
    attended = heads.new_empty(len(heads), *heads.shape[2:])
    for group in groups:
        own = heads[group.start : group.end] if group.taken is None else heads.index_select(0, group.taken)
        q, k, v = own.view(group.n_rows, group.width, *heads.shape[1:]).permute(2, 0, 3, 1, 4)
        states = functional.scaled_dot_product_attention(q, k, v, attn_mask=group.mask).transpose(1, 2).flatten(0, 1)
        into = attended[group.start : group.end]
        if group.places is None:
            into.copy_(states)
        else:
            torch.index_select(states, 0, group.places, out=into)
    return attended


def _in_kernel(heads: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
    q, k, v = heads.unbind(1)
    return packed_attention(q, k, v, query_lengths=lengths, key_lengths=lengths)


def why_not_packed(model: PreTrainedModel) -> str:
    """Return why an encoder cannot be packed; empty if it can."""
    config = model.config
    if model.device.type != "cpu":
        return f"on {model.device.type} it was never measured"
    if config.model_type != "bert":
        return f"models of type {config.model_type!r} are not known here"
    if config.hidden_act != "gelu":
        return f"its activation is {config.hidden_act!r}"
    if getattr(config, "position_embedding_type", "absolute") != "absolute":
        return f"its positions are {config.position_embedding_type!r}"
    return "it is a decoder" if config.is_decoder or config.add_cross_attention else ""


def packed_bert(model: PreTrainedModel) -> PackedBert | None:
    """Return an encoder for packed rows; None for one that cannot be packed, or that would not give the same.

    Args:
        model: An encoder without a head, in evaluation mode.
    """
    if why_not_packed(model):
        return None
    with torch.inference_mode():
        try:
            packed = PackedBert(model)
            is_equal = _gives_the_same(packed, model)
        except (AttributeError, RuntimeError):
            # a model of a known type whose layers are not what that type's are
            return None
    return packed if is_equal else None


def _gives_the_same(packed: PackedBert, model: PreTrainedModel) -> bool:
    """Tell whether rows of several lengths come out as the model gives them, but for rounding."""
    longest = int(model.config.max_position_embeddings)
    lengths = [min(length, longest) for length in _TRIED]
    # spread over the vocabulary: the first tokens are often special, and a text of these alone has no stable states
    ids = torch.arange(1, sum(lengths) + 1, device=model.device) * int(model.config.vocab_size) // (sum(lengths) + 1)
    states = packed(ids, lengths).float()
    expected = torch.cat([model(row[None]).last_hidden_state[0] for row in torch.split(ids, lengths)]).float()
    error = torch.linalg.norm(states - expected) / torch.linalg.norm(expected)
    return bool(error < (0.05 if model.dtype == torch.bfloat16 else 1e-4))
