"""How well a text goes on after its beginning was compressed.

Files ``haystack*``, ``longdoc_*`` and ``text*``. A row is ``{"text", "id"?, "dataset"?}``, or has its text as
``document``.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from typing import Final

from kompakt.compressor.evaluation.example import Example, Rows, Task, TaskSettings
from kompakt.compressor.evaluation.tasks.sentences import CountedText, counted, stretches, texts_of
from kompakt.compressor.models.tokenizers import Tokenizer
from kompakt.compressor.types import Document

CONTEXT: Final = 2048
"""Tokens of a context if no limit is given."""
CONTINUATION: Final = 64
PER_TEXT: Final = 3

_SPARE: Final = 2 * CONTINUATION
_SMALLEST_PART: Final = 4
"""A text may be as much shorter than what is asked for."""
_WORD_END: Final = re.compile(r"(?<=\S)(?=\s)")
_MAX_CHARACTERS: Final = 12 * CONTINUATION


def examples(rows: Rows, settings: TaskSettings) -> Iterator[Example]:
    """Yield a few stretches of each text with what follows them.

    Raises:
        InputError: If a row lacks a field.
    """
    size = settings.max_context or CONTEXT
    for name, dataset, text in texts_of(rows):
        source = counted(text, settings.tokenizer)
        parts = (settings.seed, name, "continuation")
        for first, last in stretches(source, PER_TEXT, size, *parts, spare=_SPARE, least=size // _SMALLEST_PART):
            following = _continuation(source, last)
            if following:
                yield Example(
                    f"{name}/{first}",
                    "language-modelling",
                    (Document(source.cut(first, last), id="0"),),
                    answers=(following,),
                    dataset=dataset,
                    group=name,
                    target="continuation",
                )


def _continuation(source: CountedText, sentence: int) -> str:
    """Return as many whole words as fit; none if nothing follows or it is not written in words."""
    start = source.ranges[sentence][0] if sentence < len(source.ranges) else len(source.text)
    rest = source.text[start : start + _MAX_CHARACTERS]
    return _whole_words(rest.strip(), source.tokenizer)


def _whole_words(text: str, tokenizer: Tokenizer) -> str:
    ends = [match.start() for match in _WORD_END.finditer(text)]
    last = bisect_right(ends, CONTINUATION, key=lambda end: tokenizer.count(text[:end])) - 1
    return text[: ends[last]] if last >= 0 else ""


TASK = Task(
    "language-modelling",
    "Language modelling",
    "Foresee how a text goes on after its beginning was compressed",
    ("haystack*", "longdoc_*", "text*"),
    examples,
    has_query=False,
)
