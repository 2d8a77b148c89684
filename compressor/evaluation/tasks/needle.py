"""One sentence hidden in a long text, over a grid of lengths and depths.

Files ``haystack*`` with rows ``{"text"}`` and ``needles*`` with rows ``{"id", "needle", "question",
"answers": [str]}``. The haystacks are read as one text, from which stretches are cut.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, product
from typing import Final

from kompakt.compressor.evaluation.data import records_of
from kompakt.compressor.evaluation.example import Example, Rows, Task, TaskSettings
from kompakt.compressor.evaluation.tasks.chance import hashed, shuffled
from kompakt.compressor.evaluation.tasks.contexts import has_answer
from kompakt.compressor.evaluation.tasks.sentences import CountedText, counted
from kompakt.compressor.types import DOCUMENT_SEPARATOR, Document

LENGTHS: Final = (1000, 2000, 4000, 8000)
DEPTHS: Final = (0.0, 0.25, 0.5, 0.75, 1.0)
PER_POINT: Final = 2
N_EXAMPLES: Final = 40
"""How many there are at least, if there are needles enough: a smaller grid has more at each point."""


@dataclass(frozen=True, slots=True)
class _Needle:
    id: str
    text: str
    question: str
    answers: tuple[str, ...]


def examples(rows: Rows, settings: TaskSettings) -> Iterator[Example]:
    """Yield the examples of the grid, as far as the haystack is long enough; none without haystack or needles.

    Raises:
        InputError: If a row lacks a field.
    """
    texts = [record.text("text") for _, record in records_of(rows, ["haystack*"])]
    needles = [
        _Needle(record.text("id"), record.text("needle"), record.text("question"), record.texts("answers"))
        for _, record in records_of(rows, ["needles*"])
    ]
    haystack = counted(DOCUMENT_SEPARATOR.join(texts), settings.tokenizer)
    lengths = [length for length in _lengths(settings.max_context) if haystack.n_tokens >= length]
    grid = list(product(lengths, DEPTHS))
    per_point = max(PER_POINT, -(-N_EXAMPLES // max(1, len(grid))))
    for length, depth in grid:
        yield from islice(_at_point(haystack, needles, length, depth, settings), per_point)


def _lengths(max_context: int | None) -> tuple[int, ...]:
    if max_context is None:
        return LENGTHS
    return tuple(length for length in LENGTHS if length <= max_context) or (max_context,)


def _at_point(
    haystack: CountedText, needles: list[_Needle], length: int, depth: float, settings: TaskSettings
) -> Iterator[Example]:
    n_starts = haystack.n_starts(length)
    for needle in shuffled(needles, lambda needle: needle.id, settings.seed, length, depth):
        first = hashed(settings.seed, length, depth, needle.id, "haystack") % n_starts
        text = _with_needle(haystack, first, needle, length, depth)
        if text:
            yield Example(
                f"{length}-{depth:g}-{needle.id}",
                "needle",
                (Document(text, id="0"),),
                question=needle.question,
                answers=needle.answers,
                dataset=f"{length}-tokens",
                axes={"length": float(length), "depth": depth},
            )


def _with_needle(haystack: CountedText, first: int, needle: _Needle, length: int, depth: float) -> str:
    """Return a stretch with the needle in it; empty if there is no room or the answer stands there anyway."""
    tokenizer = haystack.tokenizer
    last = haystack.end_of_stretch(first, length - tokenizer.count(needle.text))
    while last > first:
        middle = haystack.boundary(first, last, depth)
        before, after = haystack.cut(first, middle), haystack.cut(middle, last)
        if has_answer(before, needle.answers) or has_answer(after, needle.answers):
            return ""
        text = _inserted(haystack, (first, middle, last), needle.text)
        if tokenizer.count(text) <= length:
            return text
        last -= 1
    return ""


def _inserted(haystack: CountedText, stretch: tuple[int, int, int], needle: str) -> str:
    first, middle, last = stretch
    before, after = haystack.cut(first, middle), haystack.cut(middle, last)
    if not before or not after:
        return f"{before or needle} {after or needle}"
    # the needle joins the paragraph that goes on, or opens the one that begins
    gap = haystack.cut(first, last)[len(before) : -len(after)]
    return f"{before}{gap}{needle} {after}"


TASK = Task(
    "needle",
    "Needle in a haystack",
    "Find one sentence hidden at a given depth of a text of a given length",
    ("haystack*", "needles*"),
    examples,
    axes=("length", "depth"),
)
