"""Who puts batches into a sink: this process, one after the other, or others, several at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

from kompakt.compressor.types import Document
from kompakt.retrieval.corpus.sink import Sink, SinkReport, add_batch


class Runner(Protocol):
    """Puts batches into a sink, and says what came of them in the order in which they were started."""

    @property
    def n_ahead(self) -> int:
        """Batches that are left in work before what came of the earliest one is asked for."""

    @property
    def is_isolated(self) -> bool:
        """Whether documents are worked on in other processes, so that none can bring this one down."""

    def start(self, documents: Sequence[Document]) -> None:
        """Begin with a batch.

        Args:
            documents: Documents with distinct ids.

        Raises:
            KompaktError: If no document is to blame.
        """

    def finish(self) -> SinkReport:
        """Wait for the earliest batch that was started, and return what came of it; see ``add_batch``.

        Raises:
            KompaktError: If no document is to blame.
        """

    def close(self) -> None:
        """Leave what is in work, and give back processes and connections."""


class InProcess:
    """Puts each batch into the sink when what came of it is asked for.

    Args:
        sink: Where to.
    """

    n_ahead: Final = 0
    is_isolated: Final = False

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._documents: Sequence[Document] = ()

    def start(self, documents: Sequence[Document]) -> None:
        """Remember the batch."""
        self._documents = documents

    def finish(self) -> SinkReport:
        """Put the batch into the sink."""
        return add_batch(self._sink, self._documents)

    def close(self) -> None:
        """Do nothing: whoever opened the sink closes it."""
