"""Batches on their way to a GPU: the next one is copied while the one before computes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, TypeAlias, TypeVar

if TYPE_CHECKING:
    import torch

    Tensors: TypeAlias = tuple[torch.Tensor, ...]

Item = TypeVar("Item")
Begun = TypeVar("Begun")


def transferred(batches: Iterable[Tensors], device: torch.device | str) -> Iterator[Tensors]:
    """Give out batches on a device, in order.

    For a GPU each batch goes through pinned memory and is copied on a stream of its own, one batch ahead of the one
    that is given out; what is queued on the current stream from then on waits for the copy. For another device a
    batch is moved when its turn comes, and stays what it is if it is there already.

    An error of ``batches`` comes behind the batches before it. Closing this iterator closes ``batches``.

    Args:
        batches: Tensors in host memory. A batch in pinned memory must not change until the next but one is asked for.
        device: Where they go.

    Yields:
        The tensors of a batch, on the device.
    """
    import torch

    place = torch.device(device)
    if place.type != "cuda":
        with _closed_afterwards(batches):
            for batch in batches:
                yield tuple(tensor.to(place) for tensor in batch)
        return
    stream = torch.cuda.Stream(place)  # type: ignore[no-untyped-call]

    def begin(batch: Tensors) -> tuple[Tensors, torch.cuda.Event]:
        with torch.cuda.stream(stream):
            copies = tuple(tensor.pin_memory().to(place, non_blocking=True) for tensor in batch)
            return copies, stream.record_event()

    ahead = one_ahead(batches, begin)
    with _closed_afterwards(ahead):
        for copies, copied in ahead:
            reader = torch.cuda.current_stream(place)
            reader.wait_event(copied)
            for tensor in copies:
                # the memory is of the other stream, which would give it away while this one still reads
                tensor.record_stream(reader)
            yield copies


def one_ahead(items: Iterable[Item], begin: Callable[[Item], Begun]) -> Iterator[Begun]:
    """Give out what ``begin`` makes of each item, and let it begin the next item before.

    An error of ``items`` or ``begin`` comes where it would without looking ahead: behind what was begun before.

    Args:
        items: What is begun; closed with this iterator.
        begin: Starts something that goes on by itself.
    """
    with _closed_afterwards(items):
        source = iter(items)
        begun = [begin(item) for item in islice(source, 1)]
        while begun:
            failure: Exception | None = None
            following: list[Begun] = []
            try:
                following = [begin(item) for item in islice(source, 1)]
            except Exception as error:  # raised below
                failure = error
            # popped: who is done with one must not have it held here
            yield begun.pop()
            if failure is not None:
                raise failure
            begun = following


@contextmanager
def _closed_afterwards(source: object) -> Iterator[None]:
    try:
        yield
    finally:
        close = getattr(source, "close", None)
        if close is not None:
            close()
