"""Caches in files: keys, values and everything that a reader must know of them in one safetensors file."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from kompakt.compressor.errors import ConfigError, InputError, ModelError, ModelNotFoundError
from kompakt.compressor.parts import CachePart, Kind, Rope, Span, TextPart

SCHEMA_VERSION: Final = 1
_META: Final = "kompakt_cache"


def save_cache(part: CachePart, path: str | os.PathLike[str]) -> Path:
    """Write a cache into one safetensors file, which ``load_cache`` reads.

    The file holds ``keys`` and ``values``, ``[L, H_kv, m, D_head]`` each, and the rest as JSON. It replaces a file of
    that name as a whole: whoever reads meanwhile finds the old one or the new one, never a piece of either.

    Args:
        part: What to write.
        path: The file; its folder exists.

    Returns:
        The file.

    Raises:
        ConfigError: If the folder does not exist, or ``path`` is one.
        ModelError: If the file cannot be written.
    """
    target = Path(path).expanduser()
    if not target.parent.is_dir():
        raise ConfigError(f"there is no folder {os.fspath(target.parent)!r} for the cache: make it first")
    if target.is_dir():
        raise ConfigError(f"{os.fspath(target)!r} is a folder: name a file in it")
    tensors = {
        name: torch.stack(several).detach() for name, several in (("keys", part.keys), ("values", part.values))
    }
    unfinished = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    try:
        save_file(tensors, unfinished, metadata={"format": "pt", _META: json.dumps(_described(part))})
        with unfinished.open("rb+") as written:
            os.fsync(written.fileno())
        unfinished.replace(target)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"the cache {target} cannot be written: {error}; is the disk full?") from error
    finally:
        unfinished.unlink(missing_ok=True)
    return target


def load_cache(path: str | os.PathLike[str]) -> CachePart:
    """Read what ``save_cache`` wrote, into the memory of the processor; ``CachePart.to`` moves it elsewhere.

    Raises:
        ModelNotFoundError: If there is no such file.
        ModelError: If it is damaged, of a later version, or not a cache.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise ModelNotFoundError(f"there is no file {os.fspath(file)!r}: name one that save_cache wrote")
    try:
        with safe_open(file, framework="pt") as opened:  # type: ignore[no-untyped-call, unused-ignore]
            described = _parsed(opened.metadata() or {}, file)
            keys, values = (tuple(opened.get_tensor(name)) for name in ("keys", "values"))
        return CachePart(keys, values, described["space"], _source(described["source"]), _rope(described["rope"]))
    except (OSError, SafetensorError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(f"the cache {file} is damaged: {error}; write it again") from error


def _described(part: CachePart) -> dict[str, Any]:
    source = part.source
    spans = [[span.document_id, span.start, span.end, str(span.kind), span.protected] for span in source.spans]
    return {
        "schema_version": SCHEMA_VERSION,
        "space": part.space,
        "rope": part.rope,
        "source": {"text": source.text, "spans": spans, "starts": source.starts},
    }


def _parsed(metadata: Mapping[str, str], file: Path) -> dict[str, Any]:
    if _META not in metadata:
        raise ModelError(
            f"{file} is no cache of kompakt: its header has no {_META!r}; name one that save_cache wrote"
        )
    described = json.loads(metadata[_META])
    version = described.get("schema_version")
    if version != SCHEMA_VERSION:
        raise ModelError(f"{file} has the schema version {version!r}; this version of kompakt reads {SCHEMA_VERSION}")
    if not isinstance(described["space"], str):
        raise InputError(f"its space must be a string, got {described['space']!r}")
    return dict(described)


def _source(given: Mapping[str, Any]) -> TextPart:
    spans = tuple(
        Span(str(document_id), int(start), int(end), Kind(kind), bool(protected))
        for document_id, start, end, kind, protected in given["spans"]
    )
    if len(spans) != len(given["starts"]):
        raise InputError(f"its source has {len(spans)} spans and {len(given['starts'])} starts")
    return TextPart(str(given["text"]), spans, tuple(map(int, given["starts"])))


def _rope(given: Any) -> Rope:  # noqa: ANN401 (anything that JSON holds)
    # the part checks the names itself
    return given if isinstance(given, str) else tuple(map(int, given))  # type: ignore[return-value]
