"""Phrases of English text: noun chunks, and every other word for itself."""

from __future__ import annotations

import functools
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import regex

from kompakt.compressor.errors import MissingExtraError, ModelError
from kompakt.compressor.models.locate import model_path, recent_fingerprint
from kompakt.compressor.units.sentences import Range, split_sentences, split_words, tile

if TYPE_CHECKING:
    from spacy.language import Language

CHUNKER: Final = "en-core-web-sm"
"""The named model that finds noun chunks."""

_UNUSED = ("ner", "lemmatizer", "senter")
_PIECE_CHARACTERS = 2000
"""The parser's memory grows with the longest piece that it is given: 10 kB for each character."""

_BATCH = 8
_LATIN = regex.compile(r"\p{Latin}")
_LETTER = regex.compile(r"\p{L}")


def load_chunker() -> Language:
    """Load the English pipeline from this machine; repeated calls return the same object.

    Raises:
        ModelNotFoundError: If it is not on this machine; the message names the command that pulls it.
        MissingExtraError: If the extra ``local`` is not installed.
        ModelError: If its folder is broken.
    """
    folder = model_path(CHUNKER)
    return _load(folder.absolute(), recent_fingerprint(folder))


@functools.lru_cache(maxsize=1)
def _load(folder: Path, fingerprint: str) -> Language:
    # the fingerprint is part of the key: a changed folder is read again
    del fingerprint
    try:
        import spacy
    except ImportError as error:
        raise MissingExtraError("finding noun chunks", "local") from error
    try:
        loaded: Language = spacy.load(folder, exclude=list(_UNUSED))
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{folder} holds no English pipeline that can be loaded: {error}") from error
    return loaded


def noun_chunks(texts: Sequence[str]) -> list[list[Range]]:
    """Return the character ranges of the base noun phrases in each text, in order and disjoint.

    Stretches that are mostly in a script other than Latin have none, since the pipeline is English.

    Args:
        texts: Stretches of running text, of any length.

    Raises:
        ModelNotFoundError: If the pipeline is not on this machine.
        MissingExtraError: If the extra ``local`` is not installed.
    """
    nlp = load_chunker()
    found: list[list[Range]] = [[] for _ in texts]
    pieces = [
        (index, start, texts[index][start:end]) for index, text in enumerate(texts) for start, end in _cut(text)
    ]
    # without the zone, the vocabulary would keep every word ever seen
    with nlp.memory_zone():
        documents = nlp.pipe((piece for _, _, piece in pieces), batch_size=_BATCH)
        for (index, start, _), document in zip(pieces, documents, strict=True):
            chunks = document.noun_chunks
            found[index].extend((start + chunk.start_char, start + chunk.end_char) for chunk in chunks)
    return found


def _cut(text: str) -> Iterator[Range]:
    """Cut into runs of sentences short enough for the parser, and leave out those that it cannot read."""
    begin = end = 0
    for start, stop in split_sentences(text):
        if stop - begin > _PIECE_CHARACTERS and end > begin:
            yield from _readable(text, begin, end)
            begin = start
        end = stop
    yield from _readable(text, begin, end)


def _readable(text: str, begin: int, end: int) -> Iterator[Range]:
    for start in range(begin, end, _PIECE_CHARACTERS):
        stop = min(start + _PIECE_CHARACTERS, end)
        letters = len(_LETTER.findall(text, start, stop))
        if letters and 2 * len(_LATIN.findall(text, start, stop)) >= letters:
            piece = text[start:stop]
            # the parser would take leading white space for a word
            yield start + len(piece) - len(piece.lstrip()), stop


def split_phrases(text: str, chunks: Sequence[Range]) -> list[Range]:
    """Cut text into phrases that tile it: the words of a noun chunk together, every other word for itself.

    Cuts fall between words, as those of ``split_words``: punctuation stays with its word, and a word that a chunk
    covers in part belongs to it as a whole.

    Args:
        text: Running text.
        chunks: Its noun chunks, in order and disjoint.
    """
    starts = [start for start, _ in chunks]
    return tile(text, (cut for cut in _word_starts(text) if not _is_inside(cut, chunks, starts)))


def _word_starts(text: str) -> list[int]:
    starts = []
    for start, end in split_words(text):
        source = text[start:end]
        starts.append(start + len(source) - len(source.lstrip()))
    return starts


def _is_inside(cut: int, chunks: Sequence[Range], starts: Sequence[int]) -> bool:
    position = bisect_left(starts, cut) - 1
    return position >= 0 and cut < chunks[position][1]
