"""Embeddings of a prompt from a quantised table."""

from collections.abc import Iterator
from functools import partial

import torch
from cases import Case

from kompakt.kernels.gather_dequantised import gather_dequantised, gather_dequantised_reference
from kompakt.kernels.quantisation import quantise

_GROUP = 64
_CODE_BYTES = {8: 1.0, 4: 0.5}


def cases(device: torch.device) -> Iterator[Case]:
    """A table ``[V, D]`` as of 8B parameters and 8,192 tokens, on a CPU as of 135M and 2,048."""
    (n_rows, width), n = ((128256, 4096), 8192) if device.type == "cuda" else ((49152, 576), 2048)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(n_rows, width, generator=generator).to(device)
    ids = torch.randint(0, n_rows, (n,), generator=generator).to(device)
    for bits in (8, 4):
        quantised = quantise(table, bits=bits, group=_GROUP)
        data = quantised.codes.view(n_rows, -1), quantised.scales.view(n_rows, -1), ids
        options = {"bits": bits, "group": _GROUP, "dtype": dtype}
        yield Case(
            operation="gather_dequantised",
            size=f"[{n_rows}, {width}], {n} ids, {bits} bits, groups of {_GROUP}",
            dtype=dtype,
            call=partial(gather_dequantised, *data, **options),
            reference=partial(gather_dequantised_reference, *data, **options),
            tolerance=0.0,
            flops=0,
            n_bytes=n * (8 + width * (dtype.itemsize + _CODE_BYTES[bits] + 4 / _GROUP)),
        )
