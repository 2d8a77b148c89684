"""A callback of LiteLLM: what its SDK and its proxy send goes out compressed.

``litellm.callbacks = [KompaktCallback(keep=0.4)]``; in the proxy the same object is named under ``callbacks``.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from kompakt.adapters._engine import Engine
from kompakt.adapters._http import Kompakt, report_headers
from kompakt.adapters._litellm_calls import (
    CALLS,
    METADATA,
    PASSED_ON,
    REQUEST_KEY,
    SYNC,
    Arguments,
    Form,
    Recent,
    applied,
    as_metadata,
    asked_by,
    body_hash,
    form_of_body,
    mapping,
    name_of,
    owner_of,
    put_back,
    read_call,
    untouchable,
    usage_of,
    without_asked,
)
from kompakt.adapters._messages import Rules
from kompakt.adapters._settings import Report, Reuse, Settings, default_pipeline, passed_through
from kompakt.compressor.errors import MissingExtraError
from kompakt.compressor.pipeline import OnError, Pipeline

try:
    from litellm.integrations.custom_logger import CustomLogger
except ImportError as missing:
    raise MissingExtraError("kompakt.adapters.litellm", "litellm") from missing

__all__ = ["Kompakt", "KompaktCallback", "Report", "Rules"]

_LOG = logging.getLogger(__name__)

REPORT_KEY: Final = "kompakt_report"
"""In the metadata of a call: what was done to it. Calls that LiteLLM makes of it in turn have it, too."""

_NO_FORM: Final = "the body of this provider's sync calls has no known form; make it an async call"

_NO_REQUEST: Final = "litellm_no_upstream_llm_call"
"""In what LiteLLM logs of a request that its proxy refused."""


class KompaktCallback(CustomLogger):  # type: ignore[misc]
    """A callback that compresses what LiteLLM sends, each call once, whatever LiteLLM makes of it on the way.

    Async calls and those of the proxy are compressed after the router has chosen, before LiteLLM translates them for
    their provider; sync ones after that, since LiteLLM asks no earlier hook for them. Arguments of async calls must
    be given by name: LiteLLM lets no callback change others. The objects that a caller passes stay as they are.

    What was done is in ``kompakt.last`` and ``kompakt.reports``, in the call's metadata as ``kompakt_report``, where
    other callbacks find it, and in the headers ``x-kompakt-...`` of the proxy's responses. A call that was not
    compressed says why. One call asks for something else by ``extra_body={"kompakt": {"keep": 0.5}}``, by the same
    key in its ``metadata``, or by headers ``x-kompakt-...``; a request to the proxy by the key ``kompakt`` of its
    body or by the headers. None of these is sent on. In the proxy, what is kept of one key's conversations is never
    found by another.

    Args:
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
        deadline: Seconds after which a request goes out with what is ready by then.
        on_error: ``"pass_through"`` sends a request as it is if something fails, with the reason in the report;
            ``"raise"`` raises it, except in sync calls, for which LiteLLM lets no callback raise.
        dry_run: Do everything, and send requests as they are.

    Raises:
        ConfigError: If an option makes no sense.
        BudgetError: If not exactly one of ``keep`` and ``max_tokens`` is given.
    """

    def __init__(
        self,
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
    ) -> None:
        super().__init__()
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
        self.kompakt = Kompakt(Engine(pipeline or default_pipeline(), settings))
        self._reports: Recent[Report] = Recent()
        self._written: Recent[int] = Recent()
        self._told: set[str] = set()

    async def async_pre_call_deployment_hook(
        self,
        kwargs: Arguments,
        call_type: Any,  # noqa: ANN401 (LiteLLM's enumeration)
    ) -> Arguments | None:
        """Compress an async call, as all of the proxy are, once its provider has been chosen.

        Args:
            kwargs: The call's arguments.
            call_type: What LiteLLM calls it.

        Returns:
            The arguments to go on with; None for those that came.

        Raises:
            KompaktError: If something failed and ``on_error`` says to raise.
        """
        name = name_of(call_type)
        if name in SYNC or any(REPORT_KEY in mapping(kwargs.get(one)) for one in METADATA):
            # a later hook sees a sync call whole; and some calls LiteLLM makes of others that were here before
            return None
        form = CALLS.get(name)
        if form is None:
            self._note_unknown(name, kwargs)
            return None
        engine = self.kompakt.engine
        call = read_call(kwargs, form, engine.settings)
        done = call.settled or await engine.arewrite(
            call.body, form.wire, settings=call.settings, query=call.query, owner=call.owner
        )
        arguments, report = applied(call, form, done)
        self._note(report, kwargs)
        notes = {**mapping(arguments.get(form.metadata)), REPORT_KEY: as_metadata(report)}
        return {**arguments, form.metadata: notes}

    def log_pre_api_call(self, model: str, messages: Any, kwargs: Arguments) -> None:  # noqa: ANN401
        """Compress the body of a sync call, of which no other hook hears.

        Args:
            model: The model.
            messages: What was asked for, before LiteLLM translated it.
            kwargs: What LiteLLM knows of the call, with the body that is about to be sent.
        """
        del model, messages
        name, call_id = name_of(kwargs.get("call_type")), kwargs.get("litellm_call_id")
        params = kwargs.get("litellm_params")
        was_asked = self._reports.get(call_id) is not None and self._written.get(call_id) is None
        if was_asked or _NO_REQUEST in kwargs:
            return
        if name not in SYNC:
            if not any(REPORT_KEY in mapping(mapping(params).get(one)) for one in METADATA):
                self._note_unasked(name, kwargs)
            return
        sent = mapping(kwargs.get("additional_args"))
        body = sent.get("complete_input_dict")
        form = form_of_body(body, str(kwargs.get("custom_llm_provider")))
        if form is not None and self._written.get(call_id) == body_hash(body, form):
            # LiteLLM tries the same body again
            return
        report = self._compress_body(sent, form, kwargs)
        self._note(report, kwargs)
        if form is not None:
            self._written.put(call_id, body_hash(body, form))
        if isinstance(params, dict):
            # its own, unlike the metadata in it, which may be the caller's
            params["metadata"] = {**mapping(params.get("metadata")), REPORT_KEY: as_metadata(report)}

    async def async_pre_call_hook(
        self,
        user_api_key_dict: Any,  # noqa: ANN401 (LiteLLM's class)
        cache: Any,  # noqa: ANN401
        data: Arguments,
        call_type: str,
    ) -> Arguments | None:
        """Note, in the proxy, whose call it is and what its headers ask for.

        Args:
            user_api_key_dict: Who is calling.
            cache: Not used.
            data: The request.
            call_type: What LiteLLM calls it.
        """
        del cache
        if call_type == PASSED_ON:
            self._note_unknown(call_type, data)
            return None
        for name in METADATA:
            for key in (REPORT_KEY, REQUEST_KEY):
                if isinstance(data.get(name), dict):
                    # not the caller's to say
                    data[name].pop(key, None)
        headers = mapping(mapping(data.get("proxy_server_request")).get("headers"))
        name = "litellm_metadata" if "litellm_metadata" in data else "metadata"
        if not isinstance(data.get(name), dict):
            data[name] = {}
        data[name][REQUEST_KEY] = {"owner": owner_of(user_api_key_dict), "headers": asked_by(headers)}
        return data

    async def async_post_call_response_headers_hook(
        self,
        data: Arguments,
        user_api_key_dict: Any,  # noqa: ANN401
        response: Any,  # noqa: ANN401
        request_headers: dict[str, str] | None = None,
        litellm_call_info: dict[str, Any] | None = None,
    ) -> dict[str, str] | None:
        """Say, in the headers of the proxy's response, what was done.

        Args:
            data: The request.
            user_api_key_dict: Not used.
            response: Not used.
            request_headers: Not used.
            litellm_call_info: Not used.
        """
        del user_api_key_dict, response, request_headers, litellm_call_info
        report = self._reports.get(data.get("litellm_call_id"))
        return None if report is None else report_headers(report)

    def log_success_event(self, kwargs: Arguments, response_obj: Any, start_time: Any, end_time: Any) -> None:  # noqa: ANN401
        """Add what the provider counted to the report of a call.

        Args:
            kwargs: What LiteLLM knows of the call.
            response_obj: The response.
            start_time: Not used.
            end_time: Not used.
        """
        del start_time, end_time
        report, usage = self._reports.get(kwargs.get("litellm_call_id")), usage_of(response_obj)
        if report is not None and usage is not None:
            self.kompakt.settle(report, usage)

    async def async_log_success_event(
        self,
        kwargs: Arguments,
        response_obj: Any,  # noqa: ANN401
        start_time: Any,  # noqa: ANN401
        end_time: Any,  # noqa: ANN401
    ) -> None:
        """Do the same for an async call."""
        self.log_success_event(kwargs, response_obj, start_time, end_time)

    def _compress_body(self, sent: Mapping[str, Any], form: Form | None, kwargs: Arguments) -> Report:
        """Compress the body of a sync call in place; the lists in it may be the caller's, and are replaced."""
        body, headers = sent.get("complete_input_dict"), sent.get("headers")
        reason = untouchable(str(kwargs.get("custom_llm_provider")), headers)
        if reason or not isinstance(body, dict):
            return passed_through(reason or _NO_FORM)
        if form is None:
            put_back(body, headers, without_asked({**body, "headers": headers})[0])
            return passed_through(_NO_FORM)
        engine = self.kompakt.engine
        # LiteLLM would log what is raised here, and go on
        settings = replace(engine.settings, on_error="pass_through")
        params = mapping(kwargs.get("litellm_params"))
        known = {name: params[name] for name in METADATA if name in params}
        call = read_call({**body, **known, "headers": headers}, form, settings)
        done = call.settled or engine.rewrite(call.body, form.wire, settings=call.settings, query=call.query)
        arguments, report = applied(call, form, done)
        put_back(body, headers, arguments)
        return report

    def _note(self, report: Report, kwargs: Arguments) -> None:
        self.kompakt.note(report)
        self._reports.put(kwargs.get("litellm_call_id"), report)

    def _note_unknown(self, name: str, kwargs: Arguments) -> None:
        reason = f"kompakt does not compress calls of LiteLLM's type {name!r}"
        if name not in self._told:
            self._told.add(name)
            _LOG.warning("%s; said once", reason)
        self._note(passed_through(reason), kwargs)

    def _note_unasked(self, name: str, kwargs: Arguments) -> None:
        if name in CALLS:
            self._note(passed_through("LiteLLM did not ask for it: add the callback to litellm.callbacks"), kwargs)
        else:
            self._note_unknown(name, kwargs)
