"""Spans for OpenTelemetry, where an application has it."""

from __future__ import annotations

import time
from functools import cache
from typing import Any

from kompakt.adapters._settings import Report


def record_span(report: Report) -> None:
    """Record, as a span that ends now, what was done to a request; nothing without OpenTelemetry's API.

    Args:
        report: What was done. Texts are not recorded.
    """
    trace = _trace()
    if trace is None:
        return
    ended = time.time_ns()
    attributes = {
        "kompakt.outcome": report.outcome.status.value,
        "kompakt.reason": report.outcome.reason,
        "kompakt.tokens_before": report.tokens_before,
        "kompakt.tokens_after": report.tokens_after,
        "kompakt.texts_compressed": report.n_compressed,
        "kompakt.texts_reused": report.n_reused,
    }
    tracer = trace.get_tracer("kompakt")
    span = tracer.start_span("kompakt.compress", start_time=ended - int(report.seconds * 1e9), attributes=attributes)
    span.end(ended)


@cache
def _trace() -> Any:  # noqa: ANN401 (a module, or None)
    try:
        from opentelemetry import trace
    except ImportError:
        return None
    return trace
