"""Selective Context exactly as its authors' code does it, as pure functions to compare against.

Source: Li et al. 2023, "Compressing Context to Enhance Inference Efficiency of Large Language Models", section 2,
and the released code where the two differ.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

import numpy as np

_SENTENCE_END = re.compile(r"(?<!\w\.\w.)(?<![A-Z][a-z]\.)(?<=\.|\?)\s")
_UNCOUNTED = (" ",)


def paper_sentences(text: str) -> list[str]:
    """Return the sentences of a text whose white space is first collapsed; an exclamation mark ends none."""
    pieces = (piece.strip() for piece in _SENTENCE_END.split(re.sub(r"\s+", " ", text)))
    return [piece for piece in pieces if piece]


def align(tokens: Sequence[str], information: Sequence[float], units: Sequence[str]) -> list[list[float]]:
    """Hand the information of each token to the units that it completes, walking both texts by length.

    A token that completes several units gives each an equal share, and one that only enters a unit gives it nothing.
    A token within a unit gives that unit all, but for a single space.

    Args:
        tokens: Decoded tokens.
        information: Surprisal of each token in nats.
        units: Consecutive units of the same text.

    Returns:
        What each unit received, in order.
    """
    received: list[list[float]] = [[] for _ in units]
    current = offset = 0
    for token, value in zip(tokens, information, strict=True):
        offset += len(token)
        completed = []
        while current < len(units) and offset >= len(units[current]):
            completed.append(current)
            offset -= len(units[current])
            current += 1
            if not offset:
                break
        if not completed and token not in _UNCOUNTED and current < len(units):
            received[current].append(value)
        for unit in completed:
            received[unit].append(value / len(completed))
    return received


def reduce_units(received: Sequence[Sequence[float]], *, how: Literal["mean", "sum"] = "mean") -> list[float]:
    """Return one score for each unit, NaN for a unit that received nothing.

    Args:
        received: What each unit received from its tokens.
        how: ``mean`` as in the code, or ``sum`` as in the paper.
    """
    combine = np.mean if how == "mean" else np.sum
    return [float(combine(np.asarray(values, dtype=np.float64))) if values else float("nan") for values in received]


def paper_filter(scores: Sequence[float], *, drop: float) -> list[bool]:
    """Return for each unit whether it stays.

    A unit goes if its score is below the percentile; NaN is not, so such a unit stays.

    Args:
        scores: The units' scores.
        drop: The fraction of units, not of tokens, to remove, from 0 to 1.
    """
    values = np.asarray(scores, dtype=np.float64)
    if np.isnan(values).all():
        return [True] * len(values)
    threshold = np.nanpercentile(values, 100 * drop)
    return [not is_below for is_below in (values < threshold).tolist()]
