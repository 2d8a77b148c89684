"""In-context autoencoder (ICAE): memory slots of each segment, read by the unchanged base model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Final, Literal

import torch
from torch import nn

from kompakt.compressor.errors import ConfigError
from kompakt.compressor.models.causal_lm import CausalLM
from kompakt.compressor.soft.allocation import balanced
from kompakt.compressor.soft.decoder import body_of, embed, hidden_states
from kompakt.compressor.soft.lora import Lora
from kompakt.compressor.soft.module import SlotModule
from kompakt.compressor.soft.plan import Segment
from kompakt.compressor.soft.slot_encoder import SlotEncoder

_MARKERS: Final = ("ae", "lm", "ft")
"""Rows of the table behind the memory slots: repeat the text, go on with it, follow an instruction about it."""


class ICAEModule(SlotModule):
    """The base model with an adapter, and a table of memory slots and markers.

    Args:
        lm: The decoder.
        n_slots: Memory slots of a segment.
        lora: The adapter.

    Source: Ge et al. 2024, "In-context Autoencoder for Context Compression in a Large Language Model", section 2.
    """

    def __init__(self, lm: CausalLM, *, n_slots: int, lora: Lora) -> None:
        super().__init__(lm, body_of(lm), lora)
        config = lm.model.config.get_text_config()
        self.n_slots = n_slots
        self.memory_token_embed = nn.Embedding(n_slots + len(_MARKERS), config.hidden_size)
        # the table is as wide as the decoder's own, and begins as that did; the seed keeps untrained results the same
        spread = getattr(config, "initializer_range", 0.02)
        nn.init.normal_(self.memory_token_embed.weight, std=spread, generator=torch.Generator().manual_seed(0))

    def forward(self, segments: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Compress segments, each at positions from 0 on.

        Args:
            segments: The input embeddings of each segment's tokens, ``[T_i, D]``.

        Returns:
            The final states of the memory slots that follow the tokens, ``[n_slots, D]`` for each segment.
        """
        memory = self.memory_token_embed.weight[: self.n_slots]
        rows = [torch.cat([tokens, memory.to(tokens)]) for tokens in segments]
        return [state[-self.n_slots :] for state in hidden_states(self.body, rows, max_positions=self.max_positions)]

    def marker(self, name: str) -> torch.Tensor:
        """Return the embedding of a marker, ``[1, D]``."""
        row = self.n_slots + _MARKERS.index(name)
        return self.memory_token_embed.weight[row : row + 1]


@dataclass(frozen=True, kw_only=True)
class ICAE(SlotEncoder):
    """Compress each segment of up to 512 tokens into 128 memory slots, for the unchanged base model.

    Source: Ge et al. 2024, "In-context Autoencoder for Context Compression in a Large Language Model", section 2, and
    the authors' second version for Mistral.

    Args:
        marker: What follows the slots of a context: ``ae`` (its text is to be repeated), ``lm`` (continued), ``ft``
            (an instruction follows) or ``none``; the checkpoint's own if None.
    """

    marker: Literal["ae", "lm", "ft", "none"] | None = None

    name: ClassVar[str] = "icae"
    default_settings: ClassVar[Mapping[str, Any]] = {
        "rates": [4],
        "n_slots": 128,
        "marker": "none",
        "lora": asdict(Lora(rank=128, alpha=32.0, targets=("q_proj", "v_proj"), dropout=0.05)),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.marker not in (*_MARKERS, "none", None):
            raise ConfigError(f"marker must be one of {', '.join(_MARKERS)} and none, got {self.marker!r}")

    def cut(self, n_tokens: int, rate: float) -> list[int]:
        """Return segments of nearly equal lengths, so that each slot stands for at most ``rate`` tokens."""
        room = max(1, self.lm.context_length - self._n_slots)
        return balanced(n_tokens, min(int(rate * self._n_slots), room))

    def n_vectors(self, n_tokens: int, rate: float) -> int:
        """Return the number of slots, whatever the segment's length."""
        del n_tokens, rate
        return self._n_slots

    @property
    def _n_slots(self) -> int:
        return int(self.settings["n_slots"])

    def after_context(self) -> torch.Tensor | None:
        """Return the marker, if there is one."""
        name = self.marker or str(self.settings["marker"])
        return None if name == "none" else self.module.marker(name).detach().cpu()

    def build_module(self) -> ICAEModule:
        """Return the network with untrained weights."""
        return ICAEModule(self.lm, n_slots=self._n_slots, lora=Lora.from_json(self.settings["lora"]))

    def encode(self, segments: Sequence[Segment]) -> list[torch.Tensor]:
        """Return the memory of each segment, ``[n_slots, D]``."""
        memory: list[torch.Tensor] = self.module([embed(self.lm, segment.ids) for segment in segments])
        return memory
