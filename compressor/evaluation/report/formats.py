"""How the pages write numbers and text that others wrote."""

from __future__ import annotations

import math
from typing import Final

NOTHING: Final = "\u2013"
"""Stands where there is no number."""

_PICTURES: Final = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\t\n\r"}
_REPLACED: Final = dict.fromkeys((*range(0x80, 0xA0), *range(0xD800, 0xE000)), 0xFFFD)
_HARMLESS: Final = {**_PICTURES, 0x7F: 0x2421, **_REPLACED}


def harmless(text: str) -> str:
    """Return ``text`` with control characters as pictures and what UTF-8 cannot hold replaced.

    Every character gives exactly one character, so that offsets hold.
    """
    text = text.translate(_HARMLESS)
    if "\r" not in text:
        return text
    # the one before a line feed is part of a line ending, and as harmless as that
    return text.replace("\r\n", "\x00\n").replace("\r", "\u240d").replace("\x00", "\r")


def quality(value: float) -> str:
    """Return a quality with three decimals, such as ``0.812``."""
    # -0.0004 would become -0.000
    return f"{round(value, 3) + 0.0:.3f}" if math.isfinite(value) else NOTHING


def signed(value: float) -> str:
    """Return a difference with three decimals and its sign, such as ``+0.031``."""
    return f"{round(value, 3) + 0.0:+.3f}" if math.isfinite(value) else NOTHING


def percent(value: float) -> str:
    """Return a share that was measured, such as ``26.1%``."""
    return f"{value * 100:.1f}%" if math.isfinite(value) else NOTHING


def asked(keep: float) -> str:
    """Return a share that was asked for, without needless decimals, such as ``25%``."""
    return f"{keep * 100:.4g}%" if math.isfinite(keep) else NOTHING


def seconds(value: float | None) -> str:
    """Return a duration in the unit that suits it, such as ``123 ms`` or ``4.56 s``."""
    if value is None or not math.isfinite(value):
        return NOTHING
    if value == 0:
        return "0 s"
    if value < 0.9995:
        return f"{_three_digits(value * 1000)} ms"
    return f"{_three_digits(value)} s"


def axis_seconds(value: float) -> str:
    """Return a duration for an axis, such as ``10 ms``."""
    return f"{value * 1000:g} ms" if value < 1 else f"{value:g} s"


def _three_digits(value: float) -> str:
    decimals = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:,.{decimals}f}"


def count(value: float) -> str:
    """Return a whole number with separators, such as ``12,345``."""
    return f"{value:,.0f}" if math.isfinite(value) else NOTHING


def short_count(value: float) -> str:
    """Return a whole number for an axis, such as ``12k``."""
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"
