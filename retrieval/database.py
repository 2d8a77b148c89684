"""What the SQLite files of an index and of a corpus job share."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from kompakt.compressor.errors import InputError, StoreError


class Database:
    """A connection whose errors name the file.

    Args:
        path: The file.
        connection: A connection to it.

    Attributes:
        what: What the file is, for messages.
    """

    what: ClassVar[str]

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self._path = path
        self._connection = connection

    def _rows(self, sql: str, parameters: Sequence[object] = ()) -> list[Any]:
        with self._named_errors():
            return self._connection.execute(sql, parameters).fetchall()

    def _many(self, sql: str, rows: Iterable[tuple[object, ...]]) -> None:
        with self._named_errors():
            self._connection.executemany(sql, rows)

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except UnicodeEncodeError as error:
            raise InputError(f"a string holds a lone surrogate: {error.object!a}") from error
        except sqlite3.Error as error:
            raise StoreError(f"the {self.what} {self._path} cannot be used: {error}") from error
