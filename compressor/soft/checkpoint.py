"""Checkpoints of soft compressors: a folder with ``checkpoint.json`` and ``weights.safetensors``."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from kompakt.compressor.errors import ConfigError, ModelError, ModelNotFoundError
from kompakt.compressor.models.locate import model_path, weights_fingerprint

SCHEMA_VERSION: Final = 1
SETTINGS_FILE: Final = "checkpoint.json"
WEIGHTS_FILE: Final = "weights.safetensors"


@dataclass(frozen=True, slots=True)
class ModelReference:
    """A model that a checkpoint builds upon.

    Args:
        name: A named model, the path of a folder, or that of a folder inside the checkpoint.
        fingerprint: SHA-256 over its files; see ``weights_fingerprint``.
        is_inside: Whether ``name`` is a folder of the checkpoint.
        plain_rope: Whether the method was trained with the model's frequency scaling switched off.
    """

    name: str
    fingerprint: str
    is_inside: bool = False
    plain_rope: bool = False

    @property
    def space(self) -> str:
        """Fingerprint of the decoder as the method uses it."""
        return space_of(self.fingerprint, plain_rope=self.plain_rope)


def space_of(fingerprint: str, *, plain_rope: bool = False, adapter: str = "") -> str:
    """Return what identifies a decoder to the parts that it reads.

    Args:
        fingerprint: SHA-256 over its files.
        plain_rope: Whether its frequency scaling is switched off.
        adapter: Fingerprint of the checkpoint whose adapter it has; empty for none.
    """
    return fingerprint + (":plain-rope" if plain_rope else "") + (f":{adapter}" if adapter else "")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The weights of one method.

    Args:
        method: The compressor's registry name.
        settings: What the method must know to read its weights, as JSON.
        models: The models that it builds upon, by role: ``base``, ``encoder``, ``decoder.0`` and so on.
        tensors: Its own weights.
        made_from: Where they come from, for people.
        folder: Where it was read from.
        fingerprint: SHA-256 over its files.
    """

    method: str
    settings: Mapping[str, Any]
    models: Mapping[str, ModelReference]
    tensors: Mapping[str, torch.Tensor] = field(repr=False)
    made_from: str = ""
    folder: Path | None = None
    fingerprint: str = ""

    def resolve(self, role: str, override: str | os.PathLike[str] | None = None) -> Path:
        """Return the folder of a model that the weights were made for.

        Args:
            role: Which one.
            override: Where it is on this machine, if not where the checkpoint says.

        Raises:
            ModelError: If what is there is another model.
            ModelNotFoundError: If nothing is there.
        """
        reference = self.models[role]
        inside = self.folder / reference.name if self.folder and reference.is_inside else None
        try:
            path = inside or model_path(override or reference.name)
        except ModelNotFoundError as error:
            raise ModelNotFoundError(f"{error}. It is the {role} of the checkpoint {self.folder}") from error
        found = weights_fingerprint(path)
        if found != reference.fingerprint:
            raise ModelError(
                f"the checkpoint {self.folder} was made for the {role} {reference.name!r} with the fingerprint "
                f"{reference.fingerprint[:12]}; {os.fspath(path)!r} has {found[:12]}: name the right folder"
            )
        return path


def read_checkpoint(folder: str | os.PathLike[str], method: str | None = None) -> Checkpoint:
    """Read a checkpoint, of a given method or of any.

    Raises:
        ModelNotFoundError: If there is none.
        ModelError: If it is damaged, of another method, or of a later version.
    """
    root = Path(folder).expanduser()
    settings = _read_settings(root)
    if settings.get("schema_version") != SCHEMA_VERSION:
        raise ModelError(
            f"{root} has the schema version {settings.get('schema_version')!r}; this version of kompakt reads "
            f"{SCHEMA_VERSION}"
        )
    if method is not None and settings.get("method") != method:
        raise ModelError(f"{root} holds weights of {settings.get('method')!r}, not of {method!r}")
    try:
        models = {role: ModelReference(**reference) for role, reference in settings["models"].items()}
        tensors = load_file(root / WEIGHTS_FILE)
        return Checkpoint(
            settings["method"],
            settings["settings"],
            models,
            tensors,
            settings["made_from"],
            root,
            weights_fingerprint(root),
        )
    except (OSError, SafetensorError, LookupError, TypeError, AttributeError) as error:
        raise ModelError(f"the checkpoint {root} is damaged: {error!r}") from error


def _read_settings(root: Path) -> dict[str, Any]:
    try:
        settings = json.loads((root / SETTINGS_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelNotFoundError(
            f"{os.fspath(root)!r} is no checkpoint: it has no {SETTINGS_FILE}. Released weights are made into one "
            "by `kompakt models convert`"
        ) from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{root / SETTINGS_FILE} cannot be read: {error}") from error
    if not isinstance(settings, dict):
        raise ModelError(f"{root / SETTINGS_FILE} must be an object, got {settings!r}")
    return settings


def write_checkpoint(folder: str | os.PathLike[str], checkpoint: Checkpoint) -> Path:
    """Write a checkpoint into a folder, which may hold the models inside it already but no other checkpoint.

    Raises:
        ConfigError: If there is a checkpoint in the folder.
        ModelError: If it cannot be written.
    """
    root = Path(folder).expanduser()
    if (root / SETTINGS_FILE).exists():
        raise ConfigError(f"{os.fspath(root)!r} holds a checkpoint already: name an empty folder")
    data = {
        "schema_version": SCHEMA_VERSION,
        "method": checkpoint.method,
        "made_from": checkpoint.made_from,
        "settings": dict(checkpoint.settings),
        "models": {role: asdict(reference) for role, reference in checkpoint.models.items()},
    }
    try:
        root.mkdir(parents=True, exist_ok=True)
        own = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in checkpoint.tensors.items()}
        save_file(own, root / WEIGHTS_FILE)
        (root / SETTINGS_FILE).write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise ModelError(f"the checkpoint {root} cannot be written: {error}") from error
    return root
