"""Replaces strings in a JSON text and leaves every other character as it was."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Final, TypeAlias

Path: TypeAlias = tuple[str | int, ...]
"""Keys and indices from the top of a JSON value to a place in it."""

_TOKEN: Final = re.compile(r'"(?:[^"\\]++|\\.)*+"|[{}\[\],:]|[^\s{}\[\],:"]+', re.DOTALL)


Places: TypeAlias = Mapping[Path, tuple[int, int]]
"""Where each string value stands, quotes included."""


def replace_strings(text: str, replacements: Mapping[Path, str], *, places: Places | None = None) -> str:
    """Return a JSON text with other strings in some places.

    Numbers, spaces, the order of keys and whatever else is there stay as they were written: parsing and writing the
    whole would change some of it.

    Args:
        text: Valid JSON.
        replacements: The new string of each place.
        places: What ``string_places`` says of the text, if that is known: it takes most of the time.

    Raises:
        KeyError: If there is no string in one of the places.
    """
    known = string_places(text) if places is None else places
    pieces, end = [], 0
    for (start, stop), new in sorted((known[path], new) for path, new in replacements.items()):
        pieces += [text[end:start], json.dumps(new, ensure_ascii=False)]
        end = stop
    return "".join([*pieces, text[end:]])


def string_places(text: str) -> Places:
    """Return where each string value of a JSON text stands; of equal keys the last one counts.

    Args:
        text: Valid JSON.
    """
    places: dict[Path, tuple[int, int]] = {}
    path: list[str | int] = []
    # for each open container, whether it is an object whose next string is a key
    awaits_key: list[bool] = []
    for token in _TOKEN.finditer(text):
        match token[0][0]:
            case "{":
                path.append("")
                awaits_key.append(True)
            case "[":
                path.append(0)
                awaits_key.append(False)
            case "}" | "]":
                path.pop()
                awaits_key.pop()
            case ",":
                last = path[-1]
                if isinstance(last, int):
                    path[-1] = last + 1
                else:
                    awaits_key[-1] = True
            case ":":
                awaits_key[-1] = False
            case '"' if awaits_key and awaits_key[-1]:
                path[-1] = json.loads(token[0])
            case '"':
                places[tuple(path)] = token.span()
    return places


def drop_key(text: str, key: str) -> str:
    """Return a JSON object's text without one of its own keys, and all else as it was.

    Args:
        text: Valid JSON: an object.
        key: The key; every time that it stands there goes.
    """
    cuts, depth = [], 0
    for token in _TOKEN.finditer(text):
        depth += (token[0] in "{[") - (token[0] in "}]")
        if token[0] in "{}," and depth == (token[0] != "}"):
            cuts.append(token.start())
    members = [text[start + 1 : end] for start, end in pairwise(cuts)]
    kept = [member for member in members if not _has_key(member, key)]
    return f"{text[: cuts[0] + 1]}{','.join(kept)}{text[cuts[-1] :]}"


def _has_key(member: str, key: str) -> bool:
    token = _TOKEN.search(member)
    return token is not None and token[0].startswith('"') and json.loads(token[0]) == key
