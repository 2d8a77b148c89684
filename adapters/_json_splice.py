"""Replaces strings in a JSON text and leaves every other character as it was."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Final, TypeAlias

Path: TypeAlias = tuple[str | int, ...]
"""Keys and indices from the top of a JSON value to a place in it."""

_TOKEN: Final = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\],:]|[^\s{}\[\],:"]+', re.DOTALL)


def replace_strings(text: str, replacements: Mapping[Path, str]) -> str:
    """Return a JSON text with other strings in some places.

    Numbers, spaces, the order of keys and whatever else is there stay as they were written: parsing and writing the
    whole would change some of it.

    Args:
        text: Valid JSON.
        replacements: The new string of each place.

    Raises:
        KeyError: If there is no string in one of the places.
    """
    places = string_places(text)
    pieces, end = [], 0
    for (start, stop), new in sorted((places[path], new) for path, new in replacements.items()):
        pieces += [text[end:start], json.dumps(new, ensure_ascii=False)]
        end = stop
    return "".join([*pieces, text[end:]])


def string_places(text: str) -> dict[Path, tuple[int, int]]:
    """Return where each string value of a JSON text stands, quotes included; of equal keys the last one counts.

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
