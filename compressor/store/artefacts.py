"""What models say of texts, looked up before they are asked again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from operator import itemgetter
from typing import Generic, TypeVar

from kompakt.compressor.errors import ConfigError, StoreError
from kompakt.compressor.store.base import Store
from kompakt.compressor.store.keys import text_keys
from kompakt.compressor.store.memory import MemoryStore
from kompakt.compressor.types import require_unicode

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Recipe(Generic[T]):
    """One kind of artefact: what makes it from a text, and how it is written.

    Args:
        identity: Everything but the text that decides the result, as JSON: a name, the fingerprint of the model, its
            number format, options.
        compute: Makes the artefacts of several texts.
        encode: Writes one as bytes.
        decode: Reads one from bytes; it raises ``ValueError`` for bytes that are none.
    """

    identity: Sequence[object]
    compute: Callable[[list[str]], Iterable[T]]
    encode: Callable[[T], bytes]
    decode: Callable[[bytes], T]


def as_stored(
    identity: Sequence[object],
    compute: Callable[[list[str]], Iterable[T]],
    encode: Callable[[T], bytes],
    decode: Callable[[bytes], T],
) -> Recipe[tuple[T, bytes]]:
    """Return a recipe for artefacts that are rounded as they are written; see ``Recipe``.

    What was just made is given as it is found later, beside its bytes, which are written once: from what it was
    before, so that they can state how far it is from that.
    """

    def read(data: bytes) -> tuple[T, bytes]:
        return decode(data), data

    def make(texts: list[str]) -> Iterator[tuple[T, bytes]]:
        return (read(encode(artefact)) for artefact in compute(texts))

    return Recipe(identity, make, itemgetter(1), read)


class Artefacts:
    """Artefacts of texts, kept in a store and made where it has none.

    Args:
        store: Where they are kept; the memory of this process without one.
        tenant: Whose texts they are; see ``text_keys``.

    Raises:
        ConfigError: If ``tenant`` is no text.
        InputError: If it holds a lone surrogate.
    """

    def __init__(self, store: Store | None = None, *, tenant: str = "") -> None:
        if not isinstance(tenant, str):
            raise ConfigError(f"tenant must be a str, got {tenant!r}")
        require_unicode(tenant, "the tenant")
        self.store = store if store is not None else process_store()
        self.tenant = tenant
        self.hits = 0
        self.misses = 0
        self._ahead: set[bytes] = set()

    def fetch(self, recipe: Recipe[T], texts: Sequence[str], *, is_ahead: bool = False) -> list[T]:
        """Return the artefact of each text.

        Args:
            recipe: What to make.
            texts: Of what; equal texts are computed once.
            is_ahead: Whether this call only prepares others, which then count what it computed as computed.
        """
        keys = text_keys(recipe.identity, texts, tenant=self.tenant)
        stored = self.store.get_many(keys)
        found: dict[bytes, T] = {}
        for key, value in zip(keys, stored, strict=True):
            if value is not None and key not in found:
                artefact = _decoded(recipe, value)
                if artefact is not None:
                    found[key] = artefact
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in found}
        self._count(keys, missing, is_ahead=is_ahead)
        if missing:
            made = dict(zip(missing, recipe.compute(list(missing.values())), strict=True))
            self.store.put_many({key: recipe.encode(artefact) for key, artefact in made.items()})
            found |= made
        return [found[key] for key in keys]

    def _count(self, keys: Sequence[bytes], missing: dict[bytes, str], *, is_ahead: bool) -> None:
        if is_ahead:
            self._ahead.update(missing)
            return
        computed = self._ahead.union(missing)
        n_computed = 0
        for key in keys:
            if key in computed:
                n_computed += 1
                computed.discard(key)
                self._ahead.discard(key)
        self.misses += n_computed
        self.hits += len(keys) - n_computed

    @staticmethod
    def together(several: Sequence[Artefacts]) -> list[Artefacts]:
        """Return a view of each, to be used in one batch: with counts of its own, and one reading ahead for all."""
        shared: dict[tuple[int, str], set[bytes]] = {}
        views = []
        for one in several:
            view = Artefacts(one.store, tenant=one.tenant)
            view._ahead = shared.setdefault((id(one.store), one.tenant), view._ahead)
            views.append(view)
        return views

    def is_shared_with(self, other: Artefacts) -> bool:
        """Tell whether two find the same artefacts."""
        return self.store is other.store and self.tenant == other.tenant


def _decoded(recipe: Recipe[T], value: bytes) -> T | None:
    try:
        return recipe.decode(value)
    except (ValueError, StoreError):
        return None


@cache
def process_store() -> MemoryStore:
    """Return the memory that all compressors of this process share unless they are given a store."""
    return MemoryStore()
