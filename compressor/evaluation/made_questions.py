"""Questions made from documents alone: find again the passage that a salient fact stands in."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

from kompakt.compressor.evaluation.example import Example
from kompakt.compressor.evaluation.fidelity import PATTERNS
from kompakt.compressor.types import Document
from kompakt.compressor.units.segment import segment
from kompakt.compressor.units.unit import Unit, Units

_WORD: Final = re.compile(r"[^\W\d_]{3,}")
_N_TERMS: Final = 4
"""Words of a passage that its question names: enough to point at it, too few to repeat it."""
_ASKED: Final = {
    "dates": "Which date",
    "identifiers": "Which identifier",
    "quotations": "Which quotation",
    "numbers": "Which number",
}
"""Facts in order of salience, and how they are asked for."""


def make_questions(documents: Sequence[Document], *, per_document: int = 10, seed: int = 0) -> list[Example]:
    """Make questions whose answer is a fact that stands only once in its document.

    A question names the rarest words of the passage around the fact. It is easier than what people ask, who use
    words of their own: a budget that fails on these questions fails on theirs.

    Args:
        documents: The documents, with distinct ids.
        per_document: The most questions on each.
        seed: Decides which facts are asked for.

    Returns:
        Examples with the whole document as their context.
    """
    examples: list[Example] = []
    for document in documents:
        name = document.id or ""
        chosen = sorted(_facts(document), key=lambda fact: _lot(seed, name, *fact))[:per_document]
        examples.extend(
            Example(
                id=f"{name}-{number}",
                task="questions",
                documents=(document,),
                question=question,
                answers=(answer,),
                group=name,
            )
            for number, (_, question, answer) in enumerate(chosen, 1)
        )
    return examples


def _lot(seed: int, *parts: object) -> str:
    return hashlib.sha256(repr((seed, *parts)).encode("utf-8", "backslashreplace")).hexdigest()


def _facts(document: Document) -> Iterator[tuple[int, str, str]]:
    """Yield the passage, the question and the answer of the most salient fact of each passage that has one."""
    units = segment([document])
    texts = [_own_text(unit, units) for unit in units]
    frequencies = Counter(word for text in texts for word in set(_words(text)))
    for index, text in enumerate(texts):
        for kind, asked in _ASKED.items():
            facts = [fact for fact in dict.fromkeys(PATTERNS[kind].findall(text)) if _is_asked(fact, document.text)]
            if facts:
                rest = [word for word in dict.fromkeys(_words(text)) if word not in _words(facts[0])]
                terms = sorted(rest, key=lambda word: frequencies[word])[:_N_TERMS]
                if len(terms) >= 2:
                    told = [word for word in rest if word in terms]
                    yield index, f"{asked} is given for {', '.join(told)}?", facts[0]
                break


def _is_asked(fact: str, text: str) -> bool:
    """Tell whether a fact stands only once in a text, and not as a key: a key names a fact and is none."""
    _, *after = text.split(fact)
    return len(after) == 1 and not (fact.startswith('"') and after[0].lstrip().startswith(":"))


def _own_text(unit: Unit, units: Units) -> str:
    return units.documents[unit.document].text[unit.start : unit.head_end]


def _words(text: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(text)]
