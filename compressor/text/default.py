"""The default: each unit goes to the method that suits its kind, under one budget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kompakt.compressor.text.mixed import MixedCompressor


@dataclass(frozen=True)
class Default(MixedCompressor):
    """Prose as ``extractive`` ranks it, JSON, code, logs and tables as ``structured`` does, repeats last.

    Where the sentence encoder is not on this machine, prose is ranked by its words alone, as ``lexical`` does; the
    trace says so.

    Args:
        model: A named sentence encoder or a local folder; ``"auto"`` takes ``minilm-l6`` if it is here and words if
            not, ``"none"`` always takes words.
    """

    name: ClassVar[str] = "default"
