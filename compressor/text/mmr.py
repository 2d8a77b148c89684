"""Maximal marginal relevance under a token budget: what is relevant, new and short comes first."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final

from kompakt.compressor.errors import ConfigError
from kompakt.compressor.models.sentence_encoder import SentenceEncoder
from kompakt.compressor.text.bm25 import inverse_document_frequency, terms
from kompakt.compressor.text.mixed import MixedCompressor, prose_of
from kompakt.compressor.units.unit import Unit, Units

if TYPE_CHECKING:
    import numpy as np

_MOST: Final = 2000
"""Units that are compared with each other; the matrix of their similarities takes 16 MB."""
_BYTES_PER_TOKEN: Final = 4
_FEWEST_TOKENS: Final = 10
"""What is shorter is a heading or a fragment more often than a statement, and must not win by its length."""


@dataclass(frozen=True)
class MaximalMarginalRelevance(MixedCompressor):
    """What ``default`` finds relevant, less what resembles a unit that comes before it.

    Greedy: the next unit is always the one with the highest
    ``relevance * (1 - novelty * cosine to the closest unit chosen) / tokens ** cost_exponent``. The cosine is that of
    sentence embeddings between two sentences, and that of tf-idf where a unit is not prose or no encoder is used.
    Units without any relevance are not re-ranked and come last, as do all but the 2,000 most relevant ones.

    Relevance is a mean over a unit's words, and so already a gain by the token: ``cost_exponent`` divides once more,
    which favours short sentences and on questions over retrieved passages loses more answers than it gains.

    Tokens are estimated from the bytes of a unit's source, so that the order depends neither on the budget nor on
    whose tokens it counts: a larger budget never keeps less, and one order serves every target model. The estimate is
    only compared with those of other units, so that a constant error has no effect; none is below ten tokens.

    Source: Carbonell and Goldstein 1998, "The Use of MMR, Diversity-Based Reranking for Reordering Documents and
    Producing Summaries"; for the cost, Lin and Bilmes 2010, "Multi-document Summarization via Budgeted Maximization
    of Submodular Functions", algorithm 1.

    Args:
        model: A named sentence encoder or a local folder; ``"auto"`` takes ``minilm-l6`` if it is here and words if
            not, ``"none"`` always takes words.
        novelty: Weight of novelty against relevance, from 0 (relevance alone) to 1 (a repeat is worth nothing).
        cost_exponent: How much a unit's length counts against it, from 0 (not at all) to 1.
    """

    novelty: float = 0.25
    cost_exponent: float = 0.0

    name: ClassVar[str] = "mmr"

    def __post_init__(self) -> None:
        if not 0 <= self.novelty <= 1:
            raise ConfigError(f"novelty must be from 0 to 1, got {self.novelty}")
        if not 0 <= self.cost_exponent <= 1:
            raise ConfigError(f"cost_exponent must be from 0 to 1, got {self.cost_exponent}")

    def rank(self, units: Units, scores: Sequence[float]) -> list[int]:
        """Return the units' indices, best first: greedily by relevance, novelty and length, the rest by score."""
        import numpy as np

        order = super().rank(units, scores)
        # of what has no relevance nothing can be taken away
        chosen = [index for index in order[:_MOST] if scores[index] > 0]
        relevance = np.array([scores[index] for index in chosen])
        costs = np.array([_tokens(units, units[index]) for index in chosen]) ** self.cost_exponent
        similarity = unit_similarity(units, chosen, self.encoder_for(units))
        ranks = greedy_order(relevance, similarity, costs, novelty=self.novelty)
        return [*(chosen[rank] for rank in ranks), *order[len(chosen) :]]


def greedy_order(relevance: np.ndarray, similarity: np.ndarray, costs: np.ndarray, *, novelty: float) -> list[int]:
    """Return all indices in the order of greedy maximal marginal relevance; the earlier one first among equals.

    Args:
        relevance: What each item is worth alone, ``[n]``, above 0.
        similarity: Cosines from 0 to 1 between items, ``[n, n]``.
        costs: What to divide each item's gain by, ``[n]``, above 0.
        novelty: Weight of novelty, from 0 to 1.
    """
    import numpy as np

    closest = np.zeros(len(relevance))
    is_left = np.ones(len(relevance), dtype=bool)
    order = []
    for _ in range(len(relevance)):
        gains = np.where(is_left, relevance * (1 - novelty * closest) / costs, -np.inf)
        best = int(gains.argmax())
        order.append(best)
        is_left[best] = False
        np.maximum(closest, similarity[best], out=closest)
    return order


def unit_similarity(units: Units, chosen: Sequence[int], encoder: SentenceEncoder | None) -> np.ndarray:
    """Return the cosine from 0 to 1 of each pair of chosen units, float32 ``[n, n]``.

    Args:
        units: The units of a request.
        chosen: Indices of the units to compare.
        encoder: Embeds prose; without one, and where one of two units is not prose, words are compared.
    """
    import numpy as np

    is_prose = set(prose_of(units))
    embedded = [position for position, index in enumerate(chosen) if index in is_prose]
    similarity = np.zeros((len(chosen), len(chosen)), dtype=np.float32)
    if encoder is None or len(embedded) < len(chosen):
        similarity = tf_idf_similarity([units[index].text for index in chosen])
    if encoder is not None and embedded:
        texts = [units[chosen[position]].text for position in embedded]
        # these were counted when they were scored
        vectors = encoder.encode(texts, artefacts=units.artefacts, is_ahead=True)
        similarity[np.ix_(embedded, embedded)] = vectors @ vectors.T
    return np.clip(similarity, 0.0, 1.0)


def tf_idf_similarity(texts: Sequence[str]) -> np.ndarray:
    """Return the tf-idf cosine of each pair of texts, float32 ``[n, n]``; 0 for texts without terms."""
    import numpy as np

    bags = [Counter(terms(text)) for text in texts]
    idf = inverse_document_frequency([bag.keys() for bag in bags])
    postings: dict[str, tuple[list[int], list[float]]] = defaultdict(lambda: ([], []))
    weights = []
    for position, bag in enumerate(bags):
        raw = {term: n * idf[term] for term, n in bag.items()}
        length = sum(weight * weight for weight in raw.values()) ** 0.5
        weights.append({term: weight / length for term, weight in raw.items()})
        for term, weight in weights[-1].items():
            postings[term][0].append(position)
            postings[term][1].append(weight)
    columns = {term: (np.array(places), np.array(values)) for term, (places, values) in postings.items()}
    similarity = np.zeros((len(texts), len(texts)), dtype=np.float32)
    for position, own in enumerate(weights):
        for term, weight in own.items():
            places, values = columns[term]
            similarity[position, places] += weight * values
    return similarity


def _tokens(units: Units, unit: Unit) -> float:
    """Estimate the tokens that a unit is written with; bytes, since a character of Chinese is a token by itself."""
    source = units.documents[unit.document].text
    written = source[unit.start : unit.head_end] + source[unit.tail_start : unit.end]
    return max(float(_FEWEST_TOKENS), len(written.encode()) / _BYTES_PER_TOKEN)
