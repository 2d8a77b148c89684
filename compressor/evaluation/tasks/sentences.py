"""A text cut into sentences whose tokens were counted once, and stretches of it of a given length."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

from kompakt.compressor.evaluation.data import dataset_of, records_of
from kompakt.compressor.evaluation.example import Rows
from kompakt.compressor.evaluation.tasks.chance import hashed
from kompakt.compressor.models.tokenizers import Tokenizer
from kompakt.compressor.units.sentences import Range, split_sentences

_MAX_TRIES: Final = 8
"""Starts that are tried in a part of a text: a table or a poem may have none that works."""


@dataclass(frozen=True, slots=True)
class CountedText:
    """Sentences and the number of tokens before each.

    Args:
        text: The whole text.
        tokenizer: What counted.
        ranges: The sentences, which tile the text.
        before: Tokens before each sentence, and last those of all.
    """

    text: str
    tokenizer: Tokenizer
    ranges: tuple[Range, ...]
    before: tuple[int, ...]

    @property
    def n_tokens(self) -> int:
        """The sum over the sentences, which may differ a little from the count of the text."""
        return self.before[-1]

    def cut(self, first: int, last: int) -> str:
        """Return sentences ``first`` to ``last``, the latter excluded, without the space around them."""
        return self.text[self.ranges[first][0] : self.ranges[last - 1][1]].strip() if last > first else ""

    def end_of_stretch(self, first: int, max_tokens: int) -> int:
        """Return where a stretch that begins at sentence ``first`` must end to have at most ``max_tokens``."""
        last = bisect_right(self.before, self.before[first] + max_tokens) - 1
        while last > first and self.tokenizer.count(self.cut(first, last)) > max_tokens:
            last -= 1
        return last

    def boundary(self, first: int, last: int, depth: float) -> int:
        """Return the sentence of a stretch before which the fraction ``depth`` of its tokens stands, about."""
        wanted = self.before[first] + depth * (self.before[last] - self.before[first])
        above = bisect_left(self.before, wanted, first, last)
        if above > first and wanted - self.before[above - 1] < self.before[above] - wanted:
            return above - 1
        return above

    def n_starts(self, n_tokens: int) -> int:
        """Return the number of sentences after whose beginning there are at least ``n_tokens``."""
        return bisect_right(self.before, self.n_tokens - n_tokens, hi=len(self.ranges))


def counted(text: str, tokenizer: Tokenizer) -> CountedText:
    """Cut a text into sentences and count each once."""
    ranges = tuple(split_sentences(text))
    counts = tokenizer.count_batch([text[start:end] for start, end in ranges])
    return CountedText(text, tokenizer, ranges, tuple(accumulate(counts, initial=0)))


def stretches(
    source: CountedText, n: int, max_tokens: int, *parts: str | float, spare: int = 0, least: int = 1
) -> Iterator[tuple[int, int]]:
    """Yield up to ``n`` stretches with distinct beginnings, spread over a text by chance.

    Args:
        source: The text.
        n: The most stretches; fewer if the text is short.
        max_tokens: The most tokens of a stretch.
        *parts: What decides the chance.
        spare: Tokens that must be left after a stretch.
        least: The fewest tokens of a stretch.

    Yields:
        The first sentence, and the one after the last.
    """
    length = min(max_tokens, source.n_tokens - spare)
    if length < max(1, least):
        return
    n_starts = source.n_starts(length + spare)
    n = max(1, min(n, source.n_tokens // (length + spare), n_starts))
    for index in range(n):
        starts = range(index * n_starts // n, (index + 1) * n_starts // n)
        for attempt in range(_MAX_TRIES):
            first = starts[hashed(*parts, index, attempt) % len(starts)]
            last = source.end_of_stretch(first, length)
            if source.before[last] - source.before[first] >= least:
                yield first, last
                break


def texts_of(rows: Rows) -> Iterator[tuple[str, str, str]]:
    """Yield every text of a task on plain text: its name, distinct over the files, its dataset, and itself.

    A row is ``{"text", "id"?, "dataset"?}``, or has its text as ``document``, as those of long-document-qa do.

    Raises:
        InputError: If a row has neither.
    """
    for number, (file, record) in enumerate(records_of(rows), 1):
        text = record.text("document" if "document" in record.fields else "text")
        yield f"{file}/{record.text_or('id', str(number))}", dataset_of(file, record), text
