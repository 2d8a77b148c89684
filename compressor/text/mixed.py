"""Units of every kind on one scale: prose by its meaning if a sentence encoder is here, the others by structure."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final

from kompakt.compressor.base import ScoringCompressor
from kompakt.compressor.errors import ModelNotFoundError
from kompakt.compressor.models.locate import model_path, weights_fingerprint
from kompakt.compressor.models.sentence_encoder import SentenceEncoder, recent_sentence_encoder
from kompakt.compressor.store.artefacts import Artefacts
from kompakt.compressor.text.bm25 import relevance
from kompakt.compressor.text.dedup import Dedup
from kompakt.compressor.text.extractive import centrality_less_redundancy, fused_relevance
from kompakt.compressor.text.spread import spread
from kompakt.compressor.text.structured import structure_bonus
from kompakt.compressor.types import Kind
from kompakt.compressor.units.unit import Units

if TYPE_CHECKING:
    import numpy as np

_LOG = logging.getLogger(__name__)
_AUTOMATIC: Final = "minilm-l6"
_REPEAT: Final = 0.1
"""What is left of the relevance of a unit that repeats an earlier one."""


@dataclass(frozen=True)
class MixedCompressor(ScoringCompressor):
    """The base of compressors that rank units of every kind, prose by its meaning if a sentence encoder is here.

    Args:
        model: A named sentence encoder or a local folder; ``"auto"`` takes ``minilm-l6`` if it is here and words if
            not, ``"none"`` always takes words.
    """

    model: str = "auto"

    @property
    def weights_fingerprint(self) -> str:
        """SHA-256 of the sentence encoder's files; empty where words alone decide."""
        return "" if self._words_only else weights_fingerprint(model_path(self._model))

    @property
    def note(self) -> str:
        """Why prose is ranked by its words alone, if it is."""
        if not self._words_only:
            return ""
        return "prose ranked by words alone: " + ("as asked" if self.model == "none" else _missing() or "")

    @property
    def _model(self) -> str:
        return _AUTOMATIC if self.model == "auto" else self.model

    @property
    def _words_only(self) -> bool:
        return self.model == "none" or (self.model == "auto" and _missing() is not None)

    def read_ahead_units(self, jobs: Sequence[tuple[Units, str | None]], artefacts: Artefacts) -> None:
        """Embed the prose and the queries of several requests at once."""
        with_prose = [(units, query, prose) for units, query in jobs if (prose := prose_of(units))]
        encoder = self.encoder_for(with_prose[0][0]) if with_prose else None
        if encoder is not None:
            queries = [query for _, query, _ in with_prose if query]
            texts = [units[index].text for units, _, prose in with_prose for index in prose]
            encoder.encode([*queries, *texts], artefacts=artefacts, is_ahead=True)

    def score(self, units: Units, query: str | None) -> Sequence[float]:
        """Return relevance from 0 to 1, plus what a unit's place in structured content is worth."""
        return list(mixed_relevance(units, query, self.encoder_for(units)))

    def encoder_for(self, units: Units) -> SentenceEncoder | None:
        """Return the sentence encoder, or None where words alone decide or there is no prose.

        Raises:
            ModelNotFoundError: If an encoder asked for by name is not on this machine.
            ModelError: If its folder cannot be read as a sentence encoder.
        """
        if not prose_of(units):
            return None
        if not self._words_only:
            return recent_sentence_encoder(self._model)
        if self.model == "auto":
            _say_once(self.note)
        return None


def prose_of(units: Units) -> list[int]:
    """Return the indices of the units that an encoder can judge."""
    return [index for index, unit in enumerate(units) if unit.kind is Kind.PROSE]


def mixed_relevance(units: Units, query: str | None, encoder: SentenceEncoder | None) -> np.ndarray:
    """Return relevance from 0 to 1, plus what a unit's place in structured content is worth, as ``[n]``.

    With a query: words and, of prose, meaning, spread to what belongs with the best units. Without one: importance
    within the text. Units that repeat an earlier one keep a tenth.

    Args:
        units: The units of a request.
        query: The question, or None.
        encoder: Judges prose; without one, words do.
    """
    import numpy as np

    prose = prose_of(units)
    if query:
        scores = spread(units, _relevance(units, query, encoder, prose), query)
    else:
        scores = _importance(units, encoder, prose)
    raised: np.ndarray = scores + np.array(structure_bonus(units, query))
    repeats = list(Dedup().repeats(units))
    raised[repeats] *= _REPEAT
    return raised


def _relevance(units: Units, query: str, encoder: SentenceEncoder | None, prose: Sequence[int]) -> np.ndarray:
    import numpy as np

    if encoder is None:
        return np.array(relevance(units, query))
    return fused_relevance(units, query, encoder, embedded=prose)


def _importance(units: Units, encoder: SentenceEncoder | None, prose: Sequence[int]) -> np.ndarray:
    import numpy as np

    scores = np.array(relevance(units, None))
    if encoder is not None:
        vectors = encoder.encode([units[index].text for index in prose], artefacts=units.artefacts)
        central = centrality_less_redundancy([units[index].document for index in prose], vectors)
        lowest, highest = central.min(), central.max()
        scores[list(prose)] = (central - lowest) / max(float(highest - lowest), 1e-9)
    return scores


def _missing() -> str | None:
    """Return what keeps the automatic sentence encoder from being used, or None."""
    if find_spec("torch") is None or find_spec("transformers") is None:
        return "for sentence embeddings, pip install 'kompakt[local]'"
    try:
        model_path(_AUTOMATIC)
    except ModelNotFoundError as error:
        return str(error)
    return None


@cache
def _say_once(message: str) -> None:
    _LOG.warning(message)
