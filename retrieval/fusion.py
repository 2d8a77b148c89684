"""Several rankings to one."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

from kompakt.compressor.errors import ConfigError


def reciprocal_rank_fusion(
    rankings: Sequence[Sequence[int]], *, k: int = 60, weights: Sequence[float] | None = None
) -> list[tuple[int, float]]:
    """Join rankings by the sum of ``weight / (k + rank)``, ranks counted from 1.

    Scores of the rankings need not be comparable, as only ranks count. A ranking adds nothing to ids that it lacks.

    Source: Cormack, Clarke and Büttcher 2009, "Reciprocal Rank Fusion outperforms Condorcet and individual Rank
    Learning Methods", section 2, where ``k`` is 60.

    Args:
        rankings: Ids, best first; of an id that a ranking names twice the better rank counts.
        k: How little the first ranks stand out.
        weights: What each ranking counts; 1 by default.

    Returns:
        Ids and scores, best first; the lower id first among equals.

    Raises:
        ConfigError: If ``k`` is below 0, or the weights are not as many as the rankings, finite and at least 0.
    """
    if not k >= 0:
        raise ConfigError(f"k must be at least 0, got {k!r}")
    if weights is None:
        weights = [1.0] * len(rankings)
    if len(weights) != len(rankings):
        raise ConfigError(f"weights must be as many as the {len(rankings)} rankings, got {len(weights)}")
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights):
        raise ConfigError(f"weights must be finite and at least 0, got {list(weights)}")
    parts: dict[int, list[float]] = defaultdict(list)
    for ranking, weight in zip(rankings, weights, strict=True):
        for rank, name in enumerate(dict.fromkeys(ranking), start=1):
            parts[name].append(weight / (k + rank))
    # an exact sum does not depend on the order of the rankings
    scores = [(name, math.fsum(part)) for name, part in parts.items()]
    return sorted(scores, key=lambda item: (-item[1], item[0]))
