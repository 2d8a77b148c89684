"""What the tests of key-value caches share: contexts as tokens, and weights for the references."""

import torch

from kompakt.compressor.cache.context import CacheContext
from kompakt.compressor.models.causal_lm import load_causal_lm
from kompakt.compressor.types import TextPart


def lm_of(folder, **options):
    return load_causal_lm(folder, **{"dtype": "float32", "device": "cpu"} | options)


def weights_of(folder):
    """The weights in float64 by name, and the configuration."""
    model = lm_of(folder).model
    return {name: tensor.double() for name, tensor in model.state_dict().items()}, model.config


def context_of(n_tokens, *, n_before=1, n_after=0, protected=(), seed=0):
    """Random tokens, between those of the prompt's beginning and of a question; up to 250 all differ."""
    generator = torch.Generator().manual_seed(seed)
    n_all = n_before + n_tokens + n_after
    ids = torch.cat([torch.randperm(250, generator=generator) + 1 for _ in range(-(-n_all // 250))])[:n_all].tolist()
    before, own, after = ids[:n_before], ids[n_before : n_before + n_tokens], ids[n_before + n_tokens :]
    return CacheContext(tuple(before), tuple(own), tuple(after), tuple(protected), TextPart("", (), ()))


def computed(compressor, context, n_keep):
    """Keys and values that a compressor keeps, ``[2, L, H_kv, n_keep, D_head]``."""
    with torch.inference_mode():
        return compressor.compute(context, n_keep)


def places_of(values, everything):
    """Which positions of ``everything`` ``[H, T, D]`` the rows ``values`` ``[H, n, D]`` are, by head.

    In the first layer the values of a token are the same wherever it stands and whatever else is read.
    """
    mode = "donot_use_mm_for_euclid_dist"
    distances = [torch.cdist(own, whole, compute_mode=mode) for own, whole in zip(values, everything, strict=True)]
    assert all((one.min(dim=1).values < 1e-3).all() for one in distances)
    return [one.argmin(dim=1).tolist() for one in distances]
