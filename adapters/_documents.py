"""Documents that a framework has found, made smaller under one budget over all of them."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import PurePath
from typing import Final, TypeAlias

from kompakt.adapters._messages import readable
from kompakt.adapters._settings import default_pipeline, reason_of
from kompakt.compressor.base import require_text
from kompakt.compressor.errors import (
    CompressionError,
    ConfigError,
    MissingExtraError,
    ModelNotFoundError,
)
from kompakt.compressor.models.tokenizers import DEFAULT_TOKENIZER, load_tokenizer
from kompakt.compressor.pipeline import OnError, Pipeline
from kompakt.compressor.results import by_document
from kompakt.compressor.types import Document, Kind, Outcome, Status
from kompakt.compressor.units.render import Fragment

METADATA_KEY: Final = "kompakt"
"""Where, in a document's metadata, it says what was done to it."""

ReportValue: TypeAlias = str | int | list[list[int]] | None

_LOG = logging.getLogger(__name__)

_THREADS: Final = 4
_WRITTEN: Final = (Kind.OMISSION, Kind.SEPARATOR)

# the caller's to mend: passing documents on as they are would hide it
_OF_THE_SETUP: Final = (ConfigError, MissingExtraError, ModelNotFoundError)


@dataclass(frozen=True, slots=True)
class Source:
    """A document as a framework has it; where it stands in the list is its identity, as ids may repeat.

    Args:
        text: Its text; None or empty if it has none, as images do.
        metadata: Of which ``title``, ``language`` and the path of its file help to read it; None counts as none.
    """

    text: str | None
    metadata: Mapping[str, object] | None = None


@dataclass(frozen=True, slots=True)
class Kept:
    """What remains of a document.

    Args:
        position: Where the document stood in the list that was given.
        text: What remains of its text.
        report: What was done to it, for its metadata; None for one without text, which stays as it is.
    """

    position: int
    text: str
    report: dict[str, ReportValue] | None


class DocumentCompressor:
    """Makes lists of documents smaller for a question.

    Order stays. Documents of which nothing remains are left out, but never all of them: where nothing would remain,
    or something fails, all go through as they are, and their reports say why.

    Args:
        pipeline: What compresses; ``default`` with marks for what is left out, remembered by this process, without
            one.
        keep: The fraction of the tokens of all documents together that may remain.
        max_tokens: The most tokens that may remain of all of them, joined by empty lines; give this, ``keep``, or
            neither if the pipeline has a budget by kind.
        deadline: Seconds after which documents go through as they are; None to wait.
        on_error: ``"pass_through"``, or ``"raise"`` to raise where documents would go through as they are.

    Raises:
        ConfigError: If an option makes no sense.
        BudgetError: If not exactly one budget is given, or it makes no sense.
        ModelNotFoundError: If the pipeline's tokenizer is not on this machine.
    """

    def __init__(
        self,
        pipeline: Pipeline | None = None,
        *,
        keep: float | None = None,
        max_tokens: int | None = None,
        deadline: float | None = None,
        on_error: OnError = "pass_through",
    ) -> None:
        self.pipeline = pipeline or default_pipeline()
        require_text(self.pipeline, "a framework's document")
        self.pipeline.budget_for(max_tokens, keep)
        if deadline is not None and not deadline > 0:
            raise ConfigError(f"deadline must be above 0 seconds or None, got {deadline}")
        if on_error not in ("pass_through", "raise"):
            raise ConfigError(f"on_error must be 'pass_through' or 'raise', got {on_error!r}")
        self.keep = keep
        self.max_tokens = max_tokens
        self.deadline = deadline
        self.on_error = on_error
        self._tokenizer = load_tokenizer(self.pipeline.tokenizer or DEFAULT_TOKENIZER)

    def compress(self, sources: Sequence[Source], query: str | None) -> list[Kept]:
        """Return what remains of documents.

        Args:
            sources: The documents.
            query: The question; None or blank if there is none.

        Raises:
            KompaktError: If something failed and ``on_error`` says to raise; if the pipeline has a wrong option, or a
                model or an extra is missing, whatever ``on_error`` says.
        """
        if self.deadline is None:
            return self._compress(sources, query)
        future = _threads().submit(self._compress, sources, query)
        try:
            return future.result(self.deadline)
        except TimeoutError:
            future.cancel()
            return self._late(sources)

    async def acompress(self, sources: Sequence[Source], query: str | None) -> list[Kept]:
        """Do as ``compress`` does in a thread, without holding up the event loop of asyncio."""
        future = _threads().submit(self._compress, sources, query)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), self.deadline)
        except TimeoutError:
            return self._late(sources)

    def _compress(self, sources: Sequence[Source], query: str | None) -> list[Kept]:
        documents = {at: _as_document(at, source) for at, source in enumerate(sources) if source.text}
        if not documents:
            return _in_order(sources, {})
        try:
            return _in_order(sources, self._kept(list(documents.values()), query))
        except _OF_THE_SETUP:
            raise
        except Exception as error:  # whatever it is, the application must get its documents
            reason = self._reason(error)
        counts = self._tokenizer.count_batch([readable(document.text) for document in documents.values()])
        return _unchanged(sources, reason, dict(zip(documents, counts, strict=True)))

    def _kept(self, documents: Sequence[Document], query: str | None) -> dict[int, Kept]:
        """Return what remains of documents, by their positions.

        Raises:
            CompressionError: If they were passed through, or nothing would remain of them.
            KompaktError: If something failed.
        """
        asked = readable(query) if query else None
        result = self.pipeline.compress(documents, query=asked, keep=self.keep, max_tokens=self.max_tokens)
        if result.outcome.status is Status.PASSED_THROUGH:
            raise CompressionError(result.outcome.reason)
        pieces = by_document(result)
        is_whole = result.outcome.status is Status.FITS
        left = {
            one.id or "": one.text
            for one in result.documents
            if is_whole or _is_verbatim_somewhere(pieces[one.id or ""])
        }
        if not left:
            raise CompressionError("nothing would remain of the documents")
        texts = {document.id: document.text for document in documents}
        counts_before = self._tokenizer.count_batch([texts[name] for name in left])
        counts_after = self._tokenizer.count_batch(list(left.values()))
        return {
            int(name): Kept(int(name), text, _report(_ranges(pieces[name]), before, after, result.outcome))
            for (name, text), before, after in zip(left.items(), counts_before, counts_after, strict=True)
        }

    def _late(self, sources: Sequence[Source]) -> list[Kept]:
        error = CompressionError(f"not compressed within the deadline of {self.deadline:g} s")
        # to count the tokens would take more of the time that there was too little of
        return _unchanged(sources, self._reason(error), {})

    def _reason(self, error: Exception) -> str:
        if self.on_error == "raise":
            raise error
        reason = reason_of(error)
        _LOG.warning("documents are passed on as they are: %s", reason)
        return reason


def _threads() -> ThreadPoolExecutor:
    return _threads_of(os.getpid())


@cache
def _threads_of(process: int) -> ThreadPoolExecutor:
    # a fork has none of its parent's threads, and would wait for them for ever
    return ThreadPoolExecutor(_THREADS, thread_name_prefix=f"kompakt-documents-{process}")


def _as_document(position: int, source: Source) -> Document:
    metadata = source.metadata or {}
    hints = {key: metadata[key] for key in ("title", "language", "path") if isinstance(metadata.get(key), str)}
    path = metadata.get("file_path") or metadata.get("source")
    # a source may be anything: an address, whose end is no file's, or the name of a subject
    if "path" not in hints and isinstance(path, str) and "://" not in path and PurePath(path).suffix:
        hints["path"] = path
    return Document(source.text or "", id=str(position), metadata=hints)


def _in_order(sources: Sequence[Source], kept: Mapping[int, Kept]) -> list[Kept]:
    """Return what was kept in its order, with the documents that have no text where they stood."""
    every = range(len(sources))
    return [kept.get(at) or Kept(at, "", None) for at in every if at in kept or not sources[at].text]


def _unchanged(sources: Sequence[Source], reason: str, counts: Mapping[int, int]) -> list[Kept]:
    """Return all documents as they came, with the tokens of those that were counted."""
    outcome = Outcome(Status.PASSED_THROUGH, reason)
    kept = {
        position: Kept(
            position,
            source.text,
            _report([[0, len(source.text)]], counts.get(position), counts.get(position), outcome),
        )
        for position, source in enumerate(sources)
        if source.text
    }
    return _in_order(sources, kept)


def _report(
    spans: list[list[int]], tokens_before: int | None, tokens_after: int | None, outcome: Outcome
) -> dict[str, ReportValue]:
    return {
        "spans": spans,
        "tokens_before": tokens_before,
        "tokens_after": tokens_after,
        "outcome": outcome.status.value,
        "reason": outcome.reason,
    }


def _ranges(pieces: Sequence[Fragment]) -> list[list[int]]:
    """Return the ranges of the source that stand verbatim in the text, those that stand side by side as one."""
    ranges: list[list[int]] = []
    is_open = False
    for piece in filter(lambda one: one.text, pieces):
        span = piece.span
        if span.kind in _WRITTEN:
            is_open = False
        elif is_open and ranges[-1][1] == span.start:
            ranges[-1][1] = span.end
        else:
            ranges.append([span.start, span.end])
            is_open = True
    return ranges


def _is_verbatim_somewhere(pieces: Sequence[Fragment]) -> bool:
    return any(piece.text.strip() and piece.span.kind not in _WRITTEN for piece in pieces)
