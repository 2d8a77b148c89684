"""One run of the comparison of cache methods: a context is compressed, a question is answered from what is left."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from measuring import Usage, measured
from peers import Peer

import kompakt
from kompakt.adapters.transformers import TransformersBackend
from kompakt.compressor.backend import Prompt
from kompakt.compressor.base import Compressor
from kompakt.compressor.cache.context import read_context
from kompakt.compressor.cache.scoring import ScoringCacheCompressor, Seen
from kompakt.compressor.errors import InputError
from kompakt.compressor.evaluation.controls import Full, Nothing
from kompakt.compressor.evaluation.example import Example
from kompakt.compressor.models.causal_lm import load_causal_lm, tokenize
from kompakt.compressor.models.chat_format import chat_format
from kompakt.compressor.types import Budget

MODES = {"snapkv": ("seen", "unseen"), "finch": ("seen",), "expected-attention": ("unseen",)}
"""How kvpress is run: whether it sees the question while it compresses."""

CHAT_PROMPT = "\n\nReply with the answer alone, in as few words as it takes."
TEXT_PROMPT = "\nAnswer:"


@dataclass(frozen=True)
class Run:
    """A method at a budget.

    Args:
        tool: ``kompakt`` or ``kvpress``.
        method: Its name in the registry of kompakt, or that of a control.
        keep: The share of the context's positions that stays.
        mode: Of kvpress, ``seen`` or ``unseen``; empty for kompakt.
    """

    tool: str
    method: str
    keep: float
    mode: str = ""

    @property
    def label(self) -> str:
        """Everything in one line."""
        return " ".join(filter(None, [self.tool, self.method, self.mode, f"keep {self.keep:g}"]))


def blocks(methods: Sequence[str], keeps: Sequence[float], *, with_kvpress: bool) -> list[list[Run]]:
    """Return all runs of an example; those of a block are to be compared, and run one right after the other."""

    def block(method: str, keep: float, modes: Sequence[str]) -> list[Run]:
        theirs = [Run("kvpress", method, keep, mode) for mode in modes] if with_kvpress else []
        return [Run("kompakt", method, keep), *theirs]

    controls = [block("full", 1.0, ("unseen",)), block("none", 0.0, ())]
    return controls + [
        block(method, keep, MODES.get(method, ())) for keep in keeps for method in ("random-positions", *methods)
    ]


def in_turns(planned: Sequence[Sequence[Run]], index: int) -> Iterator[Run]:
    """Yield the runs of an example; with every other one, each block begins with its other end."""
    for block in planned:
        yield from block if index % 2 == 0 else reversed(block)


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What a run gave.

    Args:
        n_context: Positions of the context.
        n_kept: Positions that were kept of it.
        n_held: Positions before the answer's beginning is read: what stands before the context, what was kept, and
            the question.
        log_likelihood: Mean ln P of a token of the right answer, in nats.
        answer: The greedy answer.
        n_steps: Tokens that were chosen for it, its end included.
        compress_seconds: Time to read and compress the context.
        answer_seconds: Time to read the rest and to answer.
        base_mib: Resident memory before.
        peak_mib: The most resident memory.
        versions: Of the packages that computed it; empty for kompakt's own.
    """

    n_context: int
    n_kept: int
    n_held: int
    log_likelihood: float
    answer: str
    n_steps: int
    compress_seconds: float
    answer_seconds: float
    base_mib: float
    peak_mib: float
    versions: str = ""


@dataclass(frozen=True, kw_only=True)
class RandomPositions(ScoringCacheCompressor):
    """Keep positions by lot, each layer and head its own.

    Args:
        seed: Decides the lot, together with the layer and the context.
    """

    name: ClassVar[str] = "random-positions"
    uses_query = False

    seed: int = 0

    def score(self, seen: Seen) -> torch.Tensor:
        """Return numbers by lot, ``[H_kv, T]``."""
        generator = torch.Generator()
        generator.manual_seed(hash((self.seed, seen.attended.layer, seen.context.ids)) % 2**63)
        return torch.rand(seen.keys.shape[:2], generator=generator).to(seen.keys.device)


@dataclass(frozen=True)
class Tokens:
    """An example as both tools read it; ``before``, ``context``, ``question`` and ``prompt`` follow one another."""

    before: tuple[int, ...]
    context: tuple[int, ...]
    question: tuple[int, ...]
    prompt: tuple[int, ...]
    target: tuple[int, ...]


class Kompakt:
    """kompakt's side: compressors and the reader share one model."""

    def __init__(self, model: str, dtype: str, n_threads: int, seed: int, max_new_tokens: int) -> None:
        torch.set_num_threads(n_threads)
        self.model, self.dtype, self.seed, self.max_new_tokens = model, dtype, seed, max_new_tokens
        self.lm = load_causal_lm(model, dtype=dtype, device="cpu")
        self.reader = TransformersBackend(model, dtype=dtype, device="cpu")
        self.chat = chat_format(model)
        self._compressors: dict[str, Compressor] = {}

    def compressor(self, method: str) -> Compressor:
        """Return a method's compressor, made once."""
        if method not in self._compressors:
            options = {"dtype": self.dtype, "device": "cpu"}
            if method in ("full", "none"):
                made: Compressor = Full() if method == "full" else Nothing()
            elif method == "random-positions":
                made = RandomPositions(decoder=self.model, seed=self.seed, **options)
            elif method == "gemfilter":
                made = kompakt.load(method, model=self.model, **options)
            else:
                made = kompakt.load(method, decoder=self.model, **options)
            self._compressors[method] = made
        return self._compressors[method]

    def after(self, example: Example) -> str:
        """Return the text behind the context."""
        return f"\n\n{example.question}" + (CHAT_PROMPT if self.chat else TEXT_PROMPT)

    def target(self, example: Example) -> str:
        """Return the right answer, as it goes on from the prompt."""
        return example.answers[0] if self.chat else f" {example.answers[0]}"

    def tokens(self, example: Example) -> Tokens:
        """Return an example's tokens.

        Raises:
            InputError: If the question's last token reaches into the prompt for the answer.
        """
        context = read_context(
            example.documents, self.lm, model=self.model, query=example.question, is_chat=True, before=""
        )
        after, target = (
            tuple(map(int, one.ids)) for one in tokenize(self.lm, [self.after(example), self.target(example)])
        )
        n_question = len(context.after)
        if after[:n_question] != context.after:
            raise InputError(f"the tokens of the question of {example.id} change with what follows it")
        prompt = (*after[n_question:], *(self.chat.tail if self.chat else ()))
        return Tokens(context.before, context.ids, context.after, prompt, target)

    def measure(self, run: Run, example: Example) -> Measurement:
        """Compress an example's context and answer its question."""
        compressor = self.compressor(run.method)
        result, compressing = measured(
            lambda: compressor.compress(
                example.documents, query=example.question, keep=run.keep or 0.5, tokenizer=self.model
            )
        )
        prompt = Prompt(result.parts, after=self.after(example))
        made, answering = measured(lambda: self.reader.generate(prompt, max_new_tokens=self.max_new_tokens))
        scored = self.reader.generate(prompt, max_new_tokens=0, targets=(self.target(example),))
        assert scored.likelihoods
        tokens = self.tokens(example)
        return Measurement(
            n_context=len(tokens.context),
            n_kept=result.tokens_after,
            n_held=made.n_positions - len(tokens.prompt),
            log_likelihood=scored.likelihoods[0].total / scored.likelihoods[0].n_tokens,
            answer=made.text,
            n_steps=min(self.max_new_tokens, made.n_tokens + 1),
            **_usage(compressing, answering),
        )


@dataclass(frozen=True)
class Kvpress:
    """kvpress' side, in its own process; see ``peers/run_kvpress.py``."""

    peer: Peer
    ours: Kompakt
    max_new_tokens: int

    def measure(self, run: Run, example: Example) -> Measurement:
        """Ask for an example's context to be compressed and its question answered."""
        tokens = self.ours.tokens(example)
        n_kept = Budget(keep=run.keep).resolve(len(tokens.context))
        answer, _ = self.peer.ask(
            {
                "method": run.method,
                "is_seen": run.mode == "seen",
                "before": tokens.before,
                "context": tokens.context,
                "question": tokens.question,
                "prompt": tokens.prompt,
                "target": tokens.target,
                "n_kept": n_kept,
                "max_new_tokens": self.max_new_tokens,
            }
        )
        made = json.loads(answer["text"])
        n_question = len(tokens.question)
        n_cached = made.pop("n_cached")
        return Measurement(
            n_context=len(tokens.context),
            n_kept=n_cached - len(tokens.before) - (n_question if run.mode == "seen" else 0),
            n_held=n_cached + (0 if run.mode == "seen" else n_question),
            **made,
        )


def _usage(compressing: Usage, answering: Usage) -> dict[str, float]:
    return {
        "compress_seconds": compressing.seconds,
        "answer_seconds": answering.seconds,
        "base_mib": compressing.base_mib,
        "peak_mib": max(compressing.peak_mib, answering.peak_mib),
    }
