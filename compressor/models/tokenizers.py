"""Counting tokens as the target model does, without the network."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from kompakt.compressor.errors import ModelError, ModelNotFoundError
from kompakt.compressor.models.catalog import CATALOG
from kompakt.compressor.models.encodings import ENCODINGS, checked, encoding_of_model, load_encoding
from kompakt.compressor.models.locate import model_path

if TYPE_CHECKING:
    import tokenizers

DEFAULT_TOKENIZER = "o200k_base"
"""The encoding of OpenAI's current models."""

_TOKENIZER_FILE = "tokenizer.json"


@runtime_checkable
class Tokenizer(Protocol):
    """What counts tokens. ``count(text)`` is always ``len(encode(text))``, and 0 for the empty string."""

    @property
    def name(self) -> str:
        """A name for people and for records."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 in hex of what defines the tokenisation."""

    def count(self, text: str) -> int:
        """Return the number of tokens of ``text``, without special tokens."""

    def count_batch(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text."""

    def encode(self, text: str) -> list[int]:
        """Return the token ids of ``text``."""


class FileTokenizer:
    """A Hugging Face tokenizer.

    Text that spells a special token is counted as ordinary text, as with OpenAI's encodings.

    Args:
        name: A name for people.
        data: Content of its ``tokenizer.json``.

    Raises:
        ModelError: If the content is not a tokenizer.
    """

    def __init__(self, name: str, data: bytes) -> None:
        self.name = name
        self.fingerprint = hashlib.sha256(data).hexdigest()
        self._tokenizer = parse_tokenizer(name, data)

    def __repr__(self) -> str:
        return f"FileTokenizer({self.name!r})"

    def count(self, text: str) -> int:
        """Return the number of tokens of ``text``.

        Raises:
            InputError: If ``text`` holds a lone surrogate.
        """
        return self.count_batch([text])[0]

    def count_batch(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text.

        Raises:
            InputError: If a text holds a lone surrogate.
        """
        batch = [checked(text) for text in texts]
        return [len(one) for one in self._tokenizer.encode_batch_fast(batch, add_special_tokens=False)]

    def encode(self, text: str) -> list[int]:
        """Return the token ids of ``text``.

        Raises:
            InputError: If ``text`` holds a lone surrogate.
        """
        return list(self._tokenizer.encode(checked(text), add_special_tokens=False).ids)


def load_tokenizer(name: str | os.PathLike[str] | Tokenizer | None = None) -> Tokenizer:
    """Return a tokenizer; repeated calls return the same object.

    Args:
        name: One of OpenAI's encodings (``o200k_base``) or models (``gpt-4o``), a named model (``smollm2-135m``), a
            folder with a ``tokenizer.json``, or such a file. None means ``DEFAULT_TOKENIZER``; a tokenizer is
            returned as it is. A plain name is looked up in this order; write ``./NAME`` for a folder.

    Raises:
        ModelNotFoundError: If there is no such tokenizer on this machine; the message says how to get it.
        ModelError: If its file is broken.
    """
    if name is None:
        name = DEFAULT_TOKENIZER
    if isinstance(name, str):
        if name in CATALOG:
            return _from_file(name, _tokenizer_file(name, model_path(name)))
        encoding = name if name in ENCODINGS else encoding_of_model(name)
        if encoding in ENCODINGS:
            return _from_encoding(encoding)
    if isinstance(name, (str, os.PathLike)):
        path = os.path.expanduser(name)
        if os.path.exists(path):
            return _from_file(os.fspath(name), _tokenizer_file(os.fspath(name), Path(path)))
    elif isinstance(name, Tokenizer):
        return name
    models = sorted(spec.name for spec in CATALOG.values() if spec.kind in ("causal-lm", "sentence-embedding"))
    raise ModelNotFoundError(
        f"no tokenizer {name!r}. Accepted: an encoding ({', '.join(ENCODINGS)}), an OpenAI model such as 'gpt-4o', "
        f"a named model ({', '.join(models)}), or the path of a folder with a {_TOKENIZER_FILE}"
    )


@functools.cache
def _from_encoding(name: str) -> Tokenizer:
    return load_encoding(name)


def _tokenizer_file(name: str, path: Path) -> Path:
    file = path / _TOKENIZER_FILE if path.is_dir() else path
    if not file.is_file():
        raise ModelNotFoundError(f"{name!r} has no {_TOKENIZER_FILE}; a folder or file with one is needed")
    return file


def _from_file(name: str, file: Path) -> Tokenizer:
    stat = file.stat()
    return _from_file_version(name, file.absolute(), stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=16)
def _from_file_version(name: str, file: Path, size: int, mtime_ns: int) -> Tokenizer:
    # size and time are part of the key: a changed file is read again
    del size, mtime_ns
    try:
        data = file.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot read the tokenizer of {name!r}: {error}") from error
    return FileTokenizer(name, data)


def parse_tokenizer(name: str, data: bytes) -> tokenizers.Tokenizer:
    """Return the tokenizer that a ``tokenizer.json`` describes, counting special tokens' spellings as ordinary text.

    Raises:
        ModelError: If the content is not a tokenizer; ``name`` names it.
    """
    from tokenizers import Tokenizer as Parser

    try:
        parsed = Parser.from_buffer(data)
    except Exception as error:
        # the parser raises bare Exception
        raise ModelError(f"the {_TOKENIZER_FILE} of {name!r} is broken: {error}") from error
    parsed.no_truncation()
    parsed.no_padding()
    parsed.encode_special_tokens = True
    return parsed
