"""Batches whose results do not depend on what else is in them, but for how products of packed rows are rounded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Final

_STEP: Final = 8


def padded_width(length: int, *, longest: int) -> int:
    """Return how long a row of ``length`` tokens is made, at most ``longest``: what the model can read.

    Matrix products in bf16 round otherwise where a row ends within a tile of the processor than where padding fills
    it. With one width for each length, whoever stands beside it, a row's result is the same alone and in any batch,
    but for processors with AMX, on which products of long rows round otherwise with other numbers of rows.
    Of widths in steps of 1, 4, 8 and 16, short texts were fastest on a CPU with 8.
    """
    return min(-(-length // _STEP) * _STEP, longest)


def equal_width_batches(lengths: Sequence[int], *, longest: int, max_tokens: int) -> Iterator[list[int]]:
    """Group rows of the same padded width, the longest first.

    Args:
        lengths: Tokens of each row.
        longest: The most tokens that the model can read.
        max_tokens: Tokens in a batch, padding included; a row that is longer is a batch of its own.

    Yields:
        The places of a batch's rows in ``lengths``.
    """

    def width(place: int) -> int:
        return padded_width(lengths[place], longest=longest)

    for common, places in groupby(sorted(range(len(lengths)), key=width, reverse=True), key=width):
        alike = list(places)
        size = max(1, max_tokens // max(common, 1))
        for start in range(0, len(alike), size):
            yield alike[start : start + size]


def packed_batches(lengths: Sequence[int], *, max_tokens: int) -> Iterator[list[int]]:
    """Group rows that are packed one behind the other, the longest first: rows of one length follow each other.

    Args:
        lengths: Tokens of each row.
        max_tokens: Tokens in a batch; a row that is longer is a batch of its own.

    Yields:
        The places of a batch's rows in ``lengths``.
    """
    batch: list[int] = []
    n_tokens = 0
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        if batch and n_tokens + lengths[place] > max_tokens:
            yield batch
            batch, n_tokens = [], 0
        batch.append(place)
        n_tokens += lengths[place]
    if batch:
        yield batch
