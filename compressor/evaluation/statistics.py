"""Intervals and differences: the bootstrap over groups of examples, and an exact bound for shares."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Final

import numpy as np

from kompakt.compressor.errors import MissingExtraError
from kompakt.compressor.evaluation.summary import Estimate

if TYPE_CHECKING:
    from numpy.typing import NDArray

N_RESAMPLES: Final = 2000
_INTERVAL: Final = (2.5, 97.5)


def resampled_means(values: Sequence[float], groups: Sequence[str], *, seed: int) -> NDArray[np.float64]:
    """Return the means of bootstrap resamples, which draw whole groups, ``[N_RESAMPLES]``.

    Examples that share a context succeed and fail together; drawing them one by one would make intervals too narrow.

    Args:
        values: One value an example.
        groups: The group of each example.
        seed: Decides the draws.
    """
    names = {name: index for index, name in enumerate(dict.fromkeys(groups))}
    members = np.array([names[group] for group in groups])
    sums = np.bincount(members, weights=np.asarray(values, dtype=np.float64), minlength=len(names))
    counts = np.bincount(members, minlength=len(names))
    draws = _draws(len(names), seed)
    means: NDArray[np.float64] = (draws @ sums) / (draws @ counts)
    return means


@lru_cache(maxsize=4)
def _draws(n_groups: int, seed: int) -> NDArray[np.float64]:
    """Return how often each resample draws each group, ``[N_RESAMPLES, n_groups]``."""
    chosen = np.random.default_rng([seed, n_groups]).integers(n_groups, size=(N_RESAMPLES, n_groups))
    draws = np.zeros((N_RESAMPLES, n_groups))
    np.add.at(draws, (np.arange(N_RESAMPLES)[:, None], chosen), 1.0)
    return draws


def estimate(values: Sequence[float], groups: Sequence[str], *, seed: int) -> Estimate:
    """Return the mean of ``values`` with its 95 % percentile interval.

    Args:
        values: One value an example, at least one.
        groups: The group of each example.
        seed: Decides the resamples.
    """
    low, high = np.percentile(resampled_means(values, groups, seed=seed), _INTERVAL)
    return Estimate(float(np.mean(values)), float(low), float(high), len(values))


def mean_of_means(samples: Sequence[tuple[Sequence[float], Sequence[str]]], *, seed: int) -> Estimate:
    """Return the mean over tasks of their means, each task counting alike.

    Args:
        samples: Values and groups of each task.
        seed: Decides the resamples, which are drawn for each task on its own.
    """
    resamples = [resampled_means(values, groups, seed=seed + index) for index, (values, groups) in enumerate(samples)]
    low, high = np.percentile(np.mean(resamples, axis=0), _INTERVAL)
    mean = float(np.mean([np.mean(values) for values, _ in samples]))
    return Estimate(mean, float(low), float(high), sum(len(values) for values, _ in samples))


def loss_bound(
    losses: Sequence[float], groups: Sequence[str], *, confidence: float, seed: int, is_share: bool = True
) -> float:
    """Return the value that the true mean loss stays under with ``confidence``, one-sided.

    For losses that are all 0 or 1 and independent, the exact bound of Clopper and Pearson, which is above 0 even
    where nothing was lost; for other losses of shares the larger of it and of the bootstrap over groups; for losses
    without limits, such as of log-likelihoods, the bootstrap alone.

    Args:
        losses: One loss an example, at least one; negative where compression helped.
        groups: The group of each example.
        confidence: Such as 0.95.
        seed: Decides the resamples.
        is_share: Whether every loss is between -1 and 1.

    Raises:
        MissingExtraError: If the extra ``report`` is not installed.
    """
    try:
        from scipy.stats import beta
    except ImportError as error:
        raise MissingExtraError("confidence bounds", "report") from error
    # what lies between 0 and 1 varies less than a coin of the same mean, so that the coin's bound is wide enough;
    # examples of one group may all be lost together, so that only groups count as independent
    n = len(set(groups))
    share = sum(max(0.0, loss) for loss in losses) / len(losses)
    exact = 1.0 if share >= 1 else float(beta.ppf(confidence, share * n + 1, n - share * n))
    if is_share and n == len(losses) and set(losses) <= {0.0, 1.0}:
        return exact
    resampled = float(np.percentile(resampled_means(losses, groups, seed=seed), 100 * confidence))
    return max(exact, resampled) if is_share else resampled
