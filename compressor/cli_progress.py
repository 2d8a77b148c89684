"""How far a long command is: for a person a bar, for a log lines, and nothing for who wants none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

from rich.console import Console

from kompakt.compressor import cli_render

Show = TypeVar("Show")


@contextmanager
def progress(
    bar: Callable[[Console], AbstractContextManager[Show]], lines: Callable[[], Show], *, quiet: bool
) -> Iterator[Show | None]:
    """Open what shows progress on the standard error.

    Args:
        bar: Opens a bar, for a terminal.
        lines: Makes what writes a line every few seconds, for everything else.
        quiet: Show nothing.
    """
    console = cli_render.console(stderr=True)
    if quiet:
        yield None
    elif not console.is_terminal:
        yield lines()
    else:
        with bar(console) as show:
            yield show
