"""How artefacts are written as bytes: vectors plainly, named tensors as safetensors, whole or quantised."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from kompakt.compressor.errors import ConfigError, MissingExtraError

if TYPE_CHECKING:
    import numpy as np

    Array: TypeAlias = np.ndarray

Precision: TypeAlias = Literal["full", "int8", "int4"]
_LEVELS: Final[Mapping[str, int]] = {"int8": 127, "int4": 7}
_META: Final = "kompakt"


def encode_floats(vector: Array) -> bytes:
    """Return a float32 vector as little-endian bytes: a header would take longer to read than the vector."""
    return vector.astype("<f4", copy=False).tobytes()


def decode_floats(data: bytes) -> Array:
    """Return the vector that ``encode_floats`` wrote, ``[D]``, read-only.

    Raises:
        ValueError: If the length is not that of a vector.
    """
    import numpy as np

    return np.frombuffer(data, dtype="<f4")


@dataclass(frozen=True, slots=True)
class CodecError:
    """What quantisation cost, measured on what was written.

    Args:
        largest: The largest absolute difference of a number.
        relative: Root of the mean squared difference, divided by that of the numbers.
    """

    largest: float
    relative: float


@dataclass(frozen=True, slots=True)
class TensorCodec:
    """Named tensors as safetensors.

    Quantised, each group of ``group`` numbers that follow each other shares a scale: symmetric, rounded to nearest.
    Only floating-point tensors are; the others stay as they are.

    Args:
        precision: ``full``, ``int8`` or ``int4``.
        group: Numbers that share a scale.

    Raises:
        ConfigError: If an option makes no sense.
    """

    precision: Precision = "full"
    group: int = 64

    def __post_init__(self) -> None:
        if self.precision not in ("full", *_LEVELS):
            raise ConfigError(f"precision must be full, int8 or int4, got {self.precision!r}")
        if self.group < 2 or self.group % 2:
            raise ConfigError(f"group must be an even number of at least 2, got {self.group}")

    def encode(self, tensors: Mapping[str, Array]) -> bytes:
        """Return tensors as bytes; the header states the error of each quantised one.

        Raises:
            ConfigError: If a name is ``__metadata__`` or contains ``::``, a type has no place in safetensors, or a
                number that is to be quantised is not finite in float32.
            MissingExtraError: If safetensors is not installed.
        """
        import numpy as np

        written: dict[str, Array] = {}
        described: dict[str, dict[str, object]] = {}
        for name, tensor in tensors.items():
            if "::" in name or name == "__metadata__":
                raise ConfigError(f"the name of a tensor must not be __metadata__ nor contain '::', got {name!r}")
            if self.precision == "full" or not np.issubdtype(tensor.dtype, np.floating):
                # not ascontiguousarray, which makes a vector of a single number
                written[name] = np.asarray(tensor, order="C")
                continue
            if not _fits_float32(tensor):
                raise ConfigError(
                    f"tensor {name!r} holds numbers that are not finite in float32; they cannot be quantised"
                )
            codes, scales = quantise(tensor, levels=_LEVELS[self.precision], group=self.group)
            restored = dequantise(codes, scales, shape=tensor.shape, group=self.group).astype(tensor.dtype)
            error = codec_error(tensor, restored)
            written[f"{name}::codes"] = _packed(codes) if self.precision == "int4" else codes
            written[f"{name}::scales"] = scales
            described[name] = {
                "shape": list(tensor.shape),
                "dtype": tensor.dtype.name,
                "precision": self.precision,
                "group": self.group,
                "error": [error.largest, error.relative],
            }
        return _safetensors().save(written, {_META: json.dumps(described)})

    @staticmethod
    def decode(data: bytes) -> dict[str, Array]:
        """Return the tensors that ``encode`` wrote, whatever its precision was.

        Raises:
            ValueError: If the bytes are not what ``encode`` writes.
            MissingExtraError: If safetensors is not installed.
        """
        described, written = _read(data)
        tensors: dict[str, Array] = {name: value for name, value in written.items() if "::" not in name}
        with _as_value_error():
            for name, about in described.items():
                codes = written[f"{name}::codes"]
                if about["precision"] == "int4":
                    codes = _unpacked(codes)
                restored = dequantise(
                    codes, written[f"{name}::scales"], shape=tuple(about["shape"]), group=int(about["group"])
                )
                tensors[name] = restored.astype(about["dtype"])
        return tensors

    @staticmethod
    def errors(data: bytes) -> dict[str, CodecError]:
        """Return the error of each tensor that was quantised, as measured when it was.

        Raises:
            ValueError: If the bytes are not what ``encode`` writes.
        """
        described, _ = _read(data)
        with _as_value_error():
            return {name: CodecError(*about["error"]) for name, about in described.items()}


def quantise(tensor: Array, *, levels: int, group: int) -> tuple[Array, Array]:
    """Quantise groups of consecutive numbers to ``[-levels, levels]``.

    Args:
        tensor: Finite floating-point numbers of any shape; the last group is filled with zeros.
        levels: The largest code.
        group: Numbers that share a scale.

    Returns:
        Codes, int8 ``[n_groups, group]``, and scales, float32 ``[n_groups, 1]``.
    """
    import numpy as np

    flat = np.asarray(tensor, dtype=np.float32).reshape(-1)
    padded = np.zeros(-(-max(flat.size, 1) // group) * group, dtype=np.float32)
    padded[: flat.size] = flat
    rows = padded.reshape(-1, group)
    # the largest code times a scale that was rounded up must not overflow
    limit = np.nextafter(np.float32(np.finfo(np.float32).max / levels), np.float32(0))
    scales = np.minimum(np.abs(rows).max(axis=1, keepdims=True) / levels, limit)
    codes = np.rint(np.divide(rows, scales, out=np.zeros_like(rows), where=scales > 0))
    return np.clip(codes, -levels, levels).astype(np.int8), scales.astype(np.float32)


def dequantise(codes: Array, scales: Array, *, shape: tuple[int, ...], group: int) -> Array:
    """Return the numbers that codes stand for, float32 of the given shape."""
    import numpy as np

    numbers = codes.reshape(-1, group).astype(np.float32) * scales.reshape(-1, 1)
    restored: Array = numbers.reshape(-1)[: int(np.prod(shape))].reshape(shape)
    return restored


def codec_error(before: Array, after: Array) -> CodecError:
    """Measure how far ``after`` is from ``before``, two arrays of one shape."""
    import numpy as np

    if before.size == 0:
        return CodecError(0.0, 0.0)
    exact = np.asarray(before, dtype=np.float64)
    difference = np.asarray(after, dtype=np.float64) - exact
    size = float(np.sqrt(np.mean(exact**2)))
    return CodecError(float(np.abs(difference).max()), float(np.sqrt(np.mean(difference**2))) / size if size else 0.0)


def _packed(codes: Array) -> Array:
    import numpy as np

    shifted = (codes.reshape(-1) + 8).astype(np.uint8)
    packed: Array = shifted[0::2] | (shifted[1::2] << 4)
    return packed


def _unpacked(packed: Array) -> Array:
    import numpy as np

    both = np.stack([packed & 0x0F, packed >> 4], axis=1)
    unpacked: Array = both.reshape(-1).astype(np.int8) - 8
    return unpacked


def _fits_float32(tensor: Array) -> bool:
    import numpy as np

    with np.errstate(over="ignore"):
        return bool(np.isfinite(tensor.astype(np.float32)).all())


def _read(data: bytes) -> tuple[dict[str, dict[str, Any]], dict[str, Array]]:
    with _as_value_error():
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        described = json.loads(header["__metadata__"][_META])
        return described, _safetensors().load(data)


@contextmanager
def _as_value_error() -> Iterator[None]:
    """Turn what bytes that are none of ours can cause into ``ValueError``."""
    try:
        yield
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"not tensors as kompakt writes them: {error}") from error


class _Safetensors:
    """The two functions of safetensors that are used, with its errors as ``ValueError``."""

    @staticmethod
    def save(tensors: dict[str, Array], metadata: dict[str, str]) -> bytes:
        from safetensors import SafetensorError
        from safetensors.numpy import save

        try:
            return save(tensors, metadata=metadata)
        except (SafetensorError, ValueError) as error:
            types = ", ".join(sorted({value.dtype.name for value in tensors.values()}))
            raise ConfigError(f"safetensors cannot write these tensors, of {types}: {error}") from error

    @staticmethod
    def load(data: bytes) -> dict[str, Array]:
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            return load(data)
        except SafetensorError as error:
            raise ValueError(f"not tensors as kompakt writes them: {error}") from error


def _safetensors() -> _Safetensors:
    try:
        import safetensors  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("storing tensors", "local") from error
    return _Safetensors()
