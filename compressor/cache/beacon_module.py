"""The network of Activation Beacon: a decoder whose beacons have projections of their own."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any, Final

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import DynamicCache

from kompakt.compressor.cache.beacon_config import BeaconConfig
from kompakt.compressor.cache.beacon_layout import Layout, WindowStep, causal, held_positions, lay_out
from kompakt.compressor.cache.key_values import KeyValues
from kompakt.compressor.cache.rotary import rotated, why_immovable
from kompakt.compressor.errors import InputError, ModelError
from kompakt.compressor.models.causal_lm import CausalLM
from kompakt.compressor.models.key_value_caches import cache_argument, new_cache
from kompakt.compressor.soft.decoder import body_of, cache_shape, embed, end_of_text
from kompakt.compressor.soft.lora import Lora
from kompakt.compressor.soft.module import SlotModule

_FAMILIES: Final = ("llama", "mistral", "qwen2")
_KEPT: Final = ("k", "v")
_IGNORED: Final = -100


@dataclass(slots=True, eq=False)
class _Pass:
    """One forward pass: which positions are beacons', and the keys and values as their projections give them.

    Args:
        tokens: Places of the tokens ``[T]``.
        beacons: Places of the beacons ``[b]``.
        projected: What the projections of each layer gave, ``[B, T + b, H_kv D_head]``, by projection and layer.
    """

    tokens: torch.Tensor
    beacons: torch.Tensor
    projected: dict[tuple[str, int], torch.Tensor] = field(default_factory=dict)

    def merged(self, of_tokens: torch.Tensor, of_beacons: torch.Tensor) -> torch.Tensor:
        """Return ``[B, T, D]`` and ``[B, b, D]`` in the order of their places, ``[B, T + b, D]``."""
        order = torch.cat([self.tokens, self.beacons]).argsort()
        return torch.cat([of_tokens, of_beacons], dim=1).index_select(1, order)


_PASS: ContextVar[_Pass | None] = ContextVar("kompakt_beacon_pass", default=None)


@contextmanager
def _passing(current: _Pass) -> Iterator[None]:
    token = _PASS.set(current)
    try:
        yield
    finally:
        _PASS.reset(token)


class RoutedLinear(nn.Module):
    """A projection of tokens, and another one of beacons.

    Args:
        base: That of tokens.
        beacon: That of beacons; None for the same.
        name: Which projection it is: ``q``, ``k``, ``v`` or ``o``.
        layer: Of which layer.
    """

    def __init__(self, base: nn.Module, beacon: nn.Module | None, name: str, layer: int) -> None:
        super().__init__()
        self.base = base
        self.beacon = beacon
        self._name = name
        self._layer = layer

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Project ``[B, T, D]``."""
        current = _PASS.get()
        if current is None:
            raise RuntimeError("this body is read by its module alone, which knows which positions are beacons'")
        if self.beacon is None or not len(current.beacons):
            projected: torch.Tensor = self.base(states)
        else:
            of_tokens = self.base(states.index_select(1, current.tokens))
            projected = current.merged(of_tokens, self.beacon(states.index_select(1, current.beacons)))
        if self._name in _KEPT:
            current.projected[self._name, self._layer] = projected
        return projected


@dataclass(frozen=True, slots=True, eq=False)
class BeaconState:
    """What has been read so far; keys are not rotated.

    Args:
        sink: The beginning, which stays.
        memory: What the windows before have become.
        raw: The unfinished window, tokens and beacons.
        beacons: Which positions of ``raw`` are beacons', ascending.
        remainder: Tokens since the last beacon.
        ratio: Tokens that one beacon of the unfinished window stands for; None if that is not decided yet.
        cache: All of it as the decoder reads it, rotated; None if that must be made anew.
    """

    sink: KeyValues
    memory: KeyValues
    raw: KeyValues
    beacons: tuple[int, ...] = ()
    remainder: int = 0
    ratio: int | None = None
    cache: DynamicCache | None = None

    @property
    def n_context(self) -> int:
        """Positions in front of the window."""
        return len(self.sink) + len(self.memory)

    @property
    def n_positions(self) -> int:
        """All positions that the next token sees."""
        return self.n_context + len(self.raw)

    @property
    def n_tokens(self) -> int:
        """Tokens of the unfinished window."""
        return len(self.raw) - len(self.beacons)


@dataclass(frozen=True, slots=True, eq=False)
class BeaconOutput:
    """What a forward pass gives.

    Args:
        logits: ``[B, N, V]``; None with labels, where a long text's would fill the memory.
        loss: Mean cross-entropy in nats over all targets, None without labels.
    """

    logits: torch.Tensor | None
    loss: torch.Tensor | None


class BeaconModule(SlotModule):
    """A decoder that reads a text window by window, and keeps of each the keys and values of its beacons.

    The decoder's own weights are neither trained nor saved. Untrained, the beacon's embedding is that of the end of a
    text, and the projections are the decoder's own.

    Args:
        lm: The decoder.
        config: Where beacons stand, what they see, and which projections they have.

    Source: Zhang et al. 2024, "Long Context Compression with Activation Beacon", section 3.

    Raises:
        ModelError: If the decoder is of a type that is not supported here.
    """

    def __init__(self, lm: CausalLM, config: BeaconConfig) -> None:
        kind = lm.model.config.model_type
        if kind not in _FAMILIES:
            raise ModelError(f"beacons are not supported in models of type {kind!r}, but in {', '.join(_FAMILIES)}")
        if reason := why_immovable(lm):
            raise ModelError(f"beacons are not supported in this {kind!r} model: {reason}")
        super().__init__(lm, body_of(lm), Lora(rank=0))
        self.lm = lm
        self.config = config
        # what is beyond a window of attention, a decoder that has one would not see
        self.max_positions = min(
            lm.context_length, getattr(lm.model.config, "sliding_window", None) or lm.context_length
        )
        vector = embed(lm, [_first_token(lm, config)]).detach().clone()
        self.beacon_embed_tokens = nn.Embedding(1, vector.shape[1], _weight=vector)
        self._fingerprint: tuple[tuple[tuple[int, int], ...], str] = ((), "")
        self._route()

    def _route(self) -> None:
        layers: Any = self.body.layers
        for index, layer in enumerate(layers):
            for name in ("q", "k", "v", "o"):
                base = getattr(layer.self_attn, f"{name}_proj")
                beacon = copy.deepcopy(base).requires_grad_(True) if name in self.config.params else None
                if beacon is not None or name in _KEPT:
                    setattr(layer.self_attn, f"{name}_proj", RoutedLinear(base, beacon, name, index))

    def trainable(self) -> dict[str, nn.Parameter]:
        """Return what is trained and saved, by the names that the authors' checkpoints have."""
        found = dict(self.beacon_embed_tokens.named_parameters("model.beacon_embed_tokens"))
        layers: Any = self.body.layers
        for index, layer in enumerate(layers):
            for name in self.config.params:
                beacon = getattr(layer.self_attn, f"{name}_proj").beacon
                for key, parameter in beacon.named_parameters():
                    found[f"model.layers.{index}.self_attn.beacon_{name}_proj.{key}"] = parameter
        return found

    @property
    def weights_fingerprint(self) -> str:
        """SHA-256 over what is trained and saved."""
        weights = self.trainable()
        # training changes weights in place, which counts their versions up; a checkpoint gives others
        versions = tuple((parameter.data_ptr(), parameter._version) for parameter in weights.values())
        if self._fingerprint[0] != versions:
            digest = hashlib.sha256()
            for name, parameter in sorted(weights.items()):
                digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)} ".encode())
                digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
            self._fingerprint = versions, digest.hexdigest()
        return self._fingerprint[1]

    def empty(self, batch_size: int) -> BeaconState:
        """Return the state in which nothing has been read."""
        none = KeyValues.none(self.lm, batch_size)
        return BeaconState(none, none, none)

    def step(self, ids: torch.Tensor, state: BeaconState, ratio: int | None) -> tuple[torch.Tensor, BeaconState]:
        """Read tokens of one window; once it is full, it becomes memory.

        Args:
            ids: The next tokens of each text ``[B, T]``, no more than the window has room for.
            state: What was read before.
            ratio: Tokens that one beacon stands for, the same throughout a window with interleaved beacons; 0 to keep
                the window as it is; None to read it without beacons, whereupon it does not become memory.

        Returns:
            The tokens' final states ``[B, T, D]``, and the new state.

        Raises:
            InputError: If there are too many tokens, for the window or for what the model reads.
        """
        n_tokens = state.n_tokens + ids.shape[1]
        if n_tokens > self.config.window:
            raise InputError(
                f"the window has {state.n_tokens} of its {self.config.window} tokens: {ids.shape[1]} more do not fit"
            )
        is_full = n_tokens == self.config.window
        appends = self.config.placement == "append" and is_full
        window = WindowStep(
            n_context=state.n_context,
            beacons=state.beacons,
            n_held=len(state.raw),
            n_tokens=ids.shape[1],
            remainder=state.remainder,
            ratio=ratio or 0,
            n_appended=self.config.window // ratio if ratio and appends else 0,
        )
        layout = lay_out(self.config, window)
        states, new, cache = self._read(ids, state, window, layout)
        places = (len(state.raw) + layout.is_beacon.nonzero()[:, 0]).tolist()
        remainder = state.remainder
        if ratio and self.config.placement == "interleave":
            remainder = (remainder + ids.shape[1]) % ratio
        following = BeaconState(
            state.sink,
            state.memory,
            state.raw.followed_by(new),
            (*state.beacons, *places),
            remainder,
            ratio,
            cache,
        )
        if self.config.as_released and not len(state.memory):
            sink = new.at(range(min(len(new), self.config.sink_size)))
            following = replace(following, sink=sink, cache=None)
        return states, self._finished(following) if is_full and ratio is not None else following

    def compressed(
        self, ids: torch.Tensor, memory: KeyValues, ratio: int, *, sink: KeyValues | None = None
    ) -> KeyValues:
        """Return what becomes of a window, which may be shorter than others.

        Args:
            ids: The window's tokens ``[B, T]``.
            memory: The keys and values of what stands before, not rotated.
            ratio: Tokens that one beacon stands for, from 1 on.
            sink: Those of the beginning.

        Returns:
            Keys, not rotated, and values: of ``T // ratio`` beacons and of the tokens after the last of them.

        Raises:
            InputError: If memory and window exceed what the model reads.
        """
        none = KeyValues.none(self.lm, ids.shape[0])
        state = BeaconState(none if sink is None else sink, memory, none)
        n_beacons, n_left = divmod(ids.shape[1], ratio)
        n_appended = n_beacons if self.config.placement == "append" else 0
        window = WindowStep(n_context=state.n_context, n_tokens=ids.shape[1], ratio=ratio, n_appended=n_appended)
        layout = lay_out(self.config, window)
        _, new, _ = self._read(ids, state, window, layout)
        tokens = (~layout.is_beacon).nonzero()[:, 0].tolist()
        beacons = layout.is_beacon.nonzero()[:, 0].tolist()
        return new.at(beacons + tokens[ids.shape[1] - n_left :])

    def of_tokens(self, ids: torch.Tensor) -> KeyValues:
        """Return the keys, not rotated, and values of tokens ``[B, T]`` with which a text begins."""
        window = WindowStep(n_context=0, n_tokens=ids.shape[1], ratio=0)
        _, new, _ = self._read(ids, self.empty(ids.shape[0]), window, lay_out(self.config, window))
        return new

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """Return the logits ``[B, T, V]`` of final states ``[B, T, D]``."""
        scores: torch.Tensor = self.lm.model.get_output_embeddings()(states)  # type: ignore[no-untyped-call]
        return scores

    def forward(
        self, input_ids: torch.Tensor, *, ratios: Sequence[int], labels: torch.Tensor | None = None
    ) -> BeaconOutput:
        """Read texts of equal length as in training: the last window has no beacons, and gradients flow through all.

        Targets are shifted over the borders of windows. Where beacons are appended, or do not see everything, those
        of the first window do not count, which has no memory in front.

        Args:
            input_ids: Tokens ``[B, N]``.
            ratios: Tokens that one beacon stands for, of each window but the last; see ``BeaconRatios.for_training``.
            labels: Targets ``[B, N]``, shifted here; -100 for none.

        Raises:
            InputError: If there is not one ratio for each window but the last, or a window and its memory exceed what
                the model reads.
        """
        windows = torch.split(input_ids, self.config.window, dim=1)
        if len(ratios) != len(windows) - 1:
            raise InputError(f"{len(windows)} windows need {len(windows) - 1} ratios, got {len(ratios)}")
        targets = None if labels is None else torch.split(self._targets(labels), self.config.window, dim=1)
        state = self.empty(len(input_ids))
        logits: list[torch.Tensor] = []
        losses: list[torch.Tensor] = []
        for index, (ids, ratio) in enumerate(zip(windows, [*ratios, None], strict=True)):
            states, state = self.step(ids, state, ratio)
            if targets is None:
                logits.append(self.logits(states))
            else:
                losses.append(_summed_loss(self.logits(states), targets[index]))
        if targets is None:
            return BeaconOutput(torch.cat(logits, dim=1), None)
        n_targets = sum(int((own != _IGNORED).sum()) for own in targets)
        return BeaconOutput(None, torch.stack(losses).sum() / max(1, n_targets))

    def _targets(self, labels: torch.Tensor) -> torch.Tensor:
        """Return the target of each position ``[B, N]``."""
        shifted = torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], _IGNORED)], dim=1)
        if self.config.placement == "append" or not self.config.is_causal:
            shifted[:, : self.config.window] = _IGNORED
        return shifted

    def _finished(self, state: BeaconState) -> BeaconState:
        """Return the state in which a full window has become memory."""
        kept: Sequence[int] = state.beacons if state.ratio else range(len(state.raw))
        sink = state.sink
        if not self.config.as_released and not len(state.memory) and not len(sink):
            held = set(state.beacons)
            beginning = [place for place in range(len(state.raw)) if place not in held][: self.config.sink_size]
            sink = state.raw.at(beginning)
            kept = [place for place in kept if place not in beginning]
        none = KeyValues.none(self.lm, state.raw.batch_size)
        return BeaconState(sink, state.memory.followed_by(state.raw.at(kept)), none, remainder=state.remainder)

    def _read(
        self, ids: torch.Tensor, state: BeaconState, window: WindowStep, layout: Layout
    ) -> tuple[torch.Tensor, KeyValues, DynamicCache]:
        """Read tokens and beacons behind what a state holds.

        Returns:
            The tokens' final states ``[B, T, D]``, the keys, not rotated, and values of all that was read, and the
            cache with it.
        """
        n_needed = int(layout.positions.max()) + 1
        if n_needed > self.max_positions:
            raise InputError(
                f"{window.n_context} positions of memory and a window up to position {n_needed} exceed the "
                f"{self.max_positions} that the model reads: compress with higher ratios, or begin anew"
            )
        device = self.body.device
        is_beacon = layout.is_beacon.to(device)
        current = _Pass((~is_beacon).nonzero()[:, 0], is_beacon.nonzero()[:, 0])
        beacon = self.beacon_embed_tokens.weight.to(self.body.dtype)
        tokens = embed(self.lm, ids)
        cache = self._cache(state, window)
        with _passing(current):
            output = self.body(
                inputs_embeds=current.merged(tokens, beacon.expand(len(ids), len(current.beacons), -1)),
                attention_mask=self._mask(layout, state.n_positions),
                position_ids=layout.positions.to(device).expand(len(ids), -1),
                use_cache=True,
                **cache_argument(self.body, cache),
            )
        new = KeyValues(self._heads(current, "k"), self._heads(current, "v"))
        return output.last_hidden_state.index_select(1, current.tokens), new, cache

    def _cache(self, state: BeaconState, window: WindowStep) -> DynamicCache:
        """Return a state's keys and values as the decoder reads them, in a cache that can be added to."""
        cache = new_cache()
        if state.cache is not None:
            # adding to a layer replaces its tensors, so that a state's own layers stay as they are
            cache.layers = [copy.copy(layer) for layer in state.cache.layers]
            return cache
        past = state.sink.followed_by(state.memory, state.raw)
        if not len(past):
            return cache
        positions = torch.cat([torch.arange(state.n_context), held_positions(self.config, window)])
        # the models that are supported here rotate all their layers alike
        keys = rotated(past.keys, positions, 0, self.lm)
        for layer, (own_keys, own_values) in enumerate(zip(keys, past.values, strict=True)):
            cache.update(own_keys, own_values, layer)
        return cache

    def _mask(self, layout: Layout, n_past: int) -> torch.Tensor | None:
        """Return what is added to the logits of attention ``[1, 1, T, S]``; None where it is not needed."""
        n_new = len(layout.positions)
        visible = layout.visible
        if visible is None:
            if n_past == 0 or n_new == 1:
                return None
            visible = causal(n_new, n_past + n_new)
        mask = torch.zeros(visible.shape, dtype=self.body.dtype, device=self.body.device)
        mask.masked_fill_(~visible.to(mask.device), torch.finfo(mask.dtype).min)
        return mask[None, None]

    def _heads(self, current: _Pass, name: str) -> torch.Tensor:
        """Return what a projection gave in all layers, by heads ``[L, B, H_kv, T, D_head]``."""
        layers = [current.projected[name, layer] for layer in range(len(current.projected) // len(_KEPT))]
        n_layers, n_heads, width = cache_shape(self.lm)
        by_head = torch.stack(layers).reshape(n_layers, *layers[0].shape[:2], n_heads, width)
        return by_head.transpose(2, 3)


def _first_token(lm: CausalLM, config: BeaconConfig) -> int:
    """Return the token whose embedding the beacon's begins as."""
    if config.embed_init == "eos":
        return end_of_text(lm)
    token = lm.model.config.bos_token_id
    if token is None:
        raise ModelError("embed_init='bos' needs a model with a token for the beginning of a text: choose 'eos'")
    return int(token)


def _summed_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return cross_entropy(
        logits.flatten(0, 1).float(), targets.flatten().to(logits.device), ignore_index=_IGNORED, reduction="sum"
    )
