"""What a model with beacons is like."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, Self, TypeAlias, get_args

from kompakt.compressor.errors import ConfigError

BeaconPlacement: TypeAlias = Literal["interleave", "append"]
BeaconAttention: TypeAlias = Literal["full-coverage", "step-expansion", "segmentation"]

_ADAPT: Final = "adapt-"
_MIXES: Final = ("step-random", "instance-random", "sequence")
_PROJECTIONS: Final = ("q", "k", "v", "o")


@dataclass(frozen=True, slots=True, kw_only=True)
class BeaconConfig:
    """Where beacons stand, what they see, and which projections they have; by default as in the paper's last version.

    Args:
        window: Tokens that are read before they are replaced by their beacons.
        stride: Tokens that a window moves on; the window, which None is too.
        ratios: Tokens that one beacon may stand for; 0 keeps a window as it is. What occurs twice is drawn twice as
            often.
        ratio_mix: How the ratio of a window is chosen: drawn for each window (``step-random``) or for each text
            (``instance-random``), in turn (``sequence``), or the finest one with which the text and N more tokens fit
            (``adapt-N``).
        placement: A beacon after every few tokens (``interleave``), or all of them behind the window (``append``).
        attention: Whether beacons see everything before them (``full-coverage``) or, of their window, only the tokens
            up to those that they stand for (``step-expansion``).
        attend_previous: Whether beacons see the beacons before them in their window.
        params: Which projections beacons have of their own: of ``q``, ``k``, ``v`` and ``o``.
        embed_init: The token whose embedding the beacon's begins as: the end (``eos``) or the beginning of a text.
        sink_size: Tokens at the beginning that stay for ever.
        as_released: Do as the authors' code where it departs from the method: until the first window is full, each
            step takes its own first tokens for the beginning; and with interleaved beacons and ``step-expansion``, a
            window's first two tokens are hidden instead of its beacons.

    Source: Zhang et al. 2024, "Long Context Compression with Activation Beacon", section 3.

    Raises:
        ConfigError: If an option makes no sense, or not with the others.
    """

    window: int = 1024
    stride: int | None = None
    ratios: tuple[int, ...] = (2, 4, 8, 16, 32)
    ratio_mix: str = "step-random"
    placement: BeaconPlacement = "interleave"
    attention: BeaconAttention = "full-coverage"
    attend_previous: bool = True
    params: tuple[str, ...] = ("q", "k", "v")
    embed_init: Literal["eos", "bos"] = "eos"
    sink_size: int = 0
    as_released: bool = False

    def __post_init__(self) -> None:
        # JSON has lists
        object.__setattr__(self, "ratios", tuple(self.ratios))
        object.__setattr__(self, "params", tuple(self.params))
        self._check_choices()
        self._check_sizes()
        self._check_masks()

    @property
    def is_causal(self) -> bool:
        """Whether every position sees all those before it, beacons or not."""
        return self.attention == "full-coverage"

    @property
    def reserve(self) -> int | None:
        """The N of ``adapt-N``; None for other mixes."""
        return int(self.ratio_mix.removeprefix(_ADAPT)) if self.ratio_mix.startswith(_ADAPT) else None

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read what ``to_json`` wrote.

        Raises:
            ConfigError: If it holds other fields, or what makes no sense.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(data) - known):
            raise ConfigError(f"beacons have no options {', '.join(unknown)}; they have {', '.join(sorted(known))}")
        return cls(**data)

    def to_json(self) -> dict[str, Any]:
        """Return it as a dictionary of JSON values."""
        return {**dataclasses.asdict(self), "ratios": list(self.ratios), "params": list(self.params)}

    def _check_choices(self) -> None:
        for name, value, choices in (
            ("placement", self.placement, get_args(BeaconPlacement)),
            ("attention", self.attention, get_args(BeaconAttention)),
            ("embed_init", self.embed_init, ("eos", "bos")),
        ):
            if value not in choices:
                raise ConfigError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
        number = self.ratio_mix.removeprefix(_ADAPT)
        if self.ratio_mix not in _MIXES and not (number != self.ratio_mix and number.isdecimal()):
            raise ConfigError(f"ratio_mix must be one of {', '.join(_MIXES)} and adapt-N, got {self.ratio_mix!r}")
        if not set(self.params) <= set(_PROJECTIONS) or len(set(self.params)) != len(self.params):
            raise ConfigError(f"params must be some of {', '.join(_PROJECTIONS)}, each once, got {self.params!r}")

    def _check_sizes(self) -> None:
        if self.window < 1:
            raise ConfigError(f"window must be at least 1, got {self.window}")
        if self.stride not in (None, self.window):
            raise ConfigError(f"stride must be the window, {self.window}, got {self.stride}: leave it out")
        if not 0 <= self.sink_size <= self.window:
            raise ConfigError(f"sink_size must be from 0 to the window, {self.window}, got {self.sink_size}")
        if not self.ratios or not all(0 <= ratio <= self.window for ratio in self.ratios):
            raise ConfigError(f"ratios must be from 0 to the window, {self.window}, got {self.ratios}")
        uneven = [ratio for ratio in self.ratios if ratio and self.window % ratio]
        # with one ratio alone, what is left over at the end of a window is carried into the next
        carries = len(set(self.ratios)) == 1 and self.placement == "interleave" and self.is_causal
        if uneven and not carries:
            raise ConfigError(
                f"the ratio {uneven[0]} does not divide the window, {self.window}: choose ratios that do, or a "
                "single ratio with interleave and full-coverage"
            )

    def _check_masks(self) -> None:
        if self.attention == "segmentation":
            raise ConfigError(
                "the attention 'segmentation' is not supported: it never ran with interleaved beacons, and what it "
                "sees of the memory is not described; choose full-coverage or step-expansion"
            )
        if self.is_causal and not self.attend_previous:
            raise ConfigError("attention='full-coverage' sees all beacons before: choose attend_previous=True")
        if self.placement == "interleave" and not self.is_causal and self.attend_previous:
            raise ConfigError("interleaved beacons with attention='step-expansion' need attend_previous=False")


FIRST_VERSION: Final = BeaconConfig(
    ratios=(*[2] * 5, *[4] * 5, 8, 8, 16, 16, 32, 32, 64, 128),
    placement="append",
    attention="step-expansion",
    attend_previous=False,
    params=("q", "k", "v", "o"),
)
"""The configuration of the first version.

Source: Zhang et al. 2024, "Soaring from 4K to 400K: Extending LLM's Context with Activation Beacon", section 3.
"""
