"""How many tokens one beacon stands for, window by window."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from kompakt.compressor.cache.beacon_config import BeaconConfig
from kompakt.compressor.errors import ConfigError

_SEED: Final = 42


class BeaconRatios:
    """Choose the ratio of one window after another, as a configuration says.

    Args:
        config: The configuration.
        max_positions: The most positions that the model reads.

    Source: Zhang et al. 2024, "Long Context Compression with Activation Beacon", section 3, and the authors' code,
    whose draws these are.
    """

    def __init__(self, config: BeaconConfig, max_positions: int) -> None:
        self._config = config
        self._max_positions = max_positions
        self._chance = np.random.default_rng(_SEED)
        self._kept: int | None = None
        self._n_chosen = 0

    def next(self, n_tokens: int) -> int:
        """Return the ratio of the next window.

        Args:
            n_tokens: All tokens of the text that are known by now.
        """
        return self._chosen(self._config.ratios, n_tokens)

    def for_training(self, n_tokens: int) -> list[int]:
        """Return the ratios of a training text of ``n_tokens`` tokens: of all windows but the last, which has none.

        No more than one window is kept as it is, and none of the last two.

        Raises:
            ConfigError: If windows must be compressed and the only ratio is 0.
        """
        self.reset()
        window = self._config.window
        chosen: list[int] = []
        for start in range(0, n_tokens - window, window):
            may_be_kept = 0 not in chosen and start + 2 * window <= n_tokens
            ratios = [ratio for ratio in self._config.ratios if ratio or may_be_kept]
            if not ratios:
                raise ConfigError("a text cannot be trained on with the ratio 0 alone: give another ratio too")
            chosen.append(self._chosen(ratios, n_tokens))
        return chosen

    def reset(self) -> None:
        """Begin a new text; chance goes on where it was."""
        self._kept = None
        self._n_chosen = 0

    def to_json(self) -> dict[str, Any]:
        """Return what the next choices depend on, as JSON values."""
        return {"chance": self._chance.bit_generator.state, "kept": self._kept, "n_chosen": self._n_chosen}

    def take(self, data: Mapping[str, Any]) -> None:
        """Go on from what ``to_json`` gave."""
        self._chance.bit_generator.state = data["chance"]
        self._kept = data["kept"]
        self._n_chosen = data["n_chosen"]

    def _chosen(self, ratios: Sequence[int], n_tokens: int) -> int:
        mix = self._config.ratio_mix
        if mix == "step-random":
            return int(self._chance.choice(ratios))
        if mix == "sequence":
            self._n_chosen += 1
            return ratios[(self._n_chosen - 1) % len(ratios)]
        if self._kept is None or self._kept not in ratios:
            drawn = int(self._chance.choice(ratios)) if mix == "instance-random" else self._fitting(ratios, n_tokens)
            self._kept = drawn
        return self._kept

    def _fitting(self, ratios: Sequence[int], n_tokens: int) -> int:
        """Return the finest ratio with which a text and what is reserved fit; the coarsest if none does."""
        wanted = n_tokens + (self._config.reserve or 0)
        window = self._config.window
        for ratio in sorted(set(ratios)):
            longest = (self._max_positions - window) * ratio + window if ratio else self._max_positions
            if longest >= wanted:
                return ratio
        return max(ratios)
