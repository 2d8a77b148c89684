"""Unit vectors by id, searched exactly while they are few and approximately when they are many."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from kompakt.compressor.errors import ConfigError, InputError, MissingExtraError, StoreError
from kompakt.compressor.models.locate import file_sha256
from kompakt.retrieval.manifest import replace_file

Ids: TypeAlias = npt.NDArray[np.int64]
Vectors: TypeAlias = npt.NDArray[np.float32]
VectorIndexKind: TypeAlias = Literal["flat", "hnsw", "ivf"]
FaissIndex: TypeAlias = Any
"""FAISS types its classes loosely, and need not be installed where this module is imported."""

FLAT_LIMIT: Final = 50_000
HNSW_LIMIT: Final = 1_000_000

_KINDS: Final[tuple[VectorIndexKind, ...]] = ("flat", "hnsw", "ivf")
_LINKS: Final = 32
_EF_CONSTRUCTION: Final = 200
_EF_SEARCH: Final = 128
_LISTS_PER_ROOT: Final = 4
_MIN_PER_LIST: Final = 39
"""Vectors a list below which FAISS warns that k-means has too few."""
_TRAINED_PER_LIST: Final = 64
_PROBES: Final = 64
"""Made-up queries by which the number of lists to visit is set."""
_PROBE_DEPTH: Final = 10
_RECALL: Final = 0.97
_DEAD: Final = 0.2
"""Share of removed vectors above which an index that cannot remove is built again."""
_GONE: Final = -1
_BATCH: Final = 65_536
_MAX_ID: Final = 2**63 - 1


class VectorIndex:
    """Unit vectors by id, found by their inner product with another one. Made by ``create`` or ``open``.

    Up to ``flat_limit`` vectors are compared one by one. Up to ``hnsw_limit`` they are searched by a graph with 32
    links a vector (HNSW: Malkov and Yashunin 2018, arXiv 1603.09320), beyond in inverted lists (IVF), of which as
    many are visited as find 97 % of the nearest ten of made-up queries. The index changes its kind as it grows, from
    the vectors that it holds. A search that is restricted to at most ``flat_limit`` ids is exact in every kind.

    Args:
        index: The FAISS index.
        flat_limit: Vectors up to which the search is exact.
        hnsw_limit: Vectors up to which a graph is used.
    """

    def __init__(self, index: FaissIndex, *, flat_limit: int = FLAT_LIMIT, hnsw_limit: int = HNSW_LIMIT) -> None:
        if not 0 < flat_limit <= hnsw_limit:
            raise ConfigError(f"limits must be 0 < flat_limit <= hnsw_limit, got {flat_limit} and {hnsw_limit}")
        self._limits = (flat_limit, hnsw_limit)
        self._mapped: Path | None = None
        self._ids: Ids = np.zeros(0, np.int64)
        self._set(index)

    @classmethod
    def create(cls, dimension: int, *, flat_limit: int = FLAT_LIMIT, hnsw_limit: int = HNSW_LIMIT) -> VectorIndex:
        """Return an empty index of vectors with ``dimension`` components.

        Raises:
            ConfigError: If the dimension or a limit makes no sense.
            MissingExtraError: If FAISS is not installed.
        """
        if dimension < 1:
            raise ConfigError(f"dimension must be at least 1, got {dimension}")
        faiss = _faiss()
        return cls(faiss.IndexIDMap(faiss.IndexFlatIP(dimension)), flat_limit=flat_limit, hnsw_limit=hnsw_limit)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        sha256: str | None,
        memory_map: bool = True,
        flat_limit: int = FLAT_LIMIT,
        hnsw_limit: int = HNSW_LIMIT,
    ) -> VectorIndex:
        """Read an index.

        Args:
            path: The file that ``save`` wrote.
            sha256: The SHA-256 in hex that it must have; None to trust it.
            memory_map: Leave the vectors in the file until they are needed. The first change loads them.
            flat_limit: Vectors up to which the search is exact.
            hnsw_limit: Vectors up to which a graph is used.

        Raises:
            StoreError: If the file is missing, damaged or none of an index.
            MissingExtraError: If FAISS is not installed.
        """
        file = Path(path)
        try:
            actual = None if sha256 is None else file_sha256(file)
        except OSError as error:
            raise StoreError(f"cannot read the vectors in {file}: {error}") from error
        if actual != sha256:
            raise StoreError(f"the vectors in {file} are damaged: their SHA-256 is {actual}, expected {sha256}")
        opened = cls(_read(file, memory_map=memory_map), flat_limit=flat_limit, hnsw_limit=hnsw_limit)
        opened._mapped = file if memory_map else None
        return opened

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def kind(self) -> VectorIndexKind:
        """How it is searched: ``flat`` (exactly), ``hnsw`` (by a graph) or ``ivf`` (in inverted lists)."""
        faiss = _faiss()
        if isinstance(self._base, faiss.IndexHNSW):
            return "hnsw"
        return "ivf" if isinstance(self._base, faiss.IndexIVF) else "flat"

    @property
    def dimension(self) -> int:
        """Components of a vector."""
        return int(self._index.d)

    @property
    def ids(self) -> Ids:
        """The ids, ascending, as ``[N]``."""
        return self._ids.copy()

    def add(self, ids: npt.ArrayLike, vectors: npt.ArrayLike) -> None:
        """Add vectors.

        Args:
            ids: Whole numbers from 0, ``[N]``, none of which is there already.
            vectors: Unit vectors, ``[N, D]``.

        Raises:
            InputError: If the ids or the vectors cannot be used.
        """
        new = _as_ids(ids)
        rows = self._as_rows(vectors)
        if len(new) != len(rows):
            raise InputError(f"every vector needs an id: got {len(new)} ids and {len(rows)} vectors")
        order = np.argsort(new)
        places = np.searchsorted(self._ids, new[order])
        merged = np.insert(self._ids, places, new[order])
        if (merged[1:] == merged[:-1]).any():
            raise InputError("an id is given twice or has a vector already; remove it first")
        if not len(new):
            return
        self._load()
        if self._is_outgrown(len(merged)):
            self._rebuild(new, rows)
        else:
            self._index.add_with_ids(rows, new)
        self._ids = merged

    def remove(self, ids: npt.ArrayLike) -> int:
        """Remove the vectors of ids and return how many there were; other ids are passed over.

        Graphs and inverted lists keep what is removed, out of sight, until it is over a fifth of all.
        """
        faiss = _faiss()
        doomed = np.intersect1d(self._ids, _as_ids(ids))
        if not len(doomed):
            return 0
        self._load()
        if self.kind == "flat":
            self._index.remove_ids(faiss.IDSelectorBatch(doomed))
        else:
            labels = self._labels()
            labels[np.isin(labels, doomed)] = _GONE
            faiss.copy_array_to_vector(labels, self._index.id_map)
        self._ids = np.setdiff1d(self._ids, doomed, assume_unique=True)
        if self._index.ntotal - len(self._ids) > _DEAD * self._index.ntotal:
            self._rebuild(np.zeros(0, np.int64), np.zeros((0, self.dimension), np.float32))
        return len(doomed)

    def search(self, vector: npt.ArrayLike, k: int, *, allowed: npt.ArrayLike | None = None) -> tuple[Ids, Vectors]:
        """Return the nearest vectors.

        Args:
            vector: A unit vector, ``[D]``.
            k: The most to return.
            allowed: Ids to choose among; all by default. Ids that have no vector are passed over.

        Returns:
            Ids and inner products, both ``[k']`` with ``k' <= k``, best first, the lower id first among equals.

        Raises:
            InputError: If the vector does not fit or ``k`` is below 1.
        """
        if k < 1:
            raise InputError(f"k must be at least 1, got {k}")
        row = self._as_rows(np.atleast_2d(vector))
        among = None if allowed is None else np.unique(_as_ids(allowed))
        n_among = len(self) if among is None else min(len(among), len(self))
        if not n_among:
            return np.zeros(0, np.int64), np.zeros(0, np.float32)
        scores, found = self._search(row, min(k, n_among), among, n_among)
        order = [place for place in np.lexsort((found, -scores)) if found[place] >= 0]
        return found[order], scores[order]

    def save(self, path: str | os.PathLike[str]) -> str:
        """Write the index to a file, as a whole or not at all, and return the file's SHA-256 in hex.

        Raises:
            StoreError: If the file cannot be written.
        """
        file = Path(path)
        replace_file(file, lambda temporary: _faiss().write_index(self._index, str(temporary)))
        return file_sha256(file)

    def _set(self, index: FaissIndex) -> None:
        self._index = index
        self._base = _faiss().downcast_index(index.index)
        labels = self._labels()
        labels.sort()
        self._ids = labels[labels >= 0]

    def _labels(self) -> Ids:
        """Return the id at each position, ``_GONE`` where there is none any more."""
        return np.asarray(_faiss().vector_to_array(self._index.id_map), dtype=np.int64)

    def _load(self) -> None:
        if self._mapped is not None:
            self._set(_read(self._mapped, memory_map=False))
            self._mapped = None

    def _kind_for(self, n: int) -> VectorIndexKind:
        flat_limit, hnsw_limit = self._limits
        return "flat" if n <= flat_limit else "hnsw" if n <= hnsw_limit else "ivf"

    def _is_outgrown(self, n: int) -> bool:
        if self.kind == "ivf":
            return _n_lists(n) > 2 * int(self._base.nlist)
        return _KINDS.index(self._kind_for(n)) > _KINDS.index(self.kind)

    def _rebuild(self, ids: Ids, vectors: Vectors) -> None:
        """Build the index that fits what is there, with more vectors."""
        faiss = _faiss()
        labels = self._labels()
        alive = np.flatnonzero(labels >= 0)
        n = len(alive) + len(ids)
        if self.kind == "ivf":
            self._base.make_direct_map()
        base = _empty(self._kind_for(n), self.dimension, n)
        if not base.is_trained:
            base.train(self._sample(alive, vectors, _TRAINED_PER_LIST * base.nlist))
        index = faiss.IndexIDMap(base)
        for start in range(0, len(alive), _BATCH):
            batch = alive[start : start + _BATCH]
            index.add_with_ids(self._base.reconstruct_batch(batch), labels[batch])
        index.add_with_ids(vectors, ids)
        if isinstance(base, faiss.IndexIVF):
            base.nprobe = _tuned(base, self._sample(alive, vectors, _PROBES))
        self._set(index)

    def _sample(self, alive: Ids, vectors: Vectors, n: int) -> Vectors:
        """Return at most ``n`` of the vectors at positions ``alive`` and of further ones, ``[n', D]``."""
        total = len(alive) + len(vectors)
        chosen = np.sort(np.random.default_rng(0).choice(total, size=min(n, total), replace=False))
        old = chosen[chosen < len(alive)]
        new = vectors[chosen[len(old) :] - len(alive)]
        return np.concatenate([self._base.reconstruct_batch(alive[old]), new]) if len(old) else new

    def _search(self, row: Vectors, k: int, among: Ids | None, n_among: int) -> tuple[Vectors, Ids]:
        """Return the scores and ids that FAISS finds for one vector, ``[k]`` each, id -1 where it finds fewer."""
        faiss = _faiss()
        selector = None if among is None else faiss.IDSelectorBatch(among)
        if among is None and self._index.ntotal > len(self):
            # those that are gone have ids below 0
            selector = faiss.IDSelectorRange(0, _MAX_ID)
        is_exact = among is not None and n_among <= self._limits[0]
        # of what is visited, only this share may be returned
        share = n_among / self._index.ntotal
        if self.kind == "flat":
            parameters = faiss.SearchParameters(sel=selector)
        elif self.kind == "ivf":
            n_lists = self._base.nlist if is_exact else min(self._base.nlist, round(self._base.nprobe / share))
            parameters = faiss.SearchParametersIVF(sel=selector, nprobe=n_lists)
        elif is_exact:
            return self._search_storage(row, k, selector)
        else:
            width = round(max(self._base.hnsw.efSearch, 2 * k) / share)
            parameters = faiss.SearchParametersHNSW(sel=selector, efSearch=width)
        scores, found = self._index.search(row, k, params=parameters)
        return scores[0], found[0]

    def _search_storage(self, row: Vectors, k: int, selector: FaissIndex) -> tuple[Vectors, Ids]:
        """Compare the vectors of a graph one by one."""
        faiss = _faiss()
        storage, id_map = faiss.downcast_index(self._base.storage), self._index.id_map
        by_position = faiss.IDSelectorTranslated(id_map, selector)
        scores, positions = storage.search(row, k, params=faiss.SearchParameters(sel=by_position))
        found = [id_map.at(int(position)) if position >= 0 else _GONE for position in positions[0]]
        return scores[0], np.asarray(found, dtype=np.int64)

    def _as_rows(self, vectors: npt.ArrayLike) -> Vectors:
        rows = np.ascontiguousarray(vectors, dtype=np.float32)
        if rows.ndim != 2 or rows.shape[1] != self.dimension:
            raise InputError(f"vectors must be [N, {self.dimension}], got {list(rows.shape)}")
        if not np.isfinite(rows).all():
            raise InputError("vectors must be finite; the encoder returned NaN or infinity")
        return rows


def _faiss() -> FaissIndex:
    try:
        import faiss
    except ImportError as error:
        raise MissingExtraError("an index of segments", "retrieval") from error
    return faiss


def _read(path: Path, *, memory_map: bool) -> FaissIndex:
    faiss = _faiss()
    try:
        index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC if memory_map else 0)
    except RuntimeError as error:
        raise StoreError(f"cannot read the vectors in {path}: {error}") from error
    if not isinstance(index, faiss.IndexIDMap):
        raise StoreError(f"{path} holds no index of kompakt but a {type(index).__name__}")
    return index


def _as_ids(ids: npt.ArrayLike) -> Ids:
    given = np.asarray(ids)
    if given.ndim != 1 or (len(given) and not np.issubdtype(given.dtype, np.integer)):
        raise InputError(f"ids must be whole numbers, [N], got {given.dtype} {list(given.shape)}")
    if len(given) and (given.min() < 0 or given.max() > _MAX_ID):
        raise InputError(f"ids must be from 0 to 2**63 - 1, got {given.min()} to {given.max()}")
    return np.ascontiguousarray(given, dtype=np.int64)


def _n_lists(n: int) -> int:
    return max(1, min(round(_LISTS_PER_ROOT * math.sqrt(n)), n // _MIN_PER_LIST))


def _empty(kind: VectorIndexKind, dimension: int, n: int) -> FaissIndex:
    """Return an index without vectors; an IVF index for ``n`` of them, which must be trained."""
    faiss = _faiss()
    if kind == "flat":
        return faiss.IndexFlatIP(dimension)
    if kind == "hnsw":
        graph = faiss.IndexHNSWFlat(dimension, _LINKS, faiss.METRIC_INNER_PRODUCT)
        graph.hnsw.efConstruction, graph.hnsw.efSearch = _EF_CONSTRUCTION, _EF_SEARCH
        return graph
    return faiss.IndexIVFFlat(faiss.IndexFlatIP(dimension), dimension, _n_lists(n), faiss.METRIC_INNER_PRODUCT)


def _tuned(base: FaissIndex, sample: Vectors) -> int:
    """Return how many lists must be visited to find nearly all that are nearest."""
    faiss = _faiss()
    noise = np.random.default_rng(0).normal(size=sample.shape).astype(np.float32)
    # questions are less like the passages that answer them than those are like each other: a cosine of about 0.7
    queries = sample + noise / np.linalg.norm(noise, axis=1, keepdims=True)
    depth = min(_PROBE_DEPTH, base.ntotal)

    def nearest(n_lists: int) -> list[set[int]]:
        _, found = base.search(queries, depth, params=faiss.SearchParametersIVF(nprobe=n_lists))
        return [set(row.tolist()) for row in found]

    most = int(base.nlist)
    exact = nearest(most)
    n_lists = max(1, most // 128)
    while n_lists < most:
        recall = sum(len(a & b) for a, b in zip(exact, nearest(n_lists), strict=True)) / (depth * len(exact))
        if recall >= _RECALL:
            break
        n_lists = min(most, 2 * n_lists)
    return n_lists
