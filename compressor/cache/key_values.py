"""Keys and values of all layers, for a batch of texts of equal length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from kompakt.compressor.models.causal_lm import CausalLM
from kompakt.compressor.soft.decoder import cache_shape


@dataclass(frozen=True, slots=True, eq=False)
class KeyValues:
    """Keys and values, whose length is their number of positions.

    Args:
        keys: Keys ``[L, B, H_kv, m, D_head]``.
        values: Values ``[L, B, H_kv, m, D_head]``.
    """

    keys: torch.Tensor
    values: torch.Tensor

    @classmethod
    def none(cls, lm: CausalLM, batch_size: int) -> KeyValues:
        """Return those of no position."""
        n_layers, n_heads, width = cache_shape(lm)
        empty = torch.empty(n_layers, batch_size, n_heads, 0, width, dtype=lm.model.dtype, device=lm.model.device)
        return cls(empty, empty)

    def __len__(self) -> int:
        return int(self.keys.shape[3])

    @property
    def batch_size(self) -> int:
        """How many texts they are of."""
        return int(self.keys.shape[1])

    def at(self, places: Sequence[int]) -> KeyValues:
        """Return those of some positions, in the given order."""
        index = torch.tensor(list(places), dtype=torch.long, device=self.keys.device)
        return KeyValues(self.keys.index_select(3, index), self.values.index_select(3, index))

    def followed_by(self, *others: KeyValues) -> KeyValues:
        """Return these and others behind them."""
        several = [one for one in (self, *others) if len(one)] or [self]
        if len(several) == 1:
            return several[0]
        return KeyValues(
            torch.cat([one.keys for one in several], dim=3), torch.cat([one.values for one in several], dim=3)
        )
