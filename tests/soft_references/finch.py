"""Finch (Corallo and Papotti 2024, "FINCH: Prompt-guided Key-Value Cache Compression", section 3).

A context is read chunk by chunk, behind what was kept and before the question. Attention of the question's tokens is
multiplied by the share of positions that each of them sees, summed over them and over heads, and the best positions
are kept, the same share after each chunk. What is kept moves together.
"""

from .cached_llama import attention_of, best, gathered, read


def kept(weights, config, before, ids, after, n_keep, chunk):
    """Keys and values ``[H_kv, n_keep, w]`` of each layer."""
    first, n_tokens = len(before), len(ids)
    cache = None
    for start in range(0, n_tokens, chunk):
        end = min(start + chunk, n_tokens)
        wanted = n_keep * end // n_tokens
        following = []
        tokens = [*([] if cache else before), *ids[start:end], *after]
        for queries, keys, bare, values in read(weights, config, tokens, cache):
            n_heads, n_kv_heads = queries.shape[1], keys.shape[1]
            last = len(keys) - len(after)
            scores = [0.0] * (last - first)
            for row in range(len(after)):
                n_seen = last + row + 1
                for head in range(n_heads):
                    query = queries[len(queries) - len(after) + row, head]
                    attention = attention_of(query, keys[:n_seen, head // (n_heads // n_kv_heads)])
                    for i in range(last - first):
                        scores[i] += float(attention[first + i]) * n_seen / (last - first)
            places = [*range(first), *(first + i for i in best(scores, wanted))]
            following.append((bare[places], values[places]))
        cache = following
    everything = [list(range(first, first + n_keep))]
    return [gathered(config, bare, values, everything * bare.shape[1], first) for bare, values in cache]
