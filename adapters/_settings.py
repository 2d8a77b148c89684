"""How requests are made smaller, and what is said of it afterwards."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from kompakt.adapters._messages import Rules
from kompakt.adapters._usage import Usage
from kompakt.compressor.errors import ConfigError, KompaktError
from kompakt.compressor.pipeline import OnError, Pipeline
from kompakt.compressor.types import Budget, Outcome, Status

Reuse: TypeAlias = Literal["conversation", "never"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How requests are made smaller.

    Args:
        keep: The fraction that may remain of each text that is compressed.
        max_tokens: The most tokens of all texts of a request together that the rules let go; give this or ``keep``.
        trigger_tokens: Requests with at most so many tokens of text are left as they are.
        rules: Which texts are compressed.
        reuse: ``"conversation"`` compresses each text once, for the question that is asked when it first comes, and
            sends the same in every later turn, so that a provider's cache of the prompt goes on being hit.
            ``"never"`` compresses every text for the question of each request.
        deadline: Seconds after which a request goes out with what is ready by then.
        on_error: ``"pass_through"`` sends the request as it is if something fails; ``"raise"`` raises.
        dry_run: Do everything, and send the request as it is.

    Raises:
        ConfigError: If an option makes no sense.
        BudgetError: If not exactly one of ``keep`` and ``max_tokens`` is given.
    """

    keep: float | None = None
    max_tokens: int | None = None
    trigger_tokens: int = 0
    rules: Rules = field(default_factory=Rules)
    reuse: Reuse = "conversation"
    deadline: float = 2.0
    on_error: OnError = "pass_through"
    dry_run: bool = False

    def __post_init__(self) -> None:
        Budget(self.max_tokens, self.keep)
        if self.trigger_tokens < 0:
            raise ConfigError(f"trigger_tokens must be at least 0, got {self.trigger_tokens}")
        if not self.deadline > 0:
            raise ConfigError(f"deadline must be above 0 seconds, got {self.deadline}")
        for name, value, allowed in (
            ("reuse", self.reuse, ("conversation", "never")),
            ("on_error", self.on_error, ("pass_through", "raise")),
        ):
            if value not in allowed:
                raise ConfigError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")


@dataclass(frozen=True, slots=True)
class Report:
    """What was done to a request.

    Args:
        outcome: ``compressed``, ``fits`` (nothing to do) or ``passed_through``, with the reason.
        tokens_before: Tokens of its texts as they came, counted by kompakt.
        tokens_after: Tokens of its texts as they went out.
        seconds: What that took.
        n_compressed: Texts that were compressed for this request.
        n_reused: Texts that were sent as in an earlier turn.
        tokens_dry_run: In a dry run, tokens of its texts as they would have gone out.
        usage: What the provider counted, once its answer has been read and if it says so. What it counts beyond
            ``tokens_after`` is what kompakt does not: roles, descriptions of tools, images, another tokenizer.
    """

    outcome: Outcome
    tokens_before: int = 0
    tokens_after: int = 0
    seconds: float = 0.0
    n_compressed: int = 0
    n_reused: int = 0
    tokens_dry_run: int | None = None
    usage: Usage | None = None


def default_pipeline() -> Pipeline:
    """Return what compresses where an adapter is given nothing; this process remembers what it made."""
    return Pipeline(["default"], store="memory", mark_omissions=True)


def reason_of(error: Exception) -> str:
    """Return what a report says of an error."""
    return str(error) if isinstance(error, KompaktError) else f"{type(error).__name__}: {error}"


def passed_through(reason: str, seconds: float = 0.0) -> Report:
    """Return the report of a request that goes out as it is."""
    return Report(Outcome(Status.PASSED_THROUGH, reason), seconds=seconds)
