"""How a value is written where it can be damaged: compressed where that pays, and with a checksum."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from threading import local
from typing import TYPE_CHECKING, Final

from kompakt.compressor.errors import StoreError

if TYPE_CHECKING:
    import zstandard

_MAGIC: Final = b"KS\x01"
_HEADER: Final = struct.Struct(">3sBd12s")
_COMPRESSED: Final = 1
_WORTH_TRYING: Final = 256
"""Bytes below which compression is not tried."""
_WORTH_IT: Final = 0.9
"""Share of its size that a value must shrink to."""
_MAX_BYTES: Final = 1 << 31
_NEVER: Final = math.inf


@dataclass(frozen=True, slots=True)
class Opened:
    """A value and when it expires.

    Args:
        payload: The value.
        expires_at: Seconds since the epoch; None for never.
    """

    payload: bytes
    expires_at: float | None


def seal(key: bytes, payload: bytes, expires_at: float | None = None) -> bytes:
    """Return a value as it is stored: a header with a checksum over the key and everything else, then the value."""
    flags, body = 0, payload
    if len(payload) >= _WORTH_TRYING:
        packed = _tools().compressor.compress(payload)
        if len(packed) <= _WORTH_IT * len(payload):
            flags, body = _COMPRESSED, packed
    expiry = _NEVER if expires_at is None else expires_at
    return _HEADER.pack(_MAGIC, flags, expiry, _checksum(key, flags, expiry, body)) + body


def unseal(key: bytes, sealed: bytes) -> Opened:
    """Return what was sealed.

    Raises:
        StoreError: If a single bit differs from what ``seal`` returned for this key.
    """
    if len(sealed) < _HEADER.size:
        raise StoreError(f"an entry has {len(sealed)} bytes, fewer than its header")
    magic, flags, expiry, checksum = _HEADER.unpack_from(sealed)
    body = sealed[_HEADER.size :]
    if magic != _MAGIC or checksum != _checksum(key, flags, expiry, body):
        raise StoreError("an entry is damaged: its checksum is wrong")
    return Opened(_unpacked(body) if flags & _COMPRESSED else body, None if expiry == _NEVER else expiry)


def _unpacked(body: bytes) -> bytes:
    import zstandard

    try:
        return _tools().decompressor.decompress(body, max_output_size=_MAX_BYTES)
    except zstandard.ZstdError as error:
        raise StoreError(f"an entry is damaged: {error}") from error


def _checksum(key: bytes, flags: int, expiry: float, body: bytes) -> bytes:
    digest = blake2b(key, digest_size=12)
    digest.update(struct.pack(">Bd", flags, expiry))
    digest.update(body)
    return digest.digest()


class _Tools(local):
    """zstd's contexts, which threads must not share."""

    compressor: zstandard.ZstdCompressor
    decompressor: zstandard.ZstdDecompressor

    def __init__(self) -> None:
        import zstandard

        self.compressor = zstandard.ZstdCompressor(level=3)
        self.decompressor = zstandard.ZstdDecompressor()


@cache
def _tools() -> _Tools:
    return _Tools()
