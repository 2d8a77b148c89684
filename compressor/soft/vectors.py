"""How vectors are written as bytes: safetensors, whole or quantised."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from kompakt.compressor.store.codec import Precision, TensorCodec

_NAME: Final = "vectors"
_DTYPE: Final = "dtype"
_DTYPES: Final = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, slots=True)
class VectorCodec:
    """Vectors ``[m, D]`` as bytes.

    Args:
        precision: ``full`` keeps every bit; ``int8`` and ``int4`` quantise groups of 64 numbers, see ``TensorCodec``.

    Raises:
        ConfigError: If the precision is none of them.
    """

    precision: Precision = "full"

    def __post_init__(self) -> None:
        TensorCodec(self.precision)

    def encode(self, vectors: torch.Tensor) -> bytes:
        """Return vectors as bytes; quantised, the header states their error."""
        if self.precision == "full":
            return save({_NAME: vectors.contiguous()})
        dtype = np.array([_DTYPES.index(vectors.dtype)], dtype=np.uint8)
        return TensorCodec(self.precision).encode({_NAME: vectors.float().numpy(), _DTYPE: dtype})

    def decode(self, data: bytes) -> torch.Tensor:
        """Return the vectors that ``encode`` wrote, in their number format.

        Raises:
            ValueError: If the bytes are not what it writes.
        """
        try:
            if self.precision == "full":
                return load(data)[_NAME]
            tensors = TensorCodec.decode(data)
            return torch.from_numpy(tensors[_NAME]).to(_DTYPES[int(tensors[_DTYPE][0])])
        except (SafetensorError, LookupError, AttributeError, TypeError) as error:
            raise ValueError(f"not vectors as kompakt writes them: {error!r}") from error
