"""How a reader is asked: the text around a context, and what its answer is worth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from kompakt.compressor.backend import Backend, Prompt
from kompakt.compressor.errors import InputError
from kompakt.compressor.evaluation.example import Example
from kompakt.compressor.evaluation.metrics import exact_match, token_f1
from kompakt.compressor.types import Compressed

MAX_NEW_TOKENS: Final = 32
"""As LongBench grants answers of question answering."""

_BRIEFLY: Final = "\n\nReply with the answer alone, in as few words as it takes."
_REPEAT: Final = "\n\nRepeat the text above, word for word.\n\n"


@dataclass(frozen=True, slots=True)
class Reading:
    """What a reader made of a context.

    Args:
        text: Its answer; empty where none was asked for.
        metrics: Scores of the answer, and ``log_likelihood``: the mean ln P of a token of the right one, in nats.
        n_positions: Positions that the whole prompt occupied; 0 if the reader does not tell.
        seconds_to_first: Time to the first token of the answer.
        tokens_per_second: Rate of the tokens after the first; 0 if there is none.
        not_read: Why the reader did not read it; empty if it did.
    """

    text: str = ""
    metrics: dict[str, float] | None = None
    n_positions: int = 0
    seconds_to_first: float = 0.0
    tokens_per_second: float = 0.0
    not_read: str = ""


def prompt_of(example: Example, result: Compressed, *, is_chat: bool) -> Prompt:
    """Write the prompt around a compressed context; question and instruction are never compressed."""
    before = f"{example.instruction}\n\n" if example.instruction else ""
    if example.target == "continuation":
        return Prompt(result.parts, is_chat=False)
    if example.target == "reconstruction":
        return Prompt(result.parts, after=_REPEAT, is_chat=is_chat)
    asked = example.asked.replace("{}", example.question)
    return Prompt(
        result.parts,
        before=before,
        after=f"\n\n{asked}" + (_BRIEFLY if is_chat else ""),
        is_chat=is_chat,
        stop="\n",
    )


def read(
    backend: Backend,
    example: Example,
    result: Compressed,
    *,
    is_chat: bool,
    max_positions: int,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> Reading:
    """Let a reader read a compressed context.

    Args:
        backend: The reader.
        example: What is asked.
        result: What the context became.
        is_chat: Whether to use the model's chat format.
        max_positions: Contexts with more positions than this are not read.
        max_new_tokens: The most tokens of an answer; 0 if only likelihoods are wanted.

    Raises:
        BackendError: If the reader failed.
    """
    if not example.answers:
        return Reading(not_read="the example has no answer to compare with")
    if result.tokens_after > max_positions:
        return Reading(not_read=f"the context has {result.tokens_after} tokens, more than {max_positions}")
    prompt = prompt_of(example, result, is_chat=is_chat)
    wants_answer = example.target == "answer"
    # a text goes on with a space, which is part of the next token
    target = f" {example.answers[0]}" if prompt.after[-1:] != "\n" and not prompt.is_chat else example.answers[0]
    try:
        made = backend.generate(prompt, max_new_tokens=max_new_tokens if wants_answer else 0, targets=(target,))
    except InputError as error:
        return Reading(not_read=str(error))
    metrics = {}
    if made.likelihoods:
        metrics["log_likelihood"] = made.likelihoods[0].total / made.likelihoods[0].n_tokens
    if wants_answer and max_new_tokens:
        metrics["f1"] = token_f1(made.text, example.answers)
        metrics["exact_match"] = exact_match(made.text, example.answers)
    return Reading(made.text, metrics, made.n_positions, made.seconds_to_first, made.tokens_per_second)
