"""Scores of one result: is the answer there, is what the reader says right, is the output still valid."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Final

from kompakt.compressor.types import Compressed, Document, Kind, TextPart
from kompakt.compressor.units.json_tree import is_json
from kompakt.compressor.units.segment import recognise
from kompakt.compressor.units.syntax import parses

_ARTICLES: Final = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION: Final = str.maketrans("", "", string.punctuation)


def answer_recall(text: str, answers: Sequence[str]) -> float:
    """Return 1 if an answer stands literally in ``text``, else 0."""
    return float(any(answer in text for answer in answers))


def normalise(text: str) -> str:
    """Lower-case ``text`` and remove punctuation, articles and superfluous white space.

    Source: Bai et al. 2024, "LongBench", metric of the question answering sets, after SQuAD's.
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """Return 1 if the prediction equals an answer once both are normalised, else 0."""
    return float(normalise(prediction) in {normalise(answer) for answer in answers})


def token_f1(prediction: str, answers: Sequence[str]) -> float:
    """Return the best F1 over the answers, between the words of the prediction and of the answer, normalised."""
    return max((_f1(normalise(prediction).split(), normalise(answer).split()) for answer in answers), default=0.0)


def _f1(prediction: Sequence[str], answer: Sequence[str]) -> float:
    if not prediction or not answer:
        return float(prediction == answer)
    n_common = (Counter(prediction) & Counter(answer)).total()
    return 2 * n_common / (len(prediction) + len(answer))


def is_valid(result: Compressed) -> bool | None:
    """Tell whether JSON and code in a result still parse; None if it has none, or none that can be told apart.

    A result without documents is the output of a foreign tool: it is judged as a whole if it had one source.
    """
    structured = [source for source in result.sources if recognise(source).kind in (Kind.JSON, Kind.CODE)]
    if not structured:
        return None
    if result.documents or not result.text:
        kept = {document.id: document.text for document in result.documents}
        found = [(source, kept[source.id]) for source in structured if source.id in kept]
    elif len(result.sources) == 1:
        found = [(structured[0], result.text)]
    else:
        return None
    return all(_still_parses(source, text) for source, text in found) if found else None


def _still_parses(source: Document, text: str) -> bool:
    content = recognise(source)
    if content.kind is Kind.CODE:
        return parses(text, content.language) or not parses(source.text, content.language)
    if content.by_line:
        return all(is_json(line) for line in text.split("\n") if line.strip())
    return is_json(text)


def verbatim_text(result: Compressed) -> str:
    """Return what a result took from its sources, without the marks and separators that it wrote itself."""
    pieces = []
    for part in (part for part in result.parts if isinstance(part, TextPart)):
        if not part.spans:
            pieces.append(part.text)
        for index, span in enumerate(part.spans):
            if span.kind not in (Kind.OMISSION, Kind.SEPARATOR):
                end = part.starts[index + 1] if index + 1 < len(part.starts) else len(part.text)
                pieces.append(part.text[part.starts[index] : end])
            else:
                pieces.append("\n")
    return "".join(pieces)
