"""Synthetic conversations on a text, and what a model that has the text before it says at each of their tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import torch

from kompakt.compressor.cache.context import CacheContext
from kompakt.compressor.errors import ConfigError, InputError
from kompakt.compressor.models.causal_lm import CausalLM, tokenize
from kompakt.compressor.soft.decoder import end_tokens

TOP: Final = 20
"""Tokens of the teacher's distribution that are kept at each position."""

AT_ONCE: Final = 8
"""Conversations that are written in one batch."""

Targets: TypeAlias = Literal["chat", "text"]

_SHORTEST: Final = 16
"""Tokens below which a conversation has no room for a question and an answer."""

_CHAIN_OF_THOUGHT: Final = 0.2
"""How often the user asks the assistant to think first."""

_THINK: Final = "Think it through step by step before you answer."
_PLAIN_TAIL: Final = "\nAnswer:"
"""Stands between a message and its answer where a model has no chat format."""


@dataclass(frozen=True, slots=True)
class Seed:
    """One type of message that the user is made to write.

    Args:
        kind: Its name.
        instruction: What is asked of the model that plays the user; ``{form}`` stands for a file format.
        message: What the user says if that model writes nothing.
    """

    kind: str
    instruction: str
    message: str


SEEDS: Final = (
    Seed(
        "structuring",
        "Write one chat message that asks an assistant to put a part of the text above into the form of {form}. Name "
        "that part, so that the message is understood without the text. Write the message alone.",
        "Put the main facts of the text into the form of {form}.",
    ),
    Seed(
        "summarisation",
        "Write one chat message that asks an assistant to summarise a part of the text above. Name that part, so "
        "that the message is understood without the text. Write the message alone.",
        "Summarise the text.",
    ),
    Seed(
        "question",
        "Write one question about the text above that tests whether its details are known. Name the people, things "
        "and numbers that it is about, so that it is understood without the text. Write the question alone.",
        "Which details of the text are easily overlooked?",
    ),
    Seed(
        "use case",
        "Think of something that a reader of the text above has to do. Write one chat message in which this reader "
        "asks an assistant for what the text says about it. Write the message alone.",
        "What does the text tell me to do?",
    ),
    Seed(
        "creative",
        "Write one chat message that asks an assistant for something creative that the text above inspires. Say what "
        "of the text it takes up. Write the message alone.",
        "Write a short story that uses the facts of the text.",
    ),
)
_QUOTE: Final = "Quote what follows these words of the text: {words}"
_CUE: Final = 12
"""Tokens of the text by which a quotation is asked for."""

_FORMS: Final = ("JSON", "YAML", "TOML", "INI", "XML", "plain text")


@dataclass(frozen=True, kw_only=True)
class StudySettings:
    """Which conversations are made.

    A model too small to ask well learns nothing from its own questions. With ``text``, nothing is written: what is
    read are the text's own next tokens, and the teacher is the model with a window of it before them. In the chat
    format they are the answer to a message that asks for what follows some words of the window; without one, the text
    goes on behind the window. The text is read as a ring, so that its beginning is predicted as often as its end.

    Args:
        targets: ``chat`` for questions and answers that the decoder writes, ``text`` for the text's own next tokens.
        n_conversations: How many.
        min_window: The fewest tokens of the text before a conversation; fewer where the text is shorter.
        max_window: The most; fewer where the decoder has no room for them. The paper has 512 to 4096.
        max_conversation: The most tokens of a conversation.
        description: A line that says what the text is, before each window.
        temperature: How messages and answers are drawn; see ``Sampling``.

    Raises:
        ConfigError: If a value makes no sense.
    """

    targets: Targets = "chat"
    n_conversations: int = 128
    min_window: int = 256
    max_window: int = 512
    max_conversation: int = 256
    description: str = ""
    temperature: float = 0.7

    def __post_init__(self) -> None:
        if self.targets not in ("chat", "text"):
            raise ConfigError(f"targets must be 'chat' or 'text', got {self.targets!r}")
        if self.n_conversations < 1:
            raise ConfigError(f"n_conversations must be at least 1, got {self.n_conversations}")
        if not 1 <= self.min_window <= self.max_window:
            raise ConfigError(
                f"min_window must be positive and at most max_window, got {self.min_window} and {self.max_window}"
            )
        if self.max_conversation < _SHORTEST:
            raise ConfigError(f"max_conversation must be at least {_SHORTEST}, got {self.max_conversation}")
        if not 0 < self.temperature < float("inf"):
            raise ConfigError(f"temperature must be a number above 0, got {self.temperature}")


@dataclass(frozen=True, slots=True, eq=False)
class Conversation:
    """Tokens to be read behind a cartridge, and what the teacher says after each.

    Args:
        ids: The tokens ``[T]``.
        top_ids: The most probable next tokens ``[T, K]``.
        top_log_p: The logarithms of their probabilities ``[T, K]``.
        record: Where it comes from, for people: window, type, message and answer.
    """

    ids: torch.Tensor
    top_ids: torch.Tensor
    top_log_p: torch.Tensor
    record: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class _Draft:
    """A conversation before it is written.

    Args:
        start: Where its window begins in the text.
        before: Everything that the teacher has before the conversation.
        seed: What the user is made to write.
        form: The file format that a seed may ask for.
        is_chain: Whether the user asks the assistant to think first.
    """

    start: int
    before: tuple[int, ...]
    seed: Seed
    form: str
    is_chain: bool


class SelfStudy:
    """Makes conversations on a text, batch by batch; each batch depends on its number alone.

    Args:
        lm: The model that plays user, assistant and teacher.
        context: The text, with the tokens that stand before it in a prompt.
        tail: The tokens between a user's message and the answer; None for a model without a chat format.
        settings: Which conversations.
        seed: Decides what is left to chance.

    Raises:
        InputError: If the text is too short, or the decoder has no room for a window and a conversation.

    Source: Eyuboglu et al. 2025, "Cartridges: Lightweight and general-purpose long context representations via
    self-study", section 4.
    """

    def __init__(
        self, lm: CausalLM, context: CacheContext, *, tail: Sequence[int] | None, settings: StudySettings, seed: int
    ) -> None:
        self._lm = lm
        self._context = context
        self._settings = settings
        self._seed = seed
        self._has_format = tail is not None
        self._tail = tuple(self._encoded(_PLAIN_TAIL) if tail is None else tail)
        description = self._encoded(f"{settings.description}\n\n") if settings.description else ()
        self._before = (*context.before, *description)
        self._max_window = self._longest_window()

    @property
    def n_batches(self) -> int:
        """How many batches hold all conversations."""
        return -(-self._settings.n_conversations // AT_ONCE)

    def batch(self, number: int) -> list[Conversation]:
        """Return the conversations of a batch, the last of which may have fewer."""
        n = min(AT_ONCE, self._settings.n_conversations - number * AT_ONCE)
        chance = np.random.default_rng([self._seed, number])
        drafts = [self._draft(chance) for _ in range(n)]
        with torch.no_grad():
            if self._settings.targets == "chat":
                return self._written(drafts, int(chance.integers(2**31)))
            if self._has_format:
                return [self._quoted(draft, float(chance.random())) for draft in drafts]
            return [self._continued(draft) for draft in drafts]

    def _longest_window(self) -> int:
        n_tokens, settings = len(self._context.ids), self._settings
        if n_tokens < 2:
            raise InputError(f"the text has {n_tokens} tokens, which is too short to study")
        is_chat = settings.targets == "chat"
        # the assistant's prompt holds the conversation, the user's a seed instead
        seeds = max(len(self._instruction(seed, max(_FORMS, key=len))) for seed in SEEDS) if is_chat else 0
        taken = len(self._before) + max(settings.max_conversation, seeds + settings.max_conversation // 4)
        room = self._lm.context_length - taken
        if room < 1:
            raise InputError(
                f"what stands around a window takes {taken} positions and the decoder reads "
                f"{self._lm.context_length}: ask for shorter conversations with max_conversation"
            )
        # where the text goes on behind its window, half of it must be left
        return min(settings.max_window, room, n_tokens if is_chat or self._has_format else n_tokens // 2)

    def _draft(self, chance: np.random.Generator) -> _Draft:
        settings, ids = self._settings, self._context.ids
        length = int(chance.integers(min(settings.min_window, self._max_window), self._max_window + 1))
        is_chat = settings.targets == "chat"
        start = int(chance.integers(len(ids) - length + 1 if is_chat else len(ids)))
        seed, form = SEEDS[int(chance.integers(len(SEEDS)))], _FORMS[int(chance.integers(len(_FORMS)))]
        window = self._ring(start, length)
        return _Draft(start, (*self._before, *window), seed, form, float(chance.random()) < _CHAIN_OF_THOUGHT)

    def _ring(self, start: int, length: int) -> tuple[int, ...]:
        ids = self._context.ids
        return tuple(ids[index % len(ids)] for index in range(start, start + length))

    def _continued(self, draft: _Draft) -> Conversation:
        """Return the text's own tokens behind a window."""
        length = len(draft.before) - len(self._before)
        n_following = min(self._settings.max_conversation, len(self._context.ids) - length)
        record = {"start": draft.start, "length": length, "kind": "text"}
        return self._taught(draft.before, self._ring(draft.start + length, n_following), record)

    def _quoted(self, draft: _Draft, place: float) -> Conversation:
        """Return a message that asks for what follows some words of the window, and the text's own tokens there."""
        window = draft.before[len(self._before) :]
        # a quarter of the window at least follows the words
        start = int(place * max(0, len(window) * 3 // 4 - _CUE))
        end = start + min(_CUE, len(window) // 2)
        message = _QUOTE.format(words=self._decoded(window[start:end]))
        limit = self._settings.max_conversation
        opened = (*self._encoded(f"\n\n{message}")[: limit // 2], *self._tail)[: limit - 1]
        answer = window[end:][: limit - len(opened)]
        return self._taught(
            draft.before, (*opened, *answer), self._record(draft, message, answer) | {"kind": "quotation"}
        )

    def _written(self, drafts: Sequence[_Draft], seed: int) -> list[Conversation]:
        """Let the model write messages, then answers, then say what it thinks of both."""
        limit = self._settings.max_conversation
        asked = [[*draft.before, *self._instruction(draft.seed, draft.form)] for draft in drafts]
        replies = self._generated(asked, limit // 4, seed)
        messages = [self._message(draft, ids) for draft, ids in zip(drafts, replies, strict=True)]
        # half of a conversation is the answer's at least
        opened = [(*self._encoded(f"\n\n{message}")[: limit // 2], *self._tail)[: limit - 1] for message in messages]
        prompts = [[*draft.before, *ids] for draft, ids in zip(drafts, opened, strict=True)]
        room = self._lm.context_length - max(map(len, prompts))
        longest = self._generated(prompts, min(limit - min(map(len, opened)), room), seed + 1)
        answers = [answer[: limit - len(ids)] for ids, answer in zip(opened, longest, strict=True)]
        return [
            self._taught(draft.before, (*ids, *answer), self._record(draft, message, answer))
            for draft, ids, message, answer in zip(drafts, opened, messages, answers, strict=True)
        ]

    def _record(self, draft: _Draft, message: str, answer: Sequence[int]) -> dict[str, Any]:
        return {
            "start": draft.start,
            "length": len(draft.before) - len(self._before),
            "kind": draft.seed.kind,
            "message": message,
            "answer": self._decoded(answer),
        }

    def _message(self, draft: _Draft, ids: Sequence[int]) -> str:
        written = self._decoded(ids) or draft.seed.message.format(form=draft.form)
        return f"{written} {_THINK}" if draft.is_chain else written

    def _taught(self, before: Sequence[int], ids: Sequence[int], record: Mapping[str, Any]) -> Conversation:
        model = self._lm.model
        tokens = torch.tensor([[*before, *ids]], device=model.device)
        output = model(
            input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False, logits_to_keep=len(ids)
        )
        log_p = torch.log_softmax(output.logits[0].float(), dim=-1)
        top = log_p.topk(min(TOP, log_p.shape[-1]), dim=-1)
        return Conversation(torch.tensor(ids), top.indices.cpu(), top.values.cpu(), record)

    def _generated(self, prompts: Sequence[Sequence[int]], max_new_tokens: int, seed: int) -> list[list[int]]:
        """Return what the model writes behind each prompt, without the token that ends it."""
        model = self._lm.model
        width, ends = max(map(len, prompts)), sorted(end_tokens(self._lm))
        padded = torch.tensor([[*[ends[0]] * (width - len(one)), *one] for one in prompts], device=model.device)
        mask = torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in prompts], device=model.device)
        devices = [model.device] if model.device.type == "cuda" else []
        # chance is the library's own, and nobody else's may be disturbed
        with torch.random.fork_rng(devices):
            torch.manual_seed(seed)
            generator: Any = model
            rows = generator.generate(
                padded,
                attention_mask=mask,
                max_new_tokens=max_new_tokens,
                do_sample=True,
                temperature=self._settings.temperature,
                top_k=0,
                top_p=1.0,
                eos_token_id=ends,
                pad_token_id=ends[0],
            )
        return [list(_until(row, ends)) for row in rows[:, width:].tolist()]

    def _instruction(self, seed: Seed, form: str) -> list[int]:
        return [*self._encoded(f"\n\n{seed.instruction.format(form=form)}"), *self._tail]

    def _encoded(self, text: str) -> list[int]:
        return [int(token) for token in tokenize(self._lm, [text])[0].ids]

    def _decoded(self, ids: Sequence[int]) -> str:
        text: str = self._lm.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text.strip()


def _until(ids: Sequence[int], ends: Sequence[int]) -> Iterator[int]:
    for token in ids:
        if token in ends:
            return
        yield token
