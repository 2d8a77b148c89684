"""CompLLM: short segments, each compressed alone, so that a context is a concatenation of stored segments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import ceil
from typing import Any, ClassVar

import torch
from torch import nn

from kompakt.compressor.errors import ConfigError
from kompakt.compressor.models.causal_lm import CausalLM
from kompakt.compressor.soft.allocation import windows
from kompakt.compressor.soft.decoder import body_of, embed, end_of_text, hidden_states
from kompakt.compressor.soft.lora import Lora
from kompakt.compressor.soft.module import SlotModule
from kompakt.compressor.soft.plan import Segment
from kompakt.compressor.soft.slot_encoder import SlotEncoder


class CompLLMModule(SlotModule):
    """The base model with an adapter, and one linear layer on top of it.

    Untrained, the adapter changes nothing and the layer is the identity.

    Args:
        lm: The decoder.
        lora: The adapter.

    Source: Berton et al. 2025, "CompLLM: Compression for Long Context Q&A", section 3.
    """

    def __init__(self, lm: CausalLM, lora: Lora) -> None:
        super().__init__(lm, body_of(lm), lora)
        width = lm.model.config.get_text_config().hidden_size
        self.linear = nn.Linear(width, width)
        nn.init.eye_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self._end = embed(lm, [end_of_text(lm)]).detach()

    def forward(self, segments: Sequence[torch.Tensor], n_slots: Sequence[int]) -> list[torch.Tensor]:
        """Compress segments, each at positions from 0 on.

        Args:
            segments: The input embeddings of each segment's tokens, ``[T_i, D]``.
            n_slots: How many vectors each gets: so many end-of-text embeddings follow its tokens.

        Returns:
            The linear layer's view of the states at these slots, ``[n_slots_i, D]`` for each segment.
        """
        rows = [torch.cat([one, self._end.expand(n, -1)]) for one, n in zip(segments, n_slots, strict=True)]
        states = hidden_states(self.body, rows, max_positions=self.max_positions)
        slots = torch.cat([state[-n:] for state, n in zip(states, n_slots, strict=True)])
        return list(torch.split(self.linear(slots), list(n_slots)))


@dataclass(frozen=True, kw_only=True)
class CompLLM(SlotEncoder):
    """Compress each segment of 20 tokens into vectors of its own, for the unchanged base model.

    The cost grows linearly with the context, and a segment that was compressed before is taken from the store,
    whatever stands around it now.

    Source: Berton et al. 2025, "CompLLM: Compression for Long Context Q&A". The paper leaves open where segments
    are cut (here every ``segment_tokens`` tokens), how the number of vectors of a shorter last segment is rounded
    (up), and whether states are read before or after the final normalisation (after).

    Args:
        segment_tokens: The most tokens of a segment; the checkpoint's own if None.
    """

    segment_tokens: int | None = None

    name: ClassVar[str] = "compllm"
    default_settings: ClassVar[Mapping[str, Any]] = {
        "rates": [2, 4, 8],
        "segment_tokens": 20,
        "lora": asdict(Lora(rank=16, alpha=32.0)),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.segment_tokens is not None and self.segment_tokens < 1:
            raise ConfigError(f"segment_tokens must be at least 1, got {self.segment_tokens}")

    def pieces(self, n_tokens: int) -> list[int]:
        """Return the lengths of the segments: each may have its own rate."""
        return windows(n_tokens, self.segment_tokens or int(self.settings["segment_tokens"]))

    def cut(self, n_tokens: int, rate: float) -> list[int]:
        """Return a piece as one segment."""
        del rate
        return [n_tokens]

    def n_vectors(self, n_tokens: int, rate: float) -> int:
        """Return the tokens divided by the rate, rounded up."""
        return ceil(n_tokens / rate)

    def build_module(self) -> CompLLMModule:
        """Return the network with untrained weights."""
        return CompLLMModule(self.lm, Lora.from_json(self.settings["lora"]))

    def encode(self, segments: Sequence[Segment]) -> list[torch.Tensor]:
        """Return the vectors of each segment, ``[m, D]``."""
        lengths = [len(segment.ids) for segment in segments]
        tokens = torch.split(embed(self.lm, [token for segment in segments for token in segment.ids]), lengths)
        slots = [self.n_vectors(len(segment.ids), segment.rate) for segment in segments]
        vectors: list[torch.Tensor] = self.module(tokens, slots)
        return vectors
