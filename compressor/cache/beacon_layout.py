"""Where beacons stand among the tokens of a window, their positions, and what sees what."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kompakt.compressor.cache.beacon_config import BeaconConfig
from kompakt.kernels.range_attention import visible


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowStep:
    """One step through a window: what is there already, and what is read now.

    Args:
        n_context: Keys in front of the window: those of the beginning and of the memory.
        beacons: Which of the window's keys are of beacons, ascending.
        n_held: The window's keys so far, tokens and beacons.
        n_tokens: Tokens that are read now.
        remainder: Tokens since the last beacon.
        ratio: Tokens that one beacon stands for; 0 for none.
        n_appended: Beacons that stand behind the tokens, where they are not interleaved.
    """

    n_context: int
    beacons: tuple[int, ...] = ()
    n_held: int = 0
    n_tokens: int
    remainder: int = 0
    ratio: int
    n_appended: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """How the new positions of a step are laid out, tokens and beacons.

    Args:
        is_beacon: Which of them are beacons ``[T]``.
        positions: Their position ids ``[T]``.
        n_keys: How many keys there are with theirs, ``n_context + n_held + T``.
        ranges: Which two ranges of keys each of them sees ``[T, 2, 2]``, as ``beacon_attention`` takes them; None for
            all keys before it and its own.
        hidden: Which keys are hidden from all but themselves ``[n_keys]``; None for none.
    """

    is_beacon: torch.Tensor
    positions: torch.Tensor
    n_keys: int
    ranges: torch.Tensor | None = None
    hidden: torch.Tensor | None = None

    @property
    def visible(self) -> torch.Tensor | None:
        """Which keys each of them sees ``[T, n_keys]``; None for all before it and itself."""
        return None if self.ranges is None else visible(self.ranges, self.n_keys, self.hidden)


def lay_out(config: BeaconConfig, step: WindowStep) -> Layout:
    """Return where the tokens of a step and its beacons stand, and what they see.

    Source: Zhang et al. 2024, "Long Context Compression with Activation Beacon", section 3.2, and for
    ``step-expansion`` "Soaring from 4K to 400K", section 3.2.
    """
    if config.placement == "append":
        is_beacon = torch.arange(step.n_tokens + step.n_appended) >= step.n_tokens
    else:
        is_beacon = _interleaved(step)
    places = step.n_held + torch.arange(len(is_beacon))
    n_keys = step.n_context + step.n_held + len(places)
    if config.is_causal or not step.ratio:
        return Layout(is_beacon, step.n_context + places, n_keys)
    if config.placement == "append":
        return Layout(is_beacon, *_appended(config, step, is_beacon, places))
    positions = _shared_positions(step, places)
    if not step.beacons and not is_beacon.any():
        return Layout(is_beacon, positions, n_keys)
    hidden = _hidden(config, step, is_beacon, n_keys)
    return Layout(is_beacon, positions, n_keys, _causal_ranges(len(places), n_keys), hidden)


def held_positions(config: BeaconConfig, step: WindowStep) -> torch.Tensor:
    """Return the position ids of the keys that the window has already ``[n_held]``."""
    places = torch.arange(step.n_held)
    if config.is_causal or config.placement == "append" or not step.ratio:
        return step.n_context + places
    return _shared_positions(step, places)


def causal(n_new: int, n_keys: int) -> torch.Tensor:
    """Return which keys ``[n_new, n_keys]`` the last positions see that see all before them and themselves."""
    return visible(_causal_ranges(n_new, n_keys), n_keys)


def _causal_ranges(n_new: int, n_keys: int) -> torch.Tensor:
    """Return the ranges ``[n_new, 2, 2]`` of the last positions, which see all before them and themselves."""
    ranges = torch.zeros(n_new, 2, 2, dtype=torch.long)
    ranges[:, 0, 1] = torch.arange(n_keys - n_new, n_keys) + 1
    return ranges


def _interleaved(step: WindowStep) -> torch.Tensor:
    if not step.ratio:
        return torch.zeros(step.n_tokens, dtype=torch.bool)
    n_beacons = (step.n_tokens + step.remainder) // step.ratio
    period = step.ratio + 1
    return torch.arange(step.n_tokens + n_beacons) % period == step.ratio - step.remainder


def _shared_positions(step: WindowStep, places: torch.Tensor) -> torch.Tensor:
    """Return positions where a beacon is next to the last token that it stands for, and so is the next token."""
    return step.n_context + places - places // (step.ratio + 1)


def _appended(
    config: BeaconConfig, step: WindowStep, is_beacon: torch.Tensor, places: torch.Tensor
) -> tuple[torch.Tensor, int, torch.Tensor]:
    """Return positions, how many keys there are, and what is seen: by a beacon, tokens up to those it stands for."""
    n_tokens = step.n_held + step.n_tokens
    numbers = places[is_beacon] - n_tokens
    n_seen = (numbers + 1) * step.ratio
    own = step.n_context + places
    positions = own.clone()
    positions[is_beacon] = step.n_context + n_seen + (numbers if config.attend_previous else 0)
    n_keys = step.n_context + step.n_held + len(places)
    ranges = _causal_ranges(len(places), n_keys)
    ranges[is_beacon, 0, 1] = step.n_context + n_seen.clamp(max=n_tokens)
    ranges[is_beacon, 1, 0] = step.n_context + n_tokens if config.attend_previous else own[is_beacon]
    ranges[is_beacon, 1, 1] = own[is_beacon] + 1
    return positions, n_keys, ranges


def _hidden(config: BeaconConfig, step: WindowStep, is_beacon: torch.Tensor, n_keys: int) -> torch.Tensor:
    """Return which keys ``[n_keys]`` interleaved beacons, or what the released code takes for them, hide."""
    hidden = torch.zeros(n_keys, dtype=torch.bool)
    if config.as_released:
        hidden[step.n_context : step.n_context + 2] = True
    else:
        hidden[step.n_context + torch.tensor(step.beacons, dtype=torch.long)] = True
        hidden[n_keys - len(is_beacon) :] |= is_beacon
    return hidden
