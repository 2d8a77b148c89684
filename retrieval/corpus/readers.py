"""Finds the files of a corpus and reads each as records, one document at a time."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path, PurePath
from types import MappingProxyType
from typing import Final, NamedTuple

from kompakt.compressor.errors import ConfigError, InputError, MissingExtraError
from kompakt.retrieval.corpus.formats import (
    READ_ERRORS,
    Extracted,
    ReadOptions,
    Record,
    SourceFile,
    open_stream,
    read_failure,
    too_large,
    whole_document,
)
from kompakt.retrieval.corpus.formats.html import extract_html
from kompakt.retrieval.corpus.formats.jsonl import read_jsonl
from kompakt.retrieval.corpus.formats.parquet import read_parquet
from kompakt.retrieval.corpus.formats.pdf import extract_pdf
from kompakt.retrieval.corpus.formats.plain import extract_markdown, extract_text

__all__ = ["SUFFIXES", "ReadOptions", "Record", "SourceFile", "find_files", "read_file", "skipped_files"]

SUFFIXES: Final[Mapping[str, str]] = MappingProxyType(
    {
        ".jsonl": "jsonl",
        ".jsonl.gz": "jsonl",
        ".ndjson": "jsonl",
        ".parquet": "parquet",
        ".txt": "text",
        ".txt.gz": "text",
        ".md": "markdown",
        ".markdown": "markdown",
        ".html": "html",
        ".htm": "html",
        ".pdf": "pdf",
    }
)
"""The format of each suffix that can be read."""

_WHOLE: Final[Mapping[str, Callable[[bytes, ReadOptions], Extracted]]] = {
    "text": extract_text,
    "markdown": extract_markdown,
    "html": extract_html,
    "pdf": extract_pdf,
}
_UNREADABLE: Final = "(unreadable)"
_NO_SUFFIX: Final = "(no suffix)"
_PIECE: Final = 1 << 20


def find_files(
    inputs: Sequence[str | os.PathLike[str]], *, suffixes: Collection[str] | None = None
) -> Iterator[SourceFile]:
    """Find the files of a corpus, in an order that depends on inputs and names alone.

    Folders are walked in order of names, links to folders included. What is hidden, or has a suffix that is not
    wanted, is passed over; ``skipped_files`` counts the latter. A file that is found twice is given once. A name
    that is taken is preceded by the input's own folder and, should that be taken too, by a hash as well.

    Args:
        inputs: Files and folders.
        suffixes: The ones that are wanted, of ``SUFFIXES``; by default all.

    Raises:
        InputError: If an input is missing, or a file whose suffix is not wanted.
        ConfigError: If a suffix is none of ``SUFFIXES``.
    """
    wanted = _wanted(suffixes)
    return _find(_roots(inputs, wanted), wanted)


def skipped_files(
    inputs: Sequence[str | os.PathLike[str]], *, suffixes: Collection[str] | None = None
) -> dict[str, int]:
    """Count what ``find_files`` passes over, other than what is hidden.

    Returns:
        The number of files by suffix, most frequent first. Files without one are counted as ``(no suffix)``, and
        links that lead nowhere, folders that may not be read and what is no file, such as a socket, as
        ``(unreadable)``.

    Raises:
        InputError: As ``find_files``.
        ConfigError: As ``find_files``.
    """
    wanted = _wanted(suffixes)
    skipped = {
        os.path.realpath(entry.path): _skip_label(entry)
        for entry in _scan(_roots(inputs, wanted))
        if not _is_wanted(entry, wanted)
    }
    counts = Counter(skipped.values())
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def read_file(file: SourceFile, options: ReadOptions, *, start: int = 0) -> Iterator[Record]:
    """Read a file, holding one document at a time.

    What cannot be used is a record with an error; content never raises. A document has its own id if it has one,
    else ``name#position`` in JSON Lines and Parquet and ``name`` elsewhere. Its metadata is what the line or row
    holds besides, or ``path`` (the name), ``title`` and, of a PDF, ``pages``: the offset in the text at which each
    page begins.

    Args:
        file: What ``find_files`` found.
        options: How to read it.
        start: Records at positions before this one are left out, and not parsed.

    Raises:
        InputError: If the file's name has no suffix of ``SUFFIXES``.
        ConfigError: If ``start`` is below 0.
        MissingExtraError: On the first record, if the format needs the extra ``corpus`` and it is not installed.
    """
    if start < 0:
        raise ConfigError(f"start must be at least 0, got {start}")
    suffix = _suffix_of(file.name)
    if suffix is None:
        raise InputError(f"{file.name} has no suffix that can be read. Known: {', '.join(SUFFIXES)}")
    match SUFFIXES[suffix]:
        case "jsonl":
            return read_jsonl(file, options, start=start)
        case "parquet":
            return read_parquet(file, options, start=start)
        case whole:
            return _read_whole(file, options, _WHOLE[whole], start)


def _read_whole(
    file: SourceFile, options: ReadOptions, extract: Callable[[bytes, ReadOptions], Extracted], start: int
) -> Iterator[Record]:
    if start > 0:
        return
    try:
        record = Record(file.name, 0, whole_document(file, extract(_read_bytes(file, options), options)))
    except MissingExtraError:
        raise
    except InputError as error:
        record = Record(file.name, 0, None, str(error))
    except READ_ERRORS as error:
        record = Record(file.name, 0, None, read_failure(error))
    except Exception as error:  # parsers of broken files fail in any way, and one file must not end a run
        record = Record(file.name, 0, None, f"the file cannot be parsed: {type(error).__name__}: {error}")
    yield record


def _read_bytes(file: SourceFile, options: ReadOptions) -> bytes:
    limit = options.max_document_bytes
    with open_stream(file) as stream:
        is_packed = file.name.lower().endswith(".gz")
        if not is_packed and (size := os.fstat(stream.fileno()).st_size) > limit:
            raise too_large("the file", str(size), options)
        pieces: list[bytes] = []
        n_bytes = 0
        # a packed file tells its size at its end, and not reliably
        while piece := stream.read(_PIECE):
            n_bytes += len(piece)
            if n_bytes > limit:
                raise too_large("the file", f"more than {limit}", options)
            pieces.append(piece)
    return b"".join(pieces)


class _Entry(NamedTuple):
    """What a walk came upon: the folder that names are relative to, the path, and its status if it has one."""

    root: Path
    path: Path
    status: os.stat_result | None


def _wanted(suffixes: Collection[str] | None) -> tuple[str, ...]:
    if suffixes is None:
        return tuple(SUFFIXES)
    if isinstance(suffixes, str) or not suffixes:
        raise ConfigError(f"suffixes must be a list of at least one suffix, got {suffixes!r}")
    unknown = [suffix for suffix in suffixes if suffix not in SUFFIXES]
    if unknown:
        raise ConfigError(f"files with the suffix {unknown[0]!r} cannot be read. Known: {', '.join(SUFFIXES)}")
    return tuple(suffix for suffix in SUFFIXES if suffix in suffixes)


def _suffix_of(name: str) -> str | None:
    return next((suffix for suffix in SUFFIXES if name.lower().endswith(suffix)), None)


def _roots(inputs: Sequence[str | os.PathLike[str]], wanted: Sequence[str]) -> list[Path]:
    """Return the inputs as absolute paths, checked."""
    if isinstance(inputs, (str, bytes, os.PathLike)) or not inputs:
        raise InputError(f"inputs must be a list of at least one file or folder, got {inputs!r}")
    return [_root(item, wanted) for item in inputs]


def _root(item: str | os.PathLike[str], wanted: Sequence[str]) -> Path:
    name = os.fspath(item) if isinstance(item, (str, os.PathLike)) else None
    if not isinstance(name, str) or not name:
        raise InputError(f"an input must be the path of a file or folder, got {item!r}")
    try:
        path = Path(os.path.abspath(name))
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        raise InputError(f"there is no file or folder {name!r}: {error}") from error
    if stat.S_ISDIR(mode):
        if not os.access(path, os.R_OK | os.X_OK):
            raise InputError(f"the folder {path} may not be read by this user")
        return path
    if not stat.S_ISREG(mode):
        raise InputError(f"{path} is neither a file nor a folder")
    if _suffix_of(path.name) not in wanted:
        raise InputError(f"{path} has none of the suffixes that are read: {', '.join(wanted)}")
    return path


def _scan(roots: Sequence[Path]) -> Iterator[_Entry]:
    """Walk files and folders in order; a folder that is reached again, as by a link, is not walked again."""
    walked: set[tuple[int, int]] = set()
    for root in roots:
        base = root if root.is_dir() else root.parent
        # not recursive: paths can be deeper than Python's stack
        stack = [root]
        while stack:
            path = stack.pop()
            status = _status(path)
            if status is None or not stat.S_ISDIR(status.st_mode):
                yield _Entry(base, path, status)
                continue
            identity = status.st_dev, status.st_ino
            if identity in walked:
                continue
            walked.add(identity)
            try:
                names = sorted(os.listdir(path), reverse=True)
            except OSError:
                yield _Entry(base, path, None)
                continue
            stack.extend(path / name for name in names if not name.startswith("."))


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None


def _is_wanted(entry: _Entry, wanted: Sequence[str]) -> bool:
    is_file = entry.status is not None and stat.S_ISREG(entry.status.st_mode)
    return is_file and _suffix_of(entry.path.name) in wanted


def _skip_label(entry: _Entry) -> str:
    if entry.status is None or not stat.S_ISREG(entry.status.st_mode):
        return _UNREADABLE
    endings = entry.path.suffixes
    # .gz alone would not say of what
    is_packed = entry.path.suffix.lower() == ".gz"
    return "".join(endings[-2:] if is_packed else endings[-1:]).lower() or _NO_SUFFIX


def _find(roots: Sequence[Path], wanted: Sequence[str]) -> Iterator[SourceFile]:
    found: set[str] = set()
    taken: set[str] = set()
    for entry in _scan(roots):
        if entry.status is None or not _is_wanted(entry, wanted):
            continue
        real = os.path.realpath(entry.path)
        if real in found:
            continue
        found.add(real)
        name = next(name for name in _names(entry) if name not in taken)
        taken.add(name)
        yield SourceFile(Path(real), name, entry.status.st_size, entry.status.st_mtime_ns)


def _names(entry: _Entry) -> Iterator[str]:
    """Give names for a file, from the plainest to one that no other file has."""
    relative = _printable(entry.path.relative_to(entry.root))
    folder = _printable(PurePath(entry.root.name))
    yield relative
    yield f"{folder}/{relative}"
    digest = blake2b(os.fsencode(entry.path), digest_size=32).hexdigest()
    for length in range(8, len(digest) + 1, 8):
        yield f"{folder}~{digest[:length]}/{relative}"


def _printable(path: PurePath) -> str:
    """Return a path with ``/``, and bytes that are no text spelt out, so that it can be an id."""
    return os.fsencode(path.as_posix()).decode("utf-8", "backslashreplace")
