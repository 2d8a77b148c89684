"""Where models lie on this machine. Nothing here uses the network."""

from __future__ import annotations

import contextlib
import difflib
import functools
import hashlib
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from cachetools import TTLCache, cached

from kompakt.compressor.errors import ModelError, ModelNotFoundError
from kompakt.compressor.models.catalog import CATALOG, Bundled, ModelSpec

RECORD_FILE = "kompakt.json"
"""Written last into each pulled folder: what it is and where it came from."""

_BUNDLED = Path(__file__).parent / "weights"
_FINGERPRINT_FILE = ".kompakt-fingerprint.json"
_FINGERPRINT_SCHEMA = 1
_SECONDS_BETWEEN_LOOKS = 1.0
_RECENT: TTLCache[object, str] = TTLCache(maxsize=64, ttl=_SECONDS_BETWEEN_LOOKS)
_RECENT_LOCK = Lock()
_NOT_CONTENT = ("readme", "license", "licence", "licenses", "notice")


@dataclass(frozen=True, slots=True)
class InstalledModel:
    """One row of the list of named models.

    Args:
        spec: The model.
        path: Its folder, or None if it is not on this machine.
        n_bytes: Size of that folder in bytes; 0 without one.
    """

    spec: ModelSpec
    path: Path | None
    n_bytes: int


def user_cache() -> Path:
    """Return where kompakt keeps files: ``$KOMPAKT_CACHE``, or its folder in the user's cache folder."""
    override = os.environ.get("KOMPAKT_CACHE")
    if override:
        return Path(os.path.expanduser(override))
    from platformdirs import user_cache_dir

    return Path(user_cache_dir("kompakt", appauthor=False))


def cache_root() -> Path:
    """Return the folder of pulled models."""
    return user_cache() / "models"


def cached_path(spec: ModelSpec) -> Path:
    """Return where a pull of ``spec`` puts it, whether or not it is there; another pinned version goes elsewhere."""
    if isinstance(spec.carrier, Bundled):
        return _BUNDLED / spec.carrier.folder
    return cache_root() / f"{spec.name}-{spec.carrier.version}"


def is_complete(folder: Path) -> bool:
    """Return whether ``folder`` holds a finished pull."""
    return (folder / RECORD_FILE).is_file()


def get_spec(name: str) -> ModelSpec:
    """Return the catalogue's entry for ``name``.

    Raises:
        ModelNotFoundError: If the catalogue has no such name; the message lists those it has.
    """
    spec = CATALOG.get(name)
    if spec is None:
        close = difflib.get_close_matches(name.lower(), CATALOG, n=1, cutoff=0.5)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ModelNotFoundError(
            f"no model is named {name!r}.{hint} Known names: {', '.join(sorted(CATALOG))}. "
            "The path of a local folder works as well."
        )
    return spec


def model_path(name_or_path: str | os.PathLike[str]) -> Path:
    """Return the local folder of a model.

    A name of the catalogue wins over a folder of that name in the working directory; write ``./NAME`` or give a
    ``Path`` for the folder.

    Args:
        name_or_path: A name of the catalogue, or the path of a folder.

    Returns:
        The folder that the path names; for a name, the folder that its environment variable names, or its folder
        in the cache.

    Raises:
        ModelNotFoundError: If it is not on this machine; the message names the command that pulls it.
    """
    if isinstance(name_or_path, str) and name_or_path in CATALOG:
        return _named_path(CATALOG[name_or_path])
    path = os.path.expanduser(name_or_path)
    if os.path.isdir(path):
        return Path(path)
    if not isinstance(name_or_path, str) or os.path.basename(path) != path:
        raise ModelNotFoundError(f"no such model folder: {os.fspath(name_or_path)!r}")
    return _named_path(get_spec(name_or_path))


def installed() -> tuple[InstalledModel, ...]:
    """Return every named model with its folder and size, in the catalogue's order."""
    rows = []
    for spec in CATALOG.values():
        try:
            path: Path | None = _named_path(spec)
        except ModelNotFoundError:
            path = None
        rows.append(InstalledModel(spec, path, _size(path) if path else 0))
    return tuple(rows)


def weights_fingerprint(folder: str | os.PathLike[str]) -> str:
    """Return a SHA-256 in hex over the files that define a model.

    Documentation, hidden files and kompakt's own record do not count. The hash of each file is kept beside them and
    reused while its size and modification time stay the same.

    Args:
        folder: The model's folder.

    Raises:
        ModelNotFoundError: If it is not a folder, or holds no file that counts.
    """
    root = Path(folder)
    files = _content_files(root) if root.is_dir() else []
    if not files:
        raise ModelNotFoundError(f"no model files in {os.fspath(folder)!r}")
    known = _read_known(root)
    entries: dict[str, list[object]] = {}
    for path in files:
        stat = path.stat()
        name = path.relative_to(root).as_posix()
        entry = known.get(name)
        if not _still_valid(entry, stat.st_size, stat.st_mtime_ns):
            entry = [stat.st_size, stat.st_mtime_ns, _file_sha256(path, stat.st_size, stat.st_mtime_ns)]
        entries[name] = list(entry or ())
    # nothing is written into this package
    if entries != known and not root.resolve().is_relative_to(_BUNDLED.resolve()):
        _write_known(root, entries)
    lines = "".join(f"{name}\0{entry[2]}\n" for name, entry in sorted(entries.items()))
    return hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()


@cached(_RECENT, lock=_RECENT_LOCK)
def recent_fingerprint(folder: str | os.PathLike[str]) -> str:
    """Return what ``weights_fingerprint`` returned within the last second, for calls that come by the thousand."""
    return weights_fingerprint(folder)


def look_again() -> None:
    """Forget what ``recent_fingerprint`` remembers: the next call of each folder sees its files as they are."""
    with _RECENT_LOCK:
        _RECENT.clear()


def check_unchanged(folder: str | os.PathLike[str], fingerprint: str) -> None:
    """Raise if a model's files are not those that it was loaded for.

    Raises:
        ModelError: If they changed meanwhile: what was loaded may be part old, part new.
    """
    if weights_fingerprint(folder) != fingerprint:
        raise ModelError(f"the model in {os.fspath(folder)!r} changed while it was loaded: try again")


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _named_path(spec: ModelSpec) -> Path:
    override = os.environ.get(spec.env_var)
    if override:
        folder = Path(os.path.expanduser(override))
        if not folder.is_dir():
            raise ModelNotFoundError(f"{spec.env_var} is {override!r}, which is not a folder")
        return folder
    folder = cached_path(spec)
    if not is_complete(folder):
        raise ModelNotFoundError(
            f"the model {spec.name!r} is not on this machine: run `kompakt models pull {spec.name}`, "
            f"or set {spec.env_var} to its folder"
        )
    return folder


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _content_files(root: Path) -> list[Path]:
    return [path for path in sorted(root.rglob("*")) if _is_content(path.relative_to(root)) and path.is_file()]


def _is_content(relative: Path) -> bool:
    if any(part.startswith(".") or part == "__pycache__" for part in relative.parts):
        return False
    name = relative.name.lower()
    documentation = name.endswith(".md") or name.split("_")[0].split(".")[0] in _NOT_CONTENT
    return not documentation and name != RECORD_FILE


@functools.lru_cache(maxsize=1024)
def _file_sha256(path: Path, size: int, mtime_ns: int) -> str:
    # size and time are the key of the cache, which serves folders that cannot be written
    del size, mtime_ns
    return file_sha256(path)


def _still_valid(entry: list[object] | None, size: int, mtime_ns: int) -> bool:
    return entry is not None and entry[:2] == [size, mtime_ns]


def _read_known(root: Path) -> dict[str, list[object]]:
    try:
        saved = json.loads((root / _FINGERPRINT_FILE).read_text(encoding="utf-8"))
        if saved["schema_version"] != _FINGERPRINT_SCHEMA:
            return {}
        return {
            str(name): [int(size), int(mtime_ns), str(digest)]
            for name, (size, mtime_ns, digest) in saved["files"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _write_known(root: Path, entries: dict[str, list[object]]) -> None:
    content = json.dumps({"schema_version": _FINGERPRINT_SCHEMA, "files": entries}, indent=1, sort_keys=True)
    with contextlib.suppress(OSError):
        handle, temporary = tempfile.mkstemp(dir=root, prefix=_FINGERPRINT_FILE)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(content)
            os.replace(temporary, root / _FINGERPRINT_FILE)
        except OSError:
            os.unlink(temporary)
