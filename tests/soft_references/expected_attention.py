"""Expected attention (Devoto et al. 2025, "Expected Attention: KV Cache Compression by Estimating Attention from
Future Queries Distribution", section 3).

Queries without their rotation are normally distributed; for a query that is, the expected ``exp(q k / sqrt(w))`` is
``exp(m k / sqrt(w) + k C k / 2 w)``. Mean ``m`` and covariance ``C`` are rotated by the mean rotation of the
positions to come. The first tokens of a prompt are left out and kept.
"""

import torch

from . import llama
from .cached_llama import best, gathered, read


def kept(weights, config, before, ids, n_keep, n_future, n_sink, epsilon):
    """Keys and values ``[H_kv, n_keep, w]`` of each layer."""
    first, last = len(before), len(before) + len(ids)
    begin = max(first, n_sink)
    result = []
    for queries, keys, bare, values in read(weights, config, [*before, *ids]):
        n_heads, n_kv_heads, width = queries.shape[1], keys.shape[1], keys.shape[2]
        theta, pairs = llama.rope_theta(config), llama.half_rotation_pairs(width)
        # a rotation by minus its position gives what a query was before
        plain = llama.rotate(queries, -torch.arange(last), theta, pairs)
        rotation = torch.zeros(width, width, dtype=keys.dtype)
        for position in range(last, last + n_future):
            for column in range(width):
                unit = torch.zeros(1, 1, width, dtype=keys.dtype)
                unit[0, 0, column] = 1
                rotation[:, column] += llama.rotate(unit, torch.tensor([position]), theta, pairs)[0, 0] / n_future
        chosen = []
        for kv_head in range(n_kv_heads):
            group = [head for head in range(n_heads) if head // (n_heads // n_kv_heads) == kv_head]
            total = torch.zeros(last - begin, dtype=keys.dtype)
            for head in group:
                mean = sum(plain[t, head] for t in range(begin, last)) / (last - begin)
                covariance = sum(
                    torch.outer(plain[t, head] - mean, plain[t, head] - mean) for t in range(begin, last)
                ) / (last - begin)
                mean, covariance = rotation @ mean, rotation @ covariance @ rotation.T
                exponents = [
                    key @ mean / width**0.5 + key @ covariance @ key / (2 * width) for key in keys[begin:, kv_head]
                ]
                total += torch.softmax(torch.stack(exponents), dim=0) / len(group)
            scores = [
                (float(total[t - begin]) + epsilon) * float(values[t, kv_head].norm()) for t in range(begin, last)
            ]
            sinks = list(range(first, begin))[:n_keep]
            chosen.append([*sinks, *(begin + i for i in best(scores, n_keep - len(sinks)))])
        result.append(gathered(config, bare, values, chosen, first))
    return result
