"""Sources with what was kept and dropped, for the templates and for the page's script."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from kompakt.compressor.evaluation.report import formats
from kompakt.compressor.evaluation.summary import ShownExample, Summary
from kompakt.compressor.inspection import InspectedDocument, Piece, View
from kompakt.compressor.types import Kind

N_LEVELS: Final = 5
"""Strengths of the tint; 0 is for pieces without a score."""

_FIXED_PITCH: Final = frozenset({Kind.CODE, Kind.JSON, Kind.LOG, Kind.TABLE})


class Levels:
    """How strongly each kept piece of a view is tinted: by the rank of its score among its stage's.

    Scores of different stages mean different things, so that only their ranks can share a scale.

    Args:
        view: The view.
    """

    def __init__(self, view: View) -> None:
        scores: dict[str, set[float]] = {}
        for document in view.documents:
            for piece in document.pieces:
                if piece.is_kept and _is_number(piece.score):
                    scores.setdefault(piece.stage, set()).add(float(piece.score or 0.0))
        self._ranks = {stage: sorted(found) for stage, found in scores.items()}

    def of(self, piece: Piece) -> int:
        """Return the level of a piece, from 1 to ``N_LEVELS``; 0 if it was dropped or has no score."""
        if not piece.is_kept or not _is_number(piece.score):
            return 0
        ranks = self._ranks[piece.stage]
        if len(ranks) == 1:
            return N_LEVELS // 2 + 1
        return 1 + round((N_LEVELS - 1) * bisect_left(ranks, float(piece.score or 0.0)) / (len(ranks) - 1))


def fate(piece: Piece) -> str:
    """Return what happened to a piece, such as ``kept by extractive, score 0.731``."""
    words = "kept" if piece.is_kept else "dropped"
    if piece.stage:
        words += f" by {piece.stage}"
    if piece.score is not None:
        words += f", score {piece.score:.4g}"
    return words


def share(document: InspectedDocument) -> float | None:
    """Return the fraction of a document's characters that was kept; None if the method does not say."""
    if not document.pieces or not document.text:
        return None
    return sum(piece.end - piece.start for piece in document.pieces if piece.is_kept) / len(document.text)


def kept_ranges(document: InspectedDocument) -> list[tuple[float, float]]:
    """Return start and width of the kept ranges, in thousandths of the document, with neighbours joined."""
    ranges: list[list[int]] = []
    for piece in document.pieces:
        if not piece.is_kept or piece.end == piece.start:
            continue
        if ranges and ranges[-1][1] == piece.start:
            ranges[-1][1] = piece.end
        else:
            ranges.append([piece.start, piece.end])
    whole = len(document.text) or 1
    return [(round(1000 * start / whole, 1), round(1000 * (end - start) / whole, 1)) for start, end in ranges]


def is_fixed_pitch(document: InspectedDocument) -> bool:
    """Return whether a document reads best in a font of fixed pitch."""
    return any(piece.kind in _FIXED_PITCH for piece in document.pieces)


def budget(view: View) -> str:
    """Return the budget of a view, such as ``25%`` or ``512 tokens``."""
    if view.keep is not None:
        return formats.asked(view.keep)
    return f"{formats.count(view.max_tokens)} tokens" if view.max_tokens is not None else "no budget"


def payload(summary: Summary) -> dict[str, object]:
    """Return the examples as the page's script reads them: each source once, pieces as flat lists.

    Lengths are in UTF-16 units, in which scripts count.
    """
    stages = _Interned()
    titles = {task.name: task.title or task.name for task in summary.tasks}
    examples = [_example(example, titles, stages) for example in summary.examples]
    roles = {formats.harmless(method.name): method.role for method in summary.methods}
    return {"examples": examples, "stages": [formats.harmless(name) for name in stages.names], "roles": roles}


@dataclass(slots=True)
class _Interned:
    """Names by the order in which they came."""

    places: dict[str, int]

    def __init__(self) -> None:
        self.places = {}

    @property
    def names(self) -> Iterable[str]:
        return self.places

    def __getitem__(self, name: str) -> int:
        return self.places.setdefault(name, len(self.places))


def _example(example: ShownExample, titles: Mapping[str, str], stages: _Interned) -> dict[str, object]:
    sources: dict[tuple[str, str, str], int] = {}
    views = []
    fixed: set[int] = set()
    for view in example.views:
        levels = Levels(view)
        documents = []
        for document in view.documents:
            place = sources.setdefault((document.id, document.title, document.text), len(sources))
            if is_fixed_pitch(document):
                fixed.add(place)
            documents.append([place, _pieces(document, levels, stages)])
        views.append(_view(view, documents))
    return {
        "task": formats.harmless(titles.get(example.task, example.task)),
        "id": formats.harmless(example.id),
        "question": formats.harmless(example.question),
        "answers": [formats.harmless(answer) for answer in example.answers],
        "sources": [
            [*(formats.harmless(part) for part in source), int(place in fixed)] for source, place in sources.items()
        ],
        "views": views,
    }


def _view(view: View, documents: list[list[object]]) -> dict[str, object]:
    result: dict[str, object] = {
        "method": formats.harmless(view.method),
        "budget": budget(view),
        "outcome": formats.harmless(view.outcome),
        "before": view.tokens_before,
        "after": view.tokens_after,
        "answered": view.has_answer,
        "reader": None if view.reader_answer is None else formats.harmless(view.reader_answer),
        "seconds": None if view.seconds is None else formats.seconds(view.seconds),
        "documents": documents,
    }
    if not any(document.pieces for document in view.documents):
        result["text"] = formats.harmless(view.text)
    return result


def _pieces(document: InspectedDocument, levels: Levels, stages: _Interned) -> list[int | float | str | None]:
    """Return length, code and score of each piece in one list; the code holds stage, level and fate."""
    flat: list[int | float | str | None] = []
    for piece in document.pieces:
        length = _units(document.text[piece.start : piece.end])
        code = (stages[piece.stage] * (N_LEVELS + 1) + levels.of(piece)) * 2 + piece.is_kept
        flat += [length, code, _short(piece.score)]
    return flat


def _units(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-16-le", "surrogatepass")) // 2


def _short(score: float | None) -> float | str | None:
    if score is None:
        return None
    # JSON has neither infinity nor NaN
    return float(f"{score:.4g}") if math.isfinite(score) else f"{score:.4g}"


def _is_number(score: float | None) -> bool:
    return score is not None and not math.isnan(score)
