"""Words, BM25 and word-based centrality: everything lexical that the text compressors share."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence, Set
from functools import lru_cache
from typing import TYPE_CHECKING, Final

import regex

from kompakt.compressor.types import Kind
from kompakt.compressor.units.unit import Units

if TYPE_CHECKING:
    import numpy as np
    from Stemmer import Stemmer

_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_WORD = regex.compile(rf"[{_UNSPACED}]|(?:(?![{_UNSPACED}])[\p{{L}}\p{{M}}\p{{N}}])+")
# looking behind keeps these linear: a long run is tried once, not once a character
_IDENTIFIER = regex.compile(r"(?<![\p{L}\p{N}_])[\p{L}\p{N}_]++(?:[-.:/@+][\p{L}\p{N}_]++)++")

# the same patterns for plain ASCII, at a third of the time
_ASCII_WORD = re.compile(r"[a-z0-9]+")
_ASCII_IDENTIFIER = re.compile(r"(?<![a-z0-9_])[a-z0-9_]++(?:[-.:/@+][a-z0-9_]++)++")

_MIN_ROWS: Final = 8
_NEARLY_ALL: Final = 0.8

_STOP_WORDS = frozenset(
    "a about an and are as at be been by can could did do does for from had has have he her his how i if in into is "
    "it its me my of on or our she should so some such than that the their them then there these they this those to "
    "us was we were what when where which who whom whose why will with would you your".split()
)


@lru_cache(maxsize=1)
def _stemmer() -> Stemmer:
    import Stemmer

    return Stemmer.Stemmer("english")


def terms(text: str) -> list[str]:
    """Return the index terms of a text: stemmed words, single characters of scripts without spaces, identifiers.

    An identifier such as ``http/server.py`` or ``2024-05-20`` counts as a whole and by its parts.
    """
    lowered = text.lower()
    words: list[str] = _stemmer().stemWords(_words(lowered))
    return words + _identifiers(lowered)


def _words(lowered: str) -> list[str]:
    return _ASCII_WORD.findall(lowered) if lowered.isascii() else _WORD.findall(lowered)


def _identifiers(lowered: str) -> list[str]:
    return _ASCII_IDENTIFIER.findall(lowered) if lowered.isascii() else _IDENTIFIER.findall(lowered)


def stem(text: str) -> list[str]:
    """Return the distinct stemmed words of a text without function words."""
    words = [word for word in _words(text.lower()) if word not in _STOP_WORDS]
    return list(dict.fromkeys(_stemmer().stemWords(words)))


def query_terms(query: str) -> list[str]:
    """Return the distinct terms of a query without function words, unless it has no others."""
    return list(dict.fromkeys([*stem(query), *_identifiers(query.lower())])) or list(dict.fromkeys(terms(query)))


def unit_terms(units: Units) -> list[list[str]]:
    """Return the terms of each unit with those of its context."""
    contexts: dict[str, list[str]] = {}
    texts = [terms(unit.text) for unit in units]
    common = _keys_of_rows(units, texts)
    found = []
    for unit, own in zip(units, texts, strict=True):
        if unit.context not in contexts:
            contexts[unit.context] = terms(unit.context)
        shared = common.get((unit.document, unit.parent)) if unit.kind is Kind.JSON else None
        found.append([term for term in own if term not in shared] if shared else own)
        found[-1].extend(contexts[unit.context])
    return found


def _keys_of_rows(units: Units, texts: Sequence[Sequence[str]]) -> dict[tuple[int, int | None], set[str]]:
    """Return, for each array of JSON, the terms that nearly all of its rows share: keys, which tell none apart."""
    rows: dict[tuple[int, int | None], list[set[str]]] = defaultdict(list)
    for unit, own in zip(units, texts, strict=True):
        if unit.kind is Kind.JSON and unit.text.startswith("{"):
            rows[unit.document, unit.parent].append(set(own))
    shared = {}
    for place, bags in rows.items():
        if len(bags) >= _MIN_ROWS:
            frequency = Counter(term for bag in bags for term in bag)
            shared[place] = {term for term, n in frequency.items() if n >= _NEARLY_ALL * len(bags)}
    return shared


def bm25_scores(units: Units, query: str) -> Sequence[float]:
    """Return the BM25 score of each unit and its context for a query; all zero if no term matches."""
    return list(bm25(unit_terms(units), query_terms(query)))


def bm25(corpus: Sequence[Sequence[str]], query: Sequence[str]) -> np.ndarray:
    """Return the BM25 score of each bag of terms, as ``[n]``."""
    import bm25s
    import numpy as np

    if not any(corpus):
        return np.zeros(len(corpus))
    index = bm25s.BM25(k1=1.2, b=0.75)
    index.index(list(corpus), show_progress=False)
    known = [term for term in query if term in index.vocab_dict]
    return np.asarray(index.get_scores(known), dtype=float) if known else np.zeros(len(corpus))


def inverse_document_frequency(bags: Sequence[Set[str]]) -> dict[str, float]:
    """Return how rare each term is among bags: ``log(1 + (n - df + 0.5) / (df + 0.5))``."""
    frequency = Counter(term for bag in bags for term in bag)
    return {term: math.log(1 + (len(bags) - n + 0.5) / (n + 0.5)) for term, n in frequency.items()}


def centrality(units: Units) -> Sequence[float]:
    """Score units without a query: those whose words the text is about, with repeats of earlier units last."""
    bags = [Counter(unit_terms_of) for unit_terms_of in map(terms, (unit.text for unit in units))]
    frequency = Counter(term for bag in bags for term in bag)
    idf = {term: math.log(1 + len(bags) / n) for term, n in frequency.items()}
    scores = []
    seen: set[str] = set()
    for bag in bags:
        mass = sum(idf[term] for term in bag)
        about = sum(idf[term] * math.log1p(frequency[term]) for term in bag)
        fresh = sum(idf[term] for term in bag if term not in seen)
        scores.append(about / (mass or 1.0) * (0.1 + 0.9 * fresh / (mass or 1.0)))
        seen.update(bag)
    return scores


def relevance(units: Units, query: str | None) -> list[float]:
    """Return how much each unit matters, from 0 to 1: to the query, or to the rest of the text without one."""
    scores = bm25_scores(units, query) if query else centrality(units)
    highest = max(scores, default=0.0)
    return [score / highest for score in scores] if highest > 0 else [0.0] * len(units)
