"""Labelled windows as the batches that a smaller scorer is trained on."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch

from kompakt.compressor.models.self_information import Row
from kompakt.compressor.training.surprisal_labels import Labelled

_BLOCK: Final = 400
"""Rows that are sorted by length together: enough for batches of one length, too few to order an epoch by it."""


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Rows of about one length.

    Args:
        ids: The prefix token and those of each row, filled up behind their end, ``[B, 1 + T]``.
        is_scored: Which tokens count: those that no window before it scores ``[B, T]``.
        nats: How surprising the whole model finds these, row by row, ``[N]``.
    """

    ids: torch.Tensor
    is_scored: torch.Tensor
    nats: torch.Tensor


def batch_of(labelled: Sequence[Labelled], rows: Sequence[Row], *, prefix_id: int, device: torch.device) -> Batch:
    """Return rows of labelled windows as tensors."""
    width = max(map(len, rows))
    ids = np.full((len(rows), 1 + width), prefix_id, dtype=np.int64)
    is_scored = np.zeros((len(rows), width), dtype=np.bool_)
    for place, row in enumerate(rows):
        ids[place, 1 : 1 + len(row)] = labelled[row.sequence].ids[row.start : row.end]
        is_scored[place, row.scored - row.start : len(row)] = True
    nats = np.concatenate([labelled[row.sequence].nats[row.scored : row.end] for row in rows])
    return Batch(*(torch.from_numpy(array).to(device) for array in (ids, is_scored, nats)))


def endless_batches(rows: Sequence[Row], *, max_tokens: int, seed: int) -> Iterator[list[Row]]:
    """Yield the rows of every step: all of them once an epoch, each epoch in an order of its own.

    Args:
        rows: At least one.
        max_tokens: Tokens of a batch, padding included; a longer row is a batch of its own.
        seed: Decides the order.
    """
    epoch = 0
    while True:
        draws = random.Random(f"{seed} {epoch}")  # noqa: S311 (no secret)
        shuffled = draws.sample(rows, len(rows))
        for start in range(0, len(shuffled), _BLOCK):
            batches = list(ascending_batches(shuffled[start : start + _BLOCK], max_tokens=max_tokens))
            draws.shuffle(batches)
            yield from batches
        epoch += 1


def ascending_batches(rows: Sequence[Row], *, max_tokens: int) -> Iterator[list[Row]]:
    """Yield batches of rows, the shortest first; see ``endless_batches``."""
    batch: list[Row] = []
    for row in sorted(rows, key=len):
        if batch and (len(batch) + 1) * len(row) > max_tokens:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch
