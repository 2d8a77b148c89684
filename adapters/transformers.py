"""Local models of Hugging Face transformers as readers of compressed contexts."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from typing import TYPE_CHECKING, Final, Literal

from kompakt.adapters._decoding import Answers, Reading, Sampling, chooser, passes, read
from kompakt.adapters._placement import Placed, place
from kompakt.compressor.backend import Generation, Likelihood, Prompt
from kompakt.compressor.errors import ConfigError, InputError
from kompakt.compressor.models.causal_lm import CausalLM, Dtype, load_causal_lm, scales_rope
from kompakt.compressor.models.chat_format import chat_format
from kompakt.compressor.models.encodings import checked
from kompakt.compressor.models.locate import model_path
from kompakt.compressor.models.tokenizers import FileTokenizer, Tokenizer
from kompakt.compressor.parts import CachePart, EmbedsPart, Form, Part, TextPart

if TYPE_CHECKING:
    import torch

__all__ = ["Sampling", "TransformersBackend"]

_BATCH_POSITIONS: Final = 16384
"""Positions of prompts that are read at once, padding included."""


@dataclass(frozen=True)
class TransformersBackend:
    """A causal language model on this machine, which reads text, embeddings and key-value caches.

    It owns the position of everything in a prompt: parts and text stand one behind the other, and take the next
    positions unless a part says otherwise. Text of the caller that spells a special token stays text: only the chat
    format writes special tokens.

    Args:
        model: A named model or the folder of one.
        dtype: Number format of the weights; ``auto`` is bf16 where the processor computes in it, else fp32.
        device: A torch device; CUDA if there is one and None is given.
        adapter: Folder of a checkpoint whose adapter belongs to the decoder, as with AutoCompressor.
        plain_rope: Switch off any scaling of the rotary frequencies, as ARC-Encoder's decoders do.
        on_mismatch: What to do with a part that was made for another decoder: ``raise``, or read the ``text`` that it
            stands for, which the answer's notes then say.
        begins: Whether a text to be continued begins with the model's token for the beginning of a text.

    Raises:
        ModelNotFoundError: If the model is not on this machine.
        MissingExtraError: If the extra ``local`` is not installed.
        ModelError: If it cannot be used.
        ConfigError: If an option makes no sense.
    """

    model: str | os.PathLike[str] = "smollm2-135m"
    dtype: Dtype = "auto"
    device: str | None = None
    adapter: str | os.PathLike[str] | None = None
    plain_rope: bool = False
    on_mismatch: Literal["raise", "text"] = "raise"
    begins: bool = True
    _lm: CausalLM = field(init=False, repr=False, compare=False)
    _space: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.on_mismatch not in ("raise", "text"):
            raise ConfigError(f"on_mismatch must be 'raise' or 'text', got {self.on_mismatch!r}")
        lm = load_causal_lm(self.model, dtype=self.dtype, device=self.device, plain_rope=self.plain_rope)
        from kompakt.compressor.soft.adapted import load_adapted
        from kompakt.compressor.soft.checkpoint import space_of

        plain = self.plain_rope and scales_rope(model_path(self.model))
        space = space_of(lm.fingerprint, plain_rope=plain)
        if self.adapter is not None:
            lm, space = load_adapted(lm, self.adapter, plain_rope=plain)
        object.__setattr__(self, "_lm", lm)
        object.__setattr__(self, "_space", space)

    @property
    def name(self) -> str:
        """The model's name or folder."""
        return os.fspath(self.model)

    @property
    def space(self) -> str:
        """What the parts that it reads must name as their decoder."""
        return self._space

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the model's files, with the number format and what else decides its answers."""
        return f"{self._space} {self._lm.dtype}" + ("" if self.begins else " without beginning")

    @property
    def accepts(self) -> frozenset[Form]:
        """Text, and embeddings and caches of its own space."""
        return frozenset({"text", "embeds", "cache"})

    @property
    def max_positions(self) -> int:
        """The model's context length."""
        return self._lm.context_length

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        return FileTokenizer(self.name, (model_path(self.model) / "tokenizer.json").read_bytes())

    def generate(
        self,
        prompt: Prompt,
        *,
        max_new_tokens: int,
        targets: Sequence[str] = (),
        sampling: Sampling | None = None,
    ) -> Generation:
        """Answer a prompt; it is read once for answer and targets.

        Args:
            prompt: What to read.
            max_new_tokens: The most tokens of the answer; 0 for none.
            targets: Texts whose probability as the answer is wanted too, their end not included.
            sampling: How tokens are drawn; the most probable one always if None.

        Raises:
            InputError: If prompt and answer exceed the context length, a part is not for this decoder, a target is
                empty, or a text holds a lone surrogate.
        """
        import torch

        began = time.perf_counter()
        encoded = [self._plain_ids(target) for target in targets]
        if not all(encoded):
            raise InputError("a target must hold at least one token, got an empty text")
        placed = self._place(prompt, reserved=max([max_new_tokens, *map(len, encoded)]))
        with torch.inference_mode():
            reading = read(self._lm.model, [placed])
            choose = chooser(sampling)
            # the number waits for the device, so that the time until here is the time to the first token
            int(reading.logits.argmax())
            seconds_to_first = time.perf_counter() - began
            likelihoods = tuple(_score(reading, target) for target in encoded)
            began = time.perf_counter()
            answers = self._answers(reading, [prompt], [placed], max_new_tokens, choose)
            for _ in answers:
                continue
        seconds = time.perf_counter() - began
        return self._generation(prompt, placed, answers.tokens[0], seconds_to_first, seconds, likelihoods)

    def generate_batch(
        self, prompts: Sequence[Prompt], *, max_new_tokens: int, sampling: Sampling | None = None
    ) -> list[Generation]:
        """Answer prompts of any lengths together, in their order; see ``generate``.

        Times are those of the batch that a prompt was in.
        """
        placed = [self._place(prompt, reserved=max_new_tokens) for prompt in prompts]
        results: dict[int, Generation] = {}
        # one source of chance for all: each batch would draw the same anew
        choose = chooser(sampling)
        for places in _batches([one.n_positions for one in placed]):
            own = [prompts[place] for place in places]
            made = self._generate_together(own, [placed[place] for place in places], max_new_tokens, choose)
            results.update(zip(places, made, strict=True))
        return [results[place] for place in range(len(prompts))]

    def _generate_together(
        self,
        prompts: Sequence[Prompt],
        placed: Sequence[Placed],
        max_new_tokens: int,
        choose: Callable[[torch.Tensor], torch.Tensor],
    ) -> list[Generation]:
        import torch

        began = time.perf_counter()
        with torch.inference_mode():
            reading = read(self._lm.model, placed)
            int(reading.logits[0].argmax())
            seconds_to_first = time.perf_counter() - began
            began = time.perf_counter()
            answers = self._answers(reading, prompts, placed, max_new_tokens, choose)
            for _ in answers:
                continue
        seconds = time.perf_counter() - began
        return [
            self._generation(prompt, one, tokens, seconds_to_first, seconds, ())
            for prompt, one, tokens in zip(prompts, placed, answers.tokens, strict=True)
        ]

    def stream(self, prompt: Prompt, *, max_new_tokens: int, sampling: Sampling | None = None) -> Iterator[str]:
        """Answer a prompt piece by piece; joined, the pieces are the answer. See ``generate``."""
        import torch

        placed = self._place(prompt, reserved=max_new_tokens)
        with torch.inference_mode():
            reading = read(self._lm.model, [placed])
        answers = iter(self._answers(reading, [prompt], [placed], max_new_tokens, chooser(sampling)))
        sent = ""
        tokens: list[int] = []
        while True:
            with torch.inference_mode():
                step = next(answers, None)
            if step is None:
                break
            tokens = step[0]
            ready = _settled(self._answer_text(tokens, prompt.stop), prompt.stop).strip()
            if len(ready) > len(sent):
                yield ready[len(sent) :]
                sent = ready
        rest = self._answer_text(tokens, prompt.stop).strip()[len(sent) :]
        if rest:
            yield rest

    def logits(self, prompts: Sequence[Prompt]) -> list[torch.Tensor]:
        """Return what follows each position of each prompt: logits ``[T, V]``, vectors' positions included.

        Of a prompt with caches, only the positions behind the last one. Gradients flow to vectors that want them.

        Raises:
            InputError: As ``generate``.
        """
        placed = [self._place(prompt, reserved=0) for prompt in prompts]
        return [output.logits[0] for output in passes(self._lm.model, placed)]

    def hidden(self, prompts: Sequence[Prompt]) -> list[torch.Tensor]:
        """Return the states of each prompt after the embeddings and after each layer, ``[L + 1, T, D]``.

        The last is after the final normalisation. Of a prompt with caches, only the positions behind the last one.

        Raises:
            InputError: As ``generate``.
        """
        import torch

        placed = [self._place(prompt, reserved=0) for prompt in prompts]
        outputs = passes(self._lm.model, placed, output_hidden_states=True)
        return [torch.stack([states[0] for states in output.hidden_states]) for output in outputs]

    def _answers(
        self,
        reading: Reading,
        prompts: Sequence[Prompt],
        placed: Sequence[Placed],
        max_new_tokens: int,
        choose: Callable[[torch.Tensor], torch.Tensor],
    ) -> Answers:
        def is_enough(row: int, tokens: list[int]) -> bool:
            stop = prompts[row].stop
            return bool(stop) and stop in self._text(tokens)

        seen = [one.token_ids for one in placed]
        return Answers(reading, choose, self._stops, max_new_tokens, is_enough, seen)

    def _generation(
        self,
        prompt: Prompt,
        placed: Placed,
        tokens: Sequence[int],
        seconds_to_first: float,
        seconds: float,
        likelihoods: tuple[Likelihood, ...],
    ) -> Generation:
        return Generation(
            self._answer_text(tokens, prompt.stop).strip(),
            placed.n_positions,
            len(tokens),
            seconds_to_first,
            (len(tokens) - 1) / seconds if len(tokens) > 1 and seconds else 0.0,
            likelihoods,
            tuple(tokens),
            placed.notes,
        )

    def _plain_ids(self, text: str) -> list[int]:
        return list(self._lm.tokenizer.encode(checked(text), add_special_tokens=False).ids)

    def _place(self, prompt: Prompt, *, reserved: int) -> Placed:
        notes: list[str] = []
        parts = [self._readable(part, notes) for part in prompt.parts]
        written = chat_format(self.model) if prompt.is_chat else None
        beginning = (self._lm.prefix_id,) if self.begins else ()
        head, tail = (written.head, written.tail) if written else (beginning, ())
        items: list[Sequence[int] | EmbedsPart | CachePart] = [head]
        # neighbouring texts are one, so that tokens reach over their borders
        for is_text, group in groupby([prompt.before, *parts, prompt.after], key=lambda one: isinstance(one, str)):
            if is_text:
                items.append(self._plain_ids("".join(str(one) for one in group)))
            else:
                items += [one for one in group if not isinstance(one, str)]
        placed = place([*items, tail], self._lm, notes=notes)
        if placed.next_position + reserved > self._lm.context_length:
            raise InputError(
                f"the prompt has {placed.next_position} positions and the answer may have {reserved}: "
                f"{self.name} reads at most {self._lm.context_length}"
            )
        if not placed.steps or isinstance(placed.steps[-1], CachePart):
            raise InputError("a prompt must end in text or embeddings, of which the model says what follows")
        return placed

    def _readable(self, part: Part, notes: list[str]) -> str | EmbedsPart | CachePart:
        """Return a part as this decoder reads it.

        Raises:
            InputError: If it cannot, and is not to read the text instead.
        """
        if isinstance(part, TextPart):
            return part.text
        if not isinstance(part, (EmbedsPart, CachePart)):
            raise InputError(f"this backend reads text, embeddings and caches, got a {type(part).__name__}")
        from kompakt.compressor.soft.adapted import why_unreadable

        reason = why_unreadable(part, self._lm, self._space)
        if not reason:
            return part
        if self.on_mismatch == "raise":
            raise InputError(f"{self.name} cannot read a part: {reason}")
        notes.append(f"read as text: {reason}")
        return part.source.text

    @cached_property
    def _stops(self) -> frozenset[int]:
        """Tokens that end an answer."""
        from kompakt.compressor.soft.decoder import end_tokens

        return end_tokens(self._lm)

    def _answer_text(self, tokens: Sequence[int], stop: str) -> str:
        text = self._text(tokens)
        return text.partition(stop)[0] if stop else text

    def _text(self, ids: Sequence[int]) -> str:
        text: str = self._lm.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text


def _score(reading: Reading, target: Sequence[int]) -> Likelihood:
    import torch

    ids = torch.tensor([target], device=reading.logits.device)
    rows = [reading.logits]
    if len(target) > 1:
        rows.append(reading.advance(ids[:, :-1], n_logits=0)[0])
        reading.forget(len(target) - 1)
    log_p = torch.log_softmax(torch.cat(rows).float(), dim=-1)
    chosen = log_p.gather(1, ids[0][:, None])
    return Likelihood(float(chosen.double().sum()), len(target))


def _settled(text: str, stop: str) -> str:
    """Return the beginning of an answer that no later token can change: no half character, no half stop."""
    text = text.rstrip("\ufffd")
    held = next((n for n in range(min(len(stop), len(text)), 0, -1) if text.endswith(stop[:n])), 0)
    return text[: len(text) - held] if held else text


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Group prompts of similar lengths, the longest first, so that little is padding."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > _BATCH_POSITIONS:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
