"""500xCompressor: the keys and values of memory tokens behind each segment, read by the unchanged base model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Final

import torch
from torch import nn
from transformers import PreTrainedModel

from kompakt.compressor.cache.slot_caches import CacheSlotEncoder, flattened
from kompakt.compressor.models.causal_lm import CausalLM
from kompakt.compressor.models.key_value_caches import cache_argument, new_cache
from kompakt.compressor.parts import Rope
from kompakt.compressor.soft.allocation import balanced
from kompakt.compressor.soft.decoder import body_of, embed, embedding_batches, end_of_text
from kompakt.compressor.soft.lora import Lora
from kompakt.compressor.soft.module import SlotModule
from kompakt.compressor.soft.plan import Segment

_LONGEST: Final = 500
"""Tokens of the longest segments that the authors compress."""


class FiveHundredXModule(SlotModule):
    """The base model with an adapter, and the embeddings of memory tokens.

    Args:
        lm: The decoder.
        n_slots: Memory tokens of a segment.
        lora: The adapter.

    Source: Li et al. 2025, "500xCompressor: Generalized Prompt Compression for Large Language Models", section 3.
    """

    def __init__(self, lm: CausalLM, *, n_slots: int, lora: Lora) -> None:
        super().__init__(lm, body_of(lm), lora)
        # as the authors begin; the seed keeps untrained results the same
        generator = torch.Generator().manual_seed(0)
        width = lm.model.config.get_text_config().hidden_size
        self.memory_embeddings = nn.Parameter(torch.randn(n_slots, width, generator=generator))

    def forward(self, segments: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Compress segments, each at positions from 0 on.

        Args:
            segments: The input embeddings of each segment's tokens, ``[T_i, D]``.

        Returns:
            The keys, rotated as the model does, and the values of the memory tokens that follow the tokens, as
            ``flattened`` gives them: ``[n_slots, 2 L H_kv D_head]`` for each segment.
        """
        rows = [torch.cat([tokens, self.memory_embeddings.to(tokens)]) for tokens in segments]
        return last_keys_and_values(self.body, rows, len(self.memory_embeddings), max_positions=self.max_positions)


def last_keys_and_values(
    body: PreTrainedModel, rows: Sequence[torch.Tensor], n_last: int, *, max_positions: int
) -> list[torch.Tensor]:
    """Run rows of embeddings through a causal decoder, and return what it remembers of the last places of each.

    Rows are filled up behind their end, where a causal model does not look, and no row's result depends on its
    company; see ``hidden_states``. Gradients flow.

    Args:
        body: A decoder without its head.
        rows: Embeddings, ``[T_i, D]`` each, at positions from 0 on.
        n_last: How many places of each row.
        max_positions: The most positions that the model reads.

    Returns:
        Keys and values as ``flattened`` gives them: ``[n_last, 2 L H_kv D_head]`` for each row.

    Raises:
        InputError: If a row is longer than the model reads.
    """
    results: dict[int, torch.Tensor] = {}
    for places, inputs in embedding_batches(body, rows, max_positions=max_positions):
        cache = new_cache()
        body(**inputs, **cache_argument(body, cache), use_cache=True)
        layers: list[Any] = list(cache.layers)
        for index, place in enumerate(places):
            own = slice(len(rows[place]) - n_last, len(rows[place]))
            keys, values = (
                [tensor[index, :, own] for tensor in several]
                for several in ([layer.keys for layer in layers], [layer.values for layer in layers])
            )
            results[place] = flattened(keys, values)
    return [results[place] for place in range(len(rows))]


@dataclass(frozen=True, kw_only=True)
class FiveHundredXCompressor(CacheSlotEncoder):
    """Compress each segment of up to 500 tokens into the keys and values of a few memory tokens.

    The unchanged base model reads them in every layer. Keys keep the rotation of where they were made, behind the
    segment, wherever they are read. A checkpoint's settings are the ``rates``, the number of memory tokens
    (``n_slots``), the adapter (``lora``), and ``pad_to``: the length to which segments are filled up with
    end-of-text tokens, which memory tokens see, as the authors do; 0 for no filling.

    Source: Li et al. 2025, "500xCompressor: Generalized Prompt Compression for Large Language Models", section 3.
    """

    name: ClassVar[str] = "500x-compressor"
    default_settings: ClassVar[Mapping[str, Any]] = {
        "rates": [6, 12, 30],
        "n_slots": 16,
        "pad_to": 0,
        "lora": asdict(Lora(rank=64, alpha=32.0, targets=("q_proj", "v_proj"), dropout=0.05)),
    }

    @property
    def rope(self) -> Rope:
        """The keys stay as they are."""
        return "as-is"

    def cut(self, n_tokens: int, rate: float) -> list[int]:
        """Return segments of nearly equal lengths, so that each slot stands for at most ``rate`` tokens."""
        room = max(1, self.lm.context_length - self._n_slots)
        return balanced(n_tokens, min(int(rate * self._n_slots), self._pad_to or _LONGEST, room))

    def n_vectors(self, n_tokens: int, rate: float) -> int:
        """Return the number of slots, whatever the segment's length."""
        del n_tokens, rate
        return self._n_slots

    @property
    def _n_slots(self) -> int:
        return int(self.settings["n_slots"])

    @property
    def _pad_to(self) -> int:
        return int(self.settings["pad_to"])

    def build_module(self) -> FiveHundredXModule:
        """Return the network with untrained weights."""
        return FiveHundredXModule(self.lm, n_slots=self._n_slots, lora=Lora.from_json(self.settings["lora"]))

    def encode(self, segments: Sequence[Segment]) -> list[torch.Tensor]:
        """Return the memory of each segment, ``[n_slots, 2 L H_kv D_head]``."""
        filling = end_of_text(self.lm)
        rows = [(*segment.ids, *[filling] * (self._pad_to - len(segment.ids))) for segment in segments]
        memory: list[torch.Tensor] = self.module([embed(self.lm, ids) for ids in rows])
        return memory
