"""GemFilter (Shi et al. 2024, "Discovering the Gems in Early Layers", section 3).

In one early layer the query of the prompt's last position is multiplied with every key, without a scaling or a
softmax, summed over heads and averaged over neighbouring positions.
"""

import torch

from .cached_llama import pooled, read


def token_scores(weights, config, before, ids, after, layer, kernel):
    """The score of each of the tokens ``ids``."""
    queries, keys, _, _ = read(weights, config, [*before, *ids, *after], n_layers=layer + 1)[layer]
    n_heads, n_kv_heads = queries.shape[1], keys.shape[1]
    sums = []
    for position in range(len(keys)):
        total = 0.0
        for head in range(n_heads):
            total += float(torch.dot(queries[-1, head], keys[position, head // (n_heads // n_kv_heads)]))
        sums.append(total)
    return pooled(sums, kernel)[len(before) : len(before) + len(ids)]
