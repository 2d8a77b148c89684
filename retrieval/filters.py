"""Conditions on metadata, as SQL."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence, Set
from typing import Final, TypeAlias

from kompakt.compressor.errors import InputError
from kompakt.compressor.types import require_unicode

Where: TypeAlias = Mapping[str, object]
"""Conditions by key of the metadata, all of which must hold.

A condition is a value (equal to it), a list of values (equal to one of them), or a mapping of operators to values:
``=``, ``!=``, ``<``, ``<=``, ``>``, ``>=``. Values are strings, numbers, booleans and None.
"""

_ORDERS: Final = ("<", "<=", ">", ">=")
_EQUAL: Final = "="
_UNEQUAL: Final = "!="
_OPERATORS: Final = (_EQUAL, _UNEQUAL, *_ORDERS)
# paths of SQLite read a quoted key up to the next quote, whatever stands before that
_PLAIN_KEY: Final = re.compile(r'[^"\\\x00-\x1f]+')
_MAX_INTEGER: Final = 2**63
_NUMBER: Final = "integer, real"

Condition: TypeAlias = tuple[str, list[object]]
"""SQL and the values of its parameters."""


def compile_filter(where: Where | None, *, column: str) -> Condition:
    """Return conditions on metadata as SQL.

    Values are compared with values of their own kind only: a number with numbers, a string with strings (by code
    point), and neither with a list. A missing key is like None: it equals None, differs from every other value, and
    is neither below nor above any.

    Args:
        where: The conditions; None or an empty mapping for none.
        column: The SQL of the column that holds the metadata as a JSON object. It is written into the SQL as it is.

    Raises:
        InputError: If a key, an operator or a value cannot be used; it is named.
    """
    if where is None:
        return "1", []
    if not isinstance(where, Mapping):
        raise InputError(f"where must be a mapping of metadata keys to conditions, got {where!r}")
    conditions = [condition for key, wanted in where.items() for condition in _conditions(column, key, wanted)]
    sql = " AND ".join(f"({sql})" for sql, _ in conditions)
    return sql or "1", [value for _, values in conditions for value in values]


def _conditions(column: str, key: object, wanted: object) -> list[Condition]:
    if not isinstance(key, str):
        raise InputError(f"where: a metadata key must be a string, got {key!r}")
    _require_text(key, f"where: the metadata key {key!a}")
    if not isinstance(wanted, Mapping):
        return [_equal(column, key, wanted)]
    if not wanted:
        raise InputError(f"where[{key!r}] has no operator. Operators: {', '.join(_OPERATORS)}")
    return [_compare(column, key, operator, value) for operator, value in wanted.items()]


def _compare(column: str, key: str, operator: object, value: object) -> Condition:
    if operator == _EQUAL:
        return _equal(column, key, value)
    if operator == _UNEQUAL:
        sql, values = _equal(column, key, value)
        return f"NOT ({sql})", values
    if operator not in _ORDERS:
        raise InputError(f"where[{key!r}]: no operator {operator!r}. Operators: {', '.join(_OPERATORS)}")
    kind = _kind(key, value)
    if kind not in (_NUMBER, "text"):
        raise InputError(f"where[{key!r}]: {operator} compares numbers or strings, got {value!r}")
    type_sql, types = _extract(column, key, "type")
    value_sql, values = _extract(column, key, "value")
    # SQLite reads both sides from JSON, so that equal numbers are equal to the last bit
    return f"{_is_of(type_sql, kind)} AND {value_sql} {operator} json_extract(?, '$')", [
        *types,
        *values,
        _json(value),
    ]


def _equal(column: str, key: str, wanted: object) -> Condition:
    """Return the condition that the value of a key is, or is one of, what is wanted."""
    options: dict[str, list[object]] = {}
    for value in _as_options(wanted):
        options.setdefault(_kind(key, value), []).append(value)
    # no option, no match
    alternatives: list[str] = ["0"]
    parameters: list[object] = []
    for kind, values in options.items():
        sql, own = _one_of(column, key, kind, values)
        alternatives.append(sql)
        parameters.extend(own)
    return " OR ".join(f"({sql})" for sql in alternatives), parameters


def _as_options(wanted: object) -> list[object]:
    if isinstance(wanted, (str, bytes, bytearray)):
        return [wanted]
    return list(wanted) if isinstance(wanted, (Sequence, Set)) else [wanted]


def _one_of(column: str, key: str, kind: str, values: Sequence[object]) -> Condition:
    type_sql, types = _extract(column, key, "type")
    if kind == "null":
        return f"coalesce({type_sql}, 'null') = 'null'", types
    has_kind = f"coalesce({_is_of(type_sql, kind)}, 0)"
    if kind in ("true", "false"):
        return has_kind, types
    value_sql, extracted = _extract(column, key, "value")
    # one parameter holds any number of values
    listed = f"{has_kind} AND {value_sql} IN (SELECT value FROM json_each(?))"  # noqa: S608 (as above)
    return listed, [*types, *extracted, _json(values)]


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _is_of(type_sql: str, kind: str) -> str:
    names = ", ".join(f"'{name}'" for name in kind.split(", "))
    return f"{type_sql} IN ({names})"


def _extract(column: str, key: str, what: str) -> Condition:
    """Return the SQL of the ``value`` or the ``type`` that a key has; NULL if it is missing."""
    if _PLAIN_KEY.fullmatch(key):
        function = "json_extract" if what == "value" else "json_type"
        return f"{function}({column}, ?)", [f'$."{key}"']
    return f"(SELECT {what} FROM json_each({column}) WHERE key = ?)", [key]  # noqa: S608 (names of this file)


def _kind(key: str, value: object) -> str:
    """Return the types of SQLite's JSON that a value can equal."""
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case int() if -_MAX_INTEGER <= value < _MAX_INTEGER:
            return _NUMBER
        case float() if math.isfinite(value):
            return _NUMBER
        case str():
            _require_text(value, f"where[{key!r}]: the value {value!a}")
            return "text"
        case _:
            raise InputError(
                f"where[{key!r}]: a value must be a string, a finite number of at most 64 bits, a boolean or None, "
                f"got {value!r} ({type(value).__name__})"
            )


def _require_text(value: str, what: str) -> None:
    require_unicode(value, what)
    if "\0" in value:
        raise InputError(f"{what} holds a NUL character, at which SQLite ends a string")
