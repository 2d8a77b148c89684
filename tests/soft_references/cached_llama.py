"""A Llama that reads tokens behind a cache whose keys have no rotation, and shows each layer's attention.

What the methods that keep a part of a cache (Li et al. 2024, Devoto et al. 2025, Corallo and Papotti 2024, Shi et al.
2024) all need. A cache is a list of ``(keys, values)``, one pair a layer, ``[S, H_kv, w]`` each.
"""

import torch

from . import llama


def read(weights, config, ids, cache=None, n_layers=None):
    """Read tokens behind a cache whose i-th entry stands at position i.

    Returns ``(queries, keys, bare_keys, values)`` a layer: queries of the tokens ``[T, H, w]``, and keys and
    values of cache and tokens ``[S, H_kv, w]``; ``bare_keys`` are those without their rotation.
    """
    n_heads = config.num_attention_heads
    n_kv_heads = getattr(config, "num_key_value_heads", None) or n_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // n_heads
    theta, pairs = llama.rope_theta(config), llama.half_rotation_pairs(width)
    n_before = len(cache[0][0]) if cache else 0
    length = len(ids)
    positions = torch.arange(n_before, n_before + length)
    visible = llama.causal(n_before + length)[n_before:]
    hidden = llama.embed(weights, ids)
    seen = []
    for i in range(config.num_hidden_layers if n_layers is None else n_layers):
        layer = f"model.layers.{i}"
        normed = llama.rms_norm(hidden, weights[f"{layer}.input_layernorm.weight"], config.rms_norm_eps)
        queries = llama.linear(normed, weights, f"{layer}.self_attn.q_proj").reshape(length, n_heads, width)
        bare = llama.linear(normed, weights, f"{layer}.self_attn.k_proj").reshape(length, n_kv_heads, width)
        values = llama.linear(normed, weights, f"{layer}.self_attn.v_proj").reshape(length, n_kv_heads, width)
        if cache:
            bare, values = torch.cat([cache[i][0], bare]), torch.cat([cache[i][1], values])
        queries = llama.rotate(queries, positions, theta, pairs)
        keys = llama.rotate(bare, torch.arange(len(bare)), theta, pairs)
        seen.append((queries, keys, bare, values))
        attended = llama.attend(queries, keys, values, visible)
        hidden = hidden + llama.linear(attended, weights, f"{layer}.self_attn.o_proj")
        normed = llama.rms_norm(hidden, weights[f"{layer}.post_attention_layernorm.weight"], config.rms_norm_eps)
        gate = torch.nn.functional.silu(llama.linear(normed, weights, f"{layer}.mlp.gate_proj"))
        hidden = hidden + llama.linear(
            gate * llama.linear(normed, weights, f"{layer}.mlp.up_proj"), weights, f"{layer}.mlp.down_proj"
        )
    return seen


def attention_of(query, keys):
    """What one query ``[w]`` attends to among the keys ``[S, w]`` that it sees."""
    return torch.softmax(torch.stack([key @ query for key in keys]) / len(query) ** 0.5, dim=0)


def gathered(config, bare, values, kept, start):
    """Keys rotated for ``start``, ``start + 1``, ... and values of positions ``kept[head]``, ``[H_kv, n, w]``."""
    theta, pairs = llama.rope_theta(config), llama.half_rotation_pairs(bare.shape[-1])
    keys, own = [], []
    for head, indices in enumerate(kept):
        places = torch.arange(start, start + len(indices))
        keys.append(llama.rotate(bare[indices, head][:, None], places, theta, pairs)[:, 0])
        own.append(values[indices, head])
    return torch.stack(keys), torch.stack(own)


def best(scores, n):
    """Indices of the ``n`` highest scores, ascending; the earlier of equals."""
    order = sorted(range(len(scores)), key=lambda index: (-float(scores[index]), index))
    return sorted(order[:n])


def pooled(scores, kernel):
    """The mean of each score and of its neighbours, where there is nothing beyond the ends."""
    reach = kernel // 2
    padded = [0.0] * reach + [float(one) for one in scores] + [0.0] * reach
    return [sum(padded[i : i + kernel]) / kernel for i in range(len(scores))]
