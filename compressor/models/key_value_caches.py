"""The key-value caches of transformers, and how models are given one."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import DynamicCache, PreTrainedModel


def new_cache() -> DynamicCache:
    """Return an empty cache; without a configuration, since layers with a window would forget what is taken back."""
    from transformers import DynamicCache

    return DynamicCache()


def cache_argument(model: PreTrainedModel, cache: DynamicCache) -> dict[str, DynamicCache]:
    """Return the keyword argument by which a model's forward pass takes a cache."""
    return {_argument_name(type(model).forward): cache}


@functools.cache
def _argument_name(forward: Callable[..., object]) -> str:
    # transformers 5.24 renamed it, one class of model after the other
    return "cache" if "cache" in inspect.signature(forward).parameters else "past_key_values"
