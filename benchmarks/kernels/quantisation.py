"""Quantisation of a key-value cache, and the way back."""

from collections.abc import Iterator
from functools import partial

import torch
from cases import Case

from kompakt.kernels.quantisation import dequantise, dequantise_reference, quantise, quantise_reference

_GROUP = 64
_CODE_BYTES = {8: 1.0, 4: 0.5}


def cases(device: torch.device) -> Iterator[Case]:
    """Keys and values ``[2, L, H_kv, n, D_head]``: of 8B parameters and 4,096 tokens, on a CPU of 135M and 128."""
    shape = (2, 32, 8, 4096, 128) if device.type == "cuda" else (2, 30, 3, 128, 64)
    cache = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    cache = cache.to(dtype)
    for bits in (8, 4):
        n_bytes = cache.numel() * (cache.itemsize + _CODE_BYTES[bits] + 4 / _GROUP)
        size = f"{list(shape)}, {bits} bits, groups of {_GROUP}"
        yield Case(
            operation="quantise",
            size=size,
            dtype=dtype,
            call=partial(_codes, quantise, cache, bits),
            reference=partial(_codes, quantise_reference, cache, bits),
            tolerance=0.0,
            flops=0,
            n_bytes=n_bytes,
        )
        quantised = quantise(cache, bits=bits, group=_GROUP)
        options = {"shape": shape, "bits": bits, "group": _GROUP, "dtype": dtype}
        yield Case(
            operation="dequantise",
            size=size,
            dtype=dtype,
            call=partial(dequantise, quantised.codes, quantised.scales, **options),
            reference=partial(dequantise_reference, quantised.codes, quantised.scales, **options),
            tolerance=0.0,
            flops=0,
            n_bytes=n_bytes,
        )


def _codes(function, cache, bits):
    return function(cache, bits=bits, group=_GROUP).codes
