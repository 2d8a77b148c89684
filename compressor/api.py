"""The two functions of the front door."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache

from kompakt.compressor.base import Compressor, Request, make_request
from kompakt.compressor.errors import ConfigError, InputError
from kompakt.compressor.models.tokenizers import DEFAULT_TOKENIZER, Tokenizer
from kompakt.compressor.pipeline import OnError, Pipeline
from kompakt.compressor.registry import load
from kompakt.compressor.store.base import Store
from kompakt.compressor.store.places import open_store
from kompakt.compressor.types import Compressed, Document, DocumentLike


def compress(
    documents: DocumentLike | Sequence[DocumentLike],
    *,
    query: str | None = None,
    max_tokens: int | None = None,
    keep: float | None = None,
    tokenizer: str | Tokenizer | None = None,
    compressor: str | Compressor = "default",
    protect: Sequence[str] = (),
    mark_omissions: bool = False,
    strict: bool = False,
    on_error: OnError = "pass_through",
    record: bool = False,
    store: str | os.PathLike[str] | Store | None = None,
) -> Compressed:
    """Make a context smaller.

    Args:
        documents: A text, a document, or several.
        query: The question or task that the context is for. Without one, what repeats or matters least goes first.
        max_tokens: The most tokens that may remain.
        keep: The fraction of tokens that may remain; give this or ``max_tokens``.
        tokenizer: Whose tokens are counted: an encoding, a model name, a tokenizer folder or a tokenizer.
        compressor: A registry name, a compressor or a pipeline.
        protect: Texts that must survive byte for byte wherever they occur.
        mark_omissions: Write a mark wherever prose, log lines or table rows are left out.
        strict: Raise ``CompressionError`` where the input would be passed through.
        on_error: ``"pass_through"`` returns the input with the reason if a compressor fails; ``"raise"`` raises.
        record: Keep what each stage made of each unit, with its score, in ``decisions``.
        store: Where what models say of texts is kept for later calls and other processes; see ``open_store``.

    Returns:
        The compressed context, with its outcome, counts, provenance and trace.

    Raises:
        BudgetError: If the budget is malformed or cannot hold what is protected.
        InputError: If documents or query cannot be used.
        ModelNotFoundError: If a model or tokenizer is not on this machine.
        ConfigError: If an option is wrong.
    """
    return compress_batch(
        [documents],
        queries=[query],
        max_tokens=max_tokens,
        keep=keep,
        tokenizer=tokenizer,
        compressor=compressor,
        protect=protect,
        mark_omissions=mark_omissions,
        strict=strict,
        on_error=on_error,
        record=record,
        store=store,
    )[0]


def compress_batch(
    contexts: Iterable[DocumentLike | Sequence[DocumentLike]],
    *,
    queries: str | Iterable[str | None] | None = None,
    max_tokens: int | None = None,
    keep: float | None = None,
    tokenizer: str | Tokenizer | None = None,
    compressor: str | Compressor = "default",
    protect: Sequence[str] = (),
    mark_omissions: bool = False,
    strict: bool = False,
    on_error: OnError = "pass_through",
    record: bool = False,
    store: str | os.PathLike[str] | Store | None = None,
) -> list[Compressed]:
    """Make several contexts smaller at once, each under its own budget; see ``compress``.

    Args:
        contexts: The contexts, each a text, a document or several.
        queries: One query for all contexts, or one a context.
        max_tokens: The most tokens that may remain of each context.
        keep: The fraction of tokens that may remain of each; give this or ``max_tokens``.
        tokenizer: Whose tokens are counted.
        compressor: A registry name, a compressor or a pipeline.
        protect: Texts that must survive byte for byte wherever they occur.
        mark_omissions: Write a mark wherever prose, log lines or table rows are left out.
        strict: Raise ``CompressionError`` where an input would be passed through.
        on_error: What to do if a compressor fails.
        record: Keep what each stage made of each unit in ``decisions``.
        store: Where what models say of texts is kept.

    Raises:
        KompaktError: As ``compress``; ``InputError`` too if there are not as many queries as contexts.
    """
    pipeline = _as_pipeline(compressor, strict=strict, on_error=on_error, mark_omissions=mark_omissions, store=store)
    budget = pipeline.budget_for(max_tokens, keep)
    if isinstance(contexts, (str, bytes, Document)):
        raise InputError("contexts must be a list of contexts; for a single one call compress")
    items = list(contexts)
    counter = tokenizer or pipeline.tokenizer or DEFAULT_TOKENIZER
    requests: list[Request] = []
    for context, query in zip(items, _as_queries(queries, len(items)), strict=True):
        request = make_request(
            context,
            query=query,
            budget=budget,
            tokenizer=counter,
            mark_omissions=mark_omissions or pipeline.mark_omissions,
        )
        documents = tuple(_protect(doc, protect) for doc in request.documents)
        requests.append(replace(request, documents=documents, record=record))
    return pipeline.compress_batch(requests)


def _as_queries(queries: str | Iterable[str | None] | None, n: int) -> list[str | None]:
    if queries is None or isinstance(queries, str):
        return [queries] * n
    listed = list(queries)
    if len(listed) != n:
        raise InputError(f"{n} contexts and {len(listed)} queries: give one query a context, or one for all")
    return listed


def _as_pipeline(
    compressor: str | Compressor,
    *,
    strict: bool,
    on_error: OnError,
    mark_omissions: bool,
    store: str | os.PathLike[str] | Store | None,
) -> Pipeline:
    if isinstance(compressor, Pipeline):
        if strict or on_error != "pass_through" or store is not None:
            raise ConfigError("strict, on_error and store are the pipeline's own; set them where it is made")
        return compressor
    loaded = _load_once(compressor) if isinstance(compressor, str) else compressor
    if not isinstance(loaded, Compressor):
        raise ConfigError(f"compressor must be a registry name, a compressor or a pipeline, got {compressor!r}")
    return Pipeline([loaded], strict=strict, on_error=on_error, mark_omissions=mark_omissions, store=_opened(store))


def _opened(store: str | os.PathLike[str] | Store | None) -> Store | None:
    """Return the store at a location: the same for every call, since to open a file takes longer than to read it."""
    if store is None or isinstance(store, Store):
        return store
    return _open_once(os.fspath(store) if isinstance(store, os.PathLike) else store)


@lru_cache(maxsize=8)
def _open_once(location: str) -> Store:
    return open_store(location)


@lru_cache(maxsize=32)
def _load_once(name: str) -> Compressor:
    return load(name)


def _protect(document: Document, needles: Sequence[str]) -> Document:
    if (
        isinstance(needles, str)
        or not isinstance(needles, Sequence)
        or not all(isinstance(needle, str) and needle for needle in needles)
    ):
        raise ConfigError(f"protect must be a list of texts that are not empty, got {needles!r}")
    found = [span for needle in needles for span in _occurrences(document.text, needle)]
    return replace(document, protected=(*document.protected, *found)) if found else document


def _occurrences(text: str, needle: str) -> list[tuple[int, int]]:
    found = []
    start = text.find(needle)
    while start >= 0:
        found.append((start, start + len(needle)))
        start = text.find(needle, start + len(needle))
    return found
