"""Compressed segments: each document compressed on its own, once, whatever stands beside it later."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, repeat
from operator import index
from sys import getsizeof
from threading import Lock
from typing import Any, Final

from cachetools import LRUCache

from kompakt.compressor.base import Compressor, Request
from kompakt.compressor.errors import BudgetError
from kompakt.compressor.models.locate import look_again
from kompakt.compressor.results import unchanged
from kompakt.compressor.store.artefacts import Artefacts
from kompakt.compressor.store.keys import text_keys
from kompakt.compressor.types import (
    Compressed,
    Document,
    Kind,
    Outcome,
    Part,
    Span,
    StageTrace,
    Status,
    TextPart,
)
from kompakt.compressor.units.code import language_of

_LOG = logging.getLogger(__name__)

_STAGE: Final = "store"
_VERBATIM: Final = frozenset(Kind) - {Kind.OMISSION, Kind.SEPARATOR}
_SCHEMA: Final = 1
_DECODED_BYTES: Final = 64 * 2**20


@dataclass(frozen=True, slots=True)
class SegmentKeys:
    """Names compressed segments by what they are made of.

    The query counts only if the compressor uses one, the document's id never: equal texts share a segment.

    Args:
        compressor: What compresses.
        like: A request with the budget, tokenizer, query and marks of every segment.
    """

    compressor: Compressor
    like: Request

    def keys(self, documents: Sequence[Document]) -> list[bytes]:
        """Return the key of each document's segment."""
        budget = self.like.budget
        # numbers of other libraries are not JSON
        max_tokens = None if budget.max_tokens is None else int(budget.max_tokens)
        keep = None if budget.keep is None else float(budget.keep)
        by_kind = sorted((kind, float(value)) for kind, value in budget.by_kind.items()) if budget.by_kind else None
        recipe = [
            "segment",
            _SCHEMA,
            self.compressor.fingerprint,
            self.like.tokenizer.fingerprint,
            [max_tokens, keep, by_kind],
            self.like.mark_omissions,
            self.like.query if self.compressor.uses_query else None,
        ]
        return text_keys(recipe, [_content(document) for document in documents], tenant=self.like.artefacts.tenant)


def _content(document: Document) -> str:
    """Return all of a document that a compressor may read, in a form that no two different documents share."""
    title, language, path = (document.metadata.get(name) for name in ("title", "language", "path"))
    hint = language_of(path) if isinstance(path, str) else None
    about = json.dumps(
        [
            title if isinstance(title, str) else None,
            language if isinstance(language, str) else None,
            hint,
            document.protected,
        ]
    )
    return f"{len(about)}:{about}{document.text}"


def compress_each(
    compressor: Compressor, like: Request, *, decoded: DecodedSegments | None = None
) -> list[Compressed]:
    """Compress each document of a request on its own, taking from the store what is there.

    A document too small for its budget, or one whose compression failed, is passed through as it is, with the reason.

    Args:
        compressor: What compresses.
        like: The documents, with the budget that each of them gets.
        decoded: Segments that this process has read before.

    Returns:
        One result a document, in order.

    Raises:
        KompaktError: If the configuration is at fault: a missing model, extra or option.
    """
    documents = like.documents
    keys = SegmentKeys(compressor, like).keys(documents)
    results = find_segments(like.artefacts, keys, documents, decoded=decoded)
    missing = {key: index for index, key in enumerate(keys) if results[index] is None}
    made = _make(compressor, like, {key: documents[index] for key, index in missing.items()}) if missing else {}
    return [
        _renamed(made[key], document) if result is None else result
        for key, document, result in zip(keys, documents, results, strict=True)
    ]


def _make(compressor: Compressor, like: Request, missing: Mapping[bytes, Document]) -> dict[bytes, Compressed]:
    """Compress documents and store what came out, unless their keys name a model that is no longer there."""
    look_again()
    made = dict(zip(missing, _compress_all(compressor, like, list(missing.values())), strict=True))
    key, document = next(iter(missing.items()))
    if SegmentKeys(compressor, like).keys([document]) != [key]:
        _LOG.warning("a model changed while %d segments were compressed: they are not stored", len(made))
        return made
    like.artefacts.store.put_many(
        {
            key: encode_segment(result)
            for key, result in made.items()
            # of vectors, the store has each segment already
            if result.outcome.status is not Status.PASSED_THROUGH and result.forms <= {"text"}
        }
    )
    return made


class DecodedSegments:
    """Segments that were read from a store, so that those in its memory need not be decoded again.

    The store decides what there is: a segment counts only as long as the store returns the very bytes that it was
    decoded from.
    """

    def __init__(self) -> None:
        self._results: LRUCache[bytes, tuple[bytes, Compressed]] = LRUCache(_DECODED_BYTES, getsizeof=_size)
        self._lock = Lock()

    def get(self, key: bytes, data: bytes, document: Document) -> Compressed | None:
        """Return what ``data`` says of a document, or None if it says nothing of it.

        Args:
            key: The segment's key.
            data: What the store has under it.
            document: What the segment was made of, whatever its id.
        """
        with self._lock:
            known = self._results.get(key)
        if known is not None and known[0] is data and _is_of(known[1], document):
            return known[1]
        try:
            result = decode_segment(data, document)
        except ValueError:
            return None
        with self._lock:
            if _size((data, result)) <= _DECODED_BYTES:
                self._results[key] = data, result
        return result


def _size(entry: tuple[bytes, Compressed]) -> int:
    # a decoded segment takes about five times the room of its bytes, and keeps what it was made of alive
    return 5 * len(entry[0]) + 1000 + sum(getsizeof(source.text) for source in entry[1].sources)


def _is_of(result: Compressed, document: Document) -> bool:
    try:
        return result.sources == (document,)
    except Exception:  # metadata is the caller's, and arrays in it cannot be compared
        return False


def find_segments(
    artefacts: Artefacts,
    keys: Sequence[bytes],
    documents: Sequence[Document],
    *,
    decoded: DecodedSegments | None = None,
) -> list[Compressed | None]:
    """Return the stored segment of each document, None where there is none; nothing is computed.

    Args:
        artefacts: Where segments are kept.
        keys: Their keys.
        documents: What each was made of.
        decoded: Segments that this process has read before.
    """
    known = decoded or DecodedSegments()
    return [
        None if value is None else known.get(key, value, document)
        for key, value, document in zip(keys, artefacts.store.get_many(keys), documents, strict=True)
    ]


def encode_segment(result: Compressed) -> bytes:
    """Return the result of one document as bytes."""
    spans = [span for part in result.parts for span in part.spans]
    starts = [start for part in result.parts for start in part.source.starts]
    row = {
        "text": result.text,
        "starts": starts,
        "from": [span.start for span in spans],
        "to": [span.end for span in spans],
        "kinds": [span.kind.value for span in spans],
        "protected": [index for index, span in enumerate(spans) if span.protected],
        "kept": [document.protected for document in result.documents],
        "tokens": [result.tokens_before, result.tokens_after],
        "fits": result.outcome.status is Status.FITS,
    }
    return json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode()


def decode_segment(data: bytes, document: Document) -> Compressed:
    """Return the result that ``encode_segment`` wrote, for a document with the same text.

    Raises:
        ValueError: If the bytes are none, or what they call verbatim does not stand in the document.
    """
    try:
        row = json.loads(data.decode())
        part = TextPart(row["text"], _spans(row, document.id or ""), tuple(row["starts"]))
        _check_verbatim(part, document)
        before, after = map(index, row["tokens"])
        return Compressed(
            parts=(part,) if part.text else (),
            documents=tuple(
                Document(part.text, document.id, document.metadata, tuple((start, end) for start, end in kept))
                for kept in row["kept"]
            ),
            outcome=Outcome(Status.FITS if row["fits"] else Status.COMPRESSED),
            tokens_before=before,
            tokens_after=after,
            n_bytes=len(part.text.encode()),
            trace=(StageTrace(_STAGE, 0.0, before, after, cache_hits=1),),
            sources=(document,),
        )
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"not a stored segment: {error!r}") from error


def _spans(row: Mapping[str, Any], name: str) -> tuple[Span, ...]:
    starts, ends = row["from"], row["to"]
    kinds = [_KINDS[value] for value in row["kinds"]]
    if not len(starts) == len(ends) == len(kinds):
        raise ValueError("not a stored segment: its spans are incomplete")
    protected = frozenset(row["protected"])
    flags = [position in protected for position in range(len(starts))]
    return tuple(map(Span, repeat(name), starts, ends, kinds, flags))


_KINDS: Final = {kind.value: kind for kind in Kind}


def _check_verbatim(part: TextPart, document: Document) -> None:
    if len(part.starts) != len(part.spans):
        raise ValueError("not a stored segment: spans and starts differ in number")
    bounds = [*part.starts, len(part.text)]
    if bounds[0] != 0 or bounds != sorted(bounds):
        raise ValueError("not a stored segment: its spans do not tile its text")
    for span, (start, end) in zip(part.spans, pairwise(bounds), strict=True):
        if span.kind in _VERBATIM and part.text[start:end] != document.text[span.start : span.end]:
            raise ValueError("a stored segment is not of this document")


def _compress_all(compressor: Compressor, like: Request, documents: Sequence[Document]) -> list[Compressed]:
    requests = [replace(like, documents=(document,)) for document in documents]
    if not requests:
        return []
    try:
        results = compressor.compress_batch(requests)
    except BudgetError:  # find the documents at fault
        results = [_compress_one(compressor, request) for request in requests]
    return [_missed(result) for result in results]


def _compress_one(compressor: Compressor, request: Request) -> Compressed:
    try:
        return compressor.compress_batch([request])[0]
    except BudgetError as error:
        n_tokens = request.tokenizer.count(request.documents[0].text)
        return unchanged(request.documents, n_tokens, Outcome(Status.PASSED_THROUGH, str(error)))


def _missed(result: Compressed) -> Compressed:
    trace = StageTrace(_STAGE, 0.0, result.tokens_before, result.tokens_after, cache_misses=1)
    return replace(result, trace=(*result.trace, trace))


def _renamed(result: Compressed, document: Document) -> Compressed:
    """Return the result of an equal document as that of this one."""
    if _is_of(result, document):
        return result
    name = document.id or ""
    parts = tuple(_part_renamed(part, name) for part in result.parts)
    documents = tuple(replace(document, text=kept.text, protected=kept.protected) for kept in result.documents)
    return replace(result, parts=parts, documents=documents, sources=(document,))


def _part_renamed(part: Part, name: str) -> Part:
    source = replace(part.source, spans=tuple(replace(span, document_id=name) for span in part.spans))
    return source if isinstance(part, TextPart) else replace(part, source=source)
