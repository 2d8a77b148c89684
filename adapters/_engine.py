"""From the body of a request to a smaller one, whatever carries it."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from kompakt.adapters._batcher import Batcher
from kompakt.adapters._frozen import Frozen, FrozenTexts
from kompakt.adapters._json_splice import replace_strings
from kompakt.adapters._messages import Target, find_targets, live_question
from kompakt.adapters._settings import Report, Settings
from kompakt.adapters._shares import Shares, Text, share_out
from kompakt.adapters._wires import Wire, find_slots
from kompakt.compressor.base import Request, make_request
from kompakt.compressor.errors import CompressionError, KompaktError
from kompakt.compressor.models.tokenizers import DEFAULT_TOKENIZER, load_tokenizer
from kompakt.compressor.pipeline import Pipeline
from kompakt.compressor.types import Budget, Compressed, Outcome, Status

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Rewritten:
    """A request as it goes out.

    Args:
        text: The body; None to send the one that came, to the byte.
        report: What was done.
    """

    text: str | None
    report: Report


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is to be done to a request."""

    text: str
    n_tokens: int
    shares: Shares
    requests: Sequence[Request]
    frozen: FrozenTexts | None


class Engine:
    """Compresses what stands in the bodies of requests.

    Args:
        pipeline: What compresses; its store also keeps what is reused in later turns.
        settings: How.
    """

    def __init__(self, pipeline: Pipeline, settings: Settings) -> None:
        self.pipeline = pipeline
        self.settings = settings
        self._tokenizer = load_tokenizer(pipeline.tokenizer or DEFAULT_TOKENIZER)
        self._batcher = Batcher(pipeline.compress_batch)
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="kompakt-adapter")

    def close(self) -> None:
        """End the threads. The pipeline is the caller's."""
        self._threads.shutdown(cancel_futures=True)
        self._batcher.close()

    def rewrite(
        self, text: str, wire: Wire, *, settings: Settings | None = None, query: str | None = None
    ) -> Rewritten:
        """Return a request's body as it is to be sent.

        Args:
            text: The body as it came: JSON.
            wire: The interface that it is for.
            settings: Those of this request, if they are not the engine's.
            query: The question; the last message of the user without one.

        Raises:
            KompaktError: If something failed and ``on_error`` says to raise.
        """
        used, began = settings or self.settings, time.monotonic()
        plan: _Plan | None = None
        try:
            plan = self._plan(text, wire, used, query)
            results = self._results(plan.requests, began + used.deadline - time.monotonic())
            return self._finish(plan, results, used, began)
        except Exception as error:  # whatever it is, the application's request must go out
            return self._unfinished(error, plan, used, began)

    async def arewrite(
        self, text: str, wire: Wire, *, settings: Settings | None = None, query: str | None = None
    ) -> Rewritten:
        """Do as ``rewrite`` does without holding up the event loop."""
        used, began = settings or self.settings, time.monotonic()
        plan: _Plan | None = None
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(used.deadline):
                plan = await loop.run_in_executor(self._threads, self._plan, text, wire, used, query)
                # a future that nobody waits for any more is cancelled
                results = await asyncio.wrap_future(self._batcher.submit(plan.requests)) if plan.requests else []
            return await loop.run_in_executor(self._threads, self._finish, plan, results, used, began)
        except Exception as error:  # as above
            return await loop.run_in_executor(self._threads, self._unfinished, error, plan, used, began)

    def _plan(self, text: str, wire: Wire, settings: Settings, query: str | None) -> _Plan:
        body = json.loads(text)
        slots = find_slots(body, wire) if isinstance(body, dict) else []
        targets = find_targets(slots, settings.rules)
        texts = [self._counted(target) for target in targets]
        frozen = None
        if settings.reuse == "conversation":
            recipe = [self.pipeline.fingerprint, self._tokenizer.fingerprint, settings.keep, settings.max_tokens]
            frozen = FrozenTexts(self.pipeline.artefacts(), recipe)
            keys = frozen.keys(slots, targets)
            texts = [
                replace(one, key=key, frozen=known)
                for one, key, known in zip(texts, keys, frozen.find(keys), strict=True)
            ]
        n_tokens = sum(self._tokenizer.count_batch([_countable(slot.text) for slot in slots]))
        shares = share_out(texts, settings, is_triggered=n_tokens > settings.trigger_tokens)
        question = query or live_question(slots)
        requests = [
            make_request(
                one.target.document,
                budget=Budget(one.n_tokens - one.n_free + max(1, int(keep * one.n_free))),
                query=question,
                tokenizer=self._tokenizer,
                mark_omissions=self.pipeline.mark_omissions,
            )
            for one, keep in zip(shares.new, shares.keeps, strict=True)
        ]
        return _Plan(text, n_tokens, shares, requests, frozen)

    def _results(self, requests: Sequence[Request], seconds: float) -> list[Compressed]:
        if not requests:
            return []
        future = self._batcher.submit(requests)
        try:
            return future.result(max(0.0, seconds))
        except TimeoutError:
            future.cancel()
            raise

    def _counted(self, target: Target) -> Text:
        text = target.document.text
        fixed = [text[start:end] for start, end in target.document.protected]
        n_tokens, *n_fixed = self._tokenizer.count_batch([text, *fixed])
        return Text(target, n_tokens, max(0, n_tokens - sum(n_fixed)))

    def _finish(
        self, plan: _Plan, results: Sequence[Compressed] | None, settings: Settings, began: float, reason: str = ""
    ) -> Rewritten:
        """Write what came out into the body; without results, new texts are sent as they are, now and later."""
        made_now: Sequence[Compressed | None] = results if results is not None else [None] * len(plan.shares.new)
        new = list(zip(plan.shares.new, made_now, strict=True))
        made = {one.path: _frozen(one, result) for one, result in new}
        reused = {one.path: one.frozen for one in plan.shares.reused if one.frozen is not None}
        if plan.frozen is not None and not settings.dry_run:
            plan.frozen.keep({one.key: made[one.path] for one, _ in new if one.key is not None})
        saved = sum(one.n_free - (made | reused)[one.path].tokens for one in (*plan.shares.new, *plan.shares.reused))
        reasons = [reason or plan.shares.note, *(result.outcome.reason for _, result in new if result)]
        report = Report(
            outcome=_outcome(saved, next(filter(None, reasons), "")),
            tokens_before=plan.n_tokens,
            tokens_after=plan.n_tokens - saved,
            seconds=time.monotonic() - began,
            n_compressed=sum(one.text is not None for one in made.values()),
            n_reused=len(reused),
        )
        replacements = {path: one.text for path, one in (made | reused).items() if one.text is not None}
        if settings.dry_run or not replacements:
            return Rewritten(None, report)
        return Rewritten(replace_strings(plan.text, replacements), report)

    def _unfinished(self, error: Exception, plan: _Plan | None, settings: Settings, began: float) -> Rewritten:
        if isinstance(error, TimeoutError):
            error = CompressionError(f"not compressed within the deadline of {settings.deadline:g} s")
        if settings.on_error == "raise":
            raise error
        reason = str(error) if isinstance(error, KompaktError) else f"{type(error).__name__}: {error}"
        _LOG.warning("a request goes out without being compressed: %s", reason)
        if plan is not None:
            return self._finish(plan, None, settings, began, reason)
        return Rewritten(None, Report(_outcome(0, reason), seconds=time.monotonic() - began))


def _frozen(text: Text, result: Compressed | None) -> Frozen:
    if result is None:
        return text.frozen or Frozen(None, text.n_free)
    if result.tokens_after >= text.n_tokens:
        return Frozen(None, text.n_free)
    return Frozen(result.text, text.n_free - text.n_tokens + result.tokens_after)


def _outcome(saved: int, reason: str) -> Outcome:
    if saved > 0:
        return Outcome(Status.COMPRESSED, reason)
    return Outcome(Status.PASSED_THROUGH if reason else Status.FITS, reason)


def _countable(text: str) -> str:
    """Return a text with what no tokenizer takes replaced."""
    return text.encode("utf-8", "replace").decode()
