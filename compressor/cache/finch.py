"""Finch: read a context in chunks, and keep of each what the question attends to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from kompakt.compressor.cache.cache_compressor import CacheCompressor
from kompakt.compressor.cache.context import CacheContext
from kompakt.compressor.cache.observed import Attended, observable, observing
from kompakt.compressor.cache.rotary import has_rotations, rotated, unrotated
from kompakt.compressor.cache.scoring import best_positions
from kompakt.compressor.errors import ConfigError, InputError
from kompakt.compressor.models.key_value_caches import cache_argument, new_cache


@dataclass(frozen=True, slots=True, eq=False)
class _Kept:
    """What one layer has kept so far.

    Keys are kept without a rotation and in fp32, so that no error grows as they move with every chunk.

    Args:
        keys: Keys of the beginning and of what was kept, ``[H_kv, first + r, D_head]``.
        values: Their values, in the decoder's number format.
        indices: Which of the context's tokens were kept, ``[r]``.
    """

    keys: torch.Tensor
    values: torch.Tensor
    indices: torch.Tensor


@dataclass(frozen=True, slots=True)
class _Step:
    """Tokens ``[start, end)`` of a context that are read at once, and how many positions are kept afterwards."""

    start: int
    end: int
    n_keep: int


@dataclass(frozen=True, kw_only=True)
class Finch(CacheCompressor):
    """Read a context of any length chunk by chunk before the question, and keep what the question attends to.

    Each chunk is read behind what was kept of those before, with the question behind it. All heads of a layer keep
    the same positions, each layer its own. What is kept moves together, so that a context may be longer than what the
    decoder reads at once; the kept positions, a chunk and the question may not. No training.

    Source: Corallo and Papotti 2024, "FINCH: Prompt-guided Key-Value Cache Compression", section 3.

    Args:
        chunk_tokens: The most tokens of the context that are read at once: fewer where the decoder would not read
            them beside what was kept. The paper reads 256 to 1,024.

    Raises:
        ConfigError: If an option makes no sense.
    """

    name: ClassVar[str] = "finch"
    uses_query = True

    chunk_tokens: int = 2048

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.chunk_tokens < 1:
            raise ConfigError(f"chunk_tokens must be at least 1, got {self.chunk_tokens}")

    def compute(self, context: CacheContext, n_keep: int) -> torch.Tensor:
        """Read a context chunk by chunk; see ``CacheCompressor.compute``.

        Raises:
            InputError: If there is no question, or the decoder reads no token beside what is to be kept.
        """
        if not context.after:
            raise InputError("finch keeps what a question attends to: give query=, or use expected-attention")
        kept: list[_Kept] = []
        for step in self._steps(context, n_keep):
            kept = self._read_chunk(context, step, kept)
        first, like = context.first, kept[0].values
        made = like.new_empty(2, len(kept), *like[:, first:].shape)
        for layer, one in enumerate(kept):
            made[0, layer], made[1, layer] = self._placed(one.keys, layer)[:, first:], one.values[:, first:]
        return made

    def _steps(self, context: CacheContext, n_keep: int) -> list[_Step]:
        """Return which tokens are read at a time, and how many are kept then: the same share after every chunk."""
        n_tokens, n_kept = len(context.ids), 0
        room = self.lm.context_length - context.first - len(context.after)
        steps: list[_Step] = []
        while not steps or steps[-1].end < n_tokens:
            start = steps[-1].end if steps else 0
            if room <= n_kept:
                raise InputError(
                    f"{self.decoder} reads {self.lm.context_length} positions at once; with {n_kept} kept ones, "
                    f"{context.first} before the context and {len(context.after)} of the question, no token of it "
                    "can be read: lower the budget"
                )
            end = min(start + min(self.chunk_tokens, room - n_kept), n_tokens)
            n_kept = max(n_keep * end // n_tokens, sum(index < end for index in context.protected))
            steps.append(_Step(start, end, n_kept))
        return steps

    def _read_chunk(self, context: CacheContext, step: _Step, kept: Sequence[_Kept]) -> list[_Kept]:
        """Read the next chunk and the question behind what was kept; return what is kept then, for each layer."""
        body = observable(self.lm)
        cache = new_cache()
        for layer, one in enumerate(kept):
            cache.update(self._placed(one.keys, layer).to(one.values.dtype)[None], one.values[None], layer)
        # without anything before it, what is not kept of a layer need not be held until the last one
        before = cache_argument(body, cache) if kept else {}
        ids = [*(() if kept else context.before), *context.ids[step.start : step.end], *context.after]
        n_before = kept[0].keys.shape[1] if kept else 0
        positions = torch.arange(n_before, n_before + len(ids), device=body.device)
        result: list[_Kept] = []

        def observe(attended: Attended) -> None:
            result.append(self._select(attended, context, step, kept[attended.layer] if kept else None))

        with observing(observe):
            body(
                input_ids=torch.tensor([ids], device=body.device),
                attention_mask=torch.ones(1, n_before + len(ids), dtype=torch.long, device=body.device),
                position_ids=positions[None],
                **before,
                use_cache=bool(kept),
            )
        return result

    def _select(self, attended: Attended, context: CacheContext, step: _Step, kept: _Kept | None) -> _Kept:
        """Return the best of the context's positions that a layer holds, with the beginning."""
        n_before = kept.keys.shape[1] if kept else 0
        own = torch.arange(step.start, step.end)
        indices = torch.cat([kept.indices, own]) if kept else own
        chosen = torch.arange(len(indices))
        if step.n_keep < len(indices):
            protected = torch.isin(indices, torch.tensor(context.protected, dtype=torch.long)).nonzero()[:, 0]
            chosen = best_positions(_scores(attended, context), protected.tolist(), step.n_keep).cpu()
        places = torch.cat([torch.arange(context.first), chosen + context.first])
        old, new = places[places < n_before], places[places >= n_before]
        keys = attended.keys[:, new].float()
        if has_rotations(self.lm):
            keys = unrotated(keys, new, attended.layer, self.lm)
        if kept:
            keys = torch.cat([kept.keys[:, old], keys], dim=1)
        return _Kept(keys, attended.values[:, places], indices[chosen])

    def _placed(self, keys: torch.Tensor, layer: int) -> torch.Tensor:
        """Return keys without rotation as they are at positions 0, 1, ..."""
        return rotated(keys, torch.arange(keys.shape[1]), layer, self.lm) if has_rotations(self.lm) else keys


def _scores(attended: Attended, context: CacheContext) -> torch.Tensor:
    """Return the question's attention to each of the context's positions, summed over heads, ``[c + m]``."""
    n_keys, n_question = attended.keys.shape[1], len(context.after)
    last = n_keys - n_question
    # a row that is spread over more positions has less for each
    weights = torch.arange(last + 1, n_keys + 1) / (last - context.first)
    received = attended.received(attended.queries.shape[1] - n_question, weights)
    return received.sum(dim=0)[context.first : last]
