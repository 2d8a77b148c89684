"""Extensible Tokenization: every k-th output of a short encoder, with k chosen when the text is read."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil
from typing import Any, ClassVar

import torch
from torch import nn

from kompakt.compressor.models.causal_lm import CausalLM
from kompakt.compressor.soft.allocation import interpolated, windows
from kompakt.compressor.soft.decoder import body_of, embed, hidden_states, truncated
from kompakt.compressor.soft.lora import Lora
from kompakt.compressor.soft.module import SlotModule
from kompakt.compressor.soft.plan import Segment
from kompakt.compressor.soft.slot_encoder import SlotEncoder


class ExtensibleModule(SlotModule):
    """The first layers of the decoder.

    Args:
        lm: The decoder.
        n_layers: How many layers.
        own_weights: Whether the layers are a copy, as training needs, or the decoder's own.

    Source: Shao et al. 2024, "Extensible Tokenization", section 3. Whether the decoder's final normalisation follows
    the last of these layers is not published; here it does not.
    """

    def __init__(self, lm: CausalLM, *, n_layers: int, own_weights: bool) -> None:
        body = truncated(body_of(lm), n_layers)
        # the decoder embeds the tokens
        body.set_input_embeddings(nn.Identity())
        super().__init__(lm, copy.deepcopy(body) if own_weights else body, Lora(rank=0))

    def trainable(self) -> dict[str, nn.Parameter]:
        """Return the layers' parameters."""
        return dict(self.named_parameters())

    def forward(self, chunks: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Encode chunks, each at positions from 0 on.

        Args:
            chunks: The input embeddings of each chunk's tokens, ``[T_i, D]``.

        Returns:
            The output of the last layer at every token, ``[T_i, D]`` for each chunk.
        """
        return hidden_states(self.body, chunks, max_positions=self.max_positions)


@dataclass(frozen=True, kw_only=True)
class ExtensibleTokenization(SlotEncoder):
    """Keep every k-th output of the decoder's first layers over chunks of a text.

    All outputs are stored, so that a text is encoded once for every rate.

    Source: Shao et al. 2024, "Extensible Tokenization: Revitalizing Large Language Models' Understanding of Long
    Contexts", section 3.
    """

    name: ClassVar[str] = "extensible-tokenization"
    default_settings: ClassVar[Mapping[str, Any]] = {"rates": [2, 4, 8, 16, 32], "chunk_tokens": 512, "n_layers": 8}

    @cached_property
    def levels(self) -> tuple[float, ...]:
        """The rates and others between them, so that a budget is used well."""
        return interpolated(self.used_rates)

    def pieces(self, n_tokens: int) -> list[int]:
        """Return the lengths of the chunks: each may have its own rate."""
        return windows(n_tokens, min(int(self.settings["chunk_tokens"]), self.lm.context_length))

    def cut(self, n_tokens: int, rate: float) -> list[int]:
        """Return a chunk as one segment."""
        del rate
        return [n_tokens]

    def n_vectors(self, n_tokens: int, rate: float) -> int:
        """Return the tokens divided by the rate, rounded up."""
        return ceil(n_tokens / rate)

    def code_rate(self, rate: float) -> float:
        """Return 1: what is stored serves every rate."""
        del rate
        return 1

    def place(self, code: torch.Tensor, rate: float) -> torch.Tensor:
        """Return the last output of each stride, and that of a shorter last one."""
        n_vectors = self.n_vectors(len(code), rate)
        return code[[min(round(rate * stride), len(code)) - 1 for stride in range(1, n_vectors + 1)]]

    def build_module(self) -> ExtensibleModule:
        """Return the network with the decoder's own weights, or room for those of the checkpoint."""
        return ExtensibleModule(
            self.lm, n_layers=int(self.settings["n_layers"]), own_weights=self.weights is not None
        )

    def encode(self, segments: Sequence[Segment]) -> list[torch.Tensor]:
        """Return the outputs at every token of each chunk, ``[T, D]``."""
        outputs: list[torch.Tensor] = self.module([embed(self.lm, segment.ids) for segment in segments])
        return outputs
