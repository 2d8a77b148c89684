"""SnapKV (Li et al. 2024, "SnapKV: LLM Knows What You are Looking for Before Generation", section 4).

The queries of a window at the end of the prompt vote for the positions before it: attention is summed over the
window, averaged over neighbouring positions and over the heads that share a key, and each head of keys keeps the
best.
"""

from .cached_llama import attention_of, best, gathered, pooled, read


def kept(weights, config, before, ids, after, n_keep, window, kernel):
    """Keys and values ``[H_kv, n_keep, w]`` of each layer; the window is the question if there is one."""
    first, last = len(before), len(before) + len(ids)
    begin = last if after else max(first, last - window)
    result = []
    for queries, keys, bare, values in read(weights, config, [*before, *ids, *after]):
        n_heads, n_kv_heads = queries.shape[1], keys.shape[1]
        chosen = []
        for kv_head in range(n_kv_heads):
            group = [head for head in range(n_heads) if head // (n_heads // n_kv_heads) == kv_head]
            mean = [0.0] * (begin - first)
            for head in group:
                votes = [0.0] * (begin - first)
                for query in range(begin, len(queries)):
                    attention = attention_of(queries[query, head], keys[: query + 1, kv_head])
                    for i in range(begin - first):
                        votes[i] += float(attention[first + i])
                for i, vote in enumerate(pooled(votes, kernel)):
                    mean[i] += vote / len(group)
            n_window = last - begin
            if n_keep <= n_window:
                chosen.append(list(range(last - n_keep, last)))
            else:
                own = [first + i for i in best(mean, n_keep - n_window)]
                chosen.append([*own, *range(begin, last)])
        result.append(gathered(config, bare, values, chosen, first))
    return result
