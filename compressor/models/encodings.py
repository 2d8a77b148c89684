"""Tokenizers of OpenAI's models, from data that is on this machine.

Text is always ordinary text here: ``<|endoftext|>`` in a document is thirteen characters, not a control token.
"""

from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.util
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from kompakt.compressor.errors import InputError, ModelNotFoundError

_BUNDLED = {
    "cl100k_base": "cl100k_base",
    "o200k_base": "o200k_base",
    # differs from o200k_base in its control tokens only, which text never gives
    "o200k_harmony": "o200k_base",
}

_BLOBS = "https://openaipublic.blob.core.windows.net/"
# the files that define each encoding, with the SHA-256 that tiktoken pins: it downloads anew what differs
_FILES = {
    "cl100k_base": {
        "encodings/cl100k_base.tiktoken": "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
    },
    "o200k_base": {
        "encodings/o200k_base.tiktoken": "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
    },
    "p50k_base": {
        "encodings/p50k_base.tiktoken": "94b5ca7dff4d00767bc256fdd1b27e5b17361d7b8a5f968547f9f23eb70d2069",
    },
    "p50k_edit": {
        "encodings/p50k_base.tiktoken": "94b5ca7dff4d00767bc256fdd1b27e5b17361d7b8a5f968547f9f23eb70d2069",
    },
    "r50k_base": {
        "encodings/r50k_base.tiktoken": "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930",
    },
    "gpt2": {
        "gpt-2/encodings/main/vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
        "gpt-2/encodings/main/encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    },
}

ENCODINGS = ("o200k_base", "cl100k_base", "o200k_harmony", "p50k_base", "p50k_edit", "r50k_base", "gpt2")
"""Names of the encodings, the default first."""


class _Bpe(Protocol):
    def count(self, text: str) -> int: ...
    def encode(self, text: str) -> list[int]: ...


class EncodingTokenizer:
    """One of OpenAI's encodings.

    Args:
        name: The encoding's name.
        fingerprint: SHA-256 in hex of what defines the tokenisation.
        bpe: What counts and encodes.
    """

    def __init__(self, name: str, fingerprint: str, bpe: _Bpe) -> None:
        self.name = name
        self.fingerprint = fingerprint
        self._bpe = bpe

    def __repr__(self) -> str:
        return f"EncodingTokenizer({self.name!r})"

    def count(self, text: str) -> int:
        """Return the number of tokens of ``text``.

        Raises:
            InputError: If ``text`` holds a lone surrogate.
        """
        return self._bpe.count(checked(text))

    def count_batch(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text.

        Raises:
            InputError: If a text holds a lone surrogate.
        """
        count = self._bpe.count
        return [count(checked(text)) for text in texts]

    def encode(self, text: str) -> list[int]:
        """Return the token ids of ``text``.

        Raises:
            InputError: If ``text`` holds a lone surrogate.
        """
        return list(self._bpe.encode(checked(text)))


def checked(text: str) -> str:
    """Return ``text``, which must be valid Unicode.

    Raises:
        InputError: If it holds a lone surrogate, so that it has no UTF-8 form.
    """
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InputError(
                f"the text holds the lone surrogate {text[error.start]!r} at offset {error.start}; "
                "decode it with errors='replace'"
            ) from error
    return text


def encoding_of_model(model: str) -> str | None:
    """Return the encoding of an OpenAI model, such as ``gpt-4o-2024-08-06``; None for other names."""
    from tiktoken.model import encoding_name_for_model

    try:
        return encoding_name_for_model(model)
    except KeyError:
        return None


def load_encoding(name: str) -> EncodingTokenizer:
    """Return one of ``ENCODINGS``, without the network.

    Raises:
        ModelNotFoundError: If its data is not on this machine.
    """
    data = _BUNDLED.get(name, name)
    pinned = "".join(f"{file}:{digest}\n" for file, digest in _FILES[data].items())
    fingerprint = hashlib.sha256(pinned.encode()).hexdigest()
    bpe = _bundled_bpe(data) if name in _BUNDLED else _tiktoken_bpe(name)
    return EncodingTokenizer(name, fingerprint, bpe)


def _bundled_bpe(name: str) -> _Bpe:
    # the package itself takes half a second to import, for tables that its compiled part does not need,
    # and warns on Python 3.11 and 3.12
    package = importlib.util.find_spec("bpe_openai")
    folders = list(package.submodule_search_locations or ()) if package else []
    spec = importlib.machinery.PathFinder.find_spec("_bindings", folders)
    if spec is None or spec.loader is None:
        from bpe_openai import _bindings as bindings
    else:
        bindings = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(bindings)
    bpe: _Bpe = bindings.tokenizer_for_encoding(name)
    return bpe


class _TiktokenBpe:
    def __init__(self, name: str) -> None:
        import tiktoken

        self._encoding = tiktoken.get_encoding(name)

    def count(self, text: str) -> int:
        return len(self._encoding.encode_ordinary(text))

    def encode(self, text: str) -> list[int]:
        return self._encoding.encode_ordinary(text)


def _tiktoken_bpe(name: str) -> _Bpe:
    folder = _tiktoken_cache()
    for file, digest in _FILES[name].items():
        if folder is None or not _is_cached(folder, _BLOBS + file, digest):
            raise ModelNotFoundError(
                f"the encoding {name!r} is not on this machine: where there is a network, set TIKTOKEN_CACHE_DIR to "
                f"a folder and run `python -c \"import tiktoken; tiktoken.get_encoding('{name}')\"`, then set it to "
                "that folder (or a copy of it) here"
            )
    return _TiktokenBpe(name)


def _tiktoken_cache() -> Path | None:
    # the order in which tiktoken looks; an empty value turns its cache off
    for variable in ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR"):
        if variable in os.environ:
            return Path(os.environ[variable]) if os.environ[variable] else None
    return Path(tempfile.gettempdir()) / "data-gym-cache"


def _is_cached(folder: Path, url: str, digest: str) -> bool:
    file = folder / hashlib.sha1(url.encode(), usedforsecurity=False).hexdigest()
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest() == digest
    except OSError:
        return False
