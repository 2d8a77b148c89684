"""Low-rank adapters, merged into the weights that they adapt (Hu et al. 2022, section 4.1)."""

import re

# "base_model.model." is PEFT's, and a wrapper's name may come before it; saved adapters leave out their own name
_FACTOR = re.compile(r"^(?:.*?base_model\.model\.)?(?P<module>.+)\.lora_(?P<factor>[AB])(?:\.[^.]+)?\.weight$")


def merged(weights, adapter, alpha, rank=None):
    """Return a copy of ``weights`` with alpha / rank * B A added wherever ``adapter`` has A [r, in] and B [out, r].

    The rank is by default that of each A. Other keys of the adapter's file are ignored.
    """
    factors = {}
    for key, tensor in adapter.items():
        if match := _FACTOR.match(key):
            factors.setdefault(match["module"], {})[match["factor"]] = tensor
    result = dict(weights)
    for module, pair in factors.items():
        scale = alpha / (rank or pair["A"].shape[0])
        name = f"{module}.weight"
        result[name] = weights[name] + scale * (pair["B"] @ pair["A"]).to(weights[name].dtype)
    return result
