"""The base of cache compressors that score the positions of a context layer by layer."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from kompakt.compressor.cache.cache_compressor import CacheCompressor
from kompakt.compressor.cache.context import CacheContext
from kompakt.compressor.cache.observed import Attended, observable, observing
from kompakt.compressor.errors import InputError
from kompakt.compressor.models.causal_lm import CausalLM
from kompakt.compressor.soft.decoder import cache_shape


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """What a layer has seen of a context, for its keys to be scored.

    Args:
        attended: Its queries, keys and values.
        context: What is compressed.
        lm: The decoder.
    """

    attended: Attended
    context: CacheContext
    lm: CausalLM

    @property
    def keys(self) -> torch.Tensor:
        """The context's keys, rotated for their positions ``[H_kv, T, D_head]``."""
        return self.attended.keys[:, self.context.first : self.context.last]

    @property
    def values(self) -> torch.Tensor:
        """The context's values ``[H_kv, T, D_head]``."""
        return self.attended.values[:, self.context.first : self.context.last]


@dataclass(frozen=True, kw_only=True)
class ScoringCacheCompressor(CacheCompressor):
    """A cache compressor whose author writes ``score`` alone.

    The context is read in one pass, with the question behind it if the compressor uses it. Each layer and head keeps
    the positions with the highest scores; the rest is freed before the next layer is read.
    """

    @abstractmethod
    def score(self, seen: Seen) -> torch.Tensor:
        """Return how important each position of the context is in one layer, ``[H_kv, T]`` or ``[T]`` for all heads.

        Positions with higher scores are kept. The queries after the context are the question's, if there is one.
        """

    def compute(self, context: CacheContext, n_keep: int) -> torch.Tensor:
        """Read a context in one pass; see ``CacheCompressor.compute``.

        Raises:
            InputError: If the prompt is longer than the decoder reads.
        """
        ids = [*context.before, *context.ids, *context.after]
        if len(ids) > self.lm.context_length:
            raise InputError(
                f"the context takes {len(ids)} positions with what stands around it, and {self.decoder} reads at "
                f"most {self.lm.context_length}: use finch, which reads in chunks, or select text in a stage before"
            )
        body = observable(self.lm)
        n_layers, n_heads, width = cache_shape(self.lm)
        kept = torch.empty(2, n_layers, n_heads, n_keep, width, dtype=body.dtype, device=body.device)

        def observe(attended: Attended) -> None:
            kept[0, attended.layer], kept[1, attended.layer] = self.select(Seen(attended, context, self.lm), n_keep)

        with observing(observe):
            body(input_ids=torch.tensor([ids], device=body.device), use_cache=False)
        return kept

    def select(self, seen: Seen, n_keep: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the keys and values of one layer that are kept, ``[H_kv, n_keep, D_head]`` each."""
        context, layer = seen.context, seen.attended.layer
        if n_keep == len(context.ids):
            return seen.keys, seen.values
        chosen = best_positions(self.score(seen).expand(len(seen.keys), -1), context.protected, n_keep)
        keys, values = (
            one.gather(1, chosen[..., None].expand(-1, -1, one.shape[-1])) for one in (seen.keys, seen.values)
        )
        return self.moved_together(keys, chosen + context.first, layer, start=context.first), values


def best_positions(scores: torch.Tensor, protected: Sequence[int], n_keep: int) -> torch.Tensor:
    """Return the positions with the highest scores in ascending order ``[..., n_keep]``, from scores ``[..., T]``.

    Protected ones come first, then those with infinite scores, and of equals the earlier one. What a larger budget
    keeps holds what a smaller one does.
    """
    scores = scores.float().clamp(max=torch.finfo(torch.float32).max)
    scores[..., list(protected)] = torch.inf
    order = scores.argsort(dim=-1, descending=True, stable=True)
    return order[..., :n_keep].sort(dim=-1).values
