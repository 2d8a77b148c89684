"""Which implementation of an operation runs: plain torch, the reference, or Triton."""

from __future__ import annotations

import functools
import logging
import os
from importlib.util import find_spec
from typing import Final, Literal, TypeAlias, cast, get_args

import torch

Setting: TypeAlias = Literal["auto", "reference", "torch", "triton"]
Implementation: TypeAlias = Literal["torch", "reference", "triton"]

VARIABLE: Final = "KOMPAKT_KERNELS"
"""Environment variable with the setting; ``auto`` without it."""

_LOG = logging.getLogger(__name__)


class KernelUnavailableError(RuntimeError):
    """An implementation that was asked for by name cannot run here."""


def choose(operation: str, *tensors: torch.Tensor, refusal: str = "") -> Implementation:
    """Return which implementation a call should take.

    ``auto`` takes Triton for tensors on a GPU and torch otherwise. An automatic choice that cannot run in Triton
    falls back to torch and says so once; an explicit one raises.

    Args:
        operation: Name of the operation, for messages.
        tensors: What it is called with.
        refusal: Why its kernel cannot take this call; empty if it can.

    Raises:
        KernelUnavailableError: If Triton is asked for and cannot run.
        ValueError: If the setting is unknown.
    """
    chosen = setting()
    if chosen in ("reference", "torch"):
        return chosen
    on_gpu = all(tensor.is_cuda for tensor in tensors)
    if chosen == "auto" and not on_gpu:
        return "torch"
    reason = refusal or _why_not_here(on_gpu)
    if not reason:
        return "triton"
    if chosen == "triton":
        raise KernelUnavailableError(
            f"{VARIABLE}=triton, but {operation} cannot run in Triton here: {reason}; set {VARIABLE}=auto"
        )
    _say_once(f"{operation} runs in torch, not in Triton: {reason}")
    return "torch"


def setting() -> Setting:
    """Return what the environment asks for.

    Raises:
        ValueError: If it is none of the settings.
    """
    value = os.environ.get(VARIABLE, "") or "auto"
    if value not in get_args(Setting):
        raise ValueError(f"{VARIABLE} must be one of {', '.join(get_args(Setting))}, got {value!r}")
    return cast("Setting", value)


def is_interpreted() -> bool:
    """Tell whether Triton runs its kernels in Python on the CPU: for tests, thousands of times slower."""
    return os.environ.get("TRITON_INTERPRET", "") in ("1", "true", "on", "yes")


def _why_not_here(on_gpu: bool) -> str:
    if find_spec("triton") is None:
        return "it is not installed; pip install 'kompakt[triton]'"
    if not on_gpu and not is_interpreted():
        return "its tensors are not on a GPU, and TRITON_INTERPRET is not 1"
    return ""


@functools.cache
def _say_once(message: str) -> None:
    _LOG.warning(message)
