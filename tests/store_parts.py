"""What the tests of stored segments share."""

from dataclasses import replace

from kompakt.compressor.types import Kind


def without_trace(results):
    return [replace(result, trace=()) for result in results]


def hits(results):
    return [result.trace[-1].cache_hits for result in results]


def assert_spans_hold(result, document):
    for part in result.parts:
        bounds = [*part.starts, len(part.text)]
        assert bounds[0] == 0
        assert bounds == sorted(bounds)
        for span, start, end in zip(part.spans, bounds, bounds[1:], strict=False):
            assert span.document_id == document.id
            if span.kind not in (Kind.OMISSION, Kind.SEPARATOR):
                assert part.text[start:end] == document.text[span.start : span.end]
