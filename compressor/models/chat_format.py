"""What a model's chat format writes around a user's message."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kompakt.compressor.errors import ModelError
from kompakt.compressor.models.locate import model_path, weights_fingerprint

_CONTENT: Final = "\u241fkompakt content\u241f"
"""Stands for the message while the chat format is written around it."""


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """Tokens around a message.

    Args:
        head: Those before a user's message, what the format begins with included.
        tail: Those between it and the answer.
    """

    head: tuple[int, ...]
    tail: tuple[int, ...]


def chat_format(name_or_path: str | os.PathLike[str]) -> ChatFormat | None:
    """Return what stands around a user's message; None for a model without a chat format.

    Args:
        name_or_path: A named model or its folder.

    Raises:
        ModelNotFoundError: If it is not on this machine.
        ModelError: If its tokenizer cannot be loaded, or its template changes the message.
    """
    folder = model_path(name_or_path)
    return _read(folder.absolute(), weights_fingerprint(folder))


@functools.lru_cache(maxsize=16)
def _read(folder: Path, fingerprint: str) -> ChatFormat | None:
    from jinja2 import TemplateError
    from transformers import AutoTokenizer, PreTrainedTokenizerBase

    del fingerprint
    try:
        full: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"the tokenizer in {folder} cannot be loaded: {error}") from error
    if not full.chat_template:
        return None
    message = [{"role": "user", "content": _CONTENT}]
    try:
        written = full.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    except (TemplateError, ValueError, TypeError) as error:
        raise ModelError(f"the chat template in {folder} cannot write a single message of a user: {error}") from error
    head, found, tail = str(written).partition(_CONTENT)
    if not found or _CONTENT in tail:
        raise ModelError(f"the chat template in {folder} does not write the message as it is, and once")
    encoded = (full.encode(piece, add_special_tokens=False) for piece in (head, tail))
    return ChatFormat(*(tuple(ids) for ids in encoded))
