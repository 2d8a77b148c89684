"""Chance that is the same on every machine and in every run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from typing import TypeVar

_Item = TypeVar("_Item")


def hashed(*parts: str | float) -> int:
    """Return a number of 256 bits that depends on every part."""
    return int.from_bytes(hashlib.sha256(json.dumps(parts).encode()).digest())


def shuffled(items: Iterable[_Item], key: Callable[[_Item], str | int], *parts: str | float) -> list[_Item]:
    """Return the items in an order that their keys and the parts decide, whatever order they come in.

    Args:
        items: What to put in order.
        key: A name of an item, distinct among them.
        *parts: What else decides, such as the seed.
    """
    return sorted(items, key=lambda item: hashed(*parts, key(item)))
