"""Compressors by name: one table for ours, one entry-point group for everybody's."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast, get_type_hints

from kompakt.compressor.errors import ConfigError, MissingExtraError

if TYPE_CHECKING:
    from kompakt.compressor.base import Compressor

GROUP: Final = "kompakt.compressors"

BUILTIN: Final = {
    "500x-compressor": "kompakt.compressor.cache.five_hundred_x_compressor:FiveHundredXCompressor",
    "activation-beacon": "kompakt.compressor.cache.activation_beacon:ActivationBeacon",
    "arc-encoder": "kompakt.compressor.soft.arc_encoder:ARCEncoder",
    "auto-compressor": "kompakt.compressor.soft.auto_compressor:AutoCompressor",
    "compllm": "kompakt.compressor.soft.compllm:CompLLM",
    "dedup": "kompakt.compressor.text.dedup:Dedup",
    "default": "kompakt.compressor.text.default:Default",
    "expected-attention": "kompakt.compressor.cache.expected_attention:ExpectedAttention",
    "extensible-tokenization": "kompakt.compressor.soft.extensible_tokenization:ExtensibleTokenization",
    "extractive": "kompakt.compressor.text.extractive:Extractive",
    "finch": "kompakt.compressor.cache.finch:Finch",
    "gemfilter": "kompakt.compressor.cache.gem_filter:GemFilter",
    "icae": "kompakt.compressor.soft.icae:ICAE",
    "lexical": "kompakt.compressor.text.lexical:Lexical",
    "mmr": "kompakt.compressor.text.mmr:MaximalMarginalRelevance",
    "selective-context": "kompakt.compressor.text.selective_context:SelectiveContext",
    "snapkv": "kompakt.compressor.cache.snapkv:SnapKV",
    "structured": "kompakt.compressor.text.structured:Structured",
}


@cache
def _entries() -> dict[str, EntryPoint]:
    table = {entry.name: entry for entry in entry_points(group=GROUP)}
    # a plug-in cannot take the name of a built-in and so change what others get
    table.update({name: EntryPoint(name, target, GROUP) for name, target in BUILTIN.items()})
    return table


def compressor_names() -> list[str]:
    """Return the names of all compressors that can be loaded, sorted."""
    return sorted(_entries())


def compressor_class(name: str) -> type[Compressor]:
    """Return the class registered under ``name``, importing its module.

    Raises:
        ConfigError: If there is no such name; the message suggests one.
        MissingExtraError: If it needs the extra ``local``, which is not installed.
    """
    entry = _entries().get(name) if isinstance(name, str) else None
    if entry is None:
        close = get_close_matches(str(name), compressor_names(), n=1)
        hint = f"; did you mean {close[0]!r}?" if close else "."
        raise ConfigError(f"there is no compressor {name!r}{hint} Known: {', '.join(compressor_names())}")
    try:
        return cast("type[Compressor]", entry.load())
    except ModuleNotFoundError as error:
        if name in BUILTIN:
            raise MissingExtraError(f"the compressor {name!r}", "local") from error
        raise


def compressor_summary(name: str) -> str:
    """Return the first line of what a compressor says of itself, without importing what it needs.

    Raises:
        ConfigError: If there is no such name.
        ImportError: If its module cannot be found.
    """
    entry = _entries().get(name)
    spec = find_spec(entry.module) if entry else None
    if entry is None or spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        text = compressor_class(name).__doc__
    else:
        tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
        classes = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == entry.attr)
        found = next(classes, None)
        text = compressor_class(name).__doc__ if found is None else ast.get_docstring(found)
    return (text or "").strip().partition("\n")[0].replace("``", "")


def load(name: str, **options: object) -> Compressor:
    """Make a compressor by its registry name.

    Args:
        name: A registry name, such as ``"extractive"``.
        **options: The options of that compressor, checked against its signature.

    Raises:
        ConfigError: If the name or an option is unknown, or an option's value makes no sense.
    """
    cls = compressor_class(name)
    known = inspect.signature(cls).parameters
    for option in options:
        if option not in known:
            close = get_close_matches(option, known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else "."
            listed = ", ".join(known) or "none"
            raise ConfigError(f"{name} has no option {option!r}{hint} It takes: {listed}")
    _check_types(name, cls, options)
    return cls(**options)


def _check_types(name: str, cls: type, options: Mapping[str, object]) -> None:
    """Raise if an option that the class declares as a plain type has a value of another."""
    plain: Mapping[object, tuple[type, ...]] = {bool: (bool,), float: (float, int), int: (int,), str: (str,)}
    declared = get_type_hints(cls)
    for option, value in options.items():
        accepted = plain.get(declared.get(option))
        if accepted and (not isinstance(value, accepted) or (isinstance(value, bool) and bool not in accepted)):
            raise ConfigError(f"{name}: {option} must be {accepted[0].__name__}, got {value!r}")
