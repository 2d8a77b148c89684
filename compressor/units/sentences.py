"""Sentences and paragraphs, in any script."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import TypeAlias

import regex

Range: TypeAlias = tuple[int, int]
ProseSplitter: TypeAlias = Callable[[str], Sequence[Range]]
"""Cuts a stretch of running text into consecutive ranges that tile it."""

_WRAP_WIDTH = (40, 120)


def split_sentences(text: str, *, language: str = "en") -> list[Range]:
    """Cut running text into sentences that tile it.

    Newlines stay with the sentence before them and other spaces go with the sentence after them: that is where
    byte-pair tokenizers cut, so the sentences' token counts add up to that of the text.

    Args:
        text: Running text, possibly of several paragraphs.
        language: ISO 639-1 code that selects the abbreviations; terminators of all scripts are known to each.
    """
    import sentencex

    cuts: list[int] = []
    for start, end in _lines(text):
        cuts.append(start)
        boundaries = sentencex.get_sentence_boundaries(language, text[start:end])
        cuts.extend(start + boundary["start_index"] for boundary in boundaries)
    return tile(text, cuts)


def tile(text: str, cuts: Iterable[int]) -> list[Range]:
    """Turn cut positions into ranges that tile ``text``; a cut inside white space moves to its seam."""
    seams = sorted({0, *(_seam(text, cut) for cut in cuts), len(text)})
    ranges = [(start, end) for start, end in pairwise(seams) if end > start]
    return _merge_blank(text, ranges)


def _seam(text: str, cut: int) -> int:
    start = end = cut
    while start > 0 and text[start - 1].isspace():
        start -= 1
    while end < len(text) and text[end].isspace():
        end += 1
    newline = text.rfind("\n", start, end)
    return newline + 1 if newline >= 0 else start


def _merge_blank(text: str, ranges: list[Range]) -> list[Range]:
    merged: list[Range] = []
    carried = None
    for start, end in ranges:
        begin = start if carried is None else carried
        carried = None
        if not text[start:end].isspace():
            merged.append((begin, end))
        elif merged:
            merged[-1] = (merged[-1][0], end)
        else:
            carried = begin
    return merged if carried is None else [(carried, len(text))]


def _lines(text: str) -> list[Range]:
    """Cut at every newline that ends a line on purpose, not at those of hard-wrapped paragraphs."""
    ranges: list[Range] = []
    start = 0
    for paragraph in re.split(r"(\n\s*\n)", text):
        if paragraph.strip() and not is_wrapped(paragraph):
            offset = start
            for line in lines_of(paragraph):
                ranges.append((offset, offset + len(line)))
                offset += len(line)
        else:
            ranges.append((start, start + len(paragraph)))
        start += len(paragraph)
    return ranges


def lines_of(text: str) -> list[str]:
    """Cut after each newline character and nowhere else, unlike ``str.splitlines``."""
    return [line for line in re.split(r"(?<=\n)", text) if line]


def is_wrapped(paragraph: str) -> bool:
    """Tell whether the lines of a paragraph were broken to fit a width, so that sentences run across them."""
    lengths = [len(line.rstrip()) for line in paragraph.strip("\n").split("\n")]
    if len(lengths) < 2:
        return False
    *full, _last = lengths
    longest = max(lengths)
    low, high = _WRAP_WIDTH
    return low <= longest <= high and min(full) >= 0.6 * longest


def pack_chunks(ranges: Sequence[Range], n_tokens: Sequence[int], *, max_tokens: int) -> list[Range]:
    """Pack consecutive sentences into chunks of at most ``max_tokens`` tokens (Jha et al. 2024, section 3).

    A sentence that is longer than the limit is a chunk of its own.

    Args:
        ranges: The sentences, tiling the text.
        n_tokens: Token count of each.
        max_tokens: The limit; 128 was best at high compression in the paper.
    """
    chunks: list[Range] = []
    used = 0
    for (start, end), n in zip(ranges, n_tokens, strict=True):
        if chunks and used + n <= max_tokens:
            chunks[-1] = (chunks[-1][0], end)
            used += n
        else:
            chunks.append((start, end))
            used = n
    return chunks


def split_words(text: str) -> list[Range]:
    """Cut text into words that tile it, each with the space before it.

    Scripts written without spaces are cut between graphemes, so a base character keeps its marks.
    """
    return tile(text, (match.start() for match in _WORD.finditer(text)))


_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_WORD = regex.compile(rf"(?=[{_UNSPACED}])\X|(?:(?![{_UNSPACED}])\S)+\p{{M}}*")
