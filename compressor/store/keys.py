"""Keys: a hash over everything that decides what a value is, so that no value can be stale."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from typing import Final

_DIGEST: Final = 32


@cache
def release() -> str:
    """Return the part of kompakt's version that every key holds: values of another minor version are not found.

    Patch releases do not change what compressors return.
    """
    return ".".join(version("kompakt").split(".")[:2])


def text_keys(recipe: Sequence[object], texts: Sequence[str], *, tenant: str = "") -> list[bytes]:
    """Return a key for what one recipe makes of each text.

    Args:
        recipe: What the values are and what made them: a name, fingerprints of models and tokenizers, options. It
            must be JSON.
        texts: The texts.
        tenant: Whose they are. Tenants never find each other's values, and cannot tell which texts others stored.

    Returns:
        SHA-256 digests.
    """
    # one hash over the common part, copied for each text
    common = hashlib.sha256(_framed(json.dumps([release(), tenant, *recipe], ensure_ascii=False)))
    keys = []
    for text in texts:
        one = common.copy()
        one.update(text.encode())
        keys.append(one.digest())
    return keys


def _framed(text: str) -> bytes:
    """Return text with its length in front, so that no two pairs of recipe and text read alike."""
    data = text.encode()
    return len(data).to_bytes(8, "big") + data


def is_key(value: bytes) -> bool:
    """Tell whether bytes have the form of a key."""
    return len(value) == _DIGEST
