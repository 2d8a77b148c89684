"""A component for Haystack: ``KompaktCompressor(max_tokens=800)``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from kompakt.adapters._documents import METADATA_KEY, DocumentCompressor, Kept, Source
from kompakt.compressor.config import parse_pipeline
from kompakt.compressor.errors import ConfigError, MissingExtraError
from kompakt.compressor.pipeline import OnError, Pipeline

try:
    from haystack import Document, component, default_from_dict, default_to_dict
except ImportError as error:
    raise MissingExtraError("KompaktCompressor", "haystack") from error

__all__ = ["KompaktCompressor"]


@component
class KompaktCompressor:
    """Makes retrieved documents smaller for the question, under one budget over all of them.

    Stands where a ranker does, or after one. Order, ids, scores and metadata stay, and the documents that were given
    are not changed. One of which nothing remains is left out, but never all; those without text stay as they are.
    What was done is in each document's ``meta`` under ``"kompakt"``: the ranges ``spans`` of its content that remain,
    ``tokens_before``, ``tokens_after``, ``outcome`` and ``reason``.

    Written to a file, the pipeline is TOML. To read it back, allow Haystack to import this module:
    ``Pipeline.loads(text, allowed_modules=["kompakt.*"])``.

    Args:
        pipeline: What compresses; ``default`` with marks for what is left out, remembered by this process, without
            one.
        keep: The fraction of the tokens of all documents together that may remain.
        max_tokens: The most tokens that may remain of all of them, joined by empty lines; give this or ``keep``.
        top_k: The most documents to use, the first ones; all without it.
        deadline: Seconds after which documents go through as they are; None to wait.
        on_error: ``"pass_through"`` returns the documents as they are if something fails, with the reason in their
            ``meta``; ``"raise"`` raises.

    Raises:
        ConfigError: If an option makes no sense.
        BudgetError: If not exactly one of ``keep`` and ``max_tokens`` is given.
        ModelNotFoundError: If the pipeline's tokenizer is not on this machine.
    """

    def __init__(
        self,
        *,
        pipeline: Pipeline | None = None,
        keep: float | None = None,
        max_tokens: int | None = None,
        top_k: int | None = None,
        deadline: float | None = None,
        on_error: OnError = "pass_through",
    ) -> None:
        self._compressor = DocumentCompressor(
            pipeline, keep=keep, max_tokens=max_tokens, deadline=deadline, on_error=on_error
        )
        self._top_k = _checked(top_k)

    def to_dict(self) -> dict[str, Any]:
        """Return this component as plain values.

        Raises:
            ConfigError: If a stage, the tokenizer or the store of the pipeline has no name to find it by again.
        """
        made = self._compressor
        written: dict[str, Any] = default_to_dict(
            self,
            pipeline=made.pipeline.to_toml(),
            keep=made.keep,
            max_tokens=made.max_tokens,
            top_k=self._top_k,
            deadline=made.deadline,
            on_error=made.on_error,
        )
        return written

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> KompaktCompressor:
        """Make a component of what ``to_dict`` returned.

        Raises:
            ConfigError: If an option or the pipeline cannot be understood.
        """
        options = dict(data.get("init_parameters", {}))
        if isinstance(options.get("pipeline"), str):
            options["pipeline"] = parse_pipeline(options["pipeline"])
        made: KompaktCompressor = default_from_dict(cls, {**data, "init_parameters": options})
        return made

    @component.output_types(documents=list[Document])
    def run(self, query: str, documents: list[Document], top_k: int | None = None) -> dict[str, list[Document]]:
        """Return what remains of documents.

        Args:
            query: The question.
            documents: What was retrieved, best first.
            top_k: The most documents to use, the first ones; as the component was made without it.

        Returns:
            The documents under ``"documents"``.

        Raises:
            KompaktError: If something failed and ``on_error`` says to raise; if the pipeline has a wrong option, or a
                model or an extra is missing, whatever ``on_error`` says.
        """
        used = documents[: _checked(top_k) or self._top_k]
        return {"documents": _compressed(used, self._compressor.compress(_sources(used), query))}

    @component.output_types(documents=list[Document])
    async def run_async(
        self, query: str, documents: list[Document], top_k: int | None = None
    ) -> dict[str, list[Document]]:
        """Do as ``run`` does, in a thread, without holding up the event loop."""
        used = documents[: _checked(top_k) or self._top_k]
        return {"documents": _compressed(used, await self._compressor.acompress(_sources(used), query))}


def _checked(top_k: int | None) -> int | None:
    if top_k is not None and (isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1):
        raise ConfigError(f"top_k must be a whole number above 0 or None, got {top_k!r}")
    return top_k


def _sources(documents: Sequence[Document]) -> list[Source]:
    return [Source(document.content, document.meta) for document in documents]


def _compressed(documents: Sequence[Document], kept: Sequence[Kept]) -> list[Document]:
    return [_with(documents[one.position], one) for one in kept]


def _with(document: Document, kept: Kept) -> Document:
    if kept.report is None:
        return document
    return replace(document, content=kept.text, meta={**(document.meta or {}), METADATA_KEY: kept.report})
