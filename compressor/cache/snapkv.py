"""SnapKV: keep what the question, or the end of the context, attends to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn.functional import avg_pool1d

from kompakt.compressor.cache.scoring import ScoringCacheCompressor, Seen
from kompakt.compressor.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class SnapKV(ScoringCacheCompressor):
    """Keep the positions that the last queries attend to, each head its own; no training.

    The last queries are the question's. Without one they are those of the context's last ``window`` tokens, which are
    then kept themselves, as in the paper.

    Source: Li et al. 2024, "SnapKV: LLM Knows What You are Looking for Before Generation", section 4.

    Args:
        window: Tokens at the end of a context without a question that decide what is kept.
        kernel: Neighbouring positions whose attention is averaged, so that what is kept are clusters; an odd number.

    Raises:
        ConfigError: If an option makes no sense.
    """

    name: ClassVar[str] = "snapkv"
    uses_query = True

    window: int = 64
    kernel: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window < 1:
            raise ConfigError(f"window must be at least 1, got {self.window}")
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ConfigError(f"kernel must be an odd number of at least 1, got {self.kernel}")

    def score(self, seen: Seen) -> torch.Tensor:
        """Return the pooled attention of the last queries to each position, ``[H_kv, T]``."""
        context = seen.context
        first_query = context.last if context.after else max(context.first + 1, context.last - self.window)
        n_queries = seen.attended.queries.shape[1] - first_query
        attention = seen.attended.received(first_query)[:, context.first : first_query] / n_queries
        pooled = avg_pool1d(attention[None], self.kernel, stride=1, padding=self.kernel // 2)[0]
        scores = pooled.reshape(len(seen.keys), -1, pooled.shape[1]).mean(dim=1)
        # attention is at most 1, so the window comes first, its end before its beginning
        own = 2 + torch.arange(context.last - first_query, dtype=scores.dtype, device=scores.device)
        return torch.cat([scores, own.expand(len(scores), -1)], dim=1)
