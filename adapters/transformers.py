"""Local models of Hugging Face transformers as readers of compressed contexts."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from kompakt.compressor.backend import Generation, Likelihood, Prompt
from kompakt.compressor.errors import InputError, ModelError
from kompakt.compressor.models.causal_lm import CausalLM, Dtype, load_causal_lm
from kompakt.compressor.models.encodings import checked
from kompakt.compressor.models.locate import model_path
from kompakt.compressor.models.tokenizers import FileTokenizer, Tokenizer
from kompakt.compressor.types import Form, Part, TextPart

if TYPE_CHECKING:
    import torch
    from transformers import DynamicCache, PreTrainedTokenizerBase

_CONTENT: Final = "\u241fkompakt content\u241f"
"""Stands for the message while the chat format is written around it."""


@dataclass(frozen=True)
class TransformersBackend:
    """A causal language model on this machine; it owns the position of every token of a prompt.

    Text of the caller that spells a special token stays text: only the chat format writes special tokens.

    Args:
        model: A named model or the folder of one.
        dtype: Number format of the weights; ``auto`` is bf16 where the processor computes in it, else fp32.
        device: A torch device; CUDA if there is one and None is given.

    Raises:
        ModelNotFoundError: If the model is not on this machine.
        MissingExtraError: If the extra ``local`` is not installed.
        ModelError: If it cannot be used.
    """

    model: str | os.PathLike[str] = "smollm2-135m"
    dtype: Dtype = "auto"
    device: str | None = None
    _lm: CausalLM = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_lm", load_causal_lm(self.model, dtype=self.dtype, device=self.device))

    @property
    def name(self) -> str:
        """The model's name or folder."""
        return os.fspath(self.model)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the model's files, with the number format."""
        return f"{self._lm.fingerprint} {self._lm.dtype}"

    @property
    def accepts(self) -> frozenset[Form]:
        """Text."""
        return frozenset({"text"})

    @property
    def max_positions(self) -> int:
        """The model's context length."""
        return self._lm.context_length

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        return FileTokenizer(self.name, (model_path(self.model) / "tokenizer.json").read_bytes())

    def generate(self, prompt: Prompt, *, max_new_tokens: int, targets: Sequence[str] = ()) -> Generation:
        """Answer a prompt, always with the most probable token; the prompt is read once for answer and targets.

        Args:
            prompt: What to read.
            max_new_tokens: The most tokens of the answer; 0 for none.
            targets: Texts whose probability as the answer is wanted too, their end not included.

        Raises:
            InputError: If prompt and answer exceed the context length, a target is empty, a part is not text, or a
                text holds a lone surrogate.
        """
        began = time.perf_counter()
        encoded = [self._plain_ids(target) for target in targets]
        if not all(encoded):
            raise InputError("a target must hold at least one token, got an empty text")
        ids = self._encode(prompt, reserved=max([max_new_tokens, *map(len, encoded)]))
        # a chat may be answered by silence, but a text that is to be continued goes on
        prefill = self._prefill(ids, may_end=prompt.is_chat)
        seconds_to_first = time.perf_counter() - began
        likelihoods = tuple(self._score(prefill, len(ids), target) for target in encoded)
        answer, rate = self._decode(prefill, len(ids), max_new_tokens, prompt.stop)
        text = self._text(answer).partition(prompt.stop)[0] if prompt.stop else self._text(answer)
        return Generation(text.strip(), len(ids), len(answer), seconds_to_first, rate, likelihoods)

    def _plain_ids(self, text: str) -> list[int]:
        return list(self._lm.tokenizer.encode(checked(text), add_special_tokens=False).ids)

    def _encode(self, prompt: Prompt, *, reserved: int) -> list[int]:
        content = prompt.before + "".join(_text_of(part) for part in prompt.parts) + prompt.after
        body = self._plain_ids(content)
        head, tail = self._chat_format if prompt.is_chat else (None, None)
        ids = [self._lm.prefix_id, *body] if head is None or tail is None else [*head, *body, *tail]
        if len(ids) + reserved > self._lm.context_length:
            raise InputError(
                f"the prompt has {len(ids)} positions and the answer may have {reserved}: "
                f"{self.name} reads at most {self._lm.context_length}"
            )
        return ids

    @cached_property
    def _chat_format(self) -> tuple[list[int] | None, list[int] | None]:
        """Return the tokens before and after a user's message; None twice for a model without a chat format."""
        from transformers import AutoTokenizer

        folder = model_path(self.model)
        try:
            full: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(f"the tokenizer in {folder} cannot be loaded: {error}") from error
        if not full.chat_template:
            return None, None
        message = [{"role": "user", "content": _CONTENT}]
        written = full.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        head, found, tail = str(written).partition(_CONTENT)
        if not found:
            raise ModelError(f"the chat template in {folder} does not write the message as it is")
        return full.encode(head, add_special_tokens=False), full.encode(tail, add_special_tokens=False)

    @cached_property
    def _stops(self) -> frozenset[int]:
        """Tokens that end an answer."""
        configured = [self._lm.model.config.eos_token_id]
        if self._lm.model.generation_config is not None:
            configured.append(self._lm.model.generation_config.eos_token_id)
        flat = [item for one in configured for item in (one if isinstance(one, list) else [one])]
        return frozenset({item for item in flat if item is not None} | {self._lm.prefix_id})

    def _prefill(self, ids: Sequence[int], *, may_end: bool) -> _Prefill:
        import torch
        from transformers import DynamicCache

        with torch.inference_mode():
            # with the configuration, layers with a sliding window would forget what a rollback needs
            cache = DynamicCache()
            logits = self._forward(ids, cache, start=0, n_logits=1)
            # the number waits for the device, so that the time until here is the time to the first token
            return _Prefill(cache, logits[-1], self._most_probable(logits[-1], may_end=may_end))

    def _most_probable(self, logits: torch.Tensor, *, may_end: bool) -> int:
        if not may_end:
            logits = logits.clone()
            logits[list(self._stops)] = -math.inf
        return int(logits.argmax())

    def _forward(self, ids: Sequence[int], cache: DynamicCache, *, start: int, n_logits: int) -> torch.Tensor:
        """Read tokens at positions ``start`` onwards; return the last ``n_logits`` rows of logits ``[n, V]``."""
        import torch

        device = self._lm.device
        logits: torch.Tensor = self._lm.model(
            torch.tensor([list(ids)], device=device),
            position_ids=torch.arange(start, start + len(ids), device=device)[None],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=n_logits,
        ).logits[0]
        return logits

    def _score(self, prefill: _Prefill, n_prompt: int, target: Sequence[int]) -> Likelihood:
        import torch

        with torch.inference_mode():
            rows = [prefill.logits[None]]
            if len(target) > 1:
                rows.append(self._forward(target[:-1], prefill.cache, start=n_prompt, n_logits=0))
                prefill.cache.crop(1 - len(target))
            log_p = torch.log_softmax(torch.cat(rows).float(), dim=-1)
            chosen = log_p.gather(1, torch.tensor(target, device=log_p.device)[:, None])
        return Likelihood(float(chosen.double().sum()), len(target))

    def _decode(self, prefill: _Prefill, n_prompt: int, max_new_tokens: int, stop: str) -> tuple[list[int], float]:
        """Return the tokens of the answer, and how many a second came after the first."""
        import torch

        answer: list[int] = []
        token = prefill.first
        began = time.perf_counter()
        with torch.inference_mode():
            while len(answer) < max_new_tokens and token not in self._stops:
                answer.append(token)
                if len(answer) == max_new_tokens or (stop and stop in self._text(answer)):
                    break
                start = n_prompt + len(answer) - 1
                token = int(self._forward([token], prefill.cache, start=start, n_logits=1)[-1].argmax())
        elapsed = time.perf_counter() - began
        return answer, (len(answer) - 1) / elapsed if len(answer) > 1 else 0.0

    def _text(self, ids: Sequence[int]) -> str:
        text: str = self._lm.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text


@dataclass(frozen=True)
class _Prefill:
    """A prompt that has been read: its cache, the logits of what comes next ``[V]``, and its most probable token."""

    cache: DynamicCache
    logits: Any
    first: int


def _text_of(part: Part) -> str:
    if isinstance(part, TextPart):
        return part.text
    raise InputError(f"this backend reads text, got a {type(part).__name__}")
