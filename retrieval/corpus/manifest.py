"""What a corpus job was told and what came of it: ``manifest.json`` and ``failures.jsonl``."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from kompakt.compressor.errors import ConfigError
from kompakt.compressor.models.tokenizers import Tokenizer
from kompakt.compressor.pipeline import Pipeline
from kompakt.compressor.store.keys import release
from kompakt.retrieval.compressed import SegmentCompressor
from kompakt.retrieval.corpus.formats import ReadOptions
from kompakt.retrieval.corpus.sink import with_store
from kompakt.retrieval.corpus.state import State
from kompakt.retrieval.manifest import replace_file

MANIFEST_FILE: Final = "manifest.json"
FAILURES_FILE: Final = "failures.jsonl"
_SCHEMA_VERSION: Final = 1

JobState: TypeAlias = Literal["running", "finished", "interrupted"]
Manifest: TypeAlias = dict[str, Any]
"""The content of ``manifest.json``."""


@dataclass(frozen=True, slots=True)
class JobSettings:
    """What decides the results of a job. Made by ``of``.

    Args:
        inputs: Absolute paths of files and folders.
        store: Where the compressed segments are, without passwords.
        index: Absolute path of the index; empty for none.
        keep: The fraction of each segment's tokens that may remain, or None.
        max_tokens: The most tokens that may remain of each, or None.
        chunk_tokens: The most tokens of a segment.
        tokenizer: Name of the tokenizer.
        tokenizer_fingerprint: What tells it from others.
        pipeline_fingerprint: What tells the pipeline from others.
        tenant: Whose segments they are.
        read: How files become documents.
        release: The kompakt that made the segments: others do not find them.
        pipeline_toml: The pipeline without its store, whose URL may hold a password; None if a stage or the tokenizer
            has no name. Only for people: nothing is compared with it.
    """

    inputs: tuple[str, ...]
    store: str
    index: str
    keep: float | None
    max_tokens: int | None
    chunk_tokens: int
    tokenizer: str
    tokenizer_fingerprint: str
    pipeline_fingerprint: str
    tenant: str
    read: ReadOptions
    release: str
    pipeline_toml: str | None = None

    @classmethod
    def of(
        cls,
        inputs: Sequence[str | os.PathLike[str]],
        compressor: SegmentCompressor,
        *,
        tokenizer: Tokenizer,
        chunk_tokens: int = 256,
        read: ReadOptions | None = None,
        index: str | os.PathLike[str] | None = None,
    ) -> JobSettings:
        """Return the settings of a job.

        Args:
            inputs: Files and folders.
            compressor: What compresses.
            tokenizer: Whose tokens limit the segments.
            chunk_tokens: The most tokens of a segment.
            read: How files become documents.
            index: Folder of the index, if there is one.
        """
        pipeline = compressor.pipeline
        return cls(
            inputs=tuple(os.path.abspath(path) for path in inputs),
            store=pipeline.artefacts().store.location,
            index="" if index is None else os.path.abspath(index),
            keep=compressor.keep,
            max_tokens=compressor.max_tokens,
            chunk_tokens=chunk_tokens,
            tokenizer=tokenizer.name,
            tokenizer_fingerprint=tokenizer.fingerprint,
            pipeline_fingerprint=pipeline.fingerprint,
            tenant=pipeline.tenant,
            read=read or ReadOptions(),
            release=release(),
            pipeline_toml=_toml(pipeline),
        )

    def as_json(self) -> dict[str, Any]:
        """Return the settings as JSON values, as they are read back."""
        values = asdict(self)
        del values["pipeline_toml"]
        read = values.pop("read")
        return dict(json.loads(json.dumps(values | read)))


def check_settings(folder: Path, known: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Check that a job goes on with the settings with which it began.

    Args:
        folder: Its folder.
        known: The settings with which it began.
        wanted: Those of now.

    Raises:
        ConfigError: If they differ; the message names the first that does.
    """
    for name, value in wanted.items():
        if known.get(name) != value:
            raise ConfigError(
                f"{folder} holds a job with {name} = {known.get(name)!r}, not {value!r}; "
                "give another folder, or delete that one to start again"
            )


def _toml(pipeline: Pipeline) -> str | None:
    try:
        return with_store(pipeline, None).to_toml()
    except ConfigError:  # a stage of the caller's own, or a tokenizer without a name
        return None


def describe(state: State, job_state: JobState, *, about: Mapping[str, Any], is_complete: bool = True) -> Manifest:
    """Return the manifest of a job.

    Args:
        state: What was done.
        job_state: How the job stands.
        about: What to put in besides: see ``environment``.
        is_complete: Whether to count and hash what takes a look at every document; else that is None.
    """
    run = state.run()
    totals = state.totals()
    n_files, bytes_in = state.files()
    ok, failed = totals["ok"], totals["quarantined"]["n"] + totals["unreadable"]["n"]
    changes = state.changes() if is_complete else dict.fromkeys(("added", "changed", "unchanged"))
    return {
        "schema_version": _SCHEMA_VERSION,
        "state": job_state,
        "documents_sha256": state.digest() if is_complete else None,
        "counts": {
            "files": n_files,
            "documents": ok["n"],
            "segments": ok["n_segments"],
            "bytes_in": bytes_in,
            "text_bytes": ok["n_bytes"],
            "tokens_before": ok["tokens_before"],
            "tokens_after": ok["tokens_after"],
            "quarantined": failed,
            "duplicates": totals["duplicate"]["n"],
            "equal_texts": state.n_equal_texts() if is_complete else None,
        },
        "run": {
            "number": run["number"],
            **changes,
            "deleted": run["n_deleted"],
            "quarantined": failed,
            "segments_stored": run["n_stored"],
            "segments_compressed": run["n_compressed"],
        },
        "seconds": round(run["seconds"], 3),
        "started": run["started"],
        "finished": run["finished"],
        **about,
        "settings": state.settings(),
    }


def environment(pipeline_toml: str | None = None, skipped: Mapping[str, int] | None = None) -> dict[str, Any]:
    """Return what a manifest says of pipeline, corpus, versions and machine.

    Args:
        pipeline_toml: The pipeline.
        skipped: Files by suffix that were passed over.
    """
    return {
        "skipped": None if skipped is None else dict(skipped),
        "pipeline_toml": pipeline_toml,
        "kompakt": version("kompakt"),
        "python": platform.python_version(),
        "machine": {"platform": platform.platform(), "cpus": os.cpu_count()},
    }


def write_manifest(folder: Path, manifest: Manifest) -> Path:
    """Write a manifest to a folder, whole or not at all, and return where it is.

    Raises:
        StoreError: If it cannot be written.
    """
    path = folder / MANIFEST_FILE
    text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
    replace_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return path


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of a folder; empty if there is none that can be read."""
    try:
        found = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write_failures(folder: Path, state: State) -> Path:
    """Write what was quarantined or could not be read, an object a line, and return where it is.

    Raises:
        StoreError: If it cannot be written.
    """
    path = folder / FAILURES_FILE

    def write(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8") as file:
            for failure in state.failures():
                file.write(json.dumps(failure._asdict(), ensure_ascii=False) + "\n")

    replace_file(path, write)
    return path
