"""What reads a compressed context and answers: the interface that adapters implement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Final, Protocol, cast, runtime_checkable

from kompakt.compressor.errors import ConfigError
from kompakt.compressor.models.tokenizers import Tokenizer
from kompakt.compressor.types import Form, Part

GROUP: Final = "kompakt.backends"
"""Entry points that make a backend of a name, a folder or a URL."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A compressed context with the text around it.

    Args:
        parts: The context.
        before: Text before it.
        after: Text after it, such as the question.
        is_chat: Whether it is a user's message, to be written in the model's chat format if it has one, or a text
            to be continued.
        stop: Text at which the answer ends, itself left out; empty if only the model decides.
    """

    parts: tuple[Part, ...]
    before: str = ""
    after: str = ""
    is_chat: bool = True
    stop: str = ""


@dataclass(frozen=True, slots=True)
class Likelihood:
    """How probable a text is after a prompt.

    Args:
        total: Sum of ln P over its tokens, in nats.
        n_tokens: Number of its tokens.
    """

    total: float
    n_tokens: int


@dataclass(frozen=True, slots=True)
class Generation:
    """What a model answered.

    Args:
        text: The answer.
        n_positions: Positions that the prompt occupied, chat format included; 0 if the backend does not tell.
        n_tokens: Tokens of the answer.
        seconds_to_first: From the call to the first token of the answer.
        tokens_per_second: Rate of the tokens after the first; 0 if there is none.
        likelihoods: How probable each of the targets was as the answer; None if the backend cannot tell.
        token_ids: The tokens of the answer; empty if the backend does not tell.
        notes: What was not done as asked, and why, such as a part that was read as text.
    """

    text: str
    n_positions: int
    n_tokens: int
    seconds_to_first: float
    tokens_per_second: float
    likelihoods: tuple[Likelihood, ...] | None = None
    token_ids: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()


@runtime_checkable
class Backend(Protocol):
    """A model that reads prompts."""

    @property
    def name(self) -> str:
        """A name for people and records."""

    @property
    def fingerprint(self) -> str:
        """What identifies the model and everything that decides its answers."""

    @property
    def accepts(self) -> frozenset[Form]:
        """The forms of context that it can read."""

    @property
    def max_positions(self) -> int | None:
        """The most positions that prompt and answer may occupy; None if it is not known."""

    @property
    def tokenizer(self) -> Tokenizer | None:
        """Counts its tokens; None if they cannot be counted here."""

    def generate(self, prompt: Prompt, *, max_new_tokens: int, targets: Sequence[str] = ()) -> Generation:
        """Answer a prompt, always with the most probable token.

        Args:
            prompt: What to read.
            max_new_tokens: The most tokens of the answer; 0 for none, where only likelihoods are wanted.
            targets: Texts whose probability as the answer is wanted too.

        Raises:
            InputError: If the prompt is too long or of a form that the backend does not accept.
            BackendError: If the model cannot be reached or failed.
        """


@cache
def _entries() -> Mapping[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=GROUP)}


def load_backend(kind: str, name: str) -> Backend:
    """Make a backend.

    Args:
        kind: Name of its entry point, such as ``"transformers"``.
        name: What it is to load or to reach, in its own terms.

    Raises:
        ConfigError: If there is no such kind.
        KompaktError: Whatever stands in the way of loading it.
    """
    entry = _entries().get(kind)
    if entry is None:
        close = get_close_matches(kind, _entries(), n=1)
        hint = f"; did you mean {close[0]!r}?" if close else "."
        raise ConfigError(f"there is no backend {kind!r}{hint} Installed: {', '.join(sorted(_entries())) or 'none'}")
    return cast("Backend", entry.load()(name))
