"""CacheGen's quantisation (Liu et al. 2024, "CacheGen: KV Cache Compression and Streaming for Fast Large Language
Model Serving", section 5.2), as the code published with it has it, one number after the other.

The bins are those published for 32 layers; a decoder of another depth has the same shares of them.
"""

from fractions import Fraction

PUBLISHED = {"keys": [32] * 10 + [16] * 22, "values": [32] * 2 + [16] * 30}
TIMES = {"coarse": {"keys": 1, "values": 1}, "medium": {"keys": 2, "values": 1}, "fine": {"keys": 4, "values": 2}}


def n_bins(level, side, layer, n_layers):
    """How many bins the keys or values of a layer have: those of the layer that lies in the same place of 32."""
    published = PUBLISHED[side]
    place = Fraction(2 * layer + 1, 2 * n_layers) * len(published)
    n_first = published.count(32)
    return TIMES[level][side] * published[0 if place < n_first else -1]


def quantised(vector, bins):
    """The codes of one position's numbers, 0 to bins - 2, and their scale."""
    most = bins // 2 - 1
    scale = max(abs(number) for number in vector)
    if scale == 0:
        return [most] * len(vector), scale
    return [round(number * most / scale + most) for number in vector], scale


def restored(codes, scale, bins):
    most = bins // 2 - 1
    return [(code - most) / most * scale for code in codes]


def cache_codes(cache, level):
    """Codes of a cache ``[2, L, H_kv, n, D_head]`` of lists, ``[2][L][n][C]``, and what they stand for, alike."""
    codes, numbers = [], []
    for side, layers in zip(("keys", "values"), cache, strict=True):
        codes.append([])
        numbers.append([])
        for layer, heads in enumerate(layers):
            bins = n_bins(level, side, layer, len(layers))
            own = []
            for position in range(len(heads[0])):
                vector = [number for head in heads for number in head[position]]
                made, scale = quantised(vector, bins)
                own.append((made, restored(made, scale, bins)))
            codes[-1].append([made for made, _ in own])
            numbers[-1].append([back for _, back in own])
    return codes, numbers
