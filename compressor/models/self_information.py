"""How surprising each token of a text is to a causal language model."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, cast

import numpy as np

from kompakt.compressor.errors import ConfigError, ModelError
from kompakt.compressor.models.batch_size import (
    BatchLimit,
    forward_bytes_per_token,
    tokens_per_batch,
    with_backoff,
)
from kompakt.compressor.models.batches import equal_width_batches, packed_batches, padded_width
from kompakt.compressor.models.causal_lm import BATCH_TOKENS, CausalLM, output_layer

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from transformers import PreTrainedModel

    from kompakt.compressor.models.packed_decoder import PackedDecoder


@dataclass(frozen=True, slots=True)
class Row:
    """A window: tokens ``[start, end)`` of a sequence are predicted, those from ``scored`` on are reported.

    Args:
        sequence: Which sequence.
        start: The first token that is read.
        end: The token after the last.
        scored: The first token that is reported.
    """

    sequence: int
    start: int
    end: int
    scored: int

    def __len__(self) -> int:
        return self.end - self.start


def windows(n_tokens: int, *, window: int, overlap: int) -> list[tuple[int, int, int]]:
    """Cut a sequence into windows such that each token is reported once.

    Args:
        n_tokens: Length of the sequence.
        window: The most tokens that one window predicts.
        overlap: Tokens that a window reads again before those that it reports.

    Returns:
        ``(start, end, scored)`` for each window: it predicts tokens ``[start, end)`` and reports ``[scored, end)``.
    """
    cuts = [(0, min(window, n_tokens), 0)] if n_tokens else []
    while cuts and cuts[-1][1] < n_tokens:
        scored = cuts[-1][1]
        start = scored - overlap
        cuts.append((start, min(start + window, n_tokens), scored))
    return cuts


def rows_of(lengths: Sequence[int], *, window: int | None, overlap: int | None, longest: int) -> list[Row]:
    """Cut sequences into windows.

    Args:
        lengths: Tokens of each sequence.
        window: The most tokens read at once; ``longest`` by default and at most.
        overlap: Tokens before the reported ones that are read again, at most ``window - 1``; half a window by
            default.
        longest: What the model reads.

    Raises:
        ConfigError: If ``window`` or ``overlap`` make no sense.
    """
    size = min(window or longest, longest)
    again = size // 2 if overlap is None else overlap
    if size < 1 or not 0 <= again < size:
        raise ConfigError(f"window must be positive and overlap in [0, window), got {window} and {overlap}")
    return [Row(index, *cut) for index, n in enumerate(lengths) for cut in windows(n, window=size, overlap=again)]


class Scorer(ABC):
    """A network that says how surprising tokens are.

    Args:
        lm: Its body with tokenizer, prefix token and window.
        packed: The body for packed rows; None where rows are padded.
    """

    reads_targets: ClassVar[bool]
    """Whether a row ends with the last token that is scored, or with the one before."""

    def __init__(self, lm: CausalLM, packed: PackedDecoder | None) -> None:
        self.lm = lm
        self.packed = packed

    @property
    def longest(self) -> int:
        """The most tokens that one window can score."""
        return self.lm.context_length - self.reads_targets

    @abstractmethod
    def nats(self, states: Sequence[torch.Tensor], first: Sequence[int], targets: torch.Tensor) -> torch.Tensor:
        """Return the surprisals of the tokens of several rows from a place on.

        Args:
            states: The states of each row, ``[T_i, D]``; the first is that of the prefix token.
            first: The first token of each row that is scored.
            targets: The scored tokens of all rows ``[N]``.

        Returns:
            Nats in fp32 ``[N]``.
        """


class LanguageModelScorer(Scorer):
    """The language model itself: -ln P(token | prefix token, tokens before it).

    Source: Li et al. 2023, "Compressing Context to Enhance Inference Efficiency of Large Language Models",
    section 2.1.
    """

    reads_targets = False

    def nats(self, states: Sequence[torch.Tensor], first: Sequence[int], targets: torch.Tensor) -> torch.Tensor:
        """Return surprisals; see ``Scorer.nats``."""
        import torch

        from kompakt.kernels.token_surprisal import token_surprisal

        wanted = torch.cat([state[start:] for state, start in zip(states, first, strict=True)])
        head = output_layer(self.lm.model)
        return token_surprisal(wanted, head.weight, targets, bias=getattr(head, "bias", None))


@functools.lru_cache(maxsize=4)
def language_model_scorer(lm: CausalLM) -> LanguageModelScorer:
    """Return a language model as what scores.

    Raises:
        ModelError: If the model scales or caps its logits.
    """
    check_output_layer(lm)
    from kompakt.compressor.models.packed_decoder import packed_decoder

    return LanguageModelScorer(lm, packed_decoder(cast("PreTrainedModel", lm.model.base_model)))


def self_information(
    scorer: Scorer,
    sequences: Sequence[Sequence[int] | NDArray[np.int64]],
    *,
    window: int | None = None,
    overlap: int | None = None,
) -> list[NDArray[np.float32]]:
    """Return how surprising each token is, given the prefix token and the tokens before it in its window.

    On a CPU, rows of decoders that are known are packed without padding; those of others are filled up on the right
    to one width, where a causal model does not look, so that no mask is needed.

    Args:
        scorer: What reads.
        sequences: Token ids of each text, [T] each, without the prefix.
        window: The most tokens read at once; the model's context length by default and at most.
        overlap: For longer sequences, how many tokens before the reported ones are read again, at most
            ``window - 1``; half a window by default.

    Returns:
        Surprisals in nats, float32 [T] for each sequence, in order.

    Raises:
        ConfigError: If ``window`` or ``overlap`` make no sense.
        ModelError: If a single window does not fit in memory.
    """
    arrays = [np.asarray(sequence, dtype=np.int64) for sequence in sequences]
    rows = rows_of([len(ids) for ids in arrays], window=window, overlap=overlap, longest=scorer.longest)
    results = [np.empty(len(ids), dtype=np.float32) for ids in arrays]
    limit = _limit(scorer.lm)
    lengths = [len(row) + scorer.reads_targets for row in rows]
    if scorer.packed is None:
        batches = equal_width_batches(lengths, longest=scorer.lm.context_length, max_tokens=limit.tokens)
    else:
        batches = packed_batches(lengths, max_tokens=limit.tokens)

    def score(batch: Sequence[Row]) -> list[NDArray[np.float32]]:
        return _score_rows(scorer, [arrays[row.sequence][row.start : row.end] for row in batch], batch)

    for places in batches:
        batch = [rows[place] for place in places]
        values = with_backoff(batch, score, lengths=[lengths[place] for place in places], limit=limit)
        for row, scores in zip(batch, values, strict=True):
            results[row.sequence][row.scored : row.end] = scores
    return results


def _limit(lm: CausalLM) -> BatchLimit:
    per_token = forward_bytes_per_token(lm.model.config, lm.model.dtype)
    return BatchLimit(tokens_per_batch(lm.device, bytes_per_token=per_token, on_cpu=BATCH_TOKENS["cpu"]))


def _score_rows(
    scorer: Scorer, tokens: Sequence[NDArray[np.int64]], rows: Sequence[Row]
) -> list[NDArray[np.float32]]:
    import torch

    lm = scorer.lm
    inputs = [np.concatenate([[lm.prefix_id], ids if scorer.reads_targets else ids[:-1]]) for ids in tokens]
    first = [row.scored - row.start for row in rows]
    targets = np.concatenate([ids[start:] for ids, start in zip(tokens, first, strict=True)])
    with torch.inference_mode():
        packed = scorer.packed
        states = _padded_states(lm, inputs) if packed is None else _packed_states(lm, packed, inputs)
        scores = scorer.nats(states, first, torch.from_numpy(targets).to(lm.device))
    ends = np.cumsum([row.end - row.scored for row in rows])
    return np.split(scores.cpu().numpy(), ends[:-1])


def _packed_states(lm: CausalLM, packed: PackedDecoder, inputs: Sequence[NDArray[np.int64]]) -> list[torch.Tensor]:
    import torch

    lengths = [len(ids) for ids in inputs]
    embeddings = lm.model.get_input_embeddings()(torch.from_numpy(np.concatenate(inputs)))
    return list(torch.split(packed(embeddings, lengths), lengths))


def _padded_states(lm: CausalLM, inputs: Sequence[NDArray[np.int64]]) -> list[torch.Tensor]:
    import torch

    width = padded_width(len(inputs[0]), longest=lm.context_length)
    filled = np.full((len(inputs), width), lm.prefix_id, dtype=np.int64)
    for index, ids in enumerate(inputs):
        filled[index, : len(ids)] = ids
    hidden = _hidden(lm, torch.from_numpy(filled).to(lm.device))
    return [states[: len(ids)] for states, ids in zip(hidden, inputs, strict=True)]


def _hidden(lm: CausalLM, ids: torch.Tensor) -> torch.Tensor:
    hidden: torch.Tensor = lm.model.base_model(ids, use_cache=False).last_hidden_state
    return hidden


@functools.lru_cache(maxsize=16)
def check_output_layer(lm: CausalLM) -> None:
    """Raise for architectures that scale or cap logits after the output layer: their surprisals would be wrong.

    Raises:
        ModelError: Naming the type.
    """
    import torch

    with torch.inference_mode():
        ids = torch.full((1, 4), lm.prefix_id, device=lm.device)
        whole = lm.model(ids, use_cache=False).logits.float()
        head = output_layer(lm.model)
        parts = torch.nn.functional.linear(_hidden(lm, ids), head.weight, getattr(head, "bias", None)).float()
    if whole.shape != parts.shape or not torch.allclose(whole, parts, rtol=0.02, atol=0.05):
        kind = lm.model.config.model_type
        raise ModelError(
            f"models of type {kind!r} change their logits after the output layer, which scoring does not support"
        )


def self_information_reference(
    lm: CausalLM, sequences: Sequence[Sequence[int] | NDArray[np.int64]]
) -> list[NDArray[np.float32]]:
    """Return what ``self_information`` returns, one sequence at a time from the logits of all its tokens.

    Args:
        lm: The model.
        sequences: Token ids of each text, [T] each, at most as long as the model's context.
    """
    import torch

    results = []
    for sequence in sequences:
        ids = torch.tensor([[lm.prefix_id, *map(int, sequence)]], device=lm.device)
        with torch.inference_mode():
            logits = lm.model(ids[:, :-1], use_cache=False).logits if len(sequence) else ids.new_zeros(1, 0, 1)
            log_p = torch.log_softmax(logits.float(), dim=-1).gather(2, ids[:, 1:, None])
        results.append(-log_p[0, :, 0].cpu().numpy())
    return results
