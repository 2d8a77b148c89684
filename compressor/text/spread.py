"""Relevance beyond the unit that earned it: for its neighbours, its document, and what it names or leans on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain, groupby, pairwise
from operator import attrgetter
from typing import TYPE_CHECKING, Final

import regex

from kompakt.compressor.text.bm25 import inverse_document_frequency, query_terms, stem, terms
from kompakt.compressor.types import Kind
from kompakt.compressor.units.unit import Unit, Units

if TYPE_CHECKING:
    import numpy as np

_NEIGHBOUR: Final = 0.15
"""Share of a sentence's relevance that its neighbours receive."""
_DOCUMENT: Final = 0.3
"""Weight of a document's best three units in the relevance of its others."""
_SEEDS: Final = 4
"""Units from which the second look starts."""
_SECOND_HAND: Final = 0.9
_POINTED_AT: Final = 0.6
"""Weight, in the second look, of being pointed at against being relevant by itself."""
_ANTECEDENT: Final = 0.7
"""Share of a sentence's relevance that goes to the one that it leans on."""
_BREVITY: Final = 0.15
_USUAL_LENGTH: Final = 120
_MOST_NAMES: Final = 100
"""Names of one unit that are looked up; what holds more is a list."""
_SHORT: Final = 40
_HEADING: Final = 0.8
_SCATTERED: Final = 0.7
"""Weight of a name whose words all occur, but not together."""
_CONTEXT: Final = 0.5
"""Weight of a name in a unit's title or headings, beside its weight in the text."""

_LEANING = regex.compile(
    r"\s*(?:(?i:he|she|it|they|this|that|these|those|his|her|its|their|such|however|therefore|thus|moreover|both"
    r"|the (?:former|latter|same)|er|sie|es|diese[rsmn]?|ils?|elles?|cela)\b)"
)
_PROPER = r"(?:\p{Lu}\.|\p{Lu}[\p{L}\p{M}\p{N}'\u2019-]*)"
_NAME = regex.compile(rf"\b{_PROPER}(?: +(?:(?:of|the|de|and|von|van|&) +)?{_PROPER})*")


def spread(units: Units, scores: np.ndarray, query: str) -> np.ndarray:
    """Return scores from 0 to 1 in which relevance has reached neighbours, documents and second hops, as ``[n]``.

    Args:
        units: The units of a request.
        scores: Relevance of each unit to the query, ``[n]``, not negative.
        query: The question.
    """
    reached = _scaled(_to_neighbours(units, _scaled(scores)))
    reached = _scaled(_to_documents(units, reached))
    reached = second_look(units, reached, query)
    return _per_length(units, to_antecedents(units, reached))


def _scaled(scores: np.ndarray) -> np.ndarray:
    highest = scores.max(initial=0.0)
    return scores / highest if highest > 0 else scores


def _to_neighbours(units: Units, scores: np.ndarray) -> np.ndarray:
    import numpy as np

    follows = _follows(units)
    to_next, to_previous = _NEIGHBOUR * scores[:-1], _NEIGHBOUR * scores[1:]
    reached = scores.copy()
    reached[1:] = np.where(follows, np.maximum(reached[1:], scores[1:] + to_next), reached[1:])
    reached[:-1] = np.where(follows, np.maximum(reached[:-1], scores[:-1] + to_previous), reached[:-1])
    return reached


def _follows(units: Units) -> np.ndarray:
    """Return for each unit but the first whether it and the one before are sentences of one document, ``[n - 1]``."""
    import numpy as np

    is_prose = _is_prose(units)
    documents = np.array([unit.document for unit in units])
    both: np.ndarray = is_prose[1:] & is_prose[:-1] & (documents[1:] == documents[:-1])
    return both


def _is_prose(units: Units) -> np.ndarray:
    import numpy as np

    return np.array([unit.kind is Kind.PROSE for unit in units], dtype=bool)


def _to_documents(units: Units, scores: np.ndarray) -> np.ndarray:
    import numpy as np

    sizes = [len(list(members)) for _, members in groupby(units, key=attrgetter("document"))]
    if len(sizes) < 2:
        return scores
    by_document = np.split(scores, np.cumsum(sizes)[:-1])
    strength = np.array([sum(np.sort(own)[-3:]) / 3 for own in by_document])
    gains = np.repeat(_DOCUMENT * strength / (strength.max() or 1.0), sizes)
    # a row says nothing about the rows beside it, a sentence does about its document
    return np.where(_is_prose(units), scores + gains, scores)


def to_antecedents(units: Units, scores: np.ndarray) -> np.ndarray:
    """Raise the sentence before one that opens with a pronoun or a connective, and so cannot be read alone."""
    reached = scores.copy()
    following = (_follows(units).nonzero()[0] + 1).tolist()
    for index in reversed([index for index in following if _LEANING.match(units[index].text)]):
        reached[index - 1] = max(reached[index - 1], _ANTECEDENT * reached[index])
    return reached


def _per_length(units: Units, scores: np.ndarray) -> np.ndarray:
    """Prefer the shorter of two equally relevant sentences, and either to a heading, which answers nothing alone."""
    import numpy as np

    is_prose = _is_prose(units)
    # what is shorter still is a fragment more often than a statement
    lengths = [len(unit.text) if len(unit.text) > _SHORT else _USUAL_LENGTH for unit in units]
    factors = {length: (_USUAL_LENGTH / length) ** _BREVITY for length in set(lengths)}
    weighted = np.where(is_prose, scores * np.array([factors[length] for length in lengths]), scores)
    headings = [index for index, pair in enumerate(pairwise(units)) if is_prose[index] and _is_heading(*pair)]
    weighted[headings] *= _HEADING
    return weighted


def _is_heading(unit: Unit, following: Unit) -> bool:
    if not following.context or unit.document != following.document:
        return False
    title = unit.text.strip().strip("#=- \n")
    return bool(title) and following.context.endswith(title)


def second_look(units: Units, scores: np.ndarray, query: str) -> np.ndarray:
    """Raise units of other documents that the most relevant units point to by name.

    A question such as "Who is married to the director of X?" shares no word with the sentence that answers it; the
    sentence about X names the director, and the answer's document is about that name.

    Args:
        units: The units of a request.
        scores: Relevance from 0 to 1, ``[n]``.
        query: The question; names in it point nowhere new.
    """
    import numpy as np

    if len(units.documents) < 2:
        return scores
    seeds = np.argsort(-scores, kind="stable")[:_SEEDS].tolist()
    names = {seed: _names(units[seed], query) for seed in seeds}
    wanted = frozenset(word for found in names.values() for words in found.values() for word in words)
    if not wanted:
        return scores
    index = _NameIndex(units, wanted)
    reached = scores.copy()
    for seed in seeds:
        pointed = _scaled(index.pointed_at(units[seed], names[seed]))
        link = _POINTED_AT * pointed + (1 - _POINTED_AT) * scores
        reached = np.maximum(reached, np.where(pointed > 0, _SECOND_HAND * scores[seed] * link, 0.0))
    return reached


def _names(unit: Unit, query: str) -> dict[str, Sequence[str]]:
    """Return the names in a unit and its context that the query does not hold, with their stemmed words."""
    known, asked = set(query_terms(query)), query.lower()
    found: dict[str, Sequence[str]] = {}
    for match in _NAME.finditer(f"{unit.text}\n{unit.context}"):
        name = match.group().lower().strip(" .'\u2019-")
        if name and name not in asked and not known.issuperset(words := stem(name)):
            found[name] = words
            if len(found) == _MOST_NAMES:
                break
    return found


class _NameIndex:
    """Finds the units that a name occurs in.

    Args:
        units: The units of a request.
        wanted: The words of the names.
    """

    def __init__(self, units: Units, wanted: frozenset[str]) -> None:
        import numpy as np

        contexts = {context: terms(context) for context in {unit.context for unit in units}}
        self._bags = [wanted.intersection(chain(terms(unit.text), contexts[unit.context])) for unit in units]
        self._idf = inverse_document_frequency(self._bags)
        self._texts = [unit.text.lower() for unit in units]
        self._contexts = [unit.context.lower() for unit in units]
        self._documents = np.array([unit.document for unit in units])

    def pointed_at(self, seed: Unit, names: Mapping[str, Sequence[str]]) -> np.ndarray:
        """Return how strongly the seed's names lead to each unit of other documents, as ``[n]``."""
        import numpy as np

        by_text, by_context = np.zeros(len(self._texts)), np.zeros(len(self._texts))
        for name, words in names.items():
            weight = sum(self._idf.get(word, 0.0) for word in words)
            in_context = np.array([name in context for context in self._contexts])
            in_text = np.array([name in text for text in self._texts])
            np.maximum(by_context, weight, out=by_context, where=in_context)
            np.maximum(by_text, weight, out=by_text, where=in_text)
            if len(words) > 1:
                scattered = ~in_context & np.array([bag.issuperset(words) for bag in self._bags])
                np.maximum(by_text, _SCATTERED * weight, out=by_text, where=scattered)
        return np.where(self._documents == seed.document, 0.0, by_text + _CONTEXT * by_context)
