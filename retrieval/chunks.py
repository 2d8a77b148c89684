"""Documents to chunks: ranges of a few hundred tokens that are found, quoted and compressed on their own."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from kompakt.compressor.errors import ConfigError, InputError
from kompakt.compressor.models.tokenizers import Tokenizer
from kompakt.compressor.types import Document, Kind, require_unicode
from kompakt.compressor.units.segment import segment
from kompakt.compressor.units.sentences import Range, split_sentences, split_words
from kompakt.compressor.units.unit import Unit

_ATX: Final = re.compile(r"\s*(#{1,6})(?:\s|\Z)")
_SETEXT: Final = re.compile(r"\n {0,3}(=+|-+)\s*\Z")
_LOWEST: Final = 7
"""A level below that of every heading."""
_MAX_ABOVE: Final = 200
"""Characters to which each line of a context is cut: signatures and rows of column names can be of any length."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A range of a document that is indexed as one.

    Args:
        document_id: The document's id.
        start: Offset of the first character in the document's text.
        end: Offset after the last character.
        text: ``document.text[start:end]``, which neither begins nor ends with white space.
        context: What stands above it, joined by ``" > "``: the title, the headings, and in code, JSON and tables
            the signatures, keys or column names.
    """

    document_id: str
    start: int
    end: int
    text: str
    context: str


def split_chunks(document: Document, *, tokenizer: Tokenizer, max_tokens: int = 256) -> list[Chunk]:
    """Cut a document into chunks that hold all of its text but the white space between them.

    Whole sentences, lines, rows and statements are packed as long as they fit. No chunk reaches from one section
    of a Markdown document into the next; a heading begins the chunk after it. What is too long by itself is cut
    into sentences or lines, and what is still too long into words; only a single word can be above the limit.

    Args:
        document: The document; its ``title``, ``path`` and ``language`` help if its metadata has them.
        tokenizer: Whose tokens are counted.
        max_tokens: The most tokens a chunk may have.

    Returns:
        Chunks in order; none for a blank document.

    Raises:
        ConfigError: If ``max_tokens`` is no whole number above 0.
        InputError: If the document has no id, or its text holds a lone surrogate.
    """
    if isinstance(max_tokens, bool) or not isinstance(max_tokens, int) or max_tokens < 1:
        raise ConfigError(f"max_tokens must be a whole number above 0, got {max_tokens!r}")
    if document.id is None:
        raise InputError("a document needs an id, by which its chunks are cited: Document(text, id=...)")
    require_unicode(document.text, f"document {document.id!r}")
    if not document.text.strip():
        return []
    packer = _Packer(document.text, tokenizer, max_tokens)
    chunks = (packer.trimmed(pieces) for pieces in packer.chunks(_pieces(document)))
    return [
        Chunk(document.id, piece.start, piece.end, document.text[piece.start : piece.end], piece.context)
        for piece in chunks
        if piece.start < piece.end
    ]


@dataclass(frozen=True, slots=True)
class _Piece:
    """What is not cut unless it is too long; pieces tile the document.

    Args:
        start: Offset of the first character.
        end: Offset after the last character.
        context: What stands above it.
        fineness: 0 for a unit, 1 for a sentence or line of one, 2 for a word.
        is_heading: Whether it opens a section.
        is_start: Whether a chunk begins with it, whatever room there is in the one before.
        n_tokens: Tokens of its text.
    """

    start: int
    end: int
    context: str
    fineness: int = 0
    is_heading: bool = False
    is_start: bool = False
    n_tokens: int = 0


def _pieces(document: Document) -> list[_Piece]:
    """Return the document's units as pieces, each with what joins it to the next."""
    # ranges that must survive compression would only cut sentences into more pieces
    units = segment([replace(document, protected=())])
    title = document.metadata.get("title")
    outline = _Outline(title if isinstance(title, str) else "")
    found: list[_Piece] = []
    for unit, following in zip(units, [*units[1:], None], strict=True):
        above, is_heading = outline.place(unit, following)
        if found and found[-1].start == unit.start:
            # a container whose head is empty
            found.pop()
        found.append(_Piece(unit.start, unit.start, above, is_heading=is_heading, is_start=is_heading))
    ends = [*(piece.start for piece in found[1:]), len(document.text)]
    return [replace(piece, end=end) for piece, end in zip(found, ends, strict=True)]


@dataclass(slots=True)
class _Outline:
    """The headings above the units of a document, which know them only as one string."""

    title: str
    headings: tuple[tuple[int, str], ...] = ()

    def place(self, unit: Unit, following: Unit | None) -> tuple[str, bool]:
        """Return what stands above a unit, level by level, and whether it is a heading; if so, enter its section."""
        section = self._section(unit, following)
        if section:
            self.headings = section[:-1]
        elif unit.kind is Kind.PROSE and unit.context != self._context(self.headings):
            self.headings = self._named(unit.context)
        beyond = unit.context.removeprefix(self._context(self.headings))
        levels = [self.title, *(heading for _, heading in self.headings), beyond]
        self.headings = section or self.headings
        return " > ".join(short for level in levels if (short := _shortened(level))), bool(section)

    def _section(self, unit: Unit, following: Unit | None) -> tuple[tuple[int, str], ...]:
        """Return the headings of the section that a unit opens; none if it opens none."""
        level = _level(unit)
        above = _above(self.headings, level)
        section = (*above, (level, unit.text.strip().strip("#=- \n")))
        # what looks like a heading but is none, as in a nested list, leaves the context of what follows as it is
        below = "" if following is None else self._context(_above(section, _level(following) or _LOWEST))
        follows = following is None or f"{following.context} ".startswith(f"{below} ")
        return section if level and follows and unit.context == self._context(above) else ()

    def _named(self, context: str) -> tuple[tuple[int, str], ...]:
        """Return the headings of a context that no heading explains: a first line that was taken for the title."""
        depths = range(len(self.headings), -1, -1)
        known = next((n for n in depths if self._context(self.headings[:n]) == context), None)
        return ((1, context.removeprefix(self.title).strip()),) if known is None else self.headings[:known]

    def _context(self, headings: Iterable[tuple[int, str]]) -> str:
        return " ".join([self.title, *(heading for _, heading in headings)]).strip()


def _above(headings: Sequence[tuple[int, str]], level: int) -> tuple[tuple[int, str], ...]:
    return tuple(heading for heading in headings if heading[0] < level)


def _shortened(line: str) -> str:
    return " ".join(line.split())[:_MAX_ABOVE].strip()


def _level(unit: Unit) -> int:
    """Return the level of the Markdown heading that a unit looks like; 0 if it does not look like one."""
    if unit.kind is not Kind.PROSE:
        return 0
    if atx := _ATX.match(unit.text):
        return len(atx[1])
    setext = _SETEXT.search(unit.text)
    return 0 if setext is None else 1 if setext[1][0] == "=" else 2


_FINER: Final[tuple[Callable[[str], Sequence[Range]], ...]] = (split_sentences, split_words)


@dataclass(frozen=True, slots=True)
class _Packer:
    text: str
    tokenizer: Tokenizer
    max_tokens: int

    def chunks(self, pieces: Sequence[_Piece]) -> list[list[_Piece]]:
        """Return the pieces of each chunk."""
        packed = self._packed(self._small(pieces))
        # counts of pieces need not add up to that of the whole
        counts = self._counts([self.trimmed(chunk) for chunk in packed])
        return [
            part
            for chunk, n_tokens in zip(packed, counts, strict=True)
            for part in ([chunk] if n_tokens <= self.max_tokens else self._halves(chunk))
        ]

    def trimmed(self, pieces: Sequence[_Piece]) -> _Piece:
        """Return consecutive pieces as one, without the white space around them."""
        start, end = pieces[0].start, pieces[-1].end
        text = self.text[start:end]
        start += len(text) - len(text.lstrip())
        return replace(pieces[0], start=start, end=max(start, start + len(text.strip())))

    def _small(self, pieces: Sequence[_Piece]) -> list[_Piece]:
        """Return pieces with their counts, those above the limit cut further."""
        small: list[_Piece] = []
        for piece, n_tokens in zip(pieces, self._counts(pieces), strict=True):
            finer = self._cut(piece) if n_tokens > self.max_tokens else []
            small.extend(self._small(finer) if finer else [replace(piece, n_tokens=n_tokens)])
        return small

    def _cut(self, piece: _Piece) -> list[_Piece]:
        """Return a piece cut at the next finer boundaries that it has; empty if it is a word."""
        text = self.text[piece.start : piece.end]
        fineness, ranges = piece.fineness, [(0, len(text))]
        while len(ranges) == 1 and fineness < len(_FINER):
            ranges = list(_FINER[fineness](text))
            fineness += 1
        if len(ranges) == 1:
            return []
        finer = replace(piece, fineness=fineness, is_start=False)
        cut = [replace(finer, start=piece.start + a, end=piece.start + b) for a, b in ranges]
        # it is long anyway: what stands before it takes none of it
        cut[0] = replace(cut[0], is_start=True)
        return cut

    def _packed(self, pieces: Sequence[_Piece]) -> list[list[_Piece]]:
        packed: list[list[_Piece]] = []
        used = 0
        for piece in pieces:
            fits = bool(packed) and used + piece.n_tokens <= self.max_tokens
            # headings without text between them stay together
            if fits and (not piece.is_start or all(before.is_heading for before in packed[-1])):
                packed[-1].append(piece)
                used += piece.n_tokens
            else:
                packed.append([piece])
                used = piece.n_tokens
        return packed

    def _halves(self, pieces: list[_Piece]) -> list[list[_Piece]]:
        """Cut a chunk that is above the limit into parts that are not."""
        if len(pieces) == 1:
            finer = self._cut(pieces[0])
            return self.chunks(finer) if finer else [pieces]
        middle = len(pieces) // 2
        halves = [pieces[:middle], pieces[middle:]]
        counts = self._counts([self.trimmed(half) for half in halves])
        return [
            part
            for half, n_tokens in zip(halves, counts, strict=True)
            for part in ([half] if n_tokens <= self.max_tokens else self._halves(half))
        ]

    def _counts(self, pieces: Iterable[_Piece]) -> list[int]:
        return self.tokenizer.count_batch([self.text[piece.start : piece.end] for piece in pieces])
