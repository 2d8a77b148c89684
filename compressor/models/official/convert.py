"""Conversion of released weights: which method, with which options, and a folder that is whole or not there."""

from __future__ import annotations

import dataclasses
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from kompakt.compressor.errors import ConfigError, MissingExtraError, ModelError, ModelNotFoundError

if TYPE_CHECKING:
    from kompakt.compressor.soft.checkpoint import Checkpoint

METHODS: Final = ("500x-compressor", "activation-beacon", "arc-encoder", "auto-compressor", "icae")
"""Methods whose authors released weights that can be converted."""

_TAKES: Final = {
    "500x-compressor": ("base", "alpha"),
    "activation-beacon": ("base", "tokenizer"),
    "arc-encoder": ("decoders", "tokenizer", "encoder_config"),
    "auto-compressor": ("tokenizer",),
    "icae": ("base", "alpha", "marker"),
}
_NEEDS: Final = {"500x-compressor": ("base",), "arc-encoder": ("decoders",), "icae": ("base",)}
_ON_COMMAND_LINE: Final = {"decoders": "--decoder", "encoder_config": "--encoder-config"}


def convert(
    method: str,
    source: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    base: str | os.PathLike[str] | None = None,
    decoders: Sequence[str | os.PathLike[str]] = (),
    tokenizer: str | os.PathLike[str] | None = None,
    encoder_config: str | os.PathLike[str] | None = None,
    alpha: float | None = None,
    marker: str | None = None,
) -> Path:
    """Make a checkpoint of the weights that a method's authors released.

    Nothing is downloaded and no code of a release runs. A conversion that fails leaves nothing behind.

    Args:
        method: ``500x-compressor``, ``activation-beacon``, ``arc-encoder``, ``auto-compressor`` or ``icae``.
        source: The release on this machine: its folder; for ``500x-compressor`` and ``icae`` also its file.
        folder: The checkpoint's folder; it must be new or empty.
        base: For ``500x-compressor`` and ``icae``: the model that the weights were trained for, a named model or the
            path of its folder. For ``activation-beacon``: the same; the checkpoint refers to it if the release holds
            its weights unchanged, and else holds the release's own.
        decoders: For ``arc-encoder``: the decoders, in the order of the release.
        tokenizer: For ``activation-beacon``, ``arc-encoder`` and ``auto-compressor``: a folder with the
            ``tokenizer.json`` of the model inside the checkpoint, if it is not in the release.
        encoder_config: For ``arc-encoder``: the ``params.json`` or ``config.json`` of the model that the encoder was
            made of; training runs do not hold it.
        alpha: For ``500x-compressor`` and ``icae``: the scale of the adapter, 32 by default.
        marker: For ``icae``: what follows the memory of a context by default: ``ft`` for fine-tuned weights, ``ae``,
            ``lm`` or ``none``, which is the default.

    Returns:
        The checkpoint's folder, for ``kompakt.load(method, checkpoint=...)``.

    Raises:
        ConfigError: If an option is wrong, or ``folder`` holds something.
        ModelError: If the release is damaged, incomplete or of a variant that is not known here.
        ModelNotFoundError: If the release, a model or a tokenizer is not on this machine.
        MissingExtraError: If the extra ``local`` is not installed.
    """
    options = {
        "base": base,
        "decoders": tuple(decoders),
        "tokenizer": _path(tokenizer),
        "encoder_config": _path(encoder_config),
        "alpha": alpha,
        "marker": marker,
    }
    given = {name: value for name, value in options.items() if value is not None and value != ()}
    _check_options(method, given)
    release, target = _absolute(source), _absolute(folder)
    if not release.exists():
        raise ModelNotFoundError(f"there is no {os.fspath(source)!r}: name the folder of a release on this machine")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"{os.fspath(folder)!r} holds something already: name a new folder")
    step = _step(method)
    with _whole_or_nothing(target) as unfinished:
        from kompakt.compressor.soft.checkpoint import write_checkpoint

        checkpoint = step(release, unfinished, **given)
        made_from = f"the authors' release {release.name}"
        write_checkpoint(unfinished, dataclasses.replace(checkpoint, made_from=made_from))
    return target


def _path(name: str | os.PathLike[str] | None) -> Path | None:
    return None if name is None else Path(name).expanduser()


def _absolute(name: str | os.PathLike[str]) -> Path:
    return Path(os.path.abspath(os.path.expanduser(name)))


def _check_options(method: str, given: Mapping[str, Any]) -> None:
    if method not in METHODS:
        raise ConfigError(f"weights of {method!r} cannot be converted; known methods: {', '.join(METHODS)}")
    superfluous = [_spelling(name) for name in given if name not in _TAKES[method]]
    if superfluous:
        taken = ", ".join(map(_spelling, _TAKES[method]))
        raise ConfigError(f"{method} takes no {', '.join(superfluous)}; it takes {taken}")
    missing = [_spelling(name) for name in _NEEDS.get(method, ()) if name not in given]
    if missing:
        raise ConfigError(f"{method} needs {', '.join(missing)}: the models that its weights were trained for")


def _spelling(name: str) -> str:
    return _ON_COMMAND_LINE.get(name, f"--{name}")


def _step(method: str) -> Callable[..., Checkpoint]:
    try:
        from kompakt.compressor.models.official import (
            activation_beacon,
            arc_encoder,
            auto_compressor,
            five_hundred_x,
            icae,
        )
    except ModuleNotFoundError as error:
        raise MissingExtraError("the conversion of weights", "local") from error
    steps: Mapping[str, Callable[..., Checkpoint]] = {
        "500x-compressor": five_hundred_x.convert,
        "activation-beacon": activation_beacon.convert,
        "arc-encoder": arc_encoder.convert,
        "auto-compressor": auto_compressor.convert,
        "icae": icae.convert,
    }
    return steps[method]


@contextmanager
def _whole_or_nothing(target: Path) -> Iterator[Path]:
    """Give a folder beside the target, which takes its place if all goes well and else is removed."""
    unfinished = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    try:
        unfinished.mkdir(parents=True)
        yield unfinished
        if target.exists():
            # not every system renames onto an empty folder
            target.rmdir()
        unfinished.rename(target)
    except OSError as error:
        raise ModelError(f"{target} cannot be written: {error}") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
