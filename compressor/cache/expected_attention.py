"""Expected attention: keep what queries that are yet to come will attend to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from kompakt.compressor.cache.rotary import has_rotations, mean_rotation, unrotated
from kompakt.compressor.cache.scoring import ScoringCacheCompressor, Seen
from kompakt.compressor.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ExpectedAttention(ScoringCacheCompressor):
    """Keep the positions that future queries are expected to attend to, from the context alone; no training.

    The context's own queries, without their rotation, are taken for a sample of those to come: a normal distribution
    whose expected ``exp(q k)`` has a closed form. Its rotation is the mean of those of the next positions. What comes
    of it is normalised over the context and weighted with the norm of the value.

    Source: Devoto et al. 2025, "Expected Attention: KV Cache Compression by Estimating Attention from Future Queries
    Distribution", section 3.

    Args:
        n_future: Positions behind the context over which the rotation of queries is averaged.
        n_sink: Tokens at the beginning of the prompt whose queries are no sample, and which are kept where they are
            the context's: every head attends to them, whatever they say.
        epsilon: Added to the expected attention before it is weighted, so that large values count by themselves.

    Raises:
        ConfigError: If an option makes no sense.
    """

    name: ClassVar[str] = "expected-attention"
    uses_query = False

    n_future: int = 512
    n_sink: int = 4
    epsilon: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_future < 1 or self.n_sink < 0 or self.epsilon < 0:
            raise ConfigError(
                "n_future must be at least 1, n_sink and epsilon at least 0, got "
                f"{self.n_future}, {self.n_sink} and {self.epsilon}"
            )

    def score(self, seen: Seen) -> torch.Tensor:
        """Return the expected attention to each position, weighted with the norm of its value, ``[H_kv, T]``."""
        context, n_heads = seen.context, len(seen.keys)
        first = max(self.n_sink, context.first)
        n_sink = min(first - context.first, len(context.ids))
        norms: torch.Tensor = torch.linalg.vector_norm(seen.values.float(), dim=-1)
        if context.last - first < 2:
            return norms
        queries = seen.attended.queries[:, first : context.last]
        groups = queries.reshape(n_heads, -1, *queries.shape[1:])
        rotation = self._future_rotation(seen)
        # heads of one group at a time: all queries in fp32 would take as much as the caches of many layers
        rows = []
        positions = torch.arange(first, context.last)
        for keys, group in zip(seen.keys[:, n_sink:], groups, strict=True):
            bare = group.float()
            if rotation is not None:
                bare = unrotated(bare, positions, seen.attended.layer, seen.lm)
            mean, covariance = _distribution(bare, rotation)
            rows.append(_expected_attention(keys.float(), mean, covariance, seen.attended.scaling).mean(dim=0))
        scores = (torch.stack(rows) + self.epsilon) * norms[:, n_sink:]
        return torch.cat([scores.new_full((n_heads, n_sink), torch.inf), scores], dim=1)

    def _future_rotation(self, seen: Seen) -> torch.Tensor | None:
        """Return the mean rotation of the positions behind the context, ``[D_head, D_head]``; None without any."""
        if not has_rotations(seen.lm):
            return None
        last = seen.context.last
        positions = torch.arange(last, last + self.n_future)
        return mean_rotation(positions, seen.keys.shape[-1], seen.attended.layer, seen.lm)


def _distribution(queries: torch.Tensor, rotation: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean ``[G, D_head]`` and covariance ``[G, D_head, D_head]`` of queries ``[G, T, D_head]``, rotated."""
    mean = queries.mean(dim=1)
    centred = queries - mean[:, None]
    covariance = centred.transpose(1, 2) @ centred / queries.shape[1]
    if rotation is None:
        return mean, covariance
    return mean @ rotation.T, rotation @ covariance @ rotation.T


def _expected_attention(
    keys: torch.Tensor, mean: torch.Tensor, covariance: torch.Tensor, scaling: float
) -> torch.Tensor:
    """Return the expected attention of the queries of a group to keys ``[T, D_head]``, ``[G, T]``."""
    exponents = mean @ keys.T * scaling + ((keys @ covariance) * keys).sum(dim=-1) * (scaling**2 / 2)
    return torch.softmax(exponents, dim=-1)
