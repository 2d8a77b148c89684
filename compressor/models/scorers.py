"""What scores tokens by their surprise: a whole language model, or a smaller one trained to say the same."""

from __future__ import annotations

import os
from typing import Final

from kompakt.compressor.errors import MissingExtraError
from kompakt.compressor.models.causal_lm import recent_causal_lm
from kompakt.compressor.models.locate import model_path, recent_fingerprint
from kompakt.compressor.models.self_information import Scorer, language_model_scorer

SETTINGS_FILE: Final = "surprisal_lite.json"
"""Marks a folder of weights for ``surprisal_lite``."""


def recent_scorer(name_or_path: str | os.PathLike[str]) -> Scorer:
    """Load what scores; its files are looked at once a second, for calls that come by the thousand.

    Args:
        name_or_path: A named model (``smollm2-135m``, ``surprisal-lite``), the folder of a causal language model, or
            one that holds weights of ``surprisal_lite``.

    Raises:
        ModelNotFoundError: If it is not on this machine; the message names the command that pulls it.
        ModelError: If the folder holds nothing that can score.
        MissingExtraError: If the extra ``local`` is not installed.
    """
    folder = model_path(name_or_path)
    if not (folder / SETTINGS_FILE).is_file():
        return language_model_scorer(recent_causal_lm(name_or_path))
    try:
        from kompakt.compressor.models.surprisal_lite import load_surprisal_lite
    except ModuleNotFoundError as error:
        raise MissingExtraError("a local language model", "local") from error
    return load_surprisal_lite(folder.absolute(), recent_fingerprint(folder))
