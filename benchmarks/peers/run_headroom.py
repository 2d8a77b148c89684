"""Headroom 0.42.0: its extractive compressor of prose, ``TextCrusher``, called directly with the question.

    run_headroom.py

``headroom.compress`` sends prose to a model that must be downloaded, and returns it unchanged without; this is the
part that works from the package alone. ``TextCrusher(...).compress(content, context=query, target_ratio=keep)`` with
the default weights. All documents are one text, so that all sentences compete.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from serve import joined, serve

QUIET = {"HEADROOM_BEACON": "off", "HEADROOM_TELEMETRY": "off", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}


def load(_: Sequence[str]) -> Callable[[dict], str]:
    from headroom.transforms.text_crusher import TextCrusher

    crusher = TextCrusher()

    def compress(request: dict) -> str:
        result = crusher.compress(joined(request), context=request["query"] or "", target_ratio=request["keep"])
        return result.compressed

    return compress


if __name__ == "__main__":
    serve("headroom-ai", load, QUIET)
