"""Vectors by id: the search is exact or nearly so in every kind of index, and survives changes and files."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kompakt import ConfigError, InputError
from kompakt.compressor.errors import StoreError
from kompakt.retrieval.vectors import VectorIndex

with warnings.catch_warnings():
    # SWIG's classes warn on newer Pythons
    warnings.simplefilter("ignore", DeprecationWarning)
    faiss = pytest.importorskip("faiss")

DIMENSION = 16
LIMITS = {
    "flat": {"flat_limit": 50_000},
    "hnsw": {"flat_limit": 200},
    "ivf": {"flat_limit": 200, "hnsw_limit": 1000},
}
kinds = pytest.mark.parametrize("kind", LIMITS)
graphs = pytest.mark.parametrize("kind", ["hnsw", "ivf"])


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def clustered(n, seed=0):
    """Vectors in groups, as embeddings are."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(1).normal(size=(40, DIMENSION))
    return unit(centres[rng.integers(40, size=n)] + 0.6 * rng.normal(size=(n, DIMENSION)))


VECTORS = clustered(3000)
IDS = np.random.default_rng(2).permutation(9000)[:3000].astype(np.int64)
QUERIES = clustered(60, seed=3)


def built(kind, *, parts=1, n=3000):
    index = VectorIndex.create(DIMENSION, **LIMITS[kind])
    for chunk in np.array_split(np.arange(n), parts):
        index.add(IDS[chunk], VECTORS[chunk])
    return index


def brute(query, k, ids=IDS, vectors=VECTORS):
    scores = vectors @ query
    order = np.lexsort((ids, -scores))[:k]
    return ids[order], scores[order]


def recall(index, *, k=10, ids=IDS, vectors=VECTORS, allowed=None):
    shared = 0
    for query in QUERIES:
        found, scores = index.search(query, k, allowed=allowed)
        assert len(found) == len(scores) == min(k, len(ids))
        assert np.isin(found, ids).all()
        by_id = dict(zip(ids.tolist(), vectors @ query, strict=True))
        assert np.allclose(scores, [by_id[name] for name in found.tolist()], atol=1e-5)
        assert (np.diff(scores) <= 0).all()
        shared += len(set(found.tolist()) & set(brute(query, k, ids, vectors)[0].tolist()))
    return shared / (min(k, len(ids)) * len(QUERIES))


@settings(max_examples=30)
@given(st.data(), st.integers(1, 40), st.integers(1, 50))
def test_flat_equals_brute_force_through_adds_and_removals(data, n, k):
    index = VectorIndex.create(DIMENSION)
    index.add(IDS[:n], VECTORS[:n])
    gone = data.draw(st.sets(st.integers(0, n - 1)))
    assert index.remove(IDS[sorted(gone)]) == len(gone)
    index.add(IDS[n : n + 5], VECTORS[n : n + 5])
    left = [row for row in range(n + 5) if row not in gone]
    allowed = data.draw(st.none() | st.just(IDS[: n // 2]))
    chosen = [row for row in left if allowed is None or row < n // 2]
    found, scores = index.search(QUERIES[0], k, allowed=allowed)
    expected, wanted = brute(QUERIES[0], k, IDS[chosen], VECTORS[chosen])
    assert found.tolist() == expected.tolist()
    assert np.allclose(scores, wanted, atol=1e-6)
    assert len(index) == len(left)
    assert index.ids.tolist() == sorted(IDS[left].tolist())


@kinds
@pytest.mark.parametrize("parts", [1, 7])
def test_recall(kind, parts):
    index = built(kind, parts=parts)
    assert index.kind == kind
    assert len(index) == 3000
    assert recall(index) >= (1 if kind == "flat" else 0.95)


def test_it_changes_its_kind_as_it_grows():
    index = VectorIndex.create(DIMENSION, flat_limit=100, hnsw_limit=1000)
    found = []
    for start in range(0, 3000, 50):
        index.add(IDS[start : start + 50], VECTORS[start : start + 50])
        found.append(index.kind)
    assert found == ["flat"] * 2 + ["hnsw"] * 18 + ["ivf"] * 40
    assert recall(index) >= 0.95


@kinds
def test_removed_vectors_are_not_found(kind):
    index = built(kind)
    gone = IDS[:500]
    assert index.remove(gone) == 500
    assert index.remove(gone) == 0
    assert index.kind == kind
    assert recall(index, ids=IDS[500:], vectors=VECTORS[500:]) >= 0.95


@graphs
def test_removed_ids_can_come_back_with_other_vectors(kind):
    index = built(kind)
    index.remove(IDS[:300])
    others = clustered(300, seed=9)
    index.add(IDS[:300], others)
    assert recall(index, vectors=np.concatenate([others, VECTORS[300:]])) >= 0.95


@graphs
def test_what_is_mostly_removed_is_built_again(kind):
    index = built(kind)
    index.remove(IDS[:600])
    assert index._index.ntotal == 3000
    index.remove(IDS[600:602])
    assert index._index.ntotal == len(index) == 2398
    assert recall(index, ids=IDS[602:], vectors=VECTORS[602:]) >= 0.95
    index.remove(IDS[:2950])
    assert index.kind == "flat"
    assert recall(index, ids=IDS[2950:], vectors=VECTORS[2950:]) == 1
    index.remove(IDS)
    assert len(index) == 0
    assert index.search(QUERIES[0], 5)[0].tolist() == []


@kinds
@pytest.mark.parametrize("n", [3, 150, 1500])
def test_a_search_can_be_restricted(kind, n):
    index = built(kind)
    index.remove(IDS[:100])
    allowed = IDS[50 : 50 + n]
    left = slice(100, 50 + n)
    expected = 1 if n < 200 or kind == "flat" else 0.95
    if n <= 50:
        assert index.search(QUERIES[0], 5, allowed=allowed)[0].tolist() == []
    else:
        assert recall(index, ids=IDS[left], vectors=VECTORS[left], allowed=allowed) >= expected


@kinds
def test_a_restricted_search_passes_over_ids_without_a_vector(kind):
    index = built(kind)
    found, _ = index.search(VECTORS[4], 10, allowed=[10**12, int(IDS[4]), int(IDS[4])])
    assert found.tolist() == [IDS[4]]
    assert index.search(VECTORS[4], 10, allowed=[])[0].tolist() == []


@kinds
@pytest.mark.parametrize("memory_map", [False, True])
def test_files_hold_everything(kind, memory_map, tmp_path):
    path = tmp_path / "vectors.faiss"
    index = built(kind)
    index.remove(IDS[:200])
    sha256 = index.save(path)
    again = VectorIndex.open(path, sha256=sha256, memory_map=memory_map, **LIMITS[kind])
    assert (again.kind, len(again), again.dimension) == (kind, 2800, DIMENSION)
    for query in QUERIES[:10]:
        for one, other in zip(index.search(query, 20), again.search(query, 20), strict=True):
            assert one.tolist() == other.tolist()
    assert list(tmp_path.iterdir()) == [path]
    # changes go to memory, not to the file
    assert again.remove(IDS[200:300]) == 100
    again.add(IDS[:100], VECTORS[:100])
    assert len(again) == 2800
    rows = np.r_[0:100, 300:3000]
    assert recall(again, ids=IDS[rows], vectors=VECTORS[rows]) >= 0.95
    assert len(VectorIndex.open(path, sha256=sha256)) == 2800


@graphs
def test_a_file_remembers_how_well_it_is_searched(kind, tmp_path):
    index = built(kind)
    index.save(tmp_path / "v")
    again = VectorIndex.open(tmp_path / "v", sha256=None, **LIMITS[kind])
    assert recall(again) == recall(index) >= 0.95


def test_an_empty_index_can_be_saved(tmp_path):
    sha256 = VectorIndex.create(3).save(tmp_path / "v")
    index = VectorIndex.open(tmp_path / "v", sha256=sha256)
    assert (len(index), index.kind) == (0, "flat")
    index.add([0, 7], [[1, 0, 0], [0, 1, 0]])
    assert index.search([0, 1, 0], 1)[0].tolist() == [7]


def test_equals_are_in_the_order_of_their_ids():
    index = VectorIndex.create(2)
    index.add([5, 3, 9], [[1, 0], [1, 0], [0, 1]])
    assert index.search([1, 0], 3)[0].tolist() == [3, 5, 9]


def test_a_damaged_file_is_refused(tmp_path):
    path = tmp_path / "v"
    sha256 = built("flat", n=10).save(path)
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(StoreError, match=r"damaged.*expected"):
        VectorIndex.open(path, sha256=sha256)
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(StoreError, match="cannot read the vectors"):
        VectorIndex.open(path, sha256=None, memory_map=False)
    path.unlink()
    for given_sha in (sha256, None):
        with pytest.raises(StoreError, match="cannot read the vectors"):
            VectorIndex.open(path, sha256=given_sha)


def test_another_kind_of_file_is_refused(tmp_path):
    faiss.write_index(faiss.IndexFlatIP(2), str(tmp_path / "v"))
    with pytest.raises(StoreError, match="IndexFlatIP"):
        VectorIndex.open(tmp_path / "v", sha256=None)


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(StoreError, match="missing"):
        built("flat", n=2).save(tmp_path / "missing" / "v")


@pytest.mark.parametrize(
    ("ids", "vectors", "message"),
    [
        ([1], [[1, 0, 0]], r"vectors must be \[N, 2\], got \[1, 3\]"),
        ([1], [1, 0], r"got \[2\]"),
        ([1, 2], [[1, 0]], "2 ids and 1 vectors"),
        ([1], [[1, float("nan")]], "finite"),
        ([8], [[1, 0]], "has a vector already"),
        ([1, 1], [[1, 0], [1, 0]], "given twice"),
        ([-1], [[1, 0]], "from 0"),
        ([2**64 - 1], [[1, 0]], r"2\*\*63"),
        ([0.5], [[1, 0]], "whole numbers"),
    ],
)
def test_bad_vectors_are_named_and_change_nothing(ids, vectors, message):
    index = VectorIndex.create(2)
    index.add([8], [[0, 1]])
    with pytest.raises(InputError, match=message):
        index.add(ids, vectors)
    assert index.ids.tolist() == [8]


def test_bad_searches_and_options_are_named():
    index = VectorIndex.create(2)
    with pytest.raises(InputError, match="k must be at least 1, got 0"):
        index.search([1, 0], 0)
    with pytest.raises(InputError, match=r"\[1, 3\]"):
        index.search([1, 0, 0], 1)
    with pytest.raises(ConfigError, match="dimension"):
        VectorIndex.create(0)
    with pytest.raises(ConfigError, match="flat_limit"):
        VectorIndex.create(2, flat_limit=10, hnsw_limit=5)
