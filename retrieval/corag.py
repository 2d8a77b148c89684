"""Choosing a set of chunks under a token budget, where chunks repeat each other and more is not always better."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import TYPE_CHECKING, Final

from kompakt.compressor.errors import BudgetError, ConfigError, InputError

if TYPE_CHECKING:
    import numpy as np

_CANDIDATES: Final = 20
"""Chunks that the search looks at: the most relevant ones of those that the budget holds."""
_ASYMMETRY: Final = 1e-3
"""Difference of a pair's two cosines that comes from rounding."""
_NOTHING: Final = 1e-9
"""Relevance of all that the budget holds, below which there is no scale to put it on."""


@dataclass(frozen=True, slots=True)
class CostConstrainedSearch:
    """Monte Carlo tree search over ordered sequences of chunks, as in CORAG.

    A node is a sequence of chosen chunks; a child appends one more, if the budget holds it. The value of a node is
    ``benefit - cost_weight * tokens / max_tokens``, where the benefit is the sum of relevances less ``redundancy``
    times the sum of pairwise similarities, divided by the most relevance that the budget could hold if a chunk could
    be cut: 0 for nothing, at most 1. The answer is the best node seen, which need not use the whole budget.

    In each iteration the node with the highest upper confidence bound gets up to ``leaves`` new children, each of
    which is completed greedily, with weights drawn at random; the value of the completion is what the child and its
    ancestors are credited with. This benefit does not depend on the order of a sequence, so that a set is tried in
    one order only. The search ends early once all sets have been tried, or nothing better was found for ``patience``
    iterations. The first two completions are those of greedy selection by gain and by gain per token, so that the
    answer is never worse than either. Candidates are the 20 most relevant chunks of those that the budget holds.

    Source: Wang et al. 2024, "CORAG: A Cost-Constrained Retrieval Optimization System for Retrieval-Augmented
    Generation", arXiv 2411.00744. There a reranker reads the sequence; here its benefit is estimated from its chunks.

    Args:
        iterations: The most iterations.
        leaves: Nodes that are evaluated in one iteration.
        exploration: Weight of the bonus for nodes that were rarely visited.
        cost_weight: What using the whole budget costs, in units of the best possible relevance.
        redundancy: Weight of the similarity of two chosen chunks against their relevance.
        patience: Iterations without a better node after which the search ends.
        seed: Of the random completions; the same seed gives the same answer.

    Raises:
        ConfigError: If an option is out of its range.
    """

    iterations: int = 64
    leaves: int = 4
    exploration: float = 1.4
    cost_weight: float = 0.1
    redundancy: float = 0.5
    patience: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("iterations", "leaves", "patience"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("exploration", "cost_weight", "redundancy"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name} must be at least 0 and finite, got {getattr(self, name)}")
        if self.seed < 0:
            raise ConfigError(f"seed must be at least 0, got {self.seed}")

    def select(
        self, relevance: np.ndarray, similarity: np.ndarray, n_tokens: Sequence[int], *, max_tokens: int
    ) -> tuple[int, ...]:
        """Return the indices of the chosen chunks in the order in which to send them; empty only if none fits.

        Args:
            relevance: What each chunk is worth alone, ``[n]``, preferably from 0 to 1.
            similarity: Cosine of each pair of chunks, symmetric, ``[n, n]``; negative ones count as 0.
            n_tokens: Tokens of each chunk, with what joins it to the next one.
            max_tokens: The most tokens that the chosen chunks may have together.

        Raises:
            InputError: If shapes do not match, a value is not finite, ``similarity`` is not symmetric, or a chunk has
                negative tokens.
            BudgetError: If ``max_tokens`` is not a whole number of at least 1.
        """
        import numpy as np

        scores, cosines, costs = _checked(relevance, similarity, n_tokens)
        if isinstance(max_tokens, bool) or not isinstance(max_tokens, Integral) or max_tokens < 1:
            raise BudgetError(f"max_tokens must be a whole number of at least 1, got {max_tokens!r}")
        fitting = np.flatnonzero(costs <= max_tokens)
        if not len(fitting):
            return ()
        best = fitting[np.argsort(-scores[fitting], kind="stable")][:_CANDIDATES]
        problem = _Problem(scores[best], cosines[np.ix_(best, best)], costs[best], int(max_tokens), self)
        return tuple(int(best[position]) for position in _Search(problem, self).run())


def _checked(
    relevance: np.ndarray, similarity: np.ndarray, n_tokens: Sequence[int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    import numpy as np

    scores, cosines, costs = (np.asarray(given, dtype=float) for given in (relevance, similarity, n_tokens))
    n = len(costs)
    if costs.ndim != 1 or scores.shape != (n,) or cosines.shape != (n, n):
        raise InputError(
            f"relevance, similarity and n_tokens must be of shapes [n], [n, n] and [n], got {list(scores.shape)}, "
            f"{list(cosines.shape)} and {list(costs.shape)}"
        )
    for name, values in (("relevance", scores), ("similarity", cosines), ("n_tokens", costs)):
        if not np.isfinite(values).all():
            raise InputError(f"{name} must be finite")
    if (costs < 0).any():
        raise InputError(f"n_tokens must not be negative, got {costs.min():g}")
    if not np.allclose(cosines, cosines.T, atol=_ASYMMETRY):
        raise InputError("similarity must be symmetric: it holds each pair of chunks twice")
    return scores, np.clip((cosines + cosines.T) / 2, 0.0, None), costs


class _Problem:
    """The candidates, best first, on the scale of the value function."""

    def __init__(
        self,
        scores: np.ndarray,
        cosines: np.ndarray,
        costs: np.ndarray,
        max_tokens: int,
        options: CostConstrainedSearch,
    ) -> None:
        most = _most_relevance(scores, costs, max_tokens)
        scale = most if most > _NOTHING else 1.0
        self.costs = costs
        self.max_tokens = max_tokens
        self.alone = scores / scale - options.cost_weight * costs / max_tokens
        self.penalties = options.redundancy * cosines / scale

    def root(self) -> _Node:
        import numpy as np

        everything = np.ones(len(self.alone), dtype=bool)
        return _Node((), 0.0, 0.0, self.alone, everything, everything.copy(), None)

    def extended(self, node: _Node, candidate: int) -> _Node:
        """Return the node with one more candidate."""
        tokens = node.tokens + float(self.costs[candidate])
        is_open = node.is_open & (tokens + self.costs <= self.max_tokens)
        is_open[candidate] = False
        value = node.value + float(node.gains[candidate])
        gains = node.gains - self.penalties[candidate]
        return _Node((*node.path, candidate), tokens, value, gains, is_open, is_open.copy(), node)


def _most_relevance(scores: np.ndarray, costs: np.ndarray, max_tokens: int) -> float:
    """Return the most relevance that the budget could hold if a chunk could be cut: the best ones by the token."""
    total, left = 0.0, float(max_tokens)
    pairs = [(float(score), float(cost)) for score, cost in zip(scores, costs, strict=True) if score > 0]
    for score, cost in sorted(pairs, key=lambda pair: pair[1] / pair[0]):
        if cost >= left:
            return total + score * left / cost
        total += score
        left -= cost
    return total


@dataclass(slots=True, eq=False)
class _Node:
    """A sequence of candidates.

    ``gains`` is what each further candidate would add to the value, ``is_open`` tells which ones would fit, and
    ``is_untried`` which of these have not been looked at as children.
    """

    path: tuple[int, ...]
    tokens: float
    value: float
    gains: np.ndarray
    is_open: np.ndarray
    is_untried: np.ndarray
    parent: _Node | None
    children: list[_Node] = field(default_factory=list)
    visits: int = 0
    total: float = 0.0

    def credit(self, value: float) -> None:
        """Add a visit with its outcome to this node and to those above it."""
        node: _Node | None = self
        while node is not None:
            node.visits += 1
            node.total += value
            node = node.parent

    def bound(self, exploration: float) -> float:
        """Return the upper confidence bound of a node that has a parent."""
        n_above = self.parent.visits if self.parent else self.visits
        return self.total / self.visits + exploration * math.sqrt(math.log(n_above) / self.visits)


class _Search:
    """One run of the search."""

    def __init__(self, problem: _Problem, options: CostConstrainedSearch) -> None:
        import numpy as np

        self._problem = problem
        self._options = options
        self._random = np.random.default_rng(options.seed)
        self._tried: set[frozenset[int]] = set()
        self._root = problem.root()
        self._best: _Node | None = None

    def run(self) -> tuple[int, ...]:
        """Return the best sequence seen."""
        for by_token in (0.0, 1.0):
            self._note(self._completed(self._root, by_token))
        idle = 0
        for _ in range(self._options.iterations):
            leaves = self._expand()
            before = self._best
            for leaf in leaves:
                done = self._completed(leaf, float(self._random.random()), is_random=True)
                self._note(leaf)
                self._note(done)
                leaf.credit(done.value)
            idle = idle + 1 if self._best is before else 0
            if not leaves or idle >= self._options.patience:
                break
        return self._best.path if self._best else ()

    def _note(self, node: _Node) -> None:
        # an equal value in other digits is no progress
        if node.path and (self._best is None or node.value > self._best.value + 1e-12):
            self._best = node

    def _expand(self) -> list[_Node]:
        """Add children to the most promising node that can have more; return them, none once all sets were tried."""
        node = self._root
        while True:
            leaves = self._new_children(node)
            if leaves:
                return leaves
            if node.children:
                node = max(node.children, key=lambda child: child.bound(self._options.exploration))
            elif node.parent is None:
                return []
            else:
                # nothing is left below: take the node out, so that the walk never ends there again
                node.parent.children.remove(node)
                node = node.parent

    def _new_children(self, node: _Node) -> list[_Node]:
        """Return children that append the most useful candidates whose sets have not been tried."""
        import numpy as np

        leaves: list[_Node] = []
        for candidate in np.argsort(-node.gains, kind="stable"):
            if len(leaves) < self._options.leaves and node.is_untried[candidate]:
                node.is_untried[candidate] = False
                members = frozenset((*node.path, int(candidate)))
                if members not in self._tried:
                    self._tried.add(members)
                    leaves.append(self._problem.extended(node, int(candidate)))
        node.children.extend(leaves)
        return leaves

    def _completed(self, node: _Node, by_token: float, *, is_random: bool = False) -> _Node:
        """Append candidates greedily by ``gain / tokens ** by_token`` while they gain, each gain scaled at random."""
        import numpy as np

        weights = np.maximum(self._problem.costs, 1.0) ** -by_token
        while True:
            gains = np.where(node.is_open, node.gains, 0.0)
            if not (gains > 0).any():
                return node
            scaled = gains * weights
            if is_random:
                scaled = scaled * self._random.uniform(0.5, 1.0, len(gains))
            node = self._problem.extended(node, int(scaled.argmax()))
