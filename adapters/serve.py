"""``kompakt serve``: the gateway on the command line."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from kompakt.compressor.cli_options import Debug
from kompakt.compressor.errors import ConfigError, MissingExtraError

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)

if TYPE_CHECKING:
    from kompakt.compressor.pipeline import Pipeline

_VARIABLE: Final = "KOMPAKT_GATEWAY_TOKEN"
_DRAIN_SECONDS: Final = 30


@app.command()
def serve(
    upstream: Annotated[
        str, typer.Option(help="The server that requests are sent on to, such as https://api.openai.com.")
    ],
    keep: Annotated[float | None, typer.Option(help="Fraction of each text that may remain.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Tokens that may remain of all texts of a request.")] = None,
    pipeline: Annotated[Path | None, typer.Option(help="A pipeline's TOML file; `default` without one.")] = None,
    store: Annotated[
        str, typer.Option(help="Where results and originals are kept, unless the pipeline says.")
    ] = "default",
    trigger_tokens: Annotated[int, typer.Option(help="Leave requests with at most so many tokens.")] = 0,
    deadline: Annotated[float, typer.Option(help="Seconds after which a request goes out as it is.")] = 2.0,
    stateless: Annotated[bool, typer.Option("--stateless", help="Compress for each request's own question.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count what would be saved; change nothing.")] = False,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port to listen on.", min=0, max=65535)] = 8787,
    max_body_mb: Annotated[float, typer.Option(help="Megabytes that a request may have.")] = 64.0,
    max_requests: Annotated[int, typer.Option(help="Requests at one time; more get 429.")] = 256,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the upstream.")] = 600.0,
    debug: Debug = False,
) -> None:
    """Compress what passes through: a gateway in front of a server that speaks OpenAI's or Anthropic's API.

    Callers' keys pass through and are never logged. If KOMPAKT_GATEWAY_TOKEN is set, callers must send it as
    x-kompakt-token.
    """
    del debug
    try:
        import uvicorn
    except ImportError as error:
        raise MissingExtraError("kompakt serve", "server") from error
    from kompakt.adapters._settings import Settings
    from kompakt.adapters.gateway import Limits, create_app

    token = os.environ.get(_VARIABLE)
    if token is not None and not token.strip():
        raise ConfigError(f"{_VARIABLE} is empty: unset it, or give it a token")
    made = _pipeline(pipeline, store)
    settings = Settings(
        keep=keep,
        max_tokens=max_tokens,
        trigger_tokens=trigger_tokens,
        deadline=deadline,
        reuse="never" if stateless else "conversation",
        dry_run=dry_run,
    )
    max_body = int(max_body_mb * 1e6)
    limits = Limits(
        max_body=max_body,
        max_requests=max_requests,
        max_bytes=max(Limits().max_bytes, max_body),
        timeout=timeout,
    )
    gateway = create_app(upstream, made, settings, limits=limits, token=token)
    # paths may hold what is nobody's business, so no log of accesses
    uvicorn.run(gateway, host=host, port=port, access_log=False, timeout_graceful_shutdown=_DRAIN_SECONDS)


def _pipeline(path: Path | None, store: str) -> Pipeline:
    from kompakt.compressor.pipeline import Pipeline

    if path is None:
        return Pipeline(["default"], store=store, mark_omissions=True)
    written = Pipeline.from_toml(path)
    if written.store is not None:
        return written
    return Pipeline(
        written.stages,
        tokenizer=written.tokenizer,
        strict=written.strict,
        on_error=written.on_error,
        mark_omissions=written.mark_omissions,
        store=store,
        tenant=written.tenant,
    )
