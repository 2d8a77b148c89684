"""The folder of an index: what it was made with, and who may change it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final, Self

from kompakt.compressor.errors import StoreError
from kompakt.compressor.file_locks import lock, unlock

_FILE: Final = "manifest.json"
_LOCK: Final = "writer.lock"
_SCHEMA_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class Manifest:
    """What an index was made with, and what was saved last.

    Generation and hash are copies for people and other tools: those in the catalogue change together with the
    segments, and are the ones that count.

    Args:
        encoder: Name of the encoder; empty if it has none.
        encoder_fingerprint: What tells it from others.
        tokenizer: Name of the tokenizer that limits the segments.
        tokenizer_fingerprint: What tells it from others.
        chunk_tokens: The most tokens of a segment.
        generation: How often the index was saved.
        vectors_sha256: SHA-256 of its file of vectors, in hex; empty if it has none.
    """

    encoder: str
    encoder_fingerprint: str
    tokenizer: str
    tokenizer_fingerprint: str
    chunk_tokens: int
    generation: int = 0
    vectors_sha256: str = ""

    @staticmethod
    def is_in(folder: Path) -> bool:
        """Tell whether a folder has a manifest."""
        return (folder / _FILE).exists()

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the manifest of a folder.

        Raises:
            StoreError: If there is none, or it is damaged or that of a newer kompakt.
        """
        path = folder / _FILE
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise StoreError(f"there is no index in {folder}: it has no {_FILE}") from error
        except (OSError, ValueError) as error:
            raise StoreError(f"cannot read {path}: {error}") from error
        version = data.get("schema_version") if isinstance(data, dict) else None
        if version != _SCHEMA_VERSION:
            raise StoreError(f"{path} has schema {version!r}, this kompakt reads {_SCHEMA_VERSION}")
        return cls(**{field.name: _value(data, field.name, str(field.type), path) for field in fields(cls)})

    def check_encoder(self, name: str, fingerprint: str) -> None:
        """Raise ``StoreError`` unless an encoder is the one that the index was made with."""
        _check_same("encoder", (self.encoder, self.encoder_fingerprint), (name, fingerprint))

    def check_tokenizer(self, name: str, fingerprint: str) -> None:
        """Raise ``StoreError`` unless a tokenizer is the one that the index was made with."""
        _check_same("tokenizer", (self.tokenizer, self.tokenizer_fingerprint), (name, fingerprint))

    def write(self, folder: Path) -> None:
        """Write the manifest to a folder.

        Raises:
            StoreError: If it cannot be written.
        """
        text = json.dumps({"schema_version": _SCHEMA_VERSION, **asdict(self)}, indent=2) + "\n"
        replace_file(folder / _FILE, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _value(data: dict[str, Any], name: str, kind: str, path: Path) -> Any:  # noqa: ANN401 (a field of the manifest)
    value = data.get(name)
    if type(value).__name__ != kind:
        raise StoreError(f"{path}: {name} must be {kind}, got {value!r}")
    return value


def _check_same(what: str, own: tuple[str, str], other: tuple[str, str]) -> None:
    if own[1] != other[1]:
        made_with, given = (f"{name or 'one without a name'} ({fingerprint})" for name, fingerprint in (own, other))
        raise StoreError(
            f"the index was made with another {what}: {made_with}, and this is {given}; "
            "use that one, or build the index again"
        )


class WriterLock:
    """The right to change a folder, held by one object on the machine until it is released or its process ends.

    Args:
        folder: The folder.

    Raises:
        StoreError: If another object or process holds it, or the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        try:
            self._file = (folder / _LOCK).open("ab")
        except OSError as error:
            raise StoreError(f"cannot write to {folder}: {error}") from error
        try:
            lock(self._file.fileno())
        except OSError as error:
            self._file.close()
            raise StoreError(f"{folder} is being written by another process or object; close that first") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def release(self) -> None:
        """Let others write."""
        unlock(self._file.fileno())
        self._file.close()


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file so that it is there as a whole or as it was before, also after a crash.

    Args:
        path: The file.
        write: Writes a file of another name in the same folder.

    Raises:
        StoreError: If it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        # FAISS raises RuntimeError for what the system refuses
        temporary.unlink(missing_ok=True)
        raise StoreError(f"cannot write {path}: {error}") from error
