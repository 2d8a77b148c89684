"""Repeats across documents: exact ones, and near ones that state no new number, name of a thing, or negation."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import ClassVar, Final, Literal

import regex

from kompakt.compressor.base import Job, ScoringCompressor
from kompakt.compressor.errors import ConfigError
from kompakt.compressor.text.bm25 import relevance
from kompakt.compressor.types import Kind
from kompakt.compressor.units.unit import Unit, Units

_SHINGLE: Final = 3
_MAX_POSTINGS: Final = 64
"""Units looked up a shingle: phrases that stand in more places say little about which units are alike."""
_WORD = regex.compile(r"\p{Han}|\p{Hiragana}|\p{Katakana}|\p{Thai}|[\p{L}\p{M}\p{N}]+")
_FACT = regex.compile(
    r"(?<!\S)[^\s\p{N}]*+\p{N}\S*|\p{Lu}{2,}|(?i:\b(?:not?|never|none|nor|without|\p{L}+n['\u2019]t)\b)"
)
_CAPITALS = regex.compile(r"\b\p{Lu}[\p{L}\p{M}]*")

# the same patterns for plain ASCII, at half the time; white space is spelt out, since \s is more here than there
_ASCII_WORD = re.compile(r"[a-z0-9]+")
_ASCII_FACT = re.compile(
    r"(?<![^ \t\n\r\f\v])[^ \t\n\r\f\v0-9]*+[0-9][^ \t\n\r\f\v]*"
    r"|[A-Z]{2,}|(?i:\b(?:not?|never|none|nor|without|[a-z]+n't)\b)"
)
_ASCII_CAPITALS = re.compile(r"\b[A-Z][a-zA-Z]*")


@dataclass(frozen=True)
class Dedup(ScoringCompressor):
    """Drop sentences, log lines, table rows and JSON rows that repeat earlier ones.

    A near repeat shares most of its three-word sequences with an earlier unit and holds no number, identifier, name
    or negation that the earlier one lacks. In a pipeline this stage drops repeats and nothing else; alone, it also
    meets the budget, with the units that matter least to the query going after the repeats.

    Args:
        similarity: Share of a unit's three-word sequences that an earlier unit must contain, above 0 and up to 1.
        min_words: Shorter units are never repeats; headings and list stubs recur for good reasons.
    """

    similarity: float = 0.8
    min_words: int = 5

    name: ClassVar[str] = "dedup"
    removes: ClassVar[Literal["redundancy", "content"]] = "redundancy"

    def __post_init__(self) -> None:
        if not 0 < self.similarity <= 1:
            raise ConfigError(f"similarity must be above 0 and at most 1, got {self.similarity}")
        if self.min_words < 1:
            raise ConfigError(f"min_words must be at least 1, got {self.min_words}")

    def score(self, units: Units, query: str | None) -> Sequence[float]:
        """Return 1 plus the relevance for first occurrences and the relevance alone for repeats."""
        repeats = self.repeats(units)
        return [value + (index not in repeats) for index, value in enumerate(relevance(units, query))]

    def choose(self, units: Units, job: Job, order: Sequence[int]) -> frozenset[int]:
        """Return what fits; if a later stage enforces the budget, everything but the repeats."""
        if job.request.is_soft:
            return frozenset(range(len(units))) - self.repeats(units)
        return super().choose(units, job, order)

    def repeats(self, units: Units) -> frozenset[int]:
        """Return the indices of units that say nothing that an earlier one does not say."""
        seen = _Seen(self.similarity)
        parents = {unit.parent for unit in units} | {index for unit in units for index in unit.requires}
        found = set()
        for index, unit in enumerate(units):
            if index in parents or unit.protected or not _may_repeat(unit):
                continue
            words = _words(unit.text.casefold())
            if len(words) >= self.min_words and seen.has(words, unit.text):
                found.add(index)
        return frozenset(found)


def _may_repeat(unit: Unit) -> bool:
    """Whether a repeat of this unit is redundant: a statement or a key of an object has its meaning by its place."""
    if unit.kind is Kind.JSON:
        return unit.text.lstrip().startswith("{")
    return unit.kind in (Kind.PROSE, Kind.LOG, Kind.TABLE)


def _words(folded: str) -> list[str]:
    return _ASCII_WORD.findall(folded) if folded.isascii() else _WORD.findall(folded)


class _Seen:
    """The units met so far, found again by the sequences of words in them."""

    def __init__(self, similarity: float) -> None:
        self._similarity = similarity
        self._exact: set[str] = set()
        self._facts: list[set[tuple[str, int]]] = []
        self._all_facts: set[tuple[str, int]] = set()
        self._postings: dict[tuple[str, ...], list[int]] = {}

    def has(self, words: Sequence[str], text: str) -> bool:
        """Tell whether the unit repeats an earlier one; if not, remember it."""
        exact = " ".join(text.split())
        if exact in self._exact:
            return True
        shingles = _shingles(words)
        facts = _numbered(_facts(text))
        # what states something new repeats nothing, however alike its words are
        if facts <= self._all_facts and self._is_near(shingles, facts):
            return True
        self._exact.add(exact)
        for shingle in shingles:
            postings = self._postings.get(shingle)
            if postings is None:
                self._postings[shingle] = [len(self._facts)]
            elif len(postings) < _MAX_POSTINGS:
                postings.append(len(self._facts))
        self._facts.append(facts)
        self._all_facts |= facts
        return False

    def _is_near(self, shingles: set[tuple[str, ...]], facts: set[tuple[str, int]]) -> bool:
        known = [postings for postings in map(self._postings.get, shingles) if postings]
        enough = self._similarity * len(shingles)
        if len(known) < enough:
            return False
        shared = Counter(chain.from_iterable(known))
        return any(n_shared >= enough and facts <= self._facts[unit] for unit, n_shared in shared.items())


def _shingles(words: Sequence[str]) -> set[tuple[str, ...]]:
    """Return the sequences of three words, or all of fewer words as one."""
    if len(words) <= _SHINGLE:
        return {tuple(words)}
    return set(zip(*(words[first:] for first in range(_SHINGLE)), strict=False))


def _numbered(facts: Iterable[str]) -> set[tuple[str, int]]:
    """Return each fact with how often it came before, so that sets compare as bags would, only faster."""
    before: Counter[str] = Counter()
    numbered = set()
    for fact in facts:
        numbered.add((fact, before[fact]))
        before[fact] += 1
    return numbered


def _facts(text: str) -> list[str]:
    """Return what a paraphrase must not change: numbers, identifiers, names in mid-sentence, negations."""
    fact, capitals = (_ASCII_FACT, _ASCII_CAPITALS) if text.isascii() else (_FACT, _CAPITALS)
    names: list[str] = capitals.findall(text.lstrip()[1:])
    plain = (found.strip(".,;:!?()[]\"'").casefold() for found in fact.findall(text))
    return [*plain, *names]
