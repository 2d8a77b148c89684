"""What is timed: one call of one operation, in every implementation that runs here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Case:
    """A call of an operation.

    Args:
        operation: Its name.
        size: The shapes, for people.
        dtype: Number format of its main input.
        call: Runs the public function, which chooses the implementation by the environment.
        reference: Runs the definition. What ``call`` returns must be within ``tolerance`` of it, or nothing is timed.
        tolerance: Largest difference, relative to the root of the mean square of the reference.
        flops: Arithmetic that cannot be avoided; 0 where memory alone counts.
        n_bytes: Memory that must be read and written once.
    """

    operation: str
    size: str
    dtype: torch.dtype
    call: Callable[[], torch.Tensor]
    reference: Callable[[], torch.Tensor]
    tolerance: float
    flops: float
    n_bytes: float
