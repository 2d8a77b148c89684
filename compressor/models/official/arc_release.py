"""What the files of an ARC-Encoder release or training run say about the network."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from kompakt.compressor.errors import ModelError, ModelNotFoundError
from kompakt.compressor.models.official.tensors import Stored, open_file, open_model, read_json

_FORMATS: Final = (".yaml", ".yml", ".json")
_DEFAULT_THETA: Final = 1e6
"""What the authors' code takes where a configuration in its own format has none."""

_MAX_POSITIONS: Final = 32768
"""The most tokens that the authors' code reads at once."""

_BRIDGES: Final = ("mlp", "linear", "rms", "multi_module")
_OLD_NAMES: Final = {f"embedder.{kind}_tok.weight": f"embedder.{kind}_tok.0.weight" for kind in ("cont", "rec")}


@dataclass(frozen=True, slots=True)
class Variant:
    """The variant of the method.

    Args:
        trained_rate: Tokens that one vector stands for in training.
        n_truncated: Layers of the backbone that were left out.
        bridge: The type of the bridges.
        d_hidden: Their rank; None where the weights decide.
        special: Which special vectors there must be: ``cont``, ``rec``.
    """

    trained_rate: int
    n_truncated: int
    bridge: str
    d_hidden: int | None
    special: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Backbone:
    """The model that the encoder was made of; None where the weights decide.

    Args:
        n_layers: Its layers, or those that are left.
        hidden_size: Width of its hidden states.
        n_heads: Query heads.
        n_kv_heads: Key heads.
        head_dim: Width of a head.
        intermediate_size: Width of its feed-forward layers.
        vocab_size: Rows of its embedding table.
        rope_theta: Base of its rotary frequencies.
        norm_eps: What normalisations add to the variance.
        max_positions: The most tokens that it reads at once.
    """

    n_layers: int
    hidden_size: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    intermediate_size: int | None
    vocab_size: int | None
    rope_theta: float
    norm_eps: float
    max_positions: int


@dataclass(frozen=True, slots=True)
class Release:
    """A release or a training run.

    Args:
        where: Its folder, for messages.
        variant: The variant of the method.
        backbone: What the encoder was made of.
        tensors: All weights, by the names of the public releases.
    """

    where: Path
    variant: Variant
    backbone: Backbone
    tensors: Mapping[str, Stored]


def open_release(source: Path, encoder_config: Path | None = None) -> Release:
    """Read what a release or a training run holds.

    Args:
        source: Folder of a release (one file of weights with its configuration) or of a training run (its last
            checkpoint is taken).
        encoder_config: The backbone's own configuration, where the release has none: Meta's ``params.json`` or a
            ``config.json`` of Hugging Face.

    Raises:
        ModelError: If something is missing, damaged, or of a variant that is not known here.
    """
    if (source / "checkpoints").is_dir():
        where = _last_checkpoint(source)
        file = where / "params.json"
        config = _read(file)
        names = {kind: where / kind / "consolidated.safetensors" for kind in ("embedder", "bridge_module")}
        tensors = {f"{kind}.{name}": one for kind, path in names.items() for name, one in open_file(path).items()}
    else:
        where = source
        file, config = _configuration(source)
        tensors = open_model(source)
    variant = _variant(_Fields(file, config))
    backbone = _backbone(file, config, encoder_config)
    return Release(where, variant, backbone, {_OLD_NAMES.get(name, name): one for name, one in tensors.items()})


def _last_checkpoint(source: Path) -> Path:
    found = {
        int(match[1]): path
        for path in (source / "checkpoints").iterdir()
        if path.is_dir() and (match := re.fullmatch(r"checkpoint_(\d+)", path.name))
    }
    if not found:
        raise ModelNotFoundError(
            f"{source / 'checkpoints'} has no folder checkpoint_NUMBER: name the folder of a run"
        )
    return found[max(found)]


def _configuration(source: Path) -> tuple[Path, dict[str, Any]]:
    """Return the first file that describes an encoder, and what is in it."""
    for suffix in _FORMATS:
        for file in sorted(source.glob(f"*{suffix}")):
            config = _read(file)
            if "embedder_args" in config or "embedder_params" in config:
                return file, config
    raise ModelNotFoundError(
        f"{source} is neither a release (no yaml or json file in it has embedder_args) nor a training run (it has no "
        "folder checkpoints): name the folder of one"
    )


def _read(file: Path) -> dict[str, Any]:
    if file.suffix == ".json":
        return read_json(file)
    import yaml  # type: ignore[import-untyped, unused-ignore]

    try:
        data = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ModelError(f"{file} cannot be read: {error}; copy it again") from error
    if not isinstance(data, dict):
        raise ModelError(f"{file} must hold fields by name, got {type(data).__name__}")
    return data


class _Fields:
    """The fields of a configuration file, checked as they are read.

    Args:
        file: The file, for messages.
        data: What is in it, or in one of its fields.
        path: The name of that field with a dot, for messages.
    """

    def __init__(self, file: Path, data: Mapping[str, Any], path: str = "") -> None:
        self.file = file
        self.data = data
        self._path = path

    def inner(self, *names: str) -> _Fields:
        """Return the fields in the first of these that is there."""
        name = next((name for name in names if name in self.data), names[0])
        data = self.data.get(name)
        if not isinstance(data, Mapping):
            raise ModelError(f"{self.file} has no fields {self._path}{name}: copy the file of the release again")
        return _Fields(self.file, data, f"{self._path}{name}.")

    def number(self, *names: str) -> float | None:
        """Return the positive number in the first of these that is there."""
        for name in names:
            value = self.data.get(name)
            if value is None:
                continue
            try:
                # yaml takes 1e-5 for text
                number = float(value) if isinstance(value, str) else value
            except ValueError:
                number = None
            if not isinstance(number, (int, float)) or isinstance(number, bool):
                raise self.wrong(name, "a number")
            if number > 0:
                return number
        return None

    def whole(self, *names: str) -> int | None:
        """Return the positive whole number in the first of these that is there."""
        value = self.number(*names)
        if value is not None and value != int(value):
            raise self.wrong(next(name for name in names if self.data.get(name) is not None), "a whole number")
        return None if value is None else int(value)

    def needed(self, *names: str) -> int:
        """Return what ``whole`` does, which must be there."""
        value = self.whole(*names)
        if value is None:
            got = self.data.get(names[0])
            raise ModelError(f"{self.file} must have a positive {self._path}{names[0]}, got {got!r}")
        return value

    def wrong(self, name: str, wanted: str) -> ModelError:
        """Return the error that says what a field should be."""
        return ModelError(
            f"{self.file} has {self._path}{name} = {self.data.get(name)!r}, and only {wanted} is supported here"
        )


def _variant(config: _Fields) -> Variant:
    embedder = config.inner("embedder_args", "embedder_params")
    bridge = config.inner("bridge_args", "bridge_module")
    pooling = embedder.inner("pooling_module")
    for name, only in (("pool_type", "mean_pooled_queries"), ("where", "before")):
        if pooling.data.get(name) != only:
            raise pooling.wrong(name, repr(only))
    for name in ("causal_embedder", "memory_tokens"):
        if embedder.data.get(name):
            raise embedder.wrong(name, "what is not causal and has no memory tokens (false, 0)")
    rates = embedder.data.get("compress_rates")
    if not isinstance(rates, list) or len(rates) != 1 or type(rates[0]) is not int or rates[0] >= 0:
        raise embedder.wrong("compress_rates", "a list of one negative whole number, such as [-8],")
    if bridge.data.get("bridge_type") not in _BRIDGES:
        raise bridge.wrong("bridge_type", f"one of {', '.join(_BRIDGES)}")
    return Variant(
        trained_rate=-rates[0],
        n_truncated=embedder.whole("n_truncated_layers") or 0,
        bridge=bridge.data["bridge_type"],
        d_hidden=bridge.whole("hidden_dim"),
        special=tuple(kind for kind in ("cont", "rec") if embedder.data.get(f"{kind}_tok")),
    )


def _backbone(file: Path, config: Mapping[str, Any], encoder_config: Path | None) -> Backbone:
    if encoder_config is not None:
        fields = _Fields(encoder_config, _read(encoder_config))
    elif "model_args" in config:
        fields = _Fields(file, config).inner("model_args")
    else:
        raise ModelError(
            f"{file} has no model_args: name the configuration of the model that the encoder was made of, its "
            "params.json or config.json, with --encoder-config"
        )
    hidden_size = fields.needed("dim", "hidden_size")
    n_heads = fields.needed("n_heads", "num_attention_heads")
    n_kv_heads = fields.whole("n_kv_heads", "num_key_value_heads") or n_heads
    return Backbone(
        n_layers=fields.needed("n_layers", "num_hidden_layers"),
        hidden_size=hidden_size,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=fields.whole("head_dim") or hidden_size // n_heads,
        # the field of that name in Meta's format; that of Hugging Face has another
        intermediate_size=fields.whole("intermediate_size", "hidden_dim"),
        vocab_size=fields.whole("vocab_size"),
        rope_theta=_theta(fields),
        norm_eps=fields.number("norm_eps", "rms_norm_eps") or 1e-5,
        max_positions=fields.whole("max_position_embeddings") or _MAX_POSITIONS,
    )


def _theta(fields: _Fields) -> float:
    is_hugging_face = "hidden_size" in fields.data
    nested = fields.data.get("rope_parameters")
    if isinstance(nested, Mapping) and "rope_theta" in nested:
        fields = fields.inner("rope_parameters")
    return float(fields.number("rope_theta") or (10000.0 if is_hugging_face else _DEFAULT_THETA))
