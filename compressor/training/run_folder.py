"""The folder of a training run: what was asked, and the state from which it goes on."""

from __future__ import annotations

import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from kompakt.compressor.errors import ConfigError, ModelError
from kompakt.compressor.file_locks import lock, unlock

RUN_FILE: Final = "run.json"
CHECKPOINT_FILE: Final = "checkpoint.json"
_LOCK_FILE: Final = ".lock"
_SCHEMA: Final = 1
_STEP_FILE: Final = re.compile(r"step-\d{6,}\.safetensors")
_UNFINISHED: Final = re.compile(r"\..*\.[0-9a-f]{8}\.(?:new|old)")


@dataclass(frozen=True, slots=True, eq=False)
class SavedState:
    """How far a run is.

    Args:
        step: Steps done.
        record: What else must be known, as JSON.
        tensors: The weights, and what the optimiser remembers of them.
    """

    step: int
    record: Mapping[str, Any]
    tensors: Mapping[str, torch.Tensor]


class RunFolder:
    """The folder of a run, made if it does not exist, and locked until it is closed or its process ends.

    A file is there as a whole or not at all, whenever the process is killed.

    Args:
        path: Where it is.
        identity: What decides the result, as JSON.

    Raises:
        ConfigError: If it holds another run or other files, is in use, or cannot be made.
        ModelError: If its files are damaged.
    """

    def __init__(self, path: str | os.PathLike[str], identity: Mapping[str, Any]) -> None:
        self.path = Path(path).expanduser()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            names = set(os.listdir(self.path))
            # nothing is written into a folder that is somebody else's
            if RUN_FILE not in names and any(
                name != _LOCK_FILE and not _UNFINISHED.fullmatch(name) for name in names
            ):
                raise ConfigError(f"{self.path} holds other files: give a new or empty folder")
            self._lock_file = (self.path / _LOCK_FILE).open("ab")
        except OSError as error:
            raise ConfigError(f"cannot use {self.path} as the folder of a run: {error.strerror or error}") from error
        try:
            self._acquire()
            self._remove_unfinished()
            # through JSON, so that what is compared is what is read back
            wanted = json.loads(json.dumps(identity))
            if not (self.path / RUN_FILE).exists():
                self._write_json(RUN_FILE, {"schema_version": _SCHEMA, "settings": wanted})
            self._compare(self._read_json(RUN_FILE).get("settings"), wanted)
        except BaseException:
            self._lock_file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
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
                _remove(self.path / name)

    def _compare(self, known: object, wanted: Mapping[str, Any]) -> None:
        if not isinstance(known, dict):
            raise ModelError(f"{self.path / RUN_FILE} is damaged: give another folder")
        for name, value in wanted.items():
            if known.get(name) != value:
                raise ConfigError(
                    f"{self.path} holds a run with {name} = {known.get(name)!r}, not {value!r}; "
                    "give another folder, or delete that one to start again"
                )

    def state(self) -> SavedState | None:
        """Return the state that was saved last; None for a run that has saved none.

        Raises:
            ModelError: If it is damaged.
        """
        if not (self.path / CHECKPOINT_FILE).exists():
            return None
        known = self._read_json(CHECKPOINT_FILE)
        try:
            name = known["tensors"]
            if not _STEP_FILE.fullmatch(name):
                raise ValueError(f"its tensors cannot be in {name!r}")
            state = SavedState(int(known["step"]), dict(known["record"]), load_file(self.path / name))
        except (OSError, SafetensorError, LookupError, TypeError, ValueError) as error:
            raise ModelError(
                f"the checkpoint in {self.path} is damaged: {error!r}; delete {CHECKPOINT_FILE} to train again"
            ) from error
        return state

    def save(self, state: SavedState) -> None:
        """Save a state in place of the one before.

        Raises:
            ModelError: If it cannot be written.
        """
        name = f"step-{state.step:06d}.safetensors"
        tensors = {key: value.detach().cpu().contiguous() for key, value in state.tensors.items()}
        self._write(name, lambda path: save_file(tensors, path))
        # names the tensors that belong to it, so that a kill between the two leaves the state before
        content = {"schema_version": _SCHEMA, "step": state.step, "tensors": name, "record": dict(state.record)}
        self._write_json(CHECKPOINT_FILE, content)
        for other in self.path.glob("step-*.safetensors"):
            if other.name != name:
                other.unlink()

    def write_text(self, name: str, text: str) -> None:
        """Write a text in place of the one before.

        Raises:
            ModelError: If it cannot be written.
        """
        self._write(name, lambda path: path.write_bytes(text.encode()))

    @contextmanager
    def new_folder(self, name: str) -> Iterator[Path]:
        """Give an empty folder, which takes the place of the one of that name once it is filled.

        Args:
            name: Its name in the end.
        """
        unfinished, old = (self.path / f".{name}.{uuid.uuid4().hex[:8]}.{end}" for end in ("new", "old"))
        unfinished.mkdir()
        try:
            yield unfinished
            if (self.path / name).exists():
                (self.path / name).replace(old)
            unfinished.replace(self.path / name)
        finally:
            _remove(unfinished)
            _remove(old)

    def _read_json(self, name: str) -> dict[str, Any]:
        path = self.path / name
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            version = content["schema_version"]
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise ModelError(f"{path} cannot be read: {error!r}; give another folder") from error
        if version != _SCHEMA:
            raise ConfigError(
                f"{path} has the schema version {version!r}; this version of kompakt goes on with {_SCHEMA}: "
                "give another folder"
            )
        return dict(content)

    def _write_json(self, name: str, content: Mapping[str, Any]) -> None:
        self.write_text(name, json.dumps(content, indent=1, ensure_ascii=False) + "\n")

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


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
