"""Fitting a cartridge to a text: conversations on it, steps that can be interrupted, and the cache that comes out."""

from __future__ import annotations

import functools
import hashlib
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Final, TypeAlias

import torch
from torch.nn.utils.rnn import pad_sequence

from kompakt.compressor.cache.cartridge import Cartridge, distillation_loss
from kompakt.compressor.cache.cartridge_run import CartridgeRun, FitState
from kompakt.compressor.cache.context import CacheContext, read_context
from kompakt.compressor.cache.self_study import Conversation, SelfStudy, StudySettings
from kompakt.compressor.errors import ConfigError, InputError, ModelError
from kompakt.compressor.models.batches import equal_width_batches, padded_width
from kompakt.compressor.models.causal_lm import CausalLM, Dtype, load_causal_lm
from kompakt.compressor.models.chat_format import chat_format
from kompakt.compressor.parts import CachePart
from kompakt.compressor.types import DocumentLike, as_documents

_PASS_TOKENS: Final = 1024
"""Tokens of conversations in one pass: the logits of all of them, and their gradients, exist at one time."""

_MOMENTS: Final = ("step", "exp_avg", "exp_avg_sq")

Progress: TypeAlias = Callable[[int, int, str], None]
"""Called with what is done, how much it is in all, and what is being done."""


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """How a cartridge is fitted.

    Args:
        n_frozen: How many of its first positions are never changed.
        batch_size: Conversations in a step; the paper has 64. ``n_conversations / batch_size`` steps see each once.
        learning_rate: Adam's, which stays the same.
        n_held_out: Conversations that are not trained on, by which the result is judged; 0 for none.
        checkpoint_every: Steps after which the state is saved.
        is_chat: Whether the cache will stand in a user's message; see ``Prompt``.
        before: The text before it in the prompt.
        seed: Decides what is left to chance.
        study: Which conversations it is fitted to.

    Raises:
        ConfigError: If a value makes no sense.
    """

    n_frozen: int = 1
    batch_size: int = 4
    learning_rate: float = 2e-2
    n_held_out: int = 8
    checkpoint_every: int = 20
    is_chat: bool = True
    before: str = ""
    seed: int = 0
    study: StudySettings = field(default_factory=StudySettings)

    def __post_init__(self) -> None:
        for name in ("batch_size", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.learning_rate < math.inf:
            raise ConfigError(f"learning_rate must be a number above 0, got {self.learning_rate}")
        if not 0 <= self.n_held_out < self.study.n_conversations:
            raise ConfigError(
                f"n_held_out must leave some of {self.study.n_conversations} conversations to fit, "
                f"got {self.n_held_out}"
            )
        if self.seed < 0:
            raise ConfigError(f"seed must be at least 0, got {self.seed}")


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """What came of a fitting.

    Args:
        part: The cache.
        losses: The loss of each step, in nats a token.
        held_out_before: The loss of held-out conversations before the first step; None if there are none.
        held_out_after: Their loss now.
        held_out_teacher: What their loss would be if the cache said what the teacher says. It can be lower: the loss
            does not see the tokens that the teacher holds for improbable, and gains by what they lose.
    """

    part: CachePart
    losses: tuple[float, ...]
    held_out_before: float | None = None
    held_out_after: float | None = None
    held_out_teacher: float | None = None


def fit_cartridge(
    text: DocumentLike | Sequence[DocumentLike],
    *,
    decoder: str | os.PathLike[str] = "smollm2-135m",
    n_positions: int = 128,
    n_steps: int = 200,
    settings: FitSettings | None = None,
    folder: str | os.PathLike[str] | None = None,
    minutes: float | None = None,
    dtype: Dtype = "auto",
    device: str | None = None,
    on_progress: Progress | None = None,
) -> Fit:
    """Fit a cache that stands for a text to what its decoder says with the text before it.

    The cache is right where it is read behind what it was fitted behind: the chat format's beginning of a user's
    message, or that of a text, and ``before``.

    Args:
        text: The text, or documents.
        decoder: The model that will read the cache: a named model or its folder.
        n_positions: Positions of the cache.
        n_steps: Steps of the fitting, those of earlier calls with the same folder included.
        settings: How it is fitted.
        folder: Where the run is kept, to go on after an interruption; None to keep nothing.
        minutes: After how long to stop, with what is reached by then; None for no limit.
        dtype: Number format of the decoder.
        device: A torch device; CUDA if there is one and None is given.
        on_progress: Told of each batch of conversations and of each step.

    Raises:
        ConfigError: If an option makes no sense, or the folder holds another run or other files, or is in use.
        InputError: If the text has fewer tokens than the cache, or protected parts, or the decoder has no room for
            what is asked.
        ModelNotFoundError: If the decoder is not on this machine.
        ModelError: If it cannot be used, the run's files are damaged, or the loss is no number any more.

    Source: Eyuboglu et al. 2025, "Cartridges: Lightweight and general-purpose long context representations via
    self-study".
    """
    if n_steps < 0:
        raise ConfigError(f"n_steps must be at least 0, got {n_steps}")
    if minutes is not None and not minutes > 0:
        raise ConfigError(f"minutes must be a number above 0, got {minutes}")
    end = math.inf if minutes is None else time.monotonic() + 60 * minutes
    chosen = settings or FitSettings()
    lm = load_causal_lm(decoder, dtype=dtype, device=device)
    name = os.fspath(decoder)
    context = read_context(
        as_documents(text), lm, model=name, query=None, is_chat=chosen.is_chat, before=chosen.before
    )
    if context.protected:
        raise InputError(
            "a fitted cache keeps no text word for word: leave protected text and chats out, and put them beside "
            "the cache"
        )
    if context.first + n_positions + chosen.study.max_conversation > lm.context_length:
        raise InputError(
            f"{context.first + n_positions} positions and a conversation of {chosen.study.max_conversation} tokens "
            f"do not fit into the {lm.context_length} that {name!r} reads: ask for fewer"
        )
    cartridge = Cartridge(lm, context, n_positions=n_positions, n_frozen=chosen.n_frozen)
    written = chat_format(name) if chosen.is_chat else None
    tail = written.tail if written else None
    study = SelfStudy(lm, context, tail=tail, settings=chosen.study, seed=chosen.seed)
    identity = _identity(lm, context, n_positions, chosen)
    with _folder(folder) as path, CartridgeRun(path, identity) as run:
        conversations = _conversations(study, run, end, on_progress)
        if conversations is None:
            return Fit(cartridge.part(), ())
        fitting = _Fitting(cartridge, conversations, chosen, run)
        fitting.run(n_steps, end, on_progress)
        return fitting.result()


@contextmanager
def _folder(given: str | os.PathLike[str] | None) -> Iterator[str | os.PathLike[str]]:
    if given is not None:
        yield given
        return
    with tempfile.TemporaryDirectory(prefix="kompakt-fit-") as temporary:
        yield temporary


def _identity(lm: CausalLM, context: CacheContext, n_positions: int, settings: FitSettings) -> dict[str, Any]:
    """Return everything that decides the result, the number of steps left out: more can be done later."""
    options = asdict(settings)
    study = options.pop("study")
    del options["checkpoint_every"]
    text = hashlib.sha256(context.content.encode()).hexdigest()
    return {
        "decoder": lm.fingerprint,
        "dtype": lm.dtype,
        "text": text,
        "n_positions": n_positions,
        **options,
        **study,
    }


def _conversations(
    study: SelfStudy, run: CartridgeRun, end: float, on_progress: Progress | None
) -> list[Conversation] | None:
    """Return all conversations, made if they are not in the folder; None if there was no time for all."""
    made: list[Conversation] = []
    for number in range(study.n_batches):
        batch = run.conversations(number)
        if batch is None:
            if time.monotonic() > end:
                return None
            batch = study.batch(number)
            run.add_conversations(number, batch)
        made += batch
        if on_progress is not None:
            on_progress(number + 1, study.n_batches, "conversations")
    return made


class _Fitting:
    """The steps of a run, from where its folder says."""

    def __init__(
        self, cartridge: Cartridge, conversations: Sequence[Conversation], settings: FitSettings, run: CartridgeRun
    ) -> None:
        n_trained = len(conversations) - settings.n_held_out
        self._cartridge = cartridge
        self._trained, self._held_out = conversations[:n_trained], conversations[n_trained:]
        self._settings = settings
        self._run = run
        self._optimiser = torch.optim.Adam([cartridge.trained], lr=settings.learning_rate)
        self._losses: list[float] = []
        self._before: float | None = None
        self._is_sound = True
        state = run.state()
        if state is None:
            self._before = self._judged()
        else:
            self._restore(state)
        self._n_saved = len(self._losses)

    def run(self, n_steps: int, end: float, on_progress: Progress | None) -> None:
        """Do what is missing of ``n_steps`` steps until a time; what is done is saved, unless it gives no number.

        Raises:
            ConfigError: If more steps are done already.
            ModelError: If the loss is no number.
        """
        if len(self._losses) > n_steps:
            raise ConfigError(
                f"{self._run.path} has done {len(self._losses)} steps already, more than {n_steps}: ask for more "
                "steps, or give another folder"
            )
        try:
            while len(self._losses) < n_steps and time.monotonic() < end:
                self._step()
                if on_progress is not None:
                    on_progress(len(self._losses), n_steps, f"steps, loss {self._losses[-1]:.3f}")
        finally:
            # an interruption within a step of the optimiser leaves what was saved before
            if self._is_sound and len(self._losses) > self._n_saved:
                self._save()

    def result(self) -> Fit:
        """Return what is reached."""
        teacher = None
        if self._held_out:
            entropies = torch.cat([-(one.top_log_p.exp() * one.top_log_p).sum(-1) for one in self._held_out])
            teacher = float(entropies.mean())
        return Fit(self._cartridge.part(), tuple(self._losses), self._before, self._judged(), teacher)

    def _step(self) -> None:
        n_done = len(self._losses)
        first = n_done * self._settings.batch_size
        batch = [self._drawn(first + offset) for offset in range(self._settings.batch_size)]
        self._optimiser.zero_grad()
        loss = self._mean_loss(batch, is_training=True)
        if not math.isfinite(loss):
            self._is_sound = False
            raise ModelError(
                f"the loss of step {n_done + 1} is {loss}: try a smaller learning_rate in another folder"
            )
        # a state that gives no number must not replace the one before: only now is its loss known
        if n_done > self._n_saved and n_done % self._settings.checkpoint_every == 0:
            self._save()
        self._is_sound = False
        self._optimiser.step()
        self._losses.append(loss)
        self._is_sound = True

    def _drawn(self, index: int) -> Conversation:
        """Return the conversation at a place of an endless row of epochs, each in an order of its own."""
        epoch, place = divmod(index, len(self._trained))
        return self._trained[_order(self._settings.seed, epoch, len(self._trained))[place]]

    def _judged(self) -> float | None:
        if not self._held_out:
            return None
        with torch.no_grad():
            return self._mean_loss(self._held_out)

    def _mean_loss(self, batch: Sequence[Conversation], *, is_training: bool = False) -> float:
        """Return the mean over all tokens, and add its gradient to the parameters' if wanted."""
        lengths = [len(one) for one in batch]
        cartridge, total = self._cartridge, 0.0
        longest = cartridge.lm.context_length - cartridge.context.first - cartridge.n_positions
        for places in equal_width_batches(lengths, longest=longest, max_tokens=_PASS_TOKENS):
            width = padded_width(lengths[places[0]], longest=longest)
            loss = self._summed([batch[place] for place in places], width) / sum(lengths)
            if is_training:
                # the stubs of torch do not say what it takes
                loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        return total

    def _summed(self, rows: Sequence[Conversation], width: int) -> torch.Tensor:
        device = self._cartridge.lm.model.device
        ids = pad_sequence([one.ids for one in rows], batch_first=True)
        ids = torch.nn.functional.pad(ids, (0, width - ids.shape[1])).to(device)
        logits = self._cartridge(ids)
        read = torch.cat([row[: len(one)] for row, one in zip(logits, rows, strict=True)])
        top_ids, top_log_p = (torch.cat([getattr(one, name) for one in rows]) for name in ("top_ids", "top_log_p"))
        return distillation_loss(read, top_ids.to(device), top_log_p.to(device)).sum()

    def _save(self) -> None:
        moments = self._optimiser.state[self._cartridge.trained]
        tensors = {"trained": self._cartridge.trained} | {f"adam.{name}": moments[name] for name in _MOMENTS}
        self._run.save(FitState(tuple(self._losses), self._before, tensors))
        self._n_saved = len(self._losses)

    def _restore(self, state: FitState) -> None:
        parameter = self._cartridge.trained
        try:
            with torch.no_grad():
                parameter.copy_(state.tensors["trained"])
            moments = {name: state.tensors[f"adam.{name}"] for name in _MOMENTS}
        except (LookupError, RuntimeError) as error:
            raise ModelError(
                f"the checkpoint in {self._run.path} is damaged: {error}; give another folder"
            ) from error
        groups = self._optimiser.state_dict()["param_groups"]
        self._optimiser.load_state_dict({"state": {0: moments}, "param_groups": groups})
        self._losses, self._before = list(state.losses), state.held_out


@functools.lru_cache(maxsize=4)
def _order(seed: int, epoch: int, n: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order: list[int] = torch.randperm(n, generator=generator).tolist()
    return order
