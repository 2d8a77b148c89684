"""Where beacons stand among the tokens of a window, their positions, and what sees what."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kompakt.compressor.cache.beacon_config import BeaconConfig


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
        visible: Which keys each of them sees ``[T, n_context + n_held + T]``; None for all before it and itself.
    """

    is_beacon: torch.Tensor
    positions: torch.Tensor
    visible: torch.Tensor | None


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
    if config.is_causal or not step.ratio:
        return Layout(is_beacon, step.n_context + places, None)
    if config.placement == "append":
        return Layout(is_beacon, *_appended(config, step, is_beacon, places))
    return Layout(is_beacon, _shared_positions(step, places), _hidden_beacons(config, step, is_beacon, places))


def held_positions(config: BeaconConfig, step: WindowStep) -> torch.Tensor:
    """Return the position ids of the keys that the window has already ``[n_held]``."""
    places = torch.arange(step.n_held)
    if config.is_causal or config.placement == "append" or not step.ratio:
        return step.n_context + places
    return _shared_positions(step, places)


def causal(n_new: int, n_keys: int) -> torch.Tensor:
    """Return which keys ``[n_new, n_keys]`` the last positions see that see all before them and themselves."""
    return torch.arange(n_keys) <= torch.arange(n_keys - n_new, n_keys)[:, None]


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
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return positions and sight where each beacon sees the tokens up to those that it stands for."""
    n_keys = step.n_context + step.n_held + len(places)
    n_tokens = step.n_held + step.n_tokens
    numbers = places[is_beacon] - n_tokens
    n_seen = (numbers + 1) * step.ratio
    positions = places.clone()
    positions[is_beacon] = n_seen + (numbers if config.attend_previous else 0)
    visible = causal(len(places), n_keys)
    of_tokens = slice(step.n_context, step.n_context + n_tokens)
    visible[is_beacon, of_tokens] = torch.arange(n_tokens) < n_seen[:, None]
    if not config.attend_previous:
        visible[is_beacon, of_tokens.stop :] = torch.eye(len(numbers), dtype=torch.bool)
    return step.n_context + positions, visible


def _hidden_beacons(
    config: BeaconConfig, step: WindowStep, is_beacon: torch.Tensor, places: torch.Tensor
) -> torch.Tensor | None:
    """Return the sight of interleaved beacons that nothing in their window sees but themselves."""
    new = places[is_beacon]
    if not step.beacons and not len(new):
        return None
    held = torch.tensor(step.beacons, dtype=torch.long)
    n_keys = step.n_context + step.n_held + len(places)
    visible = causal(len(places), n_keys)
    itself = torch.zeros_like(visible)
    itself[:, -len(places) :] = torch.eye(len(places), dtype=torch.bool)
    hidden = torch.arange(2) if config.as_released else torch.cat([held, new])
    visible[:, step.n_context + hidden] = False
    return visible | itself
