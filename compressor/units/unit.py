"""The unit: the smallest piece of a document that is kept or dropped as a whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import overload

from kompakt.compressor.store.artefacts import Artefacts
from kompakt.compressor.types import Document, Kind


class Layout(StrEnum):
    """How the children of a unit are joined, and how it is written that some of them are missing."""

    FLAT = "flat"
    JSON_ARRAY = "json-array"
    JSON_OBJECT = "json-object"
    JSON_STRING = "json-string"
    JSON_LINES = "json-lines"
    HASH_BLOCK = "hash-block"
    """Statements whose language writes comments with ``#`` and allows none to be left."""
    PYTHON_BLOCK = "python-block"
    BRACE_BLOCK = "brace-block"


@dataclass(frozen=True, slots=True)
class Unit:
    """A range of a document with its place in the document's structure.

    A leaf is its ``head``. A container (a JSON object, a function, a fenced block) has a ``head`` before its
    children and a ``tail`` after them; both are written if the unit is kept.

    Args:
        document: Index of the document in the request.
        start: Offset of the first character in the document.
        end: Offset after the last character, children included.
        kind: What stands there.
        text: The words to judge the unit by.
        context: What stands above it: title, headings, keys.
        head_end: Offset after the head; equals ``end`` for a leaf.
        tail_start: Offset at which the tail begins; equals ``end`` for a leaf.
        parent: Index of the unit that contains this one.
        requires: Indices of further units without which this one must not stand.
        protected: Whether it must be kept.
        layout: How its children are joined.
        noun: What its children are called when some are left out.
    """

    document: int
    start: int
    end: int
    kind: Kind
    text: str
    context: str = ""
    head_end: int = -1
    tail_start: int = -1
    parent: int | None = None
    requires: tuple[int, ...] = ()
    protected: bool = False
    layout: Layout = Layout.FLAT
    noun: str = "items"

    def __post_init__(self) -> None:
        if self.head_end < 0:
            object.__setattr__(self, "head_end", self.end)
        if self.tail_start < 0:
            object.__setattr__(self, "tail_start", self.end)

    @property
    def is_container(self) -> bool:
        """Whether it can have children."""
        return self.head_end < self.tail_start or self.layout is not Layout.FLAT


class Units(Sequence[Unit]):
    """The units of one request, parents before their children, in source order.

    Args:
        documents: The documents they come from.
        units: The units.
        artefacts: Where what models said of texts earlier is found; the memory of this process without one.
    """

    def __init__(
        self, documents: Sequence[Document], units: Sequence[Unit], *, artefacts: Artefacts | None = None
    ) -> None:
        self.documents = tuple(documents)
        self.artefacts = artefacts or Artefacts()
        self._units = tuple(units)
        self._children: dict[int | None, list[int]] = {}
        for index, unit in enumerate(self._units):
            self._children.setdefault(unit.parent, []).append(index)

    @overload
    def __getitem__(self, index: int) -> Unit: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Unit, ...]: ...
    def __getitem__(self, index: int | slice) -> Unit | tuple[Unit, ...]:
        return self._units[index]

    def __len__(self) -> int:
        return len(self._units)

    def __iter__(self) -> Iterator[Unit]:
        return iter(self._units)

    def source(self, unit: Unit) -> str:
        """Return the unit's text as it stands in its document, children included."""
        return self.documents[unit.document].text[unit.start : unit.end]

    def children(self) -> dict[int | None, list[int]]:
        """Return the indices of each unit's children; those of ``None`` are the documents' top level."""
        return self._children


def shift(unit: Unit, *, by: int, units_before: int, parent: int | None = None) -> Unit:
    """Move a unit made from an excerpt to its place in the whole document.

    Args:
        unit: A unit whose offsets and indices count from the start of the excerpt.
        by: Offset of the excerpt in the document.
        units_before: Number of units that stand before the excerpt's first one.
        parent: Index of the unit that contains the excerpt.
    """
    return Unit(
        unit.document,
        unit.start + by,
        unit.end + by,
        unit.kind,
        unit.text,
        unit.context,
        unit.head_end + by,
        unit.tail_start + by,
        parent if unit.parent is None else unit.parent + units_before,
        tuple(index + units_before for index in unit.requires),
        unit.protected,
        unit.layout,
        unit.noun,
    )
