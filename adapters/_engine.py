"""From the body of a request to a smaller one, whatever carries it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from typing import Any, Final

from kompakt.adapters._batcher import Batcher
from kompakt.adapters._frozen import Frozen, FrozenTexts
from kompakt.adapters._json_splice import Path, Places, replace_strings, string_places
from kompakt.adapters._messages import Target, find_targets, live_question, readable
from kompakt.adapters._settings import Report, Settings, reason_of
from kompakt.adapters._shares import Shares, Text, share_out
from kompakt.adapters._spans import record_span
from kompakt.adapters._wires import Wire, find_slots
from kompakt.compressor.base import Request, make_request, require_text
from kompakt.compressor.errors import BackendError, CompressionError
from kompakt.compressor.models.tokenizers import DEFAULT_TOKENIZER, load_tokenizer
from kompakt.compressor.pipeline import Pipeline
from kompakt.compressor.store.artefacts import Artefacts
from kompakt.compressor.types import Budget, Compressed, Outcome, Status

_LOG = logging.getLogger(__name__)

_THREADS: Final = 4
"""They read and count, which one core does at a time; more would only let event loops wait for their turn."""

_MIN_SECONDS: Final = 0.05
_AS_BEFORE: Final = "texts that were sent before go out as they were then, whatever this request asks for"
_LATE: Final = "an earlier turn was sent before it could be compressed"
_CLOSED: Final = "kompakt was closed for this client"


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
class _Call:
    """What is asked for, and since when."""

    text: str
    wire: Wire
    settings: Settings
    query: str | None
    owner: str
    began: float

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    @property
    def seconds_left(self) -> float:
        return max(0.0, self.settings.deadline - self.seconds)


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is to be done to a request."""

    places: Places
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
        require_text(pipeline, "a request to a provider")
        self.pipeline = pipeline
        self.settings = settings
        self._tokenizer = load_tokenizer(pipeline.tokenizer or DEFAULT_TOKENIZER)
        self._batcher = Batcher(pipeline.compress_batch)
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="kompakt-adapter")
        self._is_closed = False

    def close(self) -> None:
        """End the threads; requests go out as they are from now on. The pipeline is the caller's."""
        self._is_closed = True
        self._threads.shutdown(cancel_futures=True)
        self._batcher.close()

    def artefacts(self, owner: str = "") -> Artefacts:
        """Return where the texts of an owner are kept: one never finds those of another.

        Args:
            owner: Whose texts they are, within the pipeline's tenant.
        """
        made = self.pipeline.artefacts()
        return Artefacts(made.store, tenant=f"{made.tenant}\n{owner}") if owner else made

    def count(self, texts: Sequence[str]) -> int:
        """Return the tokens of texts, as the reports count them."""
        return sum(self._tokenizer.count_batch(texts))

    def rewrite(
        self,
        text: str,
        wire: Wire,
        *,
        settings: Settings | None = None,
        query: str | None = None,
        owner: str = "",
    ) -> Rewritten:
        """Return a request's body as it is to be sent.

        Args:
            text: The body as it came: JSON.
            wire: The interface that it is for.
            settings: Those of this request, if they are not the engine's.
            query: The question; the last message of the user without one, and none at all if it is empty.
            owner: Whose conversation it is; see ``artefacts``.

        Raises:
            Exception: What went wrong, if ``on_error`` says to raise.
        """
        done = self._rewrite(_Call(text, wire, settings or self.settings, query, owner, time.monotonic()))
        record_span(done.report)
        return done

    def _rewrite(self, call: _Call) -> Rewritten:
        try:
            self._check_open()
            planned = self._threads.submit(self._plan, call)
            try:
                plan = planned.result(call.seconds_left)
            except TimeoutError:
                self._give_up(call, planned)
                raise
            futures = self._submitted(plan.requests)
            wait(futures, call.seconds_left)
            done, remembering = self._finish(call, plan, futures)
            wait(remembering, max(_MIN_SECONDS, call.seconds_left))
        except Exception as error:  # whatever it is, the application's request must go out
            return _unfinished(call, error)
        return done

    async def arewrite(
        self,
        text: str,
        wire: Wire,
        *,
        settings: Settings | None = None,
        query: str | None = None,
        owner: str = "",
    ) -> Rewritten:
        """Do as ``rewrite`` does without holding up the event loop."""
        call = _Call(text, wire, settings or self.settings, query, owner, time.monotonic())
        done = await (self._arewrite(call) if _is_asyncio() else _in_thread(self._rewrite, call))
        record_span(done.report)
        return done

    async def _arewrite(self, call: _Call) -> Rewritten:
        futures: Sequence[Future[Compressed]] = ()
        try:
            self._check_open()
            planned = self._threads.submit(self._plan, call)
            try:
                plan = await asyncio.wait_for(asyncio.wrap_future(planned), call.seconds_left)
            except TimeoutError:
                self._give_up(call, planned)
                raise
            futures = self._submitted(plan.requests)
            await _await_all(futures, call.seconds_left)
            done, remembering = self._finish(call, plan, futures)
            await _await_all(remembering, max(_MIN_SECONDS, call.seconds_left))
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if not self._is_closed or task is None or task.cancelling():
                for future in futures:
                    future.cancel()
                raise
            return _unfinished(call, BackendError(f"{_CLOSED}: {error}"))
        except Exception as error:  # as above
            return _unfinished(call, error)
        return done

    def _give_up(self, call: _Call, planned: Future[_Plan]) -> None:
        """Let a plan that is late rest, or at least remember that its texts were sent as they are."""
        if not planned.cancel() and not call.settings.dry_run:
            planned.add_done_callback(_remember_as_sent)

    def _submitted(self, requests: Sequence[Request]) -> list[Future[Compressed]]:
        try:
            return self._batcher.submit(requests)
        except BackendError as error:  # what earlier turns sent must go out the same
            failed: Future[Compressed] = Future()
            failed.set_exception(error)
            return [failed] * len(requests)

    def _check_open(self) -> None:
        if self._is_closed:
            raise BackendError(_CLOSED)

    def _plan(self, call: _Call) -> _Plan:
        body, settings = json.loads(call.text), call.settings
        slots = find_slots(body, call.wire) if isinstance(body, dict) else []
        targets = find_targets(slots, settings.rules)
        texts = [self._counted(target) for target in targets]
        frozen = None
        if settings.reuse == "conversation":
            # what one request asks for itself changes nothing for the texts of earlier ones
            own = self.settings
            recipe = [self.pipeline.fingerprint, self._tokenizer.fingerprint, own.keep, own.max_tokens]
            frozen = FrozenTexts(self.artefacts(call.owner), recipe)
            keys = frozen.keys(slots, targets)
            texts = [
                replace(one, key=key, frozen=known)
                for one, key, known in zip(texts, keys, frozen.find(keys), strict=True)
            ]
        n_tokens = self.count([readable(slot.text) for slot in slots])
        shares = share_out(texts, settings, is_triggered=n_tokens > settings.trigger_tokens)
        is_asked = call.query is not None or (settings.keep, settings.max_tokens) != (
            self.settings.keep,
            self.settings.max_tokens,
        )
        if is_asked and not shares.note and any(one.frozen for one in shares.kept):
            shares = replace(shares, note=_AS_BEFORE)
        question = live_question(slots) if call.query is None else call.query
        requests = [
            make_request(
                one.target.document,
                budget=Budget(one.n_tokens - one.n_free + max(1, int(keep * one.n_free))),
                query=readable(question) if question else None,
                tokenizer=self._tokenizer,
                mark_omissions=self.pipeline.mark_omissions,
            )
            for one, keep in zip(shares.new, shares.keeps, strict=True)
        ]
        # found here, as what comes later may be on an event loop
        places = string_places(call.text) if targets else {}
        return _Plan(places, n_tokens, shares, requests, frozen)

    def _counted(self, target: Target) -> Text:
        text = target.document.text
        fixed = [text[start:end] for start, end in target.document.protected]
        n_tokens, *n_fixed = self._tokenizer.count_batch([text, *fixed])
        return Text(target, n_tokens, max(0, n_tokens - sum(n_fixed)))

    def _finish(
        self, call: _Call, plan: _Plan, futures: Sequence[Future[Compressed]]
    ) -> tuple[Rewritten, list[Future[None]]]:
        """Write what is ready into the body; return it, and what there is to wait for until it is remembered."""
        kept = {one.path: one.frozen or Frozen(None, one.n_free) for one in plan.shares.kept}
        made = {one.path: _frozen(one, future, call) for one, future in zip(plan.shares.new, futures, strict=True)}
        done = _rewritten(call, plan, kept, made)
        if plan.frozen is None or call.settings.dry_run:
            return done, []
        settled = {
            one.key: (kept | made)[one.path]
            for one in (*plan.shares.kept, *plan.shares.new)
            if one.key is not None and (kept | made)[one.path] != one.frozen
        }
        return done, [self._threads.submit(plan.frozen.keep, settled)] if settled else []


def _remember_as_sent(planned: Future[_Plan]) -> None:
    if planned.cancelled() or planned.exception() is not None:
        return
    plan = planned.result()
    if plan.frozen is not None:
        late = {one.key: Frozen(None, one.n_free, _LATE) for one in plan.shares.new if one.key and not one.frozen}
        plan.frozen.keep(late)


def _frozen(text: Text, future: Future[Compressed], call: _Call) -> Frozen:
    """Return what becomes of a text: smaller, if that was ready in time and went well."""
    if not future.done():
        future.cancel()
        failure: Exception | None = CompressionError(
            f"not compressed within the deadline of {call.settings.deadline:g} s"
        )
    else:
        error = future.exception()
        failure = error if isinstance(error, Exception) else None
    if failure is not None:
        if call.settings.on_error == "raise":
            raise failure
        return text.frozen or Frozen(None, text.n_free, reason_of(failure))
    result = future.result()
    if result.tokens_after >= text.n_tokens or not result.text.strip():
        return Frozen(None, text.n_free, result.outcome.reason)
    return Frozen(result.text, text.n_free - text.n_tokens + result.tokens_after)


def _rewritten(call: _Call, plan: _Plan, kept: Mapping[Path, Frozen], made: Mapping[Path, Frozen]) -> Rewritten:
    sent = {**kept, **made}
    saved = sum(one.n_free - sent[one.path].tokens for one in (*plan.shares.kept, *plan.shares.new))
    reasons = [*(one.reason for one in made.values()), plan.shares.note, *(one.reason for one in kept.values())]
    reason = next(filter(None, reasons), "")
    replacements = {path: one.text for path, one in sent.items() if one.text is not None}
    is_dry = call.settings.dry_run
    report = Report(
        outcome=Outcome(Status.PASSED_THROUGH, "dry run") if is_dry else _outcome(saved, reason),
        tokens_before=plan.n_tokens,
        tokens_after=plan.n_tokens if is_dry else plan.n_tokens - saved,
        seconds=call.seconds,
        n_compressed=sum(one.text is not None for one in made.values()),
        n_reused=sum(one.frozen is not None for one in plan.shares.kept),
        tokens_dry_run=plan.n_tokens - saved if is_dry else None,
    )
    if is_dry or not replacements:
        return Rewritten(None, report)
    return Rewritten(replace_strings(call.text, replacements, places=plan.places), report)


def _unfinished(call: _Call, error: Exception) -> Rewritten:
    if isinstance(error, TimeoutError):
        error = CompressionError(f"not compressed within the deadline of {call.settings.deadline:g} s")
    if call.settings.on_error == "raise":
        raise error
    reason = reason_of(error)
    _LOG.warning("a request goes out without being compressed: %s", reason)
    return Rewritten(None, Report(_outcome(0, reason), seconds=call.seconds))


def _is_asyncio() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


async def _in_thread(rewrite: Callable[[_Call], Rewritten], call: _Call) -> Rewritten:
    """Wait for a thread, whatever event loop runs: HTTP clients serve trio's as well."""
    from anyio import to_thread

    return await to_thread.run_sync(rewrite, call, abandon_on_cancel=True)


async def _await_all(futures: Sequence[Future[Any]], seconds: float) -> None:
    """Wait for futures of threads, for so long; those that are late are left as they are."""
    loop, left = asyncio.get_running_loop(), len(futures)
    all_done = asyncio.Event()

    def one_less() -> None:
        nonlocal left
        left -= 1
        if not left:
            all_done.set()

    for future in futures:
        future.add_done_callback(lambda _: _tell(loop, one_less))
    if futures:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(all_done.wait(), seconds)


def _tell(loop: asyncio.AbstractEventLoop, what: Callable[[], None]) -> None:
    # a loop that is closed waits for nothing
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(what)


def _outcome(saved: int, reason: str) -> Outcome:
    if saved > 0:
        return Outcome(Status.COMPRESSED, reason)
    return Outcome(Status.PASSED_THROUGH if reason else Status.FITS, reason)
