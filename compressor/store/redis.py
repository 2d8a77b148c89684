"""The store in Redis: shared by machines."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Final, cast

from kompakt.compressor.errors import ConfigError, MissingExtraError, StoreError
from kompakt.compressor.store.base import Store, StoreStats

_USERINFO: Final = re.compile(r"(?<=://)([^/:@]*):.*@")
_OPTION: Final = re.compile(r"([?&]password=)[^&]*", re.IGNORECASE)
_PREFIX: Final = b"kompakt:"
_TIMEOUT_SECONDS: Final = 2.0
_LAST_SECOND: Final = 1e15
"""A time that does not come, which the server can still count in milliseconds."""
_KEYS_PER_CALL: Final = 500
_PIPELINE_BYTES: Final = 16 * 2**20
"""Values sent in one go: more would hold up the server's other clients."""


class RedisStore(Store):
    """Values on a Redis server, version 6 or newer.

    How much is kept and what goes first is the server's to decide: set ``maxmemory`` and ``maxmemory-policy
    allkeys-lru`` there. No connection is made before the first call.

    Args:
        url: ``redis://``, ``rediss://`` or ``unix://``, as ``redis.Redis.from_url`` takes it.

    Raises:
        ConfigError: If the URL cannot be used.
        MissingExtraError: If the extra ``redis`` is not installed.
    """

    def __init__(self, url: str) -> None:
        try:
            import redis
        except ImportError as error:
            raise MissingExtraError("a store on a Redis server", "redis") from error
        try:
            self._client = redis.Redis.from_url(
                url, socket_timeout=_TIMEOUT_SECONDS, socket_connect_timeout=_TIMEOUT_SECONDS
            )
        except ValueError as error:
            raise ConfigError(f"not the URL of a Redis server: {_without_password(url)}: {error}") from error
        # values are bytes, whatever the URL asks for
        self._client.connection_pool.connection_kwargs["decode_responses"] = False
        self._url = _without_password(url)

    @property
    def location(self) -> str:
        """The URL, without its password."""
        return self._url

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the value of each key; see ``Store.get_many``."""
        values: list[bytes | None] = []
        with self._translated():
            for group in _groups(keys):
                values.extend(cast("list[bytes | None]", self._client.mget([_PREFIX + key for key in group])))
        return values

    def put_many(self, items: Mapping[bytes, bytes], *, expires_at: float | None = None) -> None:
        """Keep values as long as the server does."""
        # the server takes whole milliseconds, and the past only as a deletion
        at = None if expires_at is None else int(1000 * min(max(0.001, expires_at), _LAST_SECOND))
        with self._translated():
            pipeline = self._client.pipeline(transaction=False)
            waiting = 0
            for key, value in items.items():
                pipeline.set(_PREFIX + key, value, pxat=at)
                waiting += len(value)
                if waiting > _PIPELINE_BYTES:
                    pipeline.execute()
                    waiting = 0
            pipeline.execute()

    def delete_many(self, keys: Sequence[bytes]) -> None:
        """Remove entries."""
        with self._translated():
            for group in _groups(keys):
                self._client.delete(*(_PREFIX + key for key in group))

    def keys(self) -> Iterator[bytes]:
        """Return the keys of all entries; those added meanwhile may be among them."""
        # the server names keys twice while it moves them
        seen: set[bytes] = set()
        with self._translated():
            for key in self._client.scan_iter(match=_PREFIX + b"*", count=1000):
                if key not in seen:
                    seen.add(key)
                    yield key[len(_PREFIX) :]

    def stats(self) -> StoreStats:
        """Return what is in it; this looks at every entry."""
        n_entries = n_bytes = 0
        for group in _groups(self.keys()):
            with self._translated():
                pipeline = self._client.pipeline(transaction=False)
                for key in group:
                    pipeline.strlen(_PREFIX + key)
                n_bytes += sum(pipeline.execute())
            n_entries += len(group)
        with self._translated():
            limit = int(self._client.info("memory").get("maxmemory", 0))
        return StoreStats(self.location, n_entries, n_bytes, limit or None)

    def collect_garbage(self) -> int:
        """Do nothing: the server removes what has expired by itself."""
        with self._translated():
            self._client.ping()
        return 0

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        import redis

        try:
            yield
        except (redis.RedisError, OSError) as error:
            raise StoreError(f"the store {self._url} cannot be used: {type(error).__name__}: {error}") from error


def _groups(keys: Sequence[bytes] | Iterator[bytes]) -> Iterator[list[bytes]]:
    rest = iter(keys)
    while group := list(islice(rest, _KEYS_PER_CALL)):
        yield group


def _without_password(url: str) -> str:
    """Return a URL, well-formed or not, with asterisks for the password, before the host or among the options."""
    return _OPTION.sub(r"\1***", _USERINFO.sub(r"\1:***@", url))
