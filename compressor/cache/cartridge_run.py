"""The folder of a fitting: what was asked, the conversations, and the state from which it goes on."""

from __future__ import annotations

import json
import os
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from kompakt.compressor.cache.self_study import Conversation
from kompakt.compressor.errors import ConfigError, ModelError
from kompakt.compressor.file_locks import lock, unlock

SCHEMA_VERSION: Final = 1
RUN_FILE: Final = "run.json"
CHECKPOINT_FILE: Final = "checkpoint.json"
LOCK_FILE: Final = ".lock"
_FIELDS: Final = ("ids", "top_ids", "top_log_p")
_STEP_FILE: Final = re.compile(r"step-\d{6,}\.safetensors")
_UNFINISHED: Final = re.compile(r"\.[a-z].*\.[0-9a-f]{8}\.new")


@dataclass(frozen=True, slots=True, eq=False)
class FitState:
    """How far a fitting is.

    Args:
        losses: The loss of each step done.
        held_out: The held-out loss before the first step; None if nothing is held out.
        tensors: The trained entries, and what the optimiser remembers of them.
    """

    losses: tuple[float, ...]
    held_out: float | None
    tensors: Mapping[str, torch.Tensor]


class CartridgeRun:
    """The folder of a fitting, made if it does not exist, and locked until it is closed or its process ends.

    A file is there as a whole or not at all, whenever the process is killed.

    Args:
        path: Where it is.
        settings: What decides the result, as JSON.

    Raises:
        ConfigError: If it holds another fitting or other files, is in use, or cannot be made.
        ModelError: If its files are damaged.
    """

    def __init__(self, path: str | os.PathLike[str], settings: Mapping[str, Any]) -> None:
        self.path = Path(path).expanduser()
        self._tensors: str | None = None
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            names = set(os.listdir(self.path))
            # nothing is written into a folder that is somebody else's
            if RUN_FILE not in names and any(name != LOCK_FILE and not _UNFINISHED.fullmatch(name) for name in names):
                raise ConfigError(f"{self.path} holds other files: give a new or empty folder")
            self._lock_file = (self.path / LOCK_FILE).open("ab")
        except OSError as error:
            raise ConfigError(f"cannot use {self.path} as the folder of a run: {error.strerror or error}") from error
        try:
            self._acquire()
            # through JSON, so that what is compared is what is read back
            wanted = json.loads(json.dumps({"schema_version": SCHEMA_VERSION, "settings": settings}))
            if not (self.path / RUN_FILE).exists():
                self._write_json(RUN_FILE, wanted)
            self._compare(self._read_json(RUN_FILE), wanted)
            self._remove_unfinished()
        except BaseException:
            self._lock_file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Let others use the folder."""
        unlock(self._lock_file.fileno())
        self._lock_file.close()

    def _acquire(self) -> None:
        try:
            lock(self._lock_file.fileno())
        except (BlockingIOError, PermissionError) as error:
            raise ConfigError(
                f"{self.path} is in use by another process: wait for it, or give another folder"
            ) from error
        except OSError as error:
            raise ConfigError(
                f"cannot lock {self.path}: {error.strerror or error}; give a folder on another disk"
            ) from error

    def _remove_unfinished(self) -> None:
        """Remove what killed processes were writing."""
        for name in os.listdir(self.path):
            if _UNFINISHED.fullmatch(name):
                (self.path / name).unlink(missing_ok=True)

    def _compare(self, known: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
        if known.get("schema_version") != SCHEMA_VERSION:
            raise ConfigError(
                f"{self.path} has the schema version {known.get('schema_version')!r}; this version of kompakt goes "
                f"on with {SCHEMA_VERSION}: give another folder"
            )
        theirs = known.get("settings")
        if not isinstance(theirs, dict):
            raise ModelError(f"{self.path / RUN_FILE} is damaged: give another folder")
        for name, value in wanted["settings"].items():
            if theirs.get(name) != value:
                raise ConfigError(
                    f"{self.path} holds a run with {name} = {theirs.get(name)!r}, not {value!r}; "
                    "give another folder, or delete that one to start again"
                )

    def conversations(self, number: int) -> list[Conversation] | None:
        """Return a batch of conversations; None if it was not written."""
        tensors_file = self.path / f"{_batch_name(number)}.safetensors"
        if not tensors_file.exists():
            return None
        try:
            tensors = load_file(tensors_file)
            # what a text says may hold other ends of lines, which JSON does not escape
            lines = tensors_file.with_suffix(".jsonl").read_text(encoding="utf-8").split("\n")[:-1]
            n_conversations = sum(name.endswith(f".{_FIELDS[0]}") for name in tensors)
            if len(lines) != n_conversations:
                raise ValueError(f"it holds {n_conversations} conversations, and {len(lines)} are described")
            return [_conversation(tensors, index, json.loads(line)) for index, line in enumerate(lines)]
        except (OSError, SafetensorError, LookupError, ValueError) as error:
            raise ModelError(f"{tensors_file} is damaged: {error}; delete it to have it made again") from error

    def add_conversations(self, number: int, conversations: Sequence[Conversation]) -> None:
        """Write a batch of conversations: what they say as JSON lines, the rest as tensors."""
        lines = (json.dumps(one.record, ensure_ascii=False) + "\n" for one in conversations)
        text = "".join(lines).encode("utf-8", "backslashreplace")
        self._write(f"{_batch_name(number)}.jsonl", lambda path: path.write_bytes(text))
        tensors = {
            f"{index}.{field}": getattr(one, field).to(torch.float32 if field == _FIELDS[2] else torch.int32)
            for index, one in enumerate(conversations)
            for field in _FIELDS
        }
        # written last, it says that the batch is there
        self._write(f"{_batch_name(number)}.safetensors", lambda path: save_file(tensors, path))

    def state(self) -> FitState | None:
        """Return the state that was saved last; None for a run that has done no step."""
        if not (self.path / CHECKPOINT_FILE).exists():
            return None
        known = self._read_json(CHECKPOINT_FILE)
        try:
            name = known["tensors"]
            if not _STEP_FILE.fullmatch(name):
                raise ValueError(f"its tensors cannot be in {name!r}")
            state = FitState(tuple(known["losses"]), known["held_out"], load_file(self.path / name))
        except (OSError, SafetensorError, LookupError, TypeError, ValueError) as error:
            raise ModelError(
                f"the checkpoint in {self.path} is damaged: {error!r}; delete {CHECKPOINT_FILE} to fit again"
            ) from error
        self._tensors = name
        return state

    def save(self, state: FitState) -> None:
        """Save a state in place of the one before."""
        step = len(state.losses)
        name = f"step-{step:06d}.safetensors"
        tensors = {key: value.detach().cpu().contiguous() for key, value in state.tensors.items()}
        self._write(name, lambda path: save_file(tensors, path))
        content = {
            "schema_version": SCHEMA_VERSION,
            "step": step,
            "tensors": name,
            "held_out": state.held_out,
            "losses": state.losses,
        }
        # names the tensors that belong to it, so that a kill between the two leaves the state before
        self._write_json(CHECKPOINT_FILE, content)
        if self._tensors is not None and self._tensors != name:
            (self.path / self._tensors).unlink(missing_ok=True)
        self._tensors = name

    def _read_json(self, name: str) -> dict[str, Any]:
        try:
            content = json.loads((self.path / name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ModelError(f"{self.path / name} cannot be read: {error}; give another folder") from error
        if not isinstance(content, dict):
            raise ModelError(f"{self.path / name} must be an object, got {content!r}; give another folder")
        return content

    def _write_json(self, name: str, content: Mapping[str, Any]) -> None:
        text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        self._write(name, lambda path: path.write_text(text, encoding="utf-8"))

    def _write(self, name: str, write: Callable[[Path], object]) -> None:
        unfinished = self.path / f".{name}.{uuid.uuid4().hex[:8]}.new"
        try:
            write(unfinished)
            with unfinished.open("rb+") as written:
                os.fsync(written.fileno())
            unfinished.replace(self.path / name)
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{self.path / name} cannot be written: {error}; is the disk full?") from error
        finally:
            unfinished.unlink(missing_ok=True)


def _conversation(tensors: Mapping[str, torch.Tensor], index: int, record: Mapping[str, Any]) -> Conversation:
    ids, top_ids, top_log_p = (tensors[f"{index}.{field}"] for field in _FIELDS)
    return Conversation(ids.long(), top_ids.long(), top_log_p, record)


def _batch_name(number: int) -> str:
    return f"conversations-{number:05d}"
