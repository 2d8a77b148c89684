"""A result in words: what was kept, what it cost, and where it comes from."""

from __future__ import annotations

from kompakt.compressor.types import Compressed, Kind, Span

_PREVIEW = 100


def explain(result: Compressed) -> str:
    """Describe a result: outcome, counts, stages, and each kept range with its source and first words."""
    status = result.outcome.status.replace("_", " ")
    lines = [f"{status}{': ' + result.outcome.reason if result.outcome.reason else ''}"]
    share = result.tokens_after / result.tokens_before if result.tokens_before else 1.0
    lines.append(f"{result.tokens_before} tokens before, {result.tokens_after} after ({share:.1%} kept)")
    lines.extend(
        f"stage {trace.stage}: {trace.tokens_before} -> {trace.tokens_after} tokens in {trace.seconds:.3f} s"
        + (f" ({trace.note})" if trace.note else "")
        for trace in result.trace
    )
    kept = {document.id for document in result.documents}
    dropped = [source.id or "" for source in result.sources if source.id not in kept]
    if dropped:
        lines.append(f"nothing kept of {len(dropped)} of {len(result.sources)} documents: {', '.join(dropped)}")
    texts = {source.id or "": source.text for source in result.sources}
    for span in merged_spans(result):
        preview = " ".join(texts[span.document_id][span.start : span.end].split())
        shown = preview if len(preview) <= _PREVIEW else preview[: _PREVIEW - 1] + "…"
        lines.append(f"{span.document_id}[{span.start}:{span.end}] {span.kind}: {shown}")
    return "\n".join(lines)


def merged_spans(result: Compressed) -> list[Span]:
    """Return the verbatim ranges of a result, joined where they touch in the source."""
    merged: list[Span] = []
    for span in result.spans:
        if span.kind in (Kind.OMISSION, Kind.SEPARATOR):
            continue
        last = merged[-1] if merged else None
        if last and last.document_id == span.document_id and last.end == span.start:
            merged[-1] = Span(last.document_id, last.start, span.end, last.kind, last.protected or span.protected)
        else:
            merged.append(span)
    return merged
