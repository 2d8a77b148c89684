"""The values that travel through kompakt: what goes in, what is asked for, what comes out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from itertools import count
from numbers import Integral, Real
from typing import TypeAlias

from kompakt.compressor.errors import BudgetError, InputError
from kompakt.compressor.parts import CachePart as CachePart
from kompakt.compressor.parts import EmbedsPart as EmbedsPart
from kompakt.compressor.parts import Form as Form
from kompakt.compressor.parts import Kind as Kind
from kompakt.compressor.parts import Part as Part
from kompakt.compressor.parts import Span as Span
from kompakt.compressor.parts import TextPart as TextPart
from kompakt.compressor.parts import form_of as form_of

DOCUMENT_SEPARATOR = "\n\n"
"""What stands between two documents in ``Compressed.text``."""


@dataclass(frozen=True, slots=True)
class Document:
    """A source text.

    Args:
        text: The content.
        id: A name for citations; without one, documents are numbered ``"0"``, ``"1"``, ... in a request.
        metadata: Anything the caller wants back. ``title``, ``path`` and ``language`` help scoring
            and recognition when they are strings.
        protected: Ranges ``(start, end)`` of ``text`` that must survive byte for byte.
    """

    text: str
    id: str | None = None
    metadata: Mapping[str, object] = field(default_factory=dict)
    protected: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.text, str):
            raise InputError(f"a document's text must be str, got {type(self.text).__name__}; decode bytes first")
        if self.id is not None and not isinstance(self.id, str):
            raise InputError(f"a document's id must be str or None, got {self.id!r}")
        if not isinstance(self.metadata, Mapping):
            raise InputError(f"a document's metadata must be a mapping, got {self.metadata!r}")
        for pair in self.protected:
            if not _is_range(pair, len(self.text)):
                raise InputError(
                    f"protected must hold pairs (start, end) within the document's {len(self.text)} characters, "
                    f"got {pair!r}"
                )


def _is_range(pair: object, length: int) -> bool:
    match pair:
        case (int(start), int(end)):
            return 0 <= start <= end <= length
        case _:
            return False


DocumentLike: TypeAlias = str | Document


WHOLE_KINDS = (Kind.PROSE, Kind.CODE, Kind.JSON, Kind.LOG, Kind.TABLE)
"""What a document can be as a whole."""


@dataclass(frozen=True, slots=True)
class Budget:
    """How much may remain: exactly one of a token count, a kept fraction, and fractions by kind of content.

    Args:
        max_tokens: The most tokens the result may have, counted by the target model's tokenizer.
        keep: The fraction of the tokens that may remain, above 0 and up to 1.
        by_kind: The fraction that may remain of the documents of each kind; others stay whole. For pipelines.

    Raises:
        BudgetError: If none or several are given, or the value makes no sense.
    """

    max_tokens: int | None = None
    keep: float | None = None
    by_kind: Mapping[Kind, float] | None = None

    def __post_init__(self) -> None:
        given = [value for value in (self.max_tokens, self.keep, self.by_kind) if value is not None]
        if len(given) != 1:
            by_kind = f" and by_kind={self.by_kind!r}" if self.by_kind is not None else ""
            raise BudgetError(
                "give exactly one of max_tokens= and keep=, "
                f"got max_tokens={self.max_tokens!r} and keep={self.keep!r}{by_kind}"
            )
        if self.max_tokens is not None:
            if isinstance(self.max_tokens, bool) or not isinstance(self.max_tokens, Integral):
                raise BudgetError(f"max_tokens must be a whole number, got {self.max_tokens!r}")
            if self.max_tokens < 1:
                raise BudgetError(f"max_tokens must be at least 1, got {self.max_tokens}")
        elif self.keep is not None:
            _check_fraction(self.keep, "keep")
        if self.by_kind is not None and not self.by_kind:
            raise BudgetError("a budget by kind must name at least one kind of document")
        for kind, keep in (self.by_kind or {}).items():
            if kind not in WHOLE_KINDS:
                raise BudgetError(f"there is no kind of document {kind!r}. Kinds: {', '.join(WHOLE_KINDS)}")
            _check_fraction(keep, f"keep of {kind}")

    def resolve(self, n_tokens: int) -> int:
        """Return the ceiling in tokens for an input of ``n_tokens`` tokens.

        Raises:
            BudgetError: If the budget is one by kind, which only a pipeline can spend.
        """
        if self.max_tokens is not None:
            return int(self.max_tokens)
        if self.keep is None:
            raise BudgetError("a budget by kind of content is for pipelines; give max_tokens or keep")
        # float noise must not cost a token: 0.29 * 100 is 28.999999999999996
        return math.floor(round(float(self.keep) * n_tokens, 6))


def _check_fraction(value: object, name: str) -> None:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise BudgetError(f"{name} must be a number, got {value!r}")
    if not math.isfinite(value) or not 0 < float(value) <= 1:
        raise BudgetError(f"{name} must be above 0 and at most 1 (1 keeps everything), got {value}")


class Status(StrEnum):
    """How a call ended."""

    COMPRESSED = "compressed"
    FITS = "fits"
    PASSED_THROUGH = "passed_through"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a call ended, and why where that is a question.

    Args:
        status: ``compressed``, ``fits`` (nothing had to be done) or ``passed_through`` (returned as it came).
        reason: Why the input, or the documents of one kind, were passed through; empty otherwise.
    """

    status: Status
    reason: str = ""


@dataclass(frozen=True, slots=True)
class StageTrace:
    """What one stage did.

    Args:
        stage: The compressor's name.
        seconds: Wall time.
        tokens_before: Tokens that went in.
        tokens_after: Tokens that came out.
        cache_hits: Units whose scores or artefacts were found in a cache.
        cache_misses: Units that had to be computed.
        note: Anything about the run that the caller did not ask for, such as a fallback.
    """

    stage: str
    seconds: float
    tokens_before: int
    tokens_after: int
    cache_hits: int = 0
    cache_misses: int = 0
    note: str = ""


@dataclass(frozen=True, slots=True)
class Decision:
    """What a stage made of one unit.

    Args:
        span: The unit's own text in its source; of a container, the part before its children.
        stage: The compressor's name.
        score: What the compressor gave it; higher is better, comparable within one stage and request only.
        is_kept: Whether it went on to the next stage or into the result.
    """

    span: Span
    stage: str
    score: float
    is_kept: bool


@dataclass(frozen=True, slots=True)
class State:
    """What a sequential compressor carries from one call to the next.

    Args:
        compressor: Fingerprint of the compressor that wrote it.
        data: Its content.
    """

    compressor: str
    data: bytes = b""


@dataclass(frozen=True, slots=True)
class Compressed:
    """The result of a call.

    Args:
        parts: What to send, in order.
        documents: The documents that kept something, compressed, in order, with their ids and metadata.
        outcome: How the call ended.
        tokens_before: Tokens of the input, documents joined by an empty line.
        tokens_after: Positions that ``parts`` occupy in the decoder.
        n_bytes: Size of the payload.
        trace: One entry a stage.
        sources: The documents that went in.
        state: What a sequential compressor needs to go on.
        decisions: What each stage made of each unit, if the request asked for a record; spans are of the sources.
    """

    parts: tuple[Part, ...]
    documents: tuple[Document, ...]
    outcome: Outcome
    tokens_before: int
    tokens_after: int
    n_bytes: int
    trace: tuple[StageTrace, ...] = ()
    sources: tuple[Document, ...] = field(default=(), repr=False)
    state: State | None = None
    decisions: tuple[Decision, ...] = field(default=(), repr=False)

    @property
    def forms(self) -> frozenset[Form]:
        """The forms of its parts."""
        return frozenset(form_of(part) for part in self.parts)

    @property
    def text(self) -> str:
        """The compressed context as one string.

        Raises:
            InputError: If a part of it is not text.
        """
        other = sorted(self.forms - {"text"})
        if other:
            raise InputError(
                f"this context was compressed to {' and '.join(other)}, which no text can carry: give its parts to a "
                "backend that reads them; each part's source is the text that it stands for"
            )
        return "".join(part.source.text for part in self.parts)

    @property
    def spans(self) -> tuple[Span, ...]:
        """Where each piece of the context comes from, in order."""
        return tuple(span for part in self.parts for span in part.spans)

    def explain(self) -> str:
        """Describe in plain text what was kept, what it cost and where it comes from."""
        from kompakt.compressor.explain import explain

        return explain(self)


def as_documents(documents: DocumentLike | Sequence[DocumentLike]) -> tuple[Document, ...]:
    """Turn what callers pass into documents with distinct ids.

    Raises:
        InputError: If an item is neither ``str`` nor ``Document``, two ids are equal, or a text holds a lone
            surrogate, which no tokenizer and no UTF-8 stream can carry.
    """
    items: Sequence[object] = [documents] if isinstance(documents, (str, Document)) else _as_sequence(documents)
    taken = {item.id for item in items if isinstance(item, Document)}
    free = (name for name in map(str, count()) if name not in taken)
    numbered = [_as_document(item, index, free) for index, item in enumerate(items)]
    seen: set[str] = set()
    for document in numbered:
        name = document.id or ""
        if name in seen:
            raise InputError(f"two documents have the id {name!r}; ids must be distinct within a request")
        seen.add(name)
        require_unicode(document.text, f"document {name!r}")
    return tuple(numbered)


def _as_sequence(documents: object) -> Sequence[object]:
    if isinstance(documents, (bytes, bytearray, Mapping)) or not hasattr(documents, "__iter__"):
        raise InputError(
            f"documents must be str, Document or a sequence of them, got {type(documents).__name__}"
            + ("; decode bytes first" if isinstance(documents, (bytes, bytearray)) else "")
        )
    return list(documents)


def _as_document(item: object, index: int, free: Iterator[str]) -> Document:
    if isinstance(item, str):
        return Document(item, id=next(free))
    if isinstance(item, Document):
        return item if item.id is not None else replace(item, id=next(free))
    raise InputError(f"document {index} must be str or Document, got {type(item).__name__}")


def require_unicode(text: str, what: str) -> None:
    """Raise ``InputError`` if ``text`` holds a lone surrogate; ``what`` names it in the message."""
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{what} holds a lone surrogate (U+{ord(text[error.start]):04X}) at character {error.start}; "
            "replace it, for example with text.encode('utf-8', 'replace').decode()"
        ) from error
