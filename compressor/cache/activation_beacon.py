"""Activation Beacon: the keys and values of a few beacons in place of each window's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import torch

from kompakt.compressor.cache.beacon_config import BeaconConfig
from kompakt.compressor.cache.beacon_module import BeaconModule
from kompakt.compressor.cache.beacon_session import BeaconSession
from kompakt.compressor.cache.key_values import KeyValues
from kompakt.compressor.cache.slot_caches import CacheSlotEncoder, flattened, unflattened
from kompakt.compressor.errors import ConfigError
from kompakt.compressor.models.causal_lm import BATCH_TOKENS
from kompakt.compressor.parts import Rope
from kompakt.compressor.soft.allocation import windows
from kompakt.compressor.soft.plan import Segment


@dataclass(frozen=True, kw_only=True)
class ActivationBeacon(CacheSlotEncoder):
    """Read a context window by window, and keep of each window the keys and values of its beacons.

    Each window reads the beacons of those before it, at a ratio of its own, and the state that a result carries lets
    a later call go on. The decoder that reads the result is the unchanged base model, since tokens have its own
    projections. Tokens at the end of a context that no beacon stands for are kept as they are. Memory and a window
    must fit into what the model reads.

    Where the beginning is to stay, it is the token with which all texts begin, which the reader puts in front.

    Source: Zhang et al. 2024, "Long Context Compression with Activation Beacon", section 3; with another
    configuration, "Soaring from 4K to 400K: Extending LLM's Context with Activation Beacon".
    """

    name: ClassVar[str] = "activation-beacon"
    default_settings: ClassVar[Mapping[str, Any]] = {
        "rates": [2, 4, 8, 16, 32],
        "beacon": BeaconConfig().to_json(),
    }
    locality = "sequential"  # type: ignore[assignment]

    @property
    def rope(self) -> Rope:
        """Keys get the rotation of wherever they are placed."""
        return "unrotated"

    @property
    def is_sequential(self) -> bool:
        """Whether a segment reads the vectors of those before it: always."""
        return True

    @cached_property
    def config(self) -> BeaconConfig:
        """What the beacons are like."""
        return BeaconConfig.from_json(self.settings["beacon"])

    @cached_property
    def used_rates(self) -> tuple[int, ...]:
        """The rates that were asked for, or else those of the weights, the finest first.

        Raises:
            ConfigError: If one does not divide the window.
        """
        rates = self.rates or tuple(self.settings["rates"])
        if uneven := [rate for rate in rates if self.config.window % rate]:
            raise ConfigError(f"rates must divide the window, {self.config.window}; {uneven} do not")
        return rates

    @property
    def code_identity(self) -> list[object]:
        """Everything but the segment that decides its code: the rates too, among which a short window's is chosen."""
        return [*super().code_identity, list(self.used_rates)]

    def pieces(self, n_tokens: int) -> list[int]:
        """Return the lengths of the windows, each of which has a ratio of its own.

        Raises:
            ConfigError: If more of the beginning is to stay than the token that texts begin with.
        """
        if self.config.sink_size > 1:
            raise ConfigError(
                f"the beacons of {self.checkpoint} keep {self.config.sink_size} tokens of the beginning, and parts "
                "of a prompt have no beginning of their own: read the text with session()"
            )
        return windows(n_tokens, self.config.window)

    def cut(self, n_tokens: int, rate: float) -> list[int]:
        """Return the window as it is."""
        del rate
        return [n_tokens]

    def n_vectors(self, n_tokens: int, rate: float) -> int:
        """Return the number of beacons, and of tokens at the end that none of them stands for."""
        return sum(divmod(n_tokens, self._best_rate(n_tokens, rate)))

    def _best_rate(self, n_tokens: int, rate: float) -> int:
        """Return the rate, of those that are no coarser, with the fewest vectors: a coarse one leaves more over."""
        finer = [one for one in self.used_rates if one <= rate]
        return min(finer, key=lambda one: sum(divmod(n_tokens, one)))

    def build_module(self) -> BeaconModule:
        """Return the network with untrained weights."""
        return BeaconModule(self.lm, self.config)

    def session(self, *, batch_size: int = 1, ratio_mix: str | None = None) -> BeaconSession:
        """Return a session that reads and continues texts with these weights.

        Args:
            batch_size: Texts that are read at once, all of them equally long.
            ratio_mix: How the ratio of a window is chosen among ``rates``, or the weights' own ratios if none were
                given; as in training if None. See ``BeaconConfig``; ``adapt-1024`` is the authors' choice for use.

        Raises:
            ConfigError: If ``ratio_mix`` is not known.
        """
        config = replace(
            self.config, ratios=self.rates or self.config.ratios, ratio_mix=ratio_mix or self.config.ratio_mix
        )
        return BeaconSession(self.module, batch_size=batch_size, config=config)

    def encode(self, segments: Sequence[Segment]) -> list[torch.Tensor]:
        """Return the keys and values of what becomes of each window, ``[m, 2 L H_kv D_head]``."""
        codes: dict[int, torch.Tensor] = {}
        for places, rate in self._batches(segments):
            several = [segments[place] for place in places]
            ids = torch.tensor([segment.ids for segment in several])
            sink = None
            if self._sink is not None:
                sink = KeyValues(*(one.expand(-1, len(several), -1, -1, -1) for one in self._sink))
            made = self.module.compressed(ids, self._memory(several), rate, sink=sink)
            for row, place in enumerate(places):
                codes[place] = flattened(made.keys[:, row].unbind(0), made.values[:, row].unbind(0))
        return [codes[place] for place in range(len(segments))]

    def _batches(self, segments: Sequence[Segment]) -> Iterator[tuple[list[int], int]]:
        """Yield the places of segments that are alike in all lengths, and their rate."""
        alike: dict[tuple[int, int, int], list[int]] = {}
        for place, segment in enumerate(segments):
            rate = self._best_rate(len(segment.ids), segment.rate)
            before = 0 if segment.prefix is None else len(segment.prefix)
            alike.setdefault((before, len(segment.ids), rate), []).append(place)
        most = BATCH_TOKENS["cuda" if self.lm.model.device.type == "cuda" else "cpu"]
        for (before, length, rate), places in alike.items():
            size = max(1, most // (before + length + length // rate))
            for start in range(0, len(places), size):
                yield places[start : start + size], rate

    def _memory(self, segments: Sequence[Segment]) -> KeyValues:
        """Return what stands before each of several segments, equally much."""
        prefixes = [segment.prefix for segment in segments if segment.prefix is not None and len(segment.prefix)]
        if not prefixes:
            return KeyValues.none(self.lm, len(segments))
        own = self.lm.model
        both = [unflattened(prefix.to(own.device, own.dtype), self.lm) for prefix in prefixes]
        return KeyValues(*(torch.stack(list(kind), dim=1) for kind in zip(*both, strict=True)))

    @cached_property
    def _sink(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Keys and values ``[L, 1, H_kv, 1, D_head]`` of the token that texts begin with, if it is to stay."""
        if not self.config.sink_size:
            return None
        made = self.module.of_tokens(torch.tensor([[self.lm.prefix_id]]))
        return made.keys, made.values
