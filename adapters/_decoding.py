"""Reading placed prompts and writing answers, several at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kompakt.adapters._placement import Placed, Stretch
from kompakt.compressor.errors import ConfigError
from kompakt.compressor.models.key_value_caches import cache_argument, new_cache
from kompakt.compressor.parts import CachePart

if TYPE_CHECKING:
    import torch
    from transformers import DynamicCache, LogitsProcessorList, PreTrainedModel


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is drawn.

    Args:
        temperature: Above 1 flattens the distribution, below 1 sharpens it.
        top_p: Only the most probable tokens that together have this probability are drawn.
        top_k: Only so many of the most probable tokens are drawn; 0 for all.
        seed: Where chance begins; None for anywhere.

    Raises:
        ConfigError: If a value makes no sense.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise ConfigError(
                f"temperature must be a number above 0, got {self.temperature}; without sampling= answers are greedy"
            )
        if not 0 < self.top_p <= 1 or self.top_k < 0:
            raise ConfigError(f"top_p must be in (0, 1] and top_k at least 0, got {self.top_p} and {self.top_k}")


def penalties(model: PreTrainedModel) -> LogitsProcessorList:
    """Return what a model's own configuration does to logits before a token is chosen, greedily too."""
    from transformers import (
        LogitsProcessorList,
        NoRepeatNGramLogitsProcessor,
        RepetitionPenaltyLogitsProcessor,
        SuppressTokensLogitsProcessor,
    )

    processors = LogitsProcessorList()
    own = model.generation_config
    if own is None:
        return processors
    if own.repetition_penalty not in (None, 1.0):
        processors.append(RepetitionPenaltyLogitsProcessor(own.repetition_penalty))
    if own.no_repeat_ngram_size:
        processors.append(NoRepeatNGramLogitsProcessor(own.no_repeat_ngram_size))
    if own.suppress_tokens:
        processors.append(SuppressTokensLogitsProcessor(own.suppress_tokens, device=str(model.device)))
    return processors


def chooser(sampling: Sampling | None) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return what picks a token of each row of logits ``[B, V]``: ``[B]``."""
    import torch
    from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    if sampling is None:
        return lambda logits: logits.argmax(dim=-1)
    warpers = LogitsProcessorList([TemperatureLogitsWarper(float(sampling.temperature))])
    if sampling.top_k:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        warpers.append(TopPLogitsWarper(sampling.top_p))
    generators: dict[torch.device, torch.Generator] = {}

    def draw(logits: torch.Tensor) -> torch.Tensor:
        if logits.device not in generators:
            generator = generators[logits.device] = torch.Generator(logits.device)
            generator.seed() if sampling.seed is None else generator.manual_seed(sampling.seed)
        # the warpers look at the tokens before for nothing
        warped = warpers(torch.empty(0, dtype=torch.long), logits.float())  # type: ignore[arg-type]
        probabilities = torch.softmax(warped, dim=-1)
        return torch.multinomial(probabilities, 1, generator=generators[logits.device])[:, 0]

    return draw


@dataclass(eq=False)
class Reading:
    """Prompts that have been read.

    Args:
        model: The decoder.
        cache: Its keys and values, filled up on the left.
        mask: 1 where the cache holds something, ``[B, T]``.
        positions: The position of each prompt's next token, ``[B]``.
        logits: What comes next, ``[B, V]``.
    """

    model: PreTrainedModel
    cache: DynamicCache
    mask: torch.Tensor
    positions: torch.Tensor
    logits: torch.Tensor

    def advance(self, ids: torch.Tensor, *, n_logits: int = 1) -> torch.Tensor:
        """Read ``[B, T]`` more tokens; return the last ``n_logits`` rows of logits, all for 0: ``[B, n, V]``."""
        import torch

        n_rows, n_tokens = ids.shape
        self.mask = torch.cat([self.mask, self.mask.new_ones(n_rows, n_tokens)], dim=1)
        steps = torch.arange(n_tokens, device=ids.device)
        logits: torch.Tensor = self.model(
            input_ids=ids,
            attention_mask=self.mask,
            position_ids=self.positions[:, None] + steps,
            **cache_argument(self.model, self.cache),
            use_cache=True,
            logits_to_keep=n_logits,
        ).logits
        self.positions = self.positions + n_tokens
        return logits

    def forget(self, n_tokens: int) -> None:
        """Take back the last tokens."""
        if n_tokens:
            self.cache.crop(-n_tokens)
            self.mask = self.mask[:, :-n_tokens]
            self.positions = self.positions - n_tokens


def read(model: PreTrainedModel, prompts: Sequence[Placed]) -> Reading:
    """Read prompts of any lengths, those of tokens and vectors in one pass."""
    import torch

    if all(prompt.is_one_pass for prompt in prompts):
        return _read_together(model, prompts)
    alone = [_read_in_steps(model, prompt) for prompt in prompts]
    if len(alone) == 1:
        return alone[0]
    width = max(one.mask.shape[1] for one in alone)
    return Reading(
        model,
        _joined([one.cache for one in alone], width),
        torch.cat([_left_padded(one.mask[0], width)[None] for one in alone]),
        torch.cat([one.positions for one in alone]),
        torch.cat([one.logits for one in alone]),
    )


def passes(model: PreTrainedModel, prompts: Sequence[Placed], **options: bool) -> list[Any]:
    """Read prompts one by one, and return what the model says of the last stretch of each."""
    return [_passed(model, prompt, new_cache(), **options)[0] for prompt in prompts]


def _read_together(model: PreTrainedModel, prompts: Sequence[Placed]) -> Reading:
    import torch

    stretches = [step for prompt in prompts for step in prompt.steps if isinstance(step, Stretch)]
    width = max(map(len, stretches))
    ids = [stretch.ids for stretch in stretches if stretch.ids is not None]
    if len(ids) == len(stretches):
        inputs = {"input_ids": torch.stack([_left_padded(one, width) for one in ids])}
    else:
        inputs = {"inputs_embeds": torch.stack([_left_padded(_embeds(model, one), width) for one in stretches])}
    mask = torch.stack([_left_padded(torch.ones_like(stretch.positions), width) for stretch in stretches])
    positions = torch.stack([_left_padded(stretch.positions, width) for stretch in stretches])
    cache = new_cache()
    output: Any = model(
        **inputs,
        attention_mask=mask,
        position_ids=positions,
        **cache_argument(model, cache),
        use_cache=True,
        logits_to_keep=1,
    )
    following = torch.tensor([prompt.next_position for prompt in prompts], device=model.device)
    return Reading(model, cache, mask, following, output.logits[:, -1])


def _read_in_steps(model: PreTrainedModel, prompt: Placed) -> Reading:
    import torch

    cache = new_cache()
    output, n_positions = _passed(model, prompt, cache, logits_to_keep=1)
    mask = torch.ones(1, n_positions, dtype=torch.long, device=model.device)
    following = torch.tensor([prompt.next_position], device=model.device)
    return Reading(model, cache, mask, following, output.logits[:, -1])


def _passed(model: PreTrainedModel, prompt: Placed, cache: DynamicCache, **options: int) -> tuple[Any, int]:
    """Read a prompt step by step; return what the model says of the last stretch, and the length of the cache."""
    import torch

    n_positions = 0
    output: Any = None
    for step in prompt.steps:
        n_positions += step.n_positions if isinstance(step, CachePart) else len(step)
        if isinstance(step, CachePart):
            for layer, (keys, values) in enumerate(zip(step.keys, step.values, strict=True)):
                keys, values = (one.to(model.device, model.dtype)[None] for one in (keys, values))
                cache.update(keys, values, layer)
            continue
        inputs = (
            {"input_ids": step.ids[None]} if step.ids is not None else {"inputs_embeds": _embeds(model, step)[None]}
        )
        output = model(
            **inputs,
            attention_mask=torch.ones(1, n_positions, dtype=torch.long, device=model.device),
            position_ids=step.positions[None],
            **cache_argument(model, cache),
            use_cache=True,
            **options,
        )
    return output, n_positions


def _embeds(model: PreTrainedModel, stretch: Stretch) -> torch.Tensor:
    if stretch.embeds is not None:
        return stretch.embeds
    embedded: torch.Tensor = model.get_input_embeddings()(stretch.ids)
    return embedded


def _left_padded(row: torch.Tensor, width: int) -> torch.Tensor:
    import torch

    return torch.cat([row.new_zeros(width - len(row), *row.shape[1:]), row])


def _joined(caches: Sequence[DynamicCache], width: int) -> DynamicCache:
    import torch
    from torch.nn.functional import pad

    joined = new_cache()
    # layers of other kinds than attention would have no keys
    layers: list[list[Any]] = [list(cache.layers) for cache in caches]
    for index in range(len(layers[0])):
        keys, values = (
            torch.cat([pad(one, (0, 0, width - one.shape[2], 0)) for one in several])
            for several in ([own[index].keys for own in layers], [own[index].values for own in layers])
        )
        joined.update(keys, values, index)
    return joined


@dataclass(eq=False)
class Answers:
    """Answers as they grow, one token of each at a time.

    Args:
        reading: What was read.
        choose: Picks the next token of each row of logits.
        ends: Tokens that end an answer; they are not part of it.
        max_new_tokens: The most tokens of an answer.
        is_enough: Tells of an answer's number and tokens whether it is to end.
        seen: The tokens of each prompt, for models that avoid repetitions.
    """

    reading: Reading
    choose: Callable[[torch.Tensor], torch.Tensor]
    ends: frozenset[int]
    max_new_tokens: int
    is_enough: Callable[[int, list[int]], bool]
    seen: Sequence[Sequence[int]]
    tokens: list[list[int]] = field(init=False)

    def __iter__(self) -> Iterator[list[list[int]]]:
        """Yield all answers so far after each step; the first comes from what the prompt's last position says."""
        reading = self.reading
        self.tokens = [[] for _ in range(len(reading.logits))]
        open_rows = set(range(len(self.tokens)))
        processors = penalties(reading.model)
        logits = reading.logits
        for step in range(self.max_new_tokens):
            chosen = self.choose(self._processed(logits, processors) if processors else logits)
            for row, token in enumerate(chosen.tolist()):
                if row not in open_rows:
                    continue
                if token in self.ends:
                    open_rows.discard(row)
                    continue
                self.tokens[row].append(token)
                if self.is_enough(row, self.tokens[row]):
                    open_rows.discard(row)
            yield self.tokens
            if not open_rows or step == self.max_new_tokens - 1:
                return
            logits = reading.advance(chosen[:, None])[:, -1]

    def _processed(self, logits: torch.Tensor, processors: LogitsProcessorList) -> torch.Tensor:
        import torch

        before = [
            torch.tensor([[*seen, *own]], dtype=torch.long, device=logits.device)
            for seen, own in zip(self.seen, self.tokens, strict=True)
        ]
        rows = [processors(ids, row[None]) for ids, row in zip(before, logits.float(), strict=True)]  # type: ignore[arg-type]
        return torch.cat(rows)
