"""Attention as it happens: what each layer's queries, keys and values are, in any model and without a patch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from kompakt.compressor.errors import ModelError
from kompakt.compressor.models.causal_lm import CausalLM
from kompakt.compressor.soft.decoder import body_of, cache_shape, shared_copy

_NAME: Final = "kompakt_observed"
_TRIED: Final = 4
"""Tokens that are read to see whether a model's attention can be observed."""


@dataclass(frozen=True, slots=True, eq=False)
class Attended:
    """What one layer's attention was given.

    Args:
        layer: The layer's number.
        queries: Queries as they are compared with keys, rotated ``[H, T, D_head]``.
        keys: Keys of all positions up to the last query, rotated ``[H_kv, S, D_head]``.
        values: Their values ``[H_kv, S, D_head]``.
        scaling: What products of queries and keys are multiplied by.
        visible: Which keys each query sees ``[T, S]``; None if those of all positions up to its own.
    """

    layer: int
    queries: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    scaling: float
    visible: torch.Tensor | None = None

    def received(self, first_query: int, weights: torch.Tensor | None = None) -> torch.Tensor:
        """Return the attention that each position gets from the queries from ``first_query`` on, ``[H, S]`` in fp32.

        Args:
            first_query: The first of the queries, counted from 0.
            weights: How much each of them counts in the sum ``[n]``; 1 if None.
        """
        n_queries, n_keys = self.queries.shape[1] - first_query, self.keys.shape[1]
        # heads of one group at a time: attention takes [H / H_kv, n, S] numbers
        groups = self.queries[:, first_query:].reshape(len(self.keys), -1, n_queries, self.queries.shape[-1])
        is_hidden = self._is_hidden(first_query)
        counts = torch.ones(n_queries, device=self.keys.device) if weights is None else weights.to(self.keys.device)
        rows = []
        for queries, keys in zip(groups, self.keys, strict=True):
            logits = (queries.float() @ keys.float().T) * self.scaling
            attention = torch.softmax(logits.masked_fill_(is_hidden, -torch.inf), dim=-1)
            rows.append(torch.einsum("n,gns->gs", counts, attention))
        return torch.cat(rows).reshape(-1, n_keys)

    def _is_hidden(self, first_query: int) -> torch.Tensor:
        """Return which keys the queries from ``first_query`` on do not see, ``[n, S]``."""
        if self.visible is not None:
            return ~self.visible[first_query:]
        n_queries, n_keys = self.queries.shape[1], self.keys.shape[1]
        places = torch.arange(n_keys, device=self.keys.device)
        return places[None] > places[n_keys - n_queries + first_query :, None]


Observer: TypeAlias = Callable[[Attended], None]

_OBSERVER: ContextVar[Observer | None] = ContextVar("kompakt_observer", default=None)


@contextmanager
def observing(observer: Observer) -> Iterator[None]:
    """Call ``observer`` after each attention of bodies that ``observable`` returned, in this thread.

    What it is given is freed with the layer unless it keeps it.
    """
    token = _OBSERVER.set(observer)
    try:
        yield
    finally:
        _OBSERVER.reset(token)


@functools.lru_cache(maxsize=4)
def observable(lm: CausalLM) -> PreTrainedModel:
    """Return a decoder without its head whose attention can be observed; it shares all weights.

    Raises:
        ModelError: If its attention cannot be exchanged, or does more than products, a mask and a softmax.
    """
    AttentionInterface.register(_NAME, _attention)
    AttentionMaskInterface.register(_NAME, sdpa_mask)
    body = shared_copy(body_of(lm))
    reason = _why_unobservable(lm, body)
    if reason:
        raise ModelError(f"the attention of models of type {body.config.model_type!r} cannot be observed: {reason}")
    return body


def _why_unobservable(lm: CausalLM, body: PreTrainedModel) -> str:
    """Let a body be observed, and return why that does not work; empty if it does."""
    n_layers, n_heads, width = cache_shape(lm)
    if not body._can_set_attn_implementation():
        return "it cannot be exchanged"
    ids = torch.arange(1, _TRIED + 1, device=body.device)[None] % body.config.get_text_config().vocab_size
    seen: list[Attended] = []
    with torch.no_grad():
        expected = body(input_ids=ids, use_cache=False).last_hidden_state.float()
        try:
            body.set_attn_implementation(_NAME)
            with observing(seen.append):
                found = body(input_ids=ids, use_cache=False).last_hidden_state.float()
        except (ModelError, TypeError, ValueError, RuntimeError) as error:
            return str(error)
    if [one.layer for one in seen] != list(range(n_layers)):
        return f"{len(seen)} of its {n_layers} layers show it"
    if {tuple(tensor.shape) for one in seen for tensor in (one.keys, one.values)} != {(n_heads, _TRIED, width)}:
        return "its keys and values have several shapes"
    if torch.linalg.norm(found - expected) > 0.02 * torch.linalg.norm(expected):
        return "it does more than products, a mask and a softmax"
    return ""


def _attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,  # noqa: ANN401 (each model has its own, which are passed on)
) -> tuple[torch.Tensor, None]:
    output: tuple[torch.Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    observer = _OBSERVER.get()
    if observer is not None:
        layer: Any = module
        given = options.get("scaling")
        scaling = query.shape[-1] ** -0.5 if given is None else float(given)
        visible = _visible(attention_mask, options.get("position_bias"))
        observer(Attended(int(layer.layer_idx), query[0], key[0], value[0], scaling, visible))
    return output


def _visible(mask: torch.Tensor | None, bias: torch.Tensor | None) -> torch.Tensor | None:
    """Return which keys each query sees, ``[T, S]``.

    Raises:
        ModelError: If something is added to products of queries and keys.
    """
    if bias is not None or (mask is not None and mask.dtype != torch.bool):
        raise ModelError("something is added to products of queries and keys")
    return None if mask is None else mask[0, 0]
