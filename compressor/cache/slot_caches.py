"""The base of compressors whose slots are read as keys and values of each layer, not as embeddings."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from kompakt.compressor.models.causal_lm import CausalLM
from kompakt.compressor.parts import CachePart, Rope, TextPart
from kompakt.compressor.soft.decoder import cache_shape
from kompakt.compressor.soft.slot_encoder import SlotEncoder


@dataclass(frozen=True, kw_only=True)
class CacheSlotEncoder(SlotEncoder):
    """A slot encoder whose code holds the keys and values of each slot in every layer.

    A code is a matrix ``[m, 2 L H_kv D_head]``, a row for each slot, so that segments are stored, joined and counted
    like any others; ``flattened`` and ``unflattened`` lead there and back.
    """

    emits = "cache"  # type: ignore[assignment]

    @property
    @abstractmethod
    def rope(self) -> Rope:
        """Which rotations the keys have; see ``CachePart``."""

    def make_part(self, vectors: torch.Tensor, source: TextPart) -> CachePart:
        """Return the keys and values of a text, from its codes ``[m, 2 L H_kv D_head]``."""
        keys, values = unflattened(vectors, self.lm)
        return CachePart(tuple(keys), tuple(values), self.space, source, self.rope)


def flattened(keys: Sequence[torch.Tensor], values: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return keys and values, ``[H_kv, m, D_head]`` a layer, as a row for each slot: ``[m, 2 L H_kv D_head]``."""
    both = torch.stack([torch.stack(list(keys)), torch.stack(list(values))])
    return both.movedim(3, 0).flatten(1)


def unflattened(rows: torch.Tensor, lm: CausalLM) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the keys and the values, ``[L, H_kv, m, D_head]`` each, of what ``flattened`` gave."""
    n_layers, n_heads, width = cache_shape(lm)
    both = rows.reshape(len(rows), 2, n_layers, n_heads, width).movedim(0, 3)
    return both[0], both[1]
