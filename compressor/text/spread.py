"""Relevance beyond the unit that earned it: for its neighbours, its document, and what it names or leans on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
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
    reached = scores.copy()
    for index in range(1, len(units)):
        before, unit = units[index - 1], units[index]
        if unit.document == before.document and unit.kind is before.kind is Kind.PROSE:
            reached[index] = max(reached[index], scores[index] + _NEIGHBOUR * scores[index - 1])
            reached[index - 1] = max(reached[index - 1], scores[index - 1] + _NEIGHBOUR * scores[index])
    return reached


def _to_documents(units: Units, scores: np.ndarray) -> np.ndarray:
    members: dict[int, list[int]] = defaultdict(list)
    for index, unit in enumerate(units):
        members[unit.document].append(index)
    if len(members) < 2:
        return scores
    strength = {document: sum(sorted(scores[indices])[-3:]) / 3 for document, indices in members.items()}
    highest = max(strength.values()) or 1.0
    reached = scores.copy()
    for index, unit in enumerate(units):
        # a row says nothing about the rows beside it, a sentence does about its document
        if unit.kind is Kind.PROSE:
            reached[index] += _DOCUMENT * strength[unit.document] / highest
    return reached


def to_antecedents(units: Units, scores: np.ndarray) -> np.ndarray:
    """Raise the sentence before one that opens with a pronoun or a connective, and so cannot be read alone."""
    reached = scores.copy()
    for index in range(len(units) - 1, 0, -1):
        before, unit = units[index - 1], units[index]
        is_pair = before.document == unit.document and before.kind is unit.kind is Kind.PROSE
        if is_pair and _LEANING.match(unit.text):
            reached[index - 1] = max(reached[index - 1], _ANTECEDENT * reached[index])
    return reached


def _per_length(units: Units, scores: np.ndarray) -> np.ndarray:
    """Prefer the shorter of two equally relevant sentences, and either to a heading, which answers nothing alone."""
    weighted = scores.copy()
    for index, unit in enumerate(units):
        if unit.kind is Kind.PROSE:
            # what is shorter still is a fragment more often than a statement
            length = len(unit.text) if len(unit.text) > _SHORT else _USUAL_LENGTH
            weighted[index] *= (_USUAL_LENGTH / length) ** _BREVITY
            if index + 1 < len(units) and _is_heading(unit, units[index + 1]):
                weighted[index] *= _HEADING
    return weighted


def _is_heading(unit: Unit, following: Unit) -> bool:
    title = unit.text.strip().strip("#=- \n")
    return bool(title) and unit.document == following.document and following.context.endswith(title)


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
    index = _NameIndex(units, query)
    reached = scores.copy()
    for seed in np.argsort(-scores, kind="stable")[:_SEEDS]:
        pointed = _scaled(index.pointed_at(units[int(seed)]))
        link = _POINTED_AT * pointed + (1 - _POINTED_AT) * scores
        reached = np.maximum(reached, np.where(pointed > 0, _SECOND_HAND * scores[seed] * link, 0.0))
    return reached


class _NameIndex:
    """Finds the units that a name occurs in."""

    def __init__(self, units: Units, query: str) -> None:
        bags = [set(terms(f"{unit.text} {unit.context}")) for unit in units]
        self._bags = bags
        self._idf = inverse_document_frequency(bags)
        self._texts = [unit.text.lower() for unit in units]
        self._contexts = [unit.context.lower() for unit in units]
        self._documents = [unit.document for unit in units]
        self._query = query.lower()
        self._query_terms = set(query_terms(query))

    def pointed_at(self, seed: Unit) -> np.ndarray:
        """Return how strongly the seed's names lead to each unit of other documents, as ``[n]``."""
        import numpy as np

        names = self._names(f"{seed.text}\n{seed.context}")
        return np.array(
            [
                0.0 if document == seed.document else self._strength(position, names)
                for position, document in enumerate(self._documents)
            ]
        )

    def _strength(self, position: int, names: Mapping[str, tuple[float, Sequence[str]]]) -> float:
        by_text = by_context = 0.0
        text, context, bag = self._texts[position], self._contexts[position], self._bags[position]
        for name, (weight, words) in names.items():
            if name in context:
                by_context = max(by_context, weight)
            elif len(words) > 1 and bag.issuperset(words):
                by_text = max(by_text, _SCATTERED * weight)
            if name in text:
                by_text = max(by_text, weight)
        return by_text + _CONTEXT * by_context

    def _names(self, text: str) -> dict[str, tuple[float, Sequence[str]]]:
        """Return the names in a text that the query does not hold, with their weight and their stemmed words."""
        found: dict[str, tuple[float, Sequence[str]]] = {}
        for match in _NAME.finditer(text):
            name = match.group().lower().strip(" .'\u2019-")
            if name and name not in self._query:
                words = stem(name)
                if not self._query_terms.issuperset(words):
                    found[name] = (sum(self._idf.get(word, 0.0) for word in words), words)
        return found
