"""Sentences, chunks and words, in any script."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Final, TypeAlias

import regex

Range: TypeAlias = tuple[int, int]
ProseSplitter: TypeAlias = Callable[[str], Sequence[Range]]
"""Cuts a stretch of running text into consecutive ranges that tile it."""

_WRAP_WIDTH: Final = range(40, 161)
_LIST_MARKER: Final = re.compile(r"[ \t]*(?:[-*+•]|\d{1,3}[.)]|[A-Za-z][.)])")
# a letter and a full stop at the start of a line are more often initials than a marker
_STRETCH_END: Final = re.compile(r"\n\s*\n|\n(?=[ \t]*(?:[-*+•]|\d{1,3}[.)]|[A-Za-z]\))[ \t])|\Z")
_FILLED_LINE: Final = re.compile(r"\s*\S[^\n]*\n?(?:[^\S\n]*\n)*(?:[^\S\n]+\Z)?")
_FIRST_TOKEN: Final = re.compile(r"[>\s]*(\S*)")
_PLAIN_WORD: Final = re.compile(r"[^\W\d_][^/\\_=<>@|:{}\[\]]*:?")
_WINDOW: Final = 10_000
"""Characters of one paragraph that are cut at once: the splitter's time grows with their square."""
_ASCII_SENTENCE_END: Final = re.compile(r"[.!?][^\w\s]{0,4}\s+\S")


def split_sentences(text: str, *, language: str = "en") -> list[Range]:
    """Cut running text into sentences that tile it.

    Newlines stay with the sentence before them and other spaces go with the sentence after them: that is where
    byte-pair tokenizers cut, so the sentences' token counts add up to that of the text.

    Args:
        text: Running text, possibly of several paragraphs.
        language: ISO 639-1 code that selects the abbreviations; terminators of all scripts are known to each.
    """
    cuts: list[int] = []
    for start, end in _flows(text):
        cuts.append(start)
        cuts.extend(start + begin for begin in _sentence_starts(text[start:end], language))
    return tile(text, cuts)


def _sentence_starts(flow: str, language: str) -> list[int]:
    """Return where sentences begin in a stretch whose newlines, if any, are those of a wrapped paragraph."""
    if flow.isascii() and not _ASCII_SENTENCE_END.search(flow):
        return []
    # a newline would count as the end of a sentence
    starts = list(_boundaries(flow.replace("\n", " "), language))
    marker = _LIST_MARKER.match(flow)
    return [start for start in starts if marker is None or flow[marker.end() : start].strip()]


def _boundaries(line: str, language: str) -> Iterator[int]:
    """Yield where the sentences of a line begin but for the first, window by window."""
    import sentencex

    begin = 0
    while begin < len(line):
        boundaries = sentencex.get_sentence_boundaries(language, line[begin : begin + _WINDOW])
        is_last = begin + _WINDOW >= len(line)
        # what stands near the cut end is read again with what follows
        limit = _WINDOW if is_last else _WINDOW // 2
        starts = [start for boundary in boundaries if 0 < (start := boundary["start_index"]) <= limit]
        yield from (begin + start for start in starts)
        begin += _WINDOW if is_last else starts[-1] if starts else limit


def tile(text: str, cuts: Iterable[int]) -> list[Range]:
    """Turn cut positions into ranges that tile ``text``; a cut inside white space moves to its seam."""
    seams = {0, len(text)}
    blank = (0, -1)
    for cut in sorted(cuts):
        # one look at each run of white space keeps this linear
        if not blank[0] <= cut <= blank[1]:
            blank = _blank_around(text, cut)
            seams.add(_seam(text, *blank))
    return _merge_blank(text, list(pairwise(sorted(seams))))


def _blank_around(text: str, position: int) -> Range:
    start = end = position
    while start > 0 and text[start - 1].isspace():
        start -= 1
    while end < len(text) and text[end].isspace():
        end += 1
    return start, end


def _seam(text: str, start: int, end: int) -> int:
    """Return where a run of white space is cut: after its last newline, else at its start."""
    newline = text.rfind("\n", start, end)
    return newline + 1 if newline >= 0 else start


def _merge_blank(text: str, ranges: Sequence[Range]) -> list[Range]:
    """Join ranges of white space to the one before, or at the start of the text to the one after."""
    merged: list[Range] = []
    for start, end in ranges:
        if merged and (text[start:end].isspace() or text[slice(*merged[-1])].isspace()):
            merged[-1] = (merged[-1][0], end)
        else:
            merged.append((start, end))
    return merged


def _flows(text: str) -> Iterator[Range]:
    """Cut at every newline that ends a line on purpose, not at those of hard-wrapped paragraphs."""
    start = 0
    for match in _STRETCH_END.finditer(text):
        stretch = text[start : match.end()]
        if is_wrapped(stretch):
            yield start, match.end()
        else:
            position = start
            for line in lines_of(stretch):
                yield position, position + len(line)
                position += len(line)
        start = match.end()


def lines_of(text: str) -> list[str]:
    """Cut after each newline character and nowhere else, unlike ``str.splitlines``."""
    *lines, last = text.split("\n")
    return [f"{line}\n" for line in lines] + ([last] if last else [])


def filled_lines(text: str) -> list[str]:
    """Cut into lines, each with the blank ones that follow it, the first also with those before it."""
    if not text.strip():
        return [text] if text else []
    return _FILLED_LINE.findall(text)


def is_wrapped(paragraph: str) -> bool:
    """Tell whether the lines of a paragraph were broken to fit a width, so that sentences run across them.

    Each line is then so long that the first word of the next would not have fitted, and most lines go on in the
    middle of a sentence, with a word in small letters or of a script that has none; or all are indented below the
    first, which opens a list item.
    """
    lines = paragraph.rstrip().split("\n")
    width = max(len(line.rstrip()) for line in lines)
    if len(lines) < 2 or width not in _WRAP_WIDTH:
        return False
    firsts = [_FIRST_TOKEN.findall(line)[0] for line in lines[1:]]
    # wrapping by hand leaves some lines a little short
    n_full = sum(
        len(line.rstrip()) + 1 + len(first) > 0.9 * width for line, first in zip(lines, firsts, strict=False)
    )
    n_going_on = sum(bool(_PLAIN_WORD.fullmatch(first)) and not first[0].isupper() for first in firsts)
    is_item = bool(_LIST_MARKER.match(paragraph)) and all(line[0] in " \t" for line in lines[1:])
    return n_full >= 0.9 * len(firsts) and (is_item or n_going_on >= 0.5 * len(firsts))


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
    if not text.isascii():
        return tile(text, (match.start() for match in _WORD.finditer(text)))
    first, last = len(text) - len(text.lstrip()), len(text.rstrip())
    if first >= last:
        return [(0, len(text))] if text else []
    words = [match.span() for match in _ASCII_WORD.finditer(text, first, last)]
    words[0] = (0, words[0][1])
    words[-1] = (words[-1][0], len(text))
    return words


_UNSPACED: Final = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_WORD: Final = regex.compile(rf"(?=[{_UNSPACED}])\X|(?:(?![{_UNSPACED}\s])\X)+")
_ASCII_WORD: Final = re.compile(r"[^\S\n]*\S+(?:\s*\n)?")
"""A word with the spaces before it and the newlines after it: where ``tile`` cuts, in one pass."""
