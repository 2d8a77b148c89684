"""Many short texts that say much the same: cluster them, compress each cluster, keep what stands apart verbatim."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Final, TypeAlias

from kompakt.compressor.base import Compressor
from kompakt.compressor.errors import BudgetError, CompressionError, ConfigError, InputError, MissingExtraError
from kompakt.compressor.models.tokenizers import Tokenizer, load_tokenizer
from kompakt.compressor.results import by_document, fits, from_fragments, joined_text, whole
from kompakt.compressor.types import (
    DOCUMENT_SEPARATOR,
    Budget,
    Compressed,
    Document,
    StageTrace,
    Status,
    as_documents,
)
from kompakt.compressor.units.render import Fragment
from kompakt.compressor.validity import check

if TYPE_CHECKING:
    import numpy as np

_STAGE: Final = "clustered-rag"
_FEWEST: Final = 4
"""With fewer texts there is nothing to cluster."""
_RESTARTS: Final = 10
_FAR: Final = 2.0
"""Standard deviations above the mean distance to the centroid, beyond which a text stands apart."""
_DIGITS: Final = 5
"""Decimals in which two vectors must differ to count as different: the rest is noise of the encoder."""
_NEGLIGIBLE: Final = 10.0**-_DIGITS


@dataclass(frozen=True, slots=True)
class Cluster:
    """Texts that are alike, or one that is like no other.

    Args:
        members: Indices of the texts, ascending.
        centre: The member nearest to the centroid.
        is_outlier: Whether it is a single text that stands apart from the others.
    """

    members: tuple[int, ...]
    centre: int
    is_outlier: bool


def cluster_texts(vectors: np.ndarray, *, max_clusters: int = 15, seed: int = 0) -> tuple[Cluster, ...]:
    """Group texts by k-means on their embeddings; k is that of the best silhouette.

    k runs from 2 to the least of ``max_clusters``, ``1.5 * sqrt(n)``, ``n - 1`` and the number of different vectors.
    Texts farther from their centroid than the mean of all distances plus two standard deviations are taken out of
    their clusters; these and the clusters of one text are outliers.

    Source: Akesson and Santos 2024, "Clustered Retrieved Augmented Generation (CRAG)", arXiv 2406.00029, for k-means
    on embeddings; the choice of k and the outliers are kompakt's own.

    Args:
        vectors: The texts' embeddings, ``[n, D]``; their lengths do not matter.
        max_clusters: The most clusters, outliers aside.
        seed: Of k-means, which is run from ten starts; the same seed gives the same clusters.

    Returns:
        The clusters, larger ones first, equal ones in order of their first members. Each text is in exactly one.

    Raises:
        InputError: If ``vectors`` is not a finite matrix.
        ConfigError: If an option is out of its range.
        MissingExtraError: If scikit-learn is not installed.
    """
    import numpy as np

    if max_clusters < 1:
        raise ConfigError(f"max_clusters must be at least 1, got {max_clusters}")
    if seed < 0:
        raise ConfigError(f"seed must be at least 0, got {seed}")
    points = _unit_vectors(vectors)
    if not len(points):
        return ()
    labels = _labels(points, max_clusters, seed)
    groups = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    far = _far(points, groups)
    kept = [group[~np.isin(group, far)] for group in groups]
    clusters = [_cluster(points, group) for group in kept if len(group)]
    clusters.extend(Cluster((index,), index, is_outlier=True) for index in far)
    return tuple(sorted(clusters, key=lambda cluster: (-len(cluster.members), cluster.members)))


def _unit_vectors(vectors: np.ndarray) -> np.ndarray:
    import numpy as np

    points = np.asarray(vectors, dtype=np.float64)
    if points.ndim != 2 or not np.isfinite(points).all():
        raise InputError(f"vectors must be a finite matrix [n, D], got shape {list(points.shape)}")
    lengths = np.linalg.norm(points, axis=1, keepdims=True)
    return points / np.where(lengths > 0, lengths, 1.0)


def _labels(points: np.ndarray, max_clusters: int, seed: int) -> np.ndarray:
    """Return the cluster of each point for the k with the best silhouette, as ``[n]``."""
    import numpy as np

    n_different = len(np.unique(points.round(_DIGITS), axis=0))
    most = min(max_clusters, round(1.5 * len(points) ** 0.5), len(points) - 1, n_different)
    best, labels = -np.inf, np.zeros(len(points), dtype=int)
    if most < 2:
        return labels
    try:
        from sklearn.cluster import KMeans
        from sklearn.metrics import silhouette_score
    except ImportError as error:
        raise MissingExtraError("clustered_rag", "local") from error
    for k in range(2, most + 1):
        found = KMeans(k, n_init=_RESTARTS, random_state=seed).fit_predict(points)
        score = float(silhouette_score(points, found))
        # a difference in the last digits is none: the smaller k then has it
        if score > best + _NEGLIGIBLE:
            best, labels = score, found
    return labels


def _far(points: np.ndarray, groups: Sequence[np.ndarray]) -> list[int]:
    """Return the points that are far from their centroid, as distances in all groups of two and more go."""
    import numpy as np

    together = [group for group in groups if len(group) > 1]
    if not together:
        return []
    distances = [np.linalg.norm(points[group] - points[group].mean(axis=0), axis=1) for group in together]
    every = np.concatenate(distances)
    limit = every.mean() + _FAR * every.std() + _NEGLIGIBLE
    return [int(index) for index in np.concatenate(together)[every > limit]]


def _cluster(points: np.ndarray, group: np.ndarray) -> Cluster:
    import numpy as np

    distances = np.linalg.norm(points[group] - points[group].mean(axis=0), axis=1)
    members = tuple(int(index) for index in group)
    return Cluster(members, members[int(distances.argmin())], is_outlier=len(members) == 1)


def clustered_rag(
    documents: Sequence[Document],
    vectors: np.ndarray,
    *,
    max_tokens: int,
    tokenizer: str | Tokenizer | None = None,
    compressor: Compressor,
) -> Compressed:
    """Compress many short texts, such as reviews, cluster by cluster and without a query.

    Texts that stand apart from all others stay verbatim, so that what is rare and decisive is not lost. The rest of
    the budget goes to the clusters by the number of their texts; what one does not need goes to the others. Clusters
    stand in the result in order of size, outliers last, each text in its cluster in the order it came in.

    Where the budget does not hold the outliers, or leaves the clusters too little, the outliers are compressed like
    clusters or the clusters as one; the note in the trace says what was done. Fewer than four texts are compressed as
    they are.

    Source: Akesson and Santos 2024, "Clustered Retrieved Augmented Generation (CRAG)", arXiv 2406.00029. There a
    language model summarises each cluster; here a compressor does, so that every character keeps its source.

    Args:
        documents: The texts.
        vectors: Their embeddings, ``[n, D]``.
        max_tokens: The most tokens of the result.
        tokenizer: Whose tokens are counted: a name, a folder or a tokenizer.
        compressor: What summarises a cluster; it gets no query.

    Raises:
        InputError: If the documents or the vectors cannot be used, or their numbers differ.
        BudgetError: If the budget makes no sense or cannot hold what it must.
        CompressionError: If the compressor passes a cluster through uncompressed.
        MissingExtraError: If scikit-learn is not installed.
    """
    began = time.perf_counter()
    sources, counter = as_documents(documents), load_tokenizer(tokenizer)
    if len(_unit_vectors(vectors)) != len(sources):
        raise InputError(f"there must be one vector a document: {len(sources)} documents, {len(vectors)} vectors")
    ceiling = Budget(max_tokens).resolve(0)
    tokens_before = counter.count(joined_text(sources))
    if tokens_before <= ceiling:
        return fits(sources, tokens_before, _STAGE, time.perf_counter() - began)
    job = _Job(sources, counter, compressor, ceiling, tokens_before)
    result, note = job.done(_plans(vectors, len(sources)))
    check(result)
    trace = StageTrace(_STAGE, time.perf_counter() - began, tokens_before, result.tokens_after, note=note)
    return replace(result, trace=(trace,))


@dataclass(frozen=True, slots=True)
class _Plan:
    """What to compress together and what to leave verbatim, as indices of documents."""

    groups: tuple[tuple[int, ...], ...]
    verbatim: tuple[int, ...]
    note: str


def _plans(vectors: np.ndarray, n: int) -> list[_Plan]:
    """Return the ways to spend the budget, the preferred one first; the last one is to compress all as one."""
    everything = tuple(range(n))
    if n < _FEWEST:
        return [_Plan((everything,), (), f"fewer than {_FEWEST} texts: compressed without clusters")]
    clusters = cluster_texts(vectors)
    groups = tuple(cluster.members for cluster in clusters if not cluster.is_outlier)
    apart = tuple(cluster.centre for cluster in clusters if cluster.is_outlier)
    found = f"{n} texts in {len(groups)} clusters and {len(apart)} outliers"
    together = tuple(sorted(chain(*groups)))
    plans = [_Plan(groups, apart, f"{found}, outliers verbatim")]
    if apart and together:
        plans.append(_Plan((together,), apart, f"{found}: too little is left for the clusters, compressed as one"))
    if apart:
        singles = tuple((index,) for index in apart)
        plans.append(_Plan((*groups, *singles), (), f"{found}: the budget cannot hold the outliers, compressed too"))
    plans.append(_Plan((everything,), (), f"{found}: the budget cannot hold a piece of each, compressed as one"))
    return plans


_Kept: TypeAlias = dict[int, list[Fragment]]


@dataclass(frozen=True, slots=True)
class _Job:
    """What to compress, and how far."""

    sources: tuple[Document, ...]
    tokenizer: Tokenizer
    compressor: Compressor
    max_tokens: int
    tokens_before: int

    def done(self, plans: Sequence[_Plan]) -> tuple[Compressed, str]:
        """Return the result of the first plan that the ceiling can hold, with its note."""
        for plan in plans[:-1]:
            try:
                return self._carried_out(plan)
            except BudgetError:
                continue
        return self._carried_out(plans[-1])

    def _carried_out(self, plan: _Plan) -> tuple[Compressed, str]:
        n_seams = len(plan.groups) + len(plan.verbatim) - 1
        fixed = sum(self._count((index,)) for index in plan.verbatim)
        nominal = self.max_tokens - fixed - n_seams * self.tokenizer.count(DOCUMENT_SEPARATOR)
        while nominal >= len(plan.groups):
            kept, notes = self._summaries(plan.groups, nominal)
            kept |= {index: [whole(self.sources[index])] for index in plan.verbatim}
            result = self._joined([*chain(*plan.groups), *plan.verbatim], kept)
            if result.tokens_after <= self.max_tokens:
                return result, "; ".join([plan.note, *notes])
            # tokens can merge or split at the seams, so that the parts together are no more than an estimate
            nominal -= result.tokens_after - self.max_tokens
        raise BudgetError(
            f"{self.max_tokens} tokens cannot hold {len(plan.verbatim)} texts of {fixed} tokens verbatim and a piece "
            f"of each of {len(plan.groups)} clusters"
        )

    def _summaries(self, groups: Sequence[tuple[int, ...]], nominal: int) -> tuple[_Kept, list[str]]:
        """Return what is kept of each text of the groups, and what the compressor had to say about it."""
        kept: _Kept = {}
        notes: dict[str, None] = {}
        left, n_left = nominal, sum(map(len, groups))
        # those that need least for their size come first, so that the others get what these leave
        for group in sorted(groups, key=lambda group: (self._count(group) / len(group), group)):
            result = self._summary(group, left * len(group) // n_left)
            left -= result.tokens_after
            n_left -= len(group)
            pieces = by_document(result)
            kept |= {index: pieces.get(self.sources[index].id or "", []) for index in group}
            notes.update(dict.fromkeys(trace.note for trace in result.trace if trace.note))
        return kept, list(notes)

    def _summary(self, group: tuple[int, ...], share: int) -> Compressed:
        if share < 1:
            raise BudgetError(f"the share of a cluster of {len(group)} texts is less than a token")
        members = [self.sources[index] for index in group]
        result = self.compressor.compress(members, max_tokens=share, tokenizer=self.tokenizer)
        if result.outcome.status is Status.PASSED_THROUGH:
            raise CompressionError(f"{self.compressor.name} left a cluster as it was: {result.outcome.reason}")
        return result

    def _joined(self, order: Sequence[int], kept: _Kept) -> Compressed:
        fragments = [[piece for piece in kept[index] if piece.text] for index in order]
        ordered = [self.sources[index] for index in order]
        return replace(from_fragments(ordered, fragments, self.tokenizer, self.tokens_before), sources=self.sources)

    def _count(self, group: tuple[int, ...]) -> int:
        return self.tokenizer.count(joined_text([self.sources[index] for index in group]))
