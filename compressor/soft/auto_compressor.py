"""AutoCompressor: summary vectors of each segment, read as a soft prompt by the segments after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate, pairwise
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from kompakt.compressor.errors import InputError
from kompakt.compressor.models.causal_lm import CausalLM
from kompakt.compressor.parts import Placement
from kompakt.compressor.soft.allocation import balanced, windows
from kompakt.compressor.soft.checkpoint import space_of
from kompakt.compressor.soft.decoder import NO_POSITION, body_of, embed, end_of_text, hidden_states
from kompakt.compressor.soft.lora import Lora
from kompakt.compressor.soft.module import SlotModule
from kompakt.compressor.soft.plan import Segment
from kompakt.compressor.soft.slot_encoder import SlotEncoder

_IGNORED = -100


@dataclass(frozen=True, slots=True, eq=False)
class AutoCompressorOutput:
    """What a forward pass gives.

    Args:
        logits: ``[B, N, V]``; zero at masked positions.
        softprompt: All summary vectors, those given included, ``[B, s, D]``; without accumulation the last ones.
        loss: Mean cross-entropy in nats over all targets, None without labels.
    """

    logits: torch.Tensor
    softprompt: torch.Tensor
    loss: torch.Tensor | None


class AutoCompressorModule(SlotModule):
    """A decoder with a table of summary embeddings, and an adapter where its own weights are not trained.

    Untrained, every summary embedding is that of the end of a text.

    Args:
        lm: The decoder.
        summary_length: Summary vectors of each segment.
        accumulate: Whether a segment reads the vectors of all segments before it, not of the last one alone (which is
            the Recurrent Memory Transformer).
        lora: The adapter.

    Source: Chevalier et al. 2023, "Adapting Language Models to Compress Contexts", section 3.
    """

    def __init__(self, lm: CausalLM, *, summary_length: int, accumulate: bool, lora: Lora) -> None:
        super().__init__(lm, body_of(lm), lora)
        self._lm = lm
        self.accumulate = accumulate
        end = embed(lm, [end_of_text(lm)]).detach().to(torch.float32)
        self.embed_summary = nn.Embedding(summary_length, end.shape[1], _weight=end.repeat(summary_length, 1))

    def states(
        self, segments: Sequence[torch.Tensor], prefixes: Sequence[torch.Tensor], *, emits: bool
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Read segments, each behind its soft prompt.

        With learned positions (OPT), soft prompts and summary slots have none, and each segment's tokens begin at 0;
        with rotary ones all of them are numbered through.

        Args:
            segments: Input embeddings of the tokens, ``[T_i, D]``.
            prefixes: The soft prompt of each, ``[s_i, D]``.
            emits: Whether to write summary vectors.

        Returns:
            The final states of the tokens ``[T_i, D]``, and the summary vectors ``[summary_length or 0, D]``.

        Raises:
            InputError: If a segment exceeds what the model reads.
        """
        slots = self.embed_summary.weight[: None if emits else 0]
        rows = [
            torch.cat([prefix.to(tokens), tokens, slots.to(tokens)])
            for prefix, tokens in zip(prefixes, segments, strict=True)
        ]
        positions, room = self._positions(segments, prefixes, len(slots))
        # a row of padding alone holds nothing that the model could read
        filled = [index for index, row in enumerate(rows) if len(row)]
        read = hidden_states(
            self.body,
            [rows[index] for index in filled],
            None if positions is None else [positions[index] for index in filled],
            max_positions=room,
        )
        for index, state in zip(filled, read, strict=True):
            rows[index] = state
        starts = [len(prefix) for prefix in prefixes]
        ends = [start + len(tokens) for start, tokens in zip(starts, segments, strict=True)]
        of_tokens = [row[start:end] for row, start, end in zip(rows, starts, ends, strict=True)]
        return of_tokens, [row[end:] for row, end in zip(rows, ends, strict=True)]

    def _positions(
        self, segments: Sequence[torch.Tensor], prefixes: Sequence[torch.Tensor], n_slots: int
    ) -> tuple[list[torch.Tensor] | None, int]:
        """Return the position ids of each row, None for 0, 1, ..., and how long a row may be."""
        none = NO_POSITION.get(self.body.config.model_type)
        if none is None:
            return None, self.max_positions
        longest = max(map(len, segments))
        if longest > self.max_positions:
            raise InputError(f"a segment has {longest} tokens and the model reads at most {self.max_positions}")
        positions = [
            torch.tensor([none] * len(prefix) + list(range(len(tokens))) + [none] * n_slots)
            for prefix, tokens in zip(prefixes, segments, strict=True)
        ]
        return positions, max(map(len, positions))

    def forward(
        self,
        input_ids: torch.Tensor,
        *,
        attention_mask: torch.Tensor | None = None,
        segment_lengths: int | Sequence[int] | None = None,
        softprompt: torch.Tensor | None = None,
        output_softprompt: bool = False,
        labels: torch.Tensor | None = None,
    ) -> AutoCompressorOutput:
        """Read a sequence segment by segment; every segment but the last writes summary vectors.

        Masked tokens are invisible and take no position, wherever they stand.

        Args:
            input_ids: Tokens ``[B, N]``.
            attention_mask: 1 for tokens, 0 for padding, ``[B, N]``; ones by default.
            segment_lengths: The length of all segments but the last, or of each; one segment by default.
            softprompt: What the first segment reads before its tokens, ``[B, s, D]``.
            output_softprompt: Whether the last segment writes summary vectors too.
            labels: Targets ``[B, N]``, shifted here, over the borders of segments too; -100 for none.

        Raises:
            InputError: If lengths do not sum to N, or a segment exceeds what the model reads.
        """
        n_rows, n_tokens = input_ids.shape
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        bounds = _bounds(segment_lengths, n_tokens)
        width = self.embed_summary.embedding_dim
        soft = self.embed_summary.weight.new_zeros(n_rows, 0, width) if softprompt is None else softprompt
        hidden = []
        for index, (start, end) in enumerate(bounds):
            real = mask[:, start:end].bool()
            segments = [embed(self._lm, ids[own]) for ids, own in zip(input_ids[:, start:end], real, strict=True)]
            emits = output_softprompt or index < len(bounds) - 1
            tokens, summaries = self.states(segments, list(soft), emits=emits)
            hidden.append(_scattered(tokens, real))
            if emits:
                new = torch.stack(summaries)
                soft = torch.cat([soft.to(new), new], dim=1) if self.accumulate else new
        logits = self._lm.model.get_output_embeddings()(torch.cat(hidden, dim=1))  # type: ignore[no-untyped-call]
        logits = logits * mask[:, :, None].to(logits.dtype)
        return AutoCompressorOutput(logits, soft, None if labels is None else _loss(logits, labels))


def _bounds(segment_lengths: int | Sequence[int] | None, n_tokens: int) -> list[tuple[int, int]]:
    if segment_lengths is None:
        lengths = [n_tokens]
    elif isinstance(segment_lengths, int):
        lengths = windows(n_tokens, segment_lengths)
    else:
        lengths = list(segment_lengths)
    if sum(lengths) != n_tokens:
        raise InputError(f"segment_lengths must sum to {n_tokens} tokens, got {lengths}")
    ends = list(accumulate(lengths))
    return list(zip([0, *ends], ends, strict=False))


def _scattered(rows: Sequence[torch.Tensor], real: torch.Tensor) -> torch.Tensor:
    """Return rows ``[T_i, D]`` where their tokens stand, ``[B, T, D]``, and zeros elsewhere."""
    placed = rows[0].new_zeros(*real.shape, rows[0].shape[1])
    return placed.masked_scatter(real[:, :, None], torch.cat(list(rows)))


def _loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    scores = logits[:, :-1].flatten(0, 1).float()
    return cross_entropy(scores, labels[:, 1:].flatten(), ignore_index=_IGNORED)


def random_segments(
    n_tokens: int, n_segments: int, *, max_tokens: int, generator: torch.Generator | None = None
) -> list[int]:
    """Draw the lengths of the segments of a training sequence.

    Args:
        n_tokens: Tokens of the sequence.
        n_segments: How many segments, at least 2.
        max_tokens: The most tokens of a segment: what the model reads.
        generator: Where chance comes from.

    Source: Chevalier et al. 2023, section 3.3, as in the authors' code.

    Raises:
        InputError: If the sequence cannot be cut so.
    """
    least = max(-(-(n_tokens - max_tokens) // (n_segments - 1)), 2) if n_segments > 1 else 0
    free = n_tokens - n_segments * least
    if n_segments < 2 or free < n_segments - 1:
        raise InputError(f"{n_tokens} tokens cannot be cut into {n_segments} segments of at most {max_tokens}")
    drawn = torch.randperm(free, generator=generator)[: n_segments - 1].sort().values.tolist()
    return [least + end - start for start, end in pairwise([0, *drawn, free])]


@dataclass(frozen=True, kw_only=True)
class AutoCompressor(SlotEncoder):
    """Compress each segment into 50 summary vectors, which the same model reads as a soft prompt.

    Each segment reads the summaries of those before it, and the state that a result carries lets a later call go on.
    The decoder is the model that was trained with the method: that of the checkpoint, or the base with the
    checkpoint's adapter.

    Source: Chevalier et al. 2023, "Adapting Language Models to Compress Contexts", section 3.

    Args:
        cacheable: Compress each segment from an empty state instead, so that it can be stored and reused in any
            order; training never did so, but the paper's retrieval experiments do (section 6).
    """

    cacheable: bool = False

    name: ClassVar[str] = "auto-compressor"
    default_settings: ClassVar[Mapping[str, Any]] = {
        "rates": [10, 20, 40],
        "summary_length": 50,
        "accumulate_summary": True,
        "lora": asdict(Lora(rank=16, alpha=16.0, targets=("q_proj", "k_proj", "v_proj", "o_proj", "out_proj"))),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "locality", "segment" if self.cacheable else "sequential")

    @property
    def is_sequential(self) -> bool:
        """Whether a segment reads the vectors of those before it."""
        return not self.cacheable

    @property
    def accumulates(self) -> bool:
        """Whether the vectors of all segments are kept; False for a Recurrent Memory Transformer."""
        return self.cacheable or bool(self.settings["accumulate_summary"])

    @property
    def placement(self) -> Placement:
        """Without positions for models that have learned ones."""
        return "none" if self.lm.model.config.model_type in NO_POSITION else "contiguous"

    @property
    def space(self) -> str:
        """Fingerprint of the decoder, with the adapter if there is one."""
        if self.weights is None or not self.settings["lora"]["rank"]:
            return super().space
        base = self.weights.models["base"]
        return space_of(base.fingerprint, plain_rope=base.plain_rope, adapter=self.weights.fingerprint)

    def cut(self, n_tokens: int, rate: float) -> list[int]:
        """Return segments of nearly equal lengths, so that each vector stands for at most ``rate`` tokens.

        They are shorter where the model would not read a segment, its summary slots and the vectors before it.
        """
        most = int(rate * self._n_slots)
        while True:
            lengths = balanced(n_tokens, most)
            others = self._other_positions(len(lengths))
            if most == 1 or max(lengths) + others <= self.lm.context_length or others >= self.lm.context_length:
                return lengths
            most = max(1, max(lengths) - 1 - max(lengths) // 16)

    def _other_positions(self, n_segments: int) -> int:
        """Return the positions of slots and vectors beside the tokens of the last segment."""
        if self.placement == "none":
            return 0
        if not self.is_sequential:
            return self._n_slots
        return self._n_slots * (n_segments if self.accumulates else min(n_segments, 2))

    def n_vectors(self, n_tokens: int, rate: float) -> int:
        """Return the number of summary vectors, whatever the segment's length."""
        del n_tokens, rate
        return self._n_slots

    @property
    def _n_slots(self) -> int:
        return int(self.settings["summary_length"])

    def build_module(self) -> AutoCompressorModule:
        """Return the network with untrained weights."""
        return AutoCompressorModule(
            self.lm,
            summary_length=self._n_slots,
            accumulate=bool(self.settings["accumulate_summary"]),
            lora=Lora.from_json(self.settings["lora"]),
        )

    def encode(self, segments: Sequence[Segment]) -> list[torch.Tensor]:
        """Return the summary vectors of each segment, ``[summary_length, D]``."""
        tokens = [embed(self.lm, segment.ids) for segment in segments]
        none = tokens[0].new_zeros(0, tokens[0].shape[1])
        prefixes = [none if segment.prefix is None else segment.prefix for segment in segments]
        _, summaries = self.module.states(tokens, prefixes, emits=True)
        return list(summaries)
