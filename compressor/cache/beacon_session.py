"""Texts longer than what a decoder reads: read, compressed and continued in a memory of a few beacons a window."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any, Final, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from kompakt.compressor.cache.beacon_config import BeaconConfig
from kompakt.compressor.cache.beacon_module import BeaconModule, BeaconState
from kompakt.compressor.cache.beacon_ratios import BeaconRatios
from kompakt.compressor.cache.key_values import KeyValues
from kompakt.compressor.errors import ConfigError, InputError
from kompakt.compressor.soft.decoder import end_tokens

_ABOUT: Final = "about"
_HELD: Final = ("sink", "memory", "raw")


class BeaconSession:
    """Read texts with a beacon model call by call; what was read before is remembered.

    A call may end anywhere in a window. The last window of a long call is alone in having logits, and a full window
    is compressed at once, so that the token after it sees its beacons alone. The memory and a window must fit into
    what the model reads: with P positions, windows of w tokens and beacons for r tokens each, a text may have about
    (P - w) r + w tokens.

    Args:
        module: The model.
        batch_size: Texts that are read at once, all of them equally long.
        config: The module's configuration with other ``ratios`` and ``ratio_mix``; its own if None.

    Source: Zhang et al. 2024, "Long Context Compression with Activation Beacon", section 3.

    Raises:
        ConfigError: If the configuration differs from the module's in more.
    """

    def __init__(self, module: BeaconModule, *, batch_size: int = 1, config: BeaconConfig | None = None) -> None:
        self._module = module
        self._batch_size = batch_size
        self._config = config or module.config
        if _but_for_ratios(self._config) != _but_for_ratios(module.config):
            raise ConfigError(
                f"a session may have ratios and a ratio_mix of its own, and nothing else: {self._config} is not "
                f"{module.config}"
            )
        self._ratios = BeaconRatios(self._config, module.max_positions)
        self._state = module.empty(batch_size)
        self.n_tokens = 0
        """Tokens of each text that were read since the last reset."""

    @property
    def n_positions(self) -> int:
        """Positions that the next token sees: the memory, and what was read of the unfinished window."""
        return self._state.n_positions

    @property
    def memory(self) -> KeyValues:
        """What the full windows have become: keys, not rotated, and values; the beginning first, if it stays."""
        return self._state.sink.followed_by(self._state.memory)

    @torch.no_grad()
    def read(self, ids: Sequence[int] | Sequence[Sequence[int]] | torch.Tensor) -> torch.Tensor:
        """Read more of each text.

        Args:
            ids: Tokens ``[B, T]``, or ``[T]`` of a single text.

        Returns:
            Logits of those of them that are in the last window that they reach ``[B, T', V]``.

        Raises:
            InputError: If there are none, they are not of as many texts as the session has, or the memory and a
                window exceed what the model reads. Nothing has been read then.
        """
        rows = self._rows(ids)
        known = self.n_tokens + rows.shape[1]
        state, before, start = self._state, self._ratios.to_json(), 0
        states = None
        try:
            while start < rows.shape[1]:
                chunk = rows[:, start : start + self._module.config.window - state.n_tokens]
                states, state = self._module.step(chunk, state, self._ratio(state, chunk.shape[1], known))
                start += chunk.shape[1]
        except BaseException:
            # a text that could not be read must not decide how the next one is compressed
            self._ratios.take(before)
            raise
        self._state, self.n_tokens = state, known
        return self._module.logits(states)  # type: ignore[arg-type]

    def generate(
        self,
        ids: Sequence[int] | Sequence[Sequence[int]] | torch.Tensor,
        *,
        max_new_tokens: int,
        end_ids: Collection[int] | None = None,
    ) -> list[list[int]]:
        """Read more of each text, and continue it with the likeliest tokens, past as many windows as it takes.

        What is returned has been read too, so that a conversation can go on; its end has not.

        Args:
            ids: Tokens ``[B, T]``, or ``[T]`` of a single text.
            max_new_tokens: The most tokens that are written.
            end_ids: Tokens that end a text; the model's own if None. In a batch, a text that has ended reads its end
                until all have.

        Returns:
            The tokens of each continuation, without its end.

        Raises:
            InputError: As ``read``.
        """
        before = self._state, self._ratios.to_json(), self.n_tokens
        try:
            return self._continued(ids, max_new_tokens, end_tokens(self._module.lm) if end_ids is None else end_ids)
        except BaseException:
            self._state, self.n_tokens = before[0], before[2]
            self._ratios.take(before[1])
            raise

    def _continued(
        self,
        ids: Sequence[int] | Sequence[Sequence[int]] | torch.Tensor,
        max_new_tokens: int,
        end_ids: Collection[int],
    ) -> list[list[int]]:
        ends = torch.tensor(sorted(set(end_ids)))
        logits = self.read(ids)
        written: list[torch.Tensor] = []
        has_ended = torch.zeros(self._batch_size, dtype=torch.bool)
        while len(written) < max_new_tokens:
            tokens = logits[:, -1].argmax(-1).cpu()
            if written:
                tokens = torch.where(has_ended, written[-1], tokens)
            has_ended |= torch.isin(tokens, ends)
            if bool(has_ended.all()):
                break
            written.append(tokens)
            logits = self.read(tokens[:, None])
        rows = torch.stack(written, dim=1).tolist() if written else [[] for _ in range(self._batch_size)]
        return [_until(row, set(ends.tolist())) for row in rows]

    def reset(self) -> None:
        """Forget all texts, and begin others; draws of ratios go on."""
        self._state = self._module.empty(self._batch_size)
        self._ratios.reset()
        self.n_tokens = 0

    def state(self) -> bytes:
        """Return all that was read, as safetensors, for ``from_state``."""
        state = self._state
        about = {
            "decoder": self._module.lm.fingerprint,
            "beacon": self._module.weights_fingerprint,
            "config": self._config.to_json(),
            "batch_size": self._batch_size,
            "n_tokens": self.n_tokens,
            "beacons": list(state.beacons),
            "remainder": state.remainder,
            "ratio": state.ratio,
            "ratios": self._ratios.to_json(),
        }
        tensors = {_ABOUT: torch.tensor(list(json.dumps(about).encode()), dtype=torch.uint8)}
        for name in _HELD:
            held: KeyValues = getattr(state, name)
            tensors[f"{name}.keys"] = held.keys.contiguous()
            tensors[f"{name}.values"] = held.values.contiguous().clone()
        return save(tensors)

    @classmethod
    def from_state(cls, module: BeaconModule, data: bytes) -> Self:
        """Return a session that goes on where another one was.

        Args:
            module: The model, with the weights that the other session had.
            data: What its ``state`` gave.

        Raises:
            InputError: If it is damaged, or of another decoder or configuration.
        """
        try:
            tensors = load(data)
            about = json.loads(bytes(tensors[_ABOUT].tolist()))
            config = BeaconConfig.from_json(about["config"])
            theirs = about["decoder"], about["beacon"], _but_for_ratios(config)
            own = module.lm.fingerprint, module.weights_fingerprint, _but_for_ratios(module.config)
            if theirs != own:
                raise InputError(
                    f"the state is of the decoder {theirs[0][:12]} with the beacons {theirs[1][:12]} and "
                    f"{theirs[2]}, not of {own[0][:12]} with {own[1][:12]} and {own[2]}: go on with the model that "
                    "wrote it"
                )
            session = cls(module, batch_size=about["batch_size"], config=config)
            session._take(tensors, about)
        except (SafetensorError, LookupError, ValueError, TypeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"the state is damaged: {error!r}") from error
        return session

    def _take(self, tensors: dict[str, torch.Tensor], about: dict[str, Any]) -> None:
        own = self._module.lm.model
        sink, memory, raw = (
            KeyValues(*(tensors[f"{name}.{kind}"].to(own.device, own.dtype) for kind in ("keys", "values")))
            for name in _HELD
        )
        beacons = tuple(about["beacons"])
        self._state = BeaconState(sink, memory, raw, beacons, about["remainder"], about["ratio"])
        self._ratios.take(about["ratios"])
        self.n_tokens = about["n_tokens"]

    def _ratio(self, state: BeaconState, n_new: int, n_known: int) -> int | None:
        """Return the ratio of the window that a step reads in; None where it does not matter yet."""
        config = self._module.config
        if state.ratio is not None:
            return state.ratio
        if config.placement == "append" and state.n_tokens + n_new < config.window:
            return None
        return self._ratios.next(n_known)

    def _rows(self, ids: Sequence[int] | Sequence[Sequence[int]] | torch.Tensor) -> torch.Tensor:
        try:
            rows = torch.as_tensor(ids, dtype=torch.long)
        except (ValueError, TypeError) as error:
            raise InputError(f"the texts of a batch must be equally long lists of tokens: {error}") from error
        rows = rows[None] if rows.dim() == 1 else rows
        if rows.dim() != 2 or len(rows) != self._batch_size or not rows.shape[1]:
            raise InputError(
                f"the session reads tokens of {self._batch_size} texts, at least one of each, got {list(rows.shape)}"
            )
        return rows


def _but_for_ratios(config: BeaconConfig) -> BeaconConfig:
    usual = BeaconConfig()
    return replace(config, ratios=(config.window,), ratio_mix=usual.ratio_mix)


def _until(row: Sequence[int], ends: Collection[int]) -> list[int]:
    """Return a row up to the first token that ends it."""
    return next((list(row[:index]) for index, token in enumerate(row) if token in ends), list(row))
