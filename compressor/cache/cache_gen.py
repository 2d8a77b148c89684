"""CacheGen: key-value caches as few bytes, by bins that suit each layer and an entropy coder."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
import torch
import zstandard

from kompakt.compressor.errors import ConfigError
from kompakt.compressor.soft.vectors import VectorCodec
from kompakt.compressor.store.codec import CodecError, Precision, TensorCodec

Level: TypeAlias = Literal["coarse", "medium", "fine"]
CachePrecision: TypeAlias = Precision | Literal["cachegen"]
Array: TypeAlias = npt.NDArray[Any]

_BINS: Final[Mapping[Level, tuple[tuple[int, int], tuple[int, int]]]] = {
    "coarse": ((32, 16), (32, 16)),
    "medium": ((64, 32), (32, 16)),
    "fine": ((128, 64), (64, 32)),
}
"""Bins of keys and of values, each in the first layers and in those that follow."""
_LAYERS: Final = 32
_FIRST_LAYERS: Final = (10, 2)
"""How many of 32 layers are first ones, for keys and for values."""
_N_CLASSES: Final = 16
_DTYPES: Final = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}
"""Number formats, and integers of their size."""
_CHECKSUM_BYTES: Final = 4


@dataclass(frozen=True, slots=True)
class CacheCodec:
    """Keys and values ``[2, L, H_kv, n, D_head]`` as bytes, a few bits a number.

    All numbers of a position in a layer share a scale, their largest magnitude. Each becomes one of the layer's bins,
    of which first layers and keys have more: what errs there costs most. Every channel's bins are then counted from
    its own mean, channels that vary alike make a class, and an entropy coder writes class by class.

    The paper has an arithmetic coder and a distribution for each channel. Here it is zstandard with its search for
    repetitions held back, so that what is left are Huffman codes for each class. On caches of SmolLM2-135M they take
    1 to 4 per cent more bytes than asymmetric numeral systems with a distribution for each class, and are read
    several times as fast. Distributions for each channel, which have to be written too, take more bytes than those
    for classes: up to 4 per cent for 1,000 positions, a fifth for 100.

    Two things were tried and left out, since more bins do better for the same bytes: a scale for each head, and keys
    whose channels' means are taken out before they are quantised. Keys without their rotation take 5 to 7 per cent
    fewer bytes for the same logits, which does not pay for rotating them anew.

    Source: Liu et al. 2024, "CacheGen: KV Cache Compression and Streaming for Fast Large Language Model Serving",
    section 5.2, and the table of bins in the code published with it, for 32 layers; other depths have their share.

    Args:
        level: ``coarse`` has the published bins, ``medium`` twice as many for keys, ``fine`` four times as many for
            keys and twice as many for values.

    Raises:
        ConfigError: If the level is none of them.
    """

    level: Level = "medium"

    def __post_init__(self) -> None:
        if self.level not in _BINS:
            raise ConfigError(f"level must be one of {', '.join(_BINS)}, got {self.level!r}")

    def encode(self, cache: torch.Tensor) -> bytes:
        """Return keys and values ``[2, L, H_kv, n, D_head]`` as bytes, with their error stated.

        Raises:
            ConfigError: If the tensor has another shape, is not of fp32, bf16 or fp16, or holds numbers that are not
                finite when multiplied by the number of bins.
        """
        quantised = self._quantised(cache)
        classes, means, rows = _grouped(quantised.codes)
        n_heads, width = cache.shape[2], cache.shape[4]
        error = quantised.error(cache)
        body = TensorCodec().encode(
            {
                "shape": np.array([n_heads, width], dtype=np.uint32),
                "dtype": np.array([list(_DTYPES).index(cache.dtype)], dtype=np.uint8),
                "error": np.array([error.largest, error.relative], dtype=np.float64),
                "steps": quantised.steps,
                "scales": quantised.scales.view(_DTYPES[cache.dtype]).numpy(),
                "channels": _packed([classes, means]),
                "codes": _packed(np.split(rows, np.bincount(classes).cumsum()[:-1])),
            }
        )
        return body + zlib.crc32(body).to_bytes(_CHECKSUM_BYTES, "little")

    @staticmethod
    def decode(data: bytes) -> torch.Tensor:
        """Return the keys and values that ``encode`` wrote, whatever its level was.

        Raises:
            ValueError: If the bytes are not what ``encode`` writes.
        """
        return _read(_fields(data)).cache()

    def rounded(self, cache: torch.Tensor) -> torch.Tensor:
        """Return keys and values as they are after a way through the store.

        Raises:
            ConfigError: See ``encode``.
        """
        return self._quantised(cache).cache()

    @staticmethod
    def error(data: bytes) -> CodecError:
        """Return what quantisation cost, as measured when it was done.

        Raises:
            ValueError: If the bytes are not what ``encode`` writes.
        """
        error = _field(_fields(data), "error", np.float64, (2,))
        return CodecError(float(error[0]), float(error[1]))

    def _quantised(self, cache: torch.Tensor) -> _Quantised:
        if cache.ndim != 5 or cache.shape[0] != 2 or 0 in (*cache.shape[:3], cache.shape[4]):
            raise ConfigError(f"a cache must be [2, L, H_kv, n, D_head] to be quantised, got {list(cache.shape)}")
        if cache.dtype not in _DTYPES:
            raise ConfigError(f"a cache must be of fp32, bf16 or fp16 to be quantised, got {cache.dtype}")
        steps = _steps(self.level, cache.shape[1])
        scales = cache.abs().amax(dim=(2, 4))
        if not (scales.float() * torch.from_numpy(steps)[..., None]).isfinite().all():
            raise ConfigError("a cache holds numbers that are not finite, or nearly so: they cannot be quantised")
        codes = np.empty(cache.transpose(3, 4).shape, dtype=np.uint8)
        for (side, layer), step in np.ndenumerate(steps):
            numbers = cache[side, layer].float().numpy()
            scale = scales[side, layer].float().numpy()[:, None]
            # a position of zeros alone has no scale to divide by
            ratios = np.divide(numbers * np.float32(step), scale, out=np.zeros_like(numbers), where=scale > 0)
            codes[side, layer] = np.rint(ratios + np.float32(step)).transpose(0, 2, 1)
        return _Quantised(codes, steps, scales)


def cache_codec(precision: CachePrecision) -> CacheCodec | VectorCodec:
    """Return what writes caches ``[2, L, H_kv, n, D_head]`` with a precision.

    Raises:
        ConfigError: If the precision is unknown.
    """
    if precision not in get_args(Precision) and precision != "cachegen":
        raise ConfigError(f"precision must be full, int8, int4 or cachegen, got {precision!r}")
    return CacheCodec() if precision == "cachegen" else VectorCodec(precision)


@dataclass(frozen=True, slots=True, eq=False)
class _Quantised:
    """A cache as bins.

    Args:
        codes: The bin of each number, ``[2, L, H_kv, D_head, n]``; its layer's ``step`` is the one of zero.
        steps: Bins on each side of zero, ``[2, L]``.
        scales: What the last bin stands for, ``[2, L, n]``, in the cache's number format.
    """

    codes: Array
    steps: Array
    scales: torch.Tensor

    def layer(self, side: int, layer: int) -> torch.Tensor:
        """Return the numbers that one layer's keys (side 0) or values stand for, ``[H_kv, n, D_head]``."""
        step = float(self.steps[side, layer])
        centred = torch.from_numpy(self.codes[side, layer]).float() - step
        numbers = centred / step * self.scales[side, layer].float()
        return numbers.to(self.scales.dtype).transpose(1, 2)

    def cache(self) -> torch.Tensor:
        """Return what the bins stand for, ``[2, L, H_kv, n, D_head]``."""
        _, n_layers, n_heads, width, n = self.codes.shape
        cache = torch.empty(2, n_layers, n_heads, n, width, dtype=self.scales.dtype)
        for side, layer in np.ndindex(2, n_layers):
            cache[side, layer] = self.layer(side, layer)
        return cache

    def error(self, cache: torch.Tensor) -> CodecError:
        """Measure how far the bins are from the cache that they were made of."""
        largest = squares = size = 0.0
        for side, layer in np.ndindex(*self.steps.shape):
            # sums of numpy do not depend on the number of threads
            exact = cache[side, layer].double().numpy()
            difference = self.layer(side, layer).double().numpy() - exact
            largest = max(largest, float(np.abs(difference).max(initial=0.0)))
            squares += float(np.square(difference).sum())
            size += float(np.square(exact).sum())
        return CodecError(largest, math.sqrt(squares / size) if size else 0.0)


def _steps(level: Level, n_layers: int) -> Array:
    """Return how many bins each layer's keys and values have on each side of zero, ``[2, L]``."""
    return np.array(
        [
            [
                # a layer lies where its middle does
                (first if (2 * layer + 1) * _LAYERS < 2 * n_first * n_layers else other) // 2 - 1
                for layer in range(n_layers)
            ]
            for (first, other), n_first in zip(_BINS[level], _FIRST_LAYERS, strict=True)
        ],
        dtype=np.uint8,
    )


def _grouped(codes: Array) -> tuple[Array, Array, Array]:
    """Return codes as they are written.

    Args:
        codes: ``[2, L, H_kv, D_head, n]``.

    Returns:
        The class of each channel ``[C]``; its mean ``[C]``; and what remains ``[C, n]``, class by class.
    """
    n = codes.shape[-1]
    rows = codes.reshape(math.prod(codes.shape[:-1]), n)
    means = np.rint(rows.sum(axis=1) / max(n, 1)).astype(np.uint8)
    # what is below the mean wraps around, here and where it is read
    rows = rows - means[:, None]
    spreads = np.square(rows.view(np.int8), dtype=np.int32).sum(axis=1)
    classes = np.empty(len(rows), dtype=np.uint8)
    classes[np.argsort(spreads, kind="stable")] = np.arange(len(rows)) * _N_CLASSES // len(rows)
    return classes, means, rows[np.argsort(classes, kind="stable")]


def _ungrouped(classes: Array, means: Array, rows: Array) -> Array:
    """Return the codes ``[C, n]`` that ``_grouped`` was given."""
    places = np.argsort(np.argsort(classes, kind="stable"), kind="stable")
    codes: Array = rows[places]
    codes += means[:, None]
    return codes


def _fields(data: bytes) -> dict[str, Array]:
    body, checksum = data[:-_CHECKSUM_BYTES], data[-_CHECKSUM_BYTES:]
    if zlib.crc32(body).to_bytes(_CHECKSUM_BYTES, "little") != checksum:
        raise ValueError("not a cache as kompakt writes it: its checksum is wrong")
    return TensorCodec.decode(body)


def _field(fields: Mapping[str, Array], name: str, dtype: npt.DTypeLike, shape: tuple[int | None, ...]) -> Array:
    """Return an array of a type and of a shape, None for any length."""
    array = fields.get(name)
    if (
        array is None
        or array.dtype != dtype
        or len(array.shape) != len(shape)
        or any(wanted not in (None, size) for wanted, size in zip(shape, array.shape, strict=True))
    ):
        raise ValueError(f"not a cache as kompakt writes it: {name} is missing or has another type or shape")
    return array


def _read(fields: Mapping[str, Array]) -> _Quantised:
    steps = _field(fields, "steps", np.uint8, (2, None))
    n_heads, width = map(int, _field(fields, "shape", np.uint32, (2,)))
    index = int(_field(fields, "dtype", np.uint8, (1,))[0])
    if index >= len(_DTYPES):
        raise ValueError(f"not a cache as kompakt writes it: it has no number format {index}")
    dtype = list(_DTYPES)[index]
    scales = _field(fields, "scales", np.dtype(f"i{dtype.itemsize}"), (*steps.shape, None))
    n = scales.shape[-1]
    n_channels = steps.size * n_heads * width
    classes, means = _unpacked(_field(fields, "channels", np.uint8, (None,)), (2, n_channels))
    rows = _unpacked(_field(fields, "codes", np.uint8, (None,)), (n_channels, n))
    codes = _ungrouped(classes, means, rows).reshape(*steps.shape, n_heads, width, n)
    # a copy, since torch takes no array that cannot be written
    return _Quantised(codes, steps, torch.from_numpy(scales.copy()).view(dtype))


def _packed(parts: Sequence[Array]) -> Array:
    """Return several arrays of bytes as one, each with Huffman codes of its own."""
    # matches would take bytes away from the Huffman codes, which do better on numbers without repetitions
    parameters = zstandard.ZstdCompressionParameters.from_level(
        1, strategy=zstandard.STRATEGY_FAST, min_match=7, hash_log=6
    )
    writer = zstandard.ZstdCompressor(compression_params=parameters).compressobj(
        size=sum(part.size for part in parts)
    )
    frame = bytearray()
    for part in parts:
        frame += writer.compress(part.tobytes())
        frame += writer.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
    frame += writer.flush()
    return np.frombuffer(bytes(frame), dtype=np.uint8)


def _unpacked(packed: Array, shape: tuple[int, ...]) -> Array:
    n_bytes = math.prod(shape)
    frame = packed.tobytes()
    try:
        if zstandard.get_frame_parameters(frame).content_size != n_bytes:
            raise ValueError(f"not a cache as kompakt writes it: its codes are not {n_bytes} bytes")
        return np.frombuffer(zstandard.ZstdDecompressor().decompress(frame), dtype=np.uint8).reshape(shape)
    except (zstandard.ZstdError, MemoryError) as error:
        raise ValueError(f"not a cache as kompakt writes it: {error}") from error
