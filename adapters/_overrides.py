"""What a caller asks of kompakt for a single request: by headers, or by the key ``kompakt`` of the body."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final
from urllib.parse import unquote

from kompakt.adapters._json_splice import drop_key
from kompakt.adapters._settings import Settings
from kompakt.compressor.errors import ConfigError

PREFIX: Final = "x-kompakt-"
BODY_KEY: Final = "kompakt"

_TRUE: Final = ("1", "true", "yes")
_FALSE: Final = ("0", "false", "no", "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Overrides:
    """What one request asks for; None where it says nothing.

    Args:
        bypass: Send it as it is.
        keep: The fraction that may remain of each text.
        max_tokens: The most tokens that may remain of all of them.
        query: The question.
        dry_run: Do everything, and send it as it is.
    """

    bypass: bool = False
    keep: float | None = None
    max_tokens: int | None = None
    query: str | None = None
    dry_run: bool | None = None

    def applied_to(self, settings: Settings) -> Settings:
        """Return the settings of this request."""
        if self.keep is not None or self.max_tokens is not None:
            settings = replace(settings, keep=self.keep, max_tokens=self.max_tokens)
        return settings if self.dry_run is None else replace(settings, dry_run=self.dry_run)


def option_of(header: str) -> str | None:
    """Return the option that a header's name stands for, or None for other headers."""
    name = header.lower().removeprefix(PREFIX).replace("-", "_")
    return name if header.lower().startswith(PREFIX) and name in _READERS else None


def from_headers(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return what a request's headers ask for, by the names of ``Overrides``; values may be percent-encoded."""
    return {option: unquote(value) for name, value in headers if (option := option_of(name)) is not None}


def from_body(text: str) -> tuple[str, object]:
    """Return a body without the key ``kompakt``, and what stood under it; an empty object if nothing did.

    Args:
        text: The body; what is no JSON object is returned as it is.
    """
    if f'"{BODY_KEY}"' not in text:
        return text, {}
    try:
        body = json.loads(text)
    except ValueError:
        return text, {}
    if not isinstance(body, dict) or BODY_KEY not in body:
        return text, {}
    return drop_key(text, BODY_KEY), body[BODY_KEY]


def parse_overrides(in_body: object, in_headers: Mapping[str, str]) -> Overrides:
    """Return what a request asks for; headers win.

    Args:
        in_body: What stood under the key of the body.
        in_headers: Names and values of its headers.

    Raises:
        ConfigError: If a name is unknown or a value makes no sense.
    """
    if not isinstance(in_body, dict):
        raise ConfigError(f"the key {BODY_KEY!r} of a request must hold an object, got {in_body!r}")
    asked = in_body | dict(in_headers)
    unknown = sorted(map(str, set(asked) - set(_READERS)))
    if unknown:
        raise ConfigError(f"a request cannot ask kompakt for {unknown[0]!r}. Known: {', '.join(sorted(_READERS))}")
    return Overrides(**{name: _READERS[name](name, value) for name, value in asked.items()})


def _flag(name: str, value: object) -> bool:
    if isinstance(value, bool):
        return value
    text = str(value).strip().lower()
    if text not in (*_TRUE, *_FALSE):
        raise ConfigError(f"{name} must be true or false, got {value!r}")
    return text in _TRUE


def _fraction(name: str, value: object) -> float:
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        with contextlib.suppress(ValueError, OverflowError):
            return float(value)
    raise ConfigError(f"{name} must be a number, got {value!r}")


def _whole(name: str, value: object) -> int:
    number = _fraction(name, value)
    if not number.is_integer():
        raise ConfigError(f"{name} must be a whole number, got {value!r}")
    return int(number)


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise ConfigError(f"{name} must be a string, got {value!r}")
    return value


_READERS: Final[Mapping[str, Any]] = {
    "bypass": _flag,
    "keep": _fraction,
    "max_tokens": _whole,
    "query": _text,
    "dry_run": _flag,
}
