"""Stores by their location."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from kompakt.compressor.errors import ConfigError
from kompakt.compressor.models.locate import user_cache
from kompakt.compressor.store.base import Store
from kompakt.compressor.store.memory import DEFAULT_BYTES, MemoryStore
from kompakt.compressor.store.sqlite import DEFAULT_BYTES as DEFAULT_FILE_BYTES
from kompakt.compressor.store.sqlite import SQLiteStore
from kompakt.compressor.store.tiered import TieredStore

DEFAULT: Final = "default"
MEMORY: Final = "memory"
_REDIS: Final = ("redis://", "rediss://", "unix://")


def default_path() -> Path:
    """Return the file of the default store: in ``$KOMPAKT_CACHE``, or in the user's cache folder."""
    return user_cache() / "segments.sqlite"


def open_store(
    location: str | os.PathLike[str] | Store,
    *,
    max_bytes: int | None = None,
    memory_bytes: int = DEFAULT_BYTES,
    ttl: float | None = None,
) -> Store:
    """Return a store with memory in front of it. Nothing is opened or made before it is used.

    Args:
        location: ``"default"`` (a file in the user's cache folder), ``"memory"``, the path of a SQLite file, the URL
            of a Redis server, or a store, which is returned as it is.
        max_bytes: The most bytes of values that a file keeps; 10 GiB unless told.
        memory_bytes: The most bytes of values in memory.
        ttl: Seconds that a value is kept; None for as long as there is room.

    Raises:
        ConfigError: If the location or an option makes no sense.
        MissingExtraError: If the location needs an optional dependency.
    """
    if isinstance(location, Store):
        return location
    if not isinstance(location, (str, os.PathLike)) or not os.fspath(location):
        raise ConfigError(f"store must be a path, a URL or a store, got {location!r}")
    name = os.fspath(location)
    if name == MEMORY:
        return MemoryStore(memory_bytes, ttl=ttl)
    return TieredStore(open_backing(name, max_bytes=max_bytes), front=MemoryStore(memory_bytes), ttl=ttl)


def open_backing(location: str, *, max_bytes: int | None = None) -> Store:
    """Return the file or server at a location, without memory in front: for maintenance.

    Raises:
        ConfigError: If the location makes no sense.
        MissingExtraError: If it needs an optional dependency.
    """
    if location.startswith(_REDIS):
        if max_bytes is not None:
            raise ConfigError("max_bytes is for files; set maxmemory on the Redis server")
        from kompakt.compressor.store.redis import RedisStore

        return RedisStore(location)
    if "://" in location:
        raise ConfigError(f"no store at {location!r}: give a path, or a URL with {', '.join(_REDIS)}")
    path = default_path() if location == DEFAULT else Path(os.path.expanduser(location))
    # unlike Path.is_dir, False as well where the folder may not be searched
    if os.path.isdir(path):
        raise ConfigError(f"{path} is a folder; name a file in it, such as {path / 'segments.sqlite'}")
    return SQLiteStore(path, max_bytes=DEFAULT_FILE_BYTES if max_bytes is None else max_bytes)
