"""A document compressor for LangChain: ``KompaktCompressor(max_tokens=800)``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Final

from kompakt.adapters._documents import METADATA_KEY, DocumentCompressor, Kept, Source
from kompakt.compressor.errors import MissingExtraError
from kompakt.compressor.pipeline import OnError, Pipeline

try:
    from langchain_core.callbacks import Callbacks
    from langchain_core.documents import BaseDocumentCompressor, Document
    from pydantic import ConfigDict, PrivateAttr
except ImportError as error:
    raise MissingExtraError("KompaktCompressor", "langchain") from error

__all__ = ["KompaktCompressor"]

_STATEFUL: Final = "_DocumentWithState"
"""What other compressors of LangChain return: a document that carries embeddings of its text around."""


class KompaktCompressor(BaseDocumentCompressor):
    """Makes retrieved documents smaller for the question, under one budget over all of them.

    For ``ContextualCompressionRetriever``, ``DocumentCompressorPipeline``, and wherever else LangChain takes a
    document compressor. Order, ids and metadata stay, and the documents that were given are not changed. One of which
    nothing remains is left out, but never all. What was done is in each document's metadata under ``"kompakt"``: the
    ranges ``spans`` of its text that remain, ``tokens_before``, ``tokens_after``, ``outcome`` and ``reason``.

    Args:
        pipeline: What compresses; ``default`` with marks for what is left out, remembered by this process, without
            one.
        keep: The fraction of the tokens of all documents together that may remain.
        max_tokens: The most tokens that may remain of all of them, joined by empty lines; give this or ``keep``.
        deadline: Seconds after which documents go through as they are; None to wait.
        on_error: ``"pass_through"`` returns the documents as they are if something fails, with the reason in their
            metadata; ``"raise"`` raises.

    Raises:
        ConfigError: If an option makes no sense.
        BudgetError: If not exactly one of ``keep`` and ``max_tokens`` is given.
        ModelNotFoundError: If the pipeline's tokenizer is not on this machine.
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(arbitrary_types_allowed=True, frozen=True)

    pipeline: Pipeline
    keep: float | None
    max_tokens: int | None
    deadline: float | None
    on_error: OnError
    _compressor: DocumentCompressor = PrivateAttr()

    def __init__(
        self,
        *,
        pipeline: Pipeline | None = None,
        keep: float | None = None,
        max_tokens: int | None = None,
        deadline: float | None = None,
        on_error: OnError = "pass_through",
    ) -> None:
        made = DocumentCompressor(pipeline, keep=keep, max_tokens=max_tokens, deadline=deadline, on_error=on_error)
        fields: dict[str, Any] = {
            "pipeline": made.pipeline,
            "keep": keep,
            "max_tokens": max_tokens,
            "deadline": deadline,
            "on_error": on_error,
        }
        super().__init__(**fields)
        self._compressor = made

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> Sequence[Document]:
        """Return what remains of documents.

        Args:
            documents: What was retrieved.
            query: The question.
            callbacks: Not called: there are no steps in between that could be of interest.

        Raises:
            KompaktError: If something failed and ``on_error`` says to raise; if the pipeline has a wrong option, or a
                model or an extra is missing, whatever ``on_error`` says.
        """
        return _compressed(documents, self._compressor.compress(_sources(documents), query))

    async def acompress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> Sequence[Document]:
        """Do as ``compress_documents`` does, in a thread, without holding up the event loop."""
        return _compressed(documents, await self._compressor.acompress(_sources(documents), query))


def _sources(documents: Sequence[Document]) -> list[Source]:
    return [Source(document.page_content, document.metadata) for document in documents]


def _compressed(documents: Sequence[Document], kept: Sequence[Kept]) -> list[Document]:
    return [_with(_without_state(documents[one.position]), one) for one in kept]


def _with(document: Document, kept: Kept) -> Document:
    if kept.report is None:
        return document
    metadata = {**(document.metadata or {}), METADATA_KEY: kept.report}
    return document.model_copy(update={"page_content": kept.text, "metadata": metadata})


def _without_state(document: Document) -> Document:
    """Return a document without the embeddings that other compressors hide in it: those are of the whole text."""
    if all(one.__name__ != _STATEFUL for one in type(document).__mro__):
        return document
    return Document(page_content=document.page_content, metadata=document.metadata, id=document.id)
