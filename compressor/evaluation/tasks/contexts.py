"""Contexts: how long they are, what they hold, and how they are made to fit."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from kompakt.compressor.errors import InputError
from kompakt.compressor.evaluation.example import Example, TaskSettings
from kompakt.compressor.types import DOCUMENT_SEPARATOR, Document


def joined(documents: Iterable[Document]) -> str:
    """Return the documents as one text."""
    return DOCUMENT_SEPARATOR.join(document.text for document in documents)


def fits(documents: Iterable[Document], settings: TaskSettings) -> bool:
    """Return whether the documents have at most as many tokens as a context may have."""
    return settings.max_context is None or settings.tokenizer.count(joined(documents)) <= settings.max_context


@dataclass(frozen=True, slots=True)
class Fitter:
    """Leaves documents out until the rest fits, having counted each of them once.

    Args:
        documents: All of them.
        settings: How long the rest may be.
        sizes: Tokens of each document, up to a token or so; empty if there is no limit.
    """

    documents: tuple[Document, ...]
    settings: TaskSettings
    sizes: tuple[int, ...]

    @classmethod
    def of(cls, documents: Iterable[Document], settings: TaskSettings) -> Fitter:
        """Count the documents if there is a limit."""
        found = tuple(documents)
        if settings.max_context is None:
            return cls(found, settings, ())
        texts = [document.text + DOCUMENT_SEPARATOR for document in found]
        return cls(found, settings, tuple(settings.tokenizer.count_batch(texts)))

    @property
    def is_whole(self) -> bool:
        """Whether nothing has to be dropped."""
        return self._fits(self.documents, sum(self.sizes))

    def with_some(self, optional: Sequence[int]) -> tuple[Document, ...] | None:
        """Return the documents, or if they do not fit, all but those of the optional ones that are too much.

        Args:
            optional: Positions of documents that may be dropped, in the order in which they are given room.

        Returns:
            The rest in its order; None if it does not fit without all of the optional ones, or is empty.
        """
        if self.is_whole:
            return self.documents
        limit = self.settings.max_context or 0
        total = sum(self.sizes) - sum(self.sizes[position] for position in optional)
        added: list[int] = []
        for position in optional:
            if total + self.sizes[position] <= limit:
                added.append(position)
                total += self.sizes[position]
        kept = dict(enumerate(self.documents))
        for position in set(optional).difference(added):
            del kept[position]
        while kept:
            if self._fits(kept.values(), total):
                return tuple(kept.values())
            if not added:
                return None
            total -= self.sizes[added[-1]]
            del kept[added.pop()]
        return None

    def _fits(self, documents: Collection[Document], n_tokens: int) -> bool:
        # the exact count is needed near the limit only
        limit = self.settings.max_context
        return limit is None or (n_tokens - 2 * len(documents) <= limit and fits(documents, self.settings))


def has_answer(text: str, answers: Iterable[str]) -> bool:
    """Return whether an answer stands in the text, letter by letter."""
    return any(answer in text for answer in answers)


def require_distinct_ids(examples: Iterable[Example]) -> None:
    """Check that no two examples have the same id.

    Raises:
        InputError: If two have; the message names it.
    """
    seen: set[str] = set()
    for example in examples:
        if example.id in seen:
            raise InputError(f"two examples of {example.task} have the id {example.id!r}; ids must be distinct")
        seen.add(example.id)
