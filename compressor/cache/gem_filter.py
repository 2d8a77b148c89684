"""GemFilter: an early layer of the model that will read a context chooses what of it is read."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import avg_pool1d
from transformers import PreTrainedModel

from kompakt.compressor.base import Request, ScoringCompressor
from kompakt.compressor.cache.observed import Attended, observable, observing
from kompakt.compressor.errors import ConfigError, InputError
from kompakt.compressor.models.causal_lm import CausalLM, Dtype, load_causal_lm, tokenize
from kompakt.compressor.models.chat_format import chat_format
from kompakt.compressor.models.locate import model_path, weights_fingerprint
from kompakt.compressor.soft.decoder import truncated
from kompakt.compressor.store.artefacts import Recipe
from kompakt.compressor.store.codec import decode_floats, encode_floats
from kompakt.compressor.types import DOCUMENT_SEPARATOR
from kompakt.compressor.units.sentences import ProseSplitter, split_words
from kompakt.compressor.units.unit import Units

_SHARE_OF_LAYERS: Final = 13 / 32
"""Where the paper's layer is: 13 of the 32 of Llama 3.1 8B, 19 of the 40 of Mistral NeMo."""


@dataclass(frozen=True, kw_only=True)
class GemFilter(ScoringCompressor):
    """Keep the words that the end of the prompt looks for in an early layer; no training.

    The first layers read the prompt: the context, and behind it the question. The last position's query is compared
    with all keys, summed over heads and averaged over neighbouring tokens. A word is as important as its best token.
    Whole words are kept, so that the outcome is text for any reader. A context that is longer than what the model
    reads is cut into windows, each of which is read before the question.

    Source: Shi et al. 2024, "Discovering the Gems in Early Layers", section 3.

    Args:
        model: A named model, or its folder.
        layer: The layer that chooses, counted from 0; where the paper has it, at two fifths of the model, if None.
        kernel: Neighbouring tokens whose scores are averaged; an odd number.
        is_chat: Whether the prompt is read in the model's chat format, if it has one.
        dtype: Number format of the weights.
        device: A torch device; CUDA if there is one and None is given.

    Raises:
        ConfigError: If an option makes no sense.
    """

    model: str = "smollm2-135m"
    layer: int | None = None
    kernel: int = 5
    is_chat: bool = True
    dtype: Dtype = "auto"
    device: str | None = None

    name: ClassVar[str] = "gemfilter"
    uses_query = True

    def __post_init__(self) -> None:
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ConfigError(f"kernel must be an odd number of at least 1, got {self.kernel}")
        if self.layer is not None and self.layer < 0:
            raise ConfigError(f"layer must be at least 0, got {self.layer}")

    @property
    def weights_fingerprint(self) -> str:
        """SHA-256 of the model's files."""
        return weights_fingerprint(model_path(self.model))

    def prose_splitter(self, request: Request) -> ProseSplitter:
        """Cut running text into words."""
        del request
        return split_words

    def score(self, units: Units, query: str | None) -> Sequence[float]:
        """Return the best score of each unit's tokens, of containers that of their head.

        Raises:
            ModelError: If the model has fewer layers, or its attention cannot be observed.
        """
        lm = load_causal_lm(self.model, dtype=self.dtype, device=self.device)
        text = DOCUMENT_SEPARATOR.join(document.text for document in units.documents)
        tokens = tokenize(lm, [text])[0]
        identity = [self.name, lm.fingerprint, lm.dtype, lm.device, self._layer(lm), self.kernel, self.is_chat, query]
        recipe = Recipe(
            identity,
            lambda _: [self._token_scores(lm, tokens.ids, query)],
            encode_floats,
            decode_floats,
        )
        scores = units.artefacts.fetch(recipe, [text])[0]
        offsets = np.cumsum([0, *(len(document.text) + len(DOCUMENT_SEPARATOR) for document in units.documents)])
        ranges = [(offsets[unit.document] + unit.start, offsets[unit.document] + unit.head_end) for unit in units]
        return _best(ranges, tokens.ends, scores)

    def _layer(self, lm: CausalLM) -> int:
        n_layers = int(lm.model.config.get_text_config().num_hidden_layers)
        return min(n_layers - 1, round(n_layers * _SHARE_OF_LAYERS)) if self.layer is None else self.layer

    def _token_scores(self, lm: CausalLM, ids: NDArray[np.int64], query: str | None) -> NDArray[np.float32]:
        """Return the score of each token, ``[T]``."""
        written = chat_format(self.model) if self.is_chat else None
        head, tail = (written.head, written.tail) if written else ((lm.prefix_id,), ())
        question = tokenize(lm, [f"\n\n{query}" if query else ""])[0].ids.tolist()
        window = lm.context_length - len(head) - len(question) - len(tail)
        if window < 1:
            raise InputError(
                f"the question takes {len(question)} tokens, what stands around it {len(head) + len(tail)}, and "
                f"{self.model} reads at most {lm.context_length}: shorten the question"
            )
        rows = [
            self._scores(lm, [*head, *own, *question, *tail], len(head), len(own)) for own in _windows(ids, window)
        ]
        return np.concatenate([np.empty(0, np.float32), *rows])

    def _scores(self, lm: CausalLM, ids: Sequence[int], first: int, n_tokens: int) -> NDArray[np.float32]:
        layer = self._layer(lm)
        found: list[torch.Tensor] = []

        def observe(attended: Attended) -> None:
            if attended.layer == layer:
                found.append(_last_products(attended))

        body = _beginning(lm, layer + 1)
        with torch.inference_mode(), observing(observe):
            body(input_ids=torch.tensor([ids], device=body.device), use_cache=False)
        pooled = avg_pool1d(found[0][None], self.kernel, stride=1, padding=self.kernel // 2)[0]
        return pooled[first : first + n_tokens].cpu().numpy()


@functools.lru_cache(maxsize=4)
def _beginning(lm: CausalLM, n_layers: int) -> PreTrainedModel:
    return truncated(observable(lm), n_layers)


def _last_products(attended: Attended) -> torch.Tensor:
    """Return the products of the last position's queries with all keys, summed over heads, ``[S]``."""
    keys = attended.keys
    queries = attended.queries[:, -1].reshape(len(keys), -1, keys.shape[-1]).sum(dim=1)
    return torch.einsum("hd,hsd->s", queries.float(), keys.float())


def _windows(ids: NDArray[np.int64], size: int) -> Iterator[list[int]]:
    for start in range(0, len(ids), size):
        yield ids[start : start + size].tolist()


def _best(ranges: Sequence[tuple[int, int]], ends: NDArray[np.int64], scores: NDArray[np.float32]) -> list[float]:
    """Return the highest score of the tokens that reach into each range; the lowest of all where none does."""
    least = float(scores.min(initial=0.0))
    first = np.searchsorted(ends, [start for start, _ in ranges], side="right")
    reached = np.searchsorted(ends, [end for _, end in ranges], side="left")
    # the tokens of one character share its end
    last = np.searchsorted(ends, ends[np.minimum(reached, len(ends) - 1)], side="right")
    return [
        float(scores[begin:end].max(initial=least)) for begin, end in zip(first.tolist(), last.tolist(), strict=True)
    ]
