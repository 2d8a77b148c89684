"""Clients of OpenAI and Anthropic, wrapped: both libraries are built alike."""

from __future__ import annotations

from functools import wraps
from typing import Any, TypeVar

from kompakt.adapters._engine import Engine
from kompakt.adapters._http import Kompakt, wrap_http_client
from kompakt.adapters._messages import Rules
from kompakt.adapters._settings import Reuse, Settings, default_pipeline
from kompakt.compressor.errors import ConfigError
from kompakt.compressor.pipeline import OnError, Pipeline

Client = TypeVar("Client")


def wrap(
    client: Client,
    *,
    pipeline: Pipeline | None = None,
    keep: float | None = None,
    max_tokens: int | None = None,
    trigger_tokens: int = 0,
    rules: Rules | None = None,
    reuse: Reuse = "conversation",
    deadline: float = 2.0,
    on_error: OnError = "pass_through",
    dry_run: bool = False,
) -> Client:
    """Return a client of the same class that compresses what it sends; the one that is given stays as it is.

    Every method is covered, sync or async, with its streams and raw responses, as are the clients that
    ``with_options`` makes of it. To close it ends kompakt's threads; the one that was given is yours to close.

    What was done is in ``client.kompakt.last``, and in the headers ``x-kompakt-...`` of each response. One request
    asks for something else by headers (``x-kompakt-bypass``, ``x-kompakt-keep``, ``x-kompakt-max-tokens``,
    ``x-kompakt-query``, ``x-kompakt-dry-run``) or by ``extra_body={"kompakt": {"keep": 0.5}}``; neither is sent on.

    Args:
        client: A client of the library ``openai`` or ``anthropic``, sync or async, or of a class made from theirs.
        pipeline: What compresses; ``default`` with marks for what is left out, remembered by this process, without
            one. Give it a store to remember for longer.
        keep: The fraction that may remain of each text that is compressed.
        max_tokens: The most tokens that may remain of all texts of a request together that can be compressed; give
            this or ``keep``.
        trigger_tokens: Requests with at most so many tokens of text are left as they are.
        rules: Which texts are compressed: by default outputs of tools, documents, and context pasted into messages
            of the user.
        reuse: ``"conversation"`` compresses each text once and sends the same in every later turn, so that the
            provider's cache goes on being hit; ``"never"`` compresses for the question of each request.
        deadline: Seconds after which a request goes out with what is ready by then. The first one loads models:
            compress something with the pipeline before, if it must not be late.
        on_error: ``"pass_through"`` sends a request as it is if something fails, with the reason in the report;
            ``"raise"`` raises what went wrong, which some clients wrap into their own errors.
        dry_run: Do everything, and send requests as they are.

    Raises:
        ConfigError: If it is no such client, or wrapped already, or an option makes no sense.
        BudgetError: If not exactly one of ``keep`` and ``max_tokens`` is given.
    """
    settings = Settings(
        keep=keep,
        max_tokens=max_tokens,
        trigger_tokens=trigger_tokens,
        rules=rules or Rules(),
        reuse=reuse,
        deadline=deadline,
        on_error=on_error,
        dry_run=dry_run,
    )
    library_client: Any = client
    # what a client sends with has no public name in these libraries
    sender = getattr(library_client, "_client", None)
    if sender is None or not callable(getattr(library_client, "copy", None)):
        raise ConfigError(f"wrap takes a client of openai or anthropic, got {type(client).__name__}")
    if isinstance(getattr(sender, "kompakt", None), Kompakt):
        raise ConfigError("this client compresses what it sends already; wrap the one that it was made from")
    kompakt = Kompakt(Engine(pipeline or default_pipeline(), settings))
    wrapped: Client = _marked(library_client.copy(http_client=wrap_http_client(sender, kompakt)), kompakt)
    return wrapped


def _marked(client: Any, kompakt: Kompakt) -> Any:  # noqa: ANN401 (of either library)
    """Return a client that has ``kompakt``, as have the copies that are made of it."""
    copy = client.copy

    @wraps(copy)
    def marked_copy(*args: Any, **options: Any) -> Any:  # noqa: ANN401
        made = copy(*args, **options)
        return _marked(made, kompakt) if getattr(made._client, "kompakt", None) is kompakt else made

    client.kompakt, client.copy, client.with_options = kompakt, marked_copy, marked_copy
    return client
