"""Llama, Mistral and Qwen2 for one sequence, head by head and query by query.

The soft compression methods (Chevalier et al. 2023, Pilchen et al. 2025, Berton et al. 2025, Ge et al. 2024, Shao et
al. 2024) all read and write such a model. Weights are a dict with the names that Hugging Face gives them; every
computation has the dtype of the weights, so that float64 weights give a float64 result.
"""

import torch


def linear(inputs, weights, name):
    """Multiply by the matrix ``name.weight`` [out, in], and add ``name.bias`` if there is one."""
    outputs = inputs @ weights[f"{name}.weight"].T
    return outputs + weights[f"{name}.bias"] if f"{name}.bias" in weights else outputs


def rms_norm(inputs, weight, epsilon):
    return weight * inputs / torch.sqrt((inputs**2).mean(-1, keepdim=True) + epsilon)


def rotate(vectors, positions, theta, pairs):
    """Rotate vectors [T, heads, width]: pair i of dimensions by the angle position * theta ** (-2i / width)."""
    width = vectors.shape[-1]
    rotated = torch.zeros_like(vectors)
    for i, (first, second) in enumerate(pairs):
        angle = positions.double() * theta ** (-2 * i / width)
        cosine = torch.cos(angle).to(vectors.dtype)[:, None]
        sine = torch.sin(angle).to(vectors.dtype)[:, None]
        rotated[..., first] = vectors[..., first] * cosine - vectors[..., second] * sine
        rotated[..., second] = vectors[..., second] * cosine + vectors[..., first] * sine
    return rotated


def half_rotation_pairs(width):
    """The layout of Hugging Face: a dimension of the first half turns with the same one of the second half."""
    return [(i, i + width // 2) for i in range(width // 2)]


def attend(queries, keys, values, visible):
    """Attention of queries [T, H, w] over keys and values [S, H_kv, w] where ``visible`` [T, S]; returns [T, H * w].

    A query that sees nothing gets zeros.
    """
    n_queries, n_heads, width = queries.shape
    queries_per_key = n_heads // keys.shape[1]
    attended = torch.zeros_like(queries)
    for query in range(n_queries):
        seen = visible[query].nonzero()[:, 0]
        if len(seen) == 0:
            continue
        for head in range(n_heads):
            shared = head // queries_per_key
            scores = keys[seen, shared] @ queries[query, head] / width**0.5
            attended[query, head] = torch.softmax(scores, dim=0) @ values[seen, shared]
    return attended.reshape(n_queries, n_heads * width)


def causal(length):
    """What every position sees: itself and those before it."""
    return torch.ones(length, length, dtype=torch.bool).tril()


def rope_theta(config):
    """The base of the rotary angles; only plain rotary positions are written here."""
    parameters = getattr(config, "rope_parameters", None) or {}
    if parameters.get("rope_type", "default") != "default":
        raise NotImplementedError(f"rotary positions of the kind {parameters['rope_type']}")
    return parameters.get("rope_theta", getattr(config, "rope_theta", None))


def hidden_states(weights, config, embeds, positions, visible, n_layers=None, final_norm=True):
    """Outputs [T, D] of the first ``n_layers`` layers (by default all), after the final norm unless it is left out.

    ``positions`` [T] are those of the rotary angles, ``visible[q, k]`` says whether position q may look at k.
    """
    n_heads = config.num_attention_heads
    n_kv_heads = getattr(config, "num_key_value_heads", None) or n_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // n_heads
    theta, pairs, epsilon = rope_theta(config), half_rotation_pairs(width), config.rms_norm_eps
    length = len(embeds)

    hidden = embeds
    for i in range(config.num_hidden_layers if n_layers is None else n_layers):
        layer = f"model.layers.{i}"
        normed = rms_norm(hidden, weights[f"{layer}.input_layernorm.weight"], epsilon)
        queries = linear(normed, weights, f"{layer}.self_attn.q_proj").reshape(length, n_heads, width)
        keys = linear(normed, weights, f"{layer}.self_attn.k_proj").reshape(length, n_kv_heads, width)
        values = linear(normed, weights, f"{layer}.self_attn.v_proj").reshape(length, n_kv_heads, width)
        queries, keys = rotate(queries, positions, theta, pairs), rotate(keys, positions, theta, pairs)
        hidden = hidden + linear(attend(queries, keys, values, visible), weights, f"{layer}.self_attn.o_proj")

        normed = rms_norm(hidden, weights[f"{layer}.post_attention_layernorm.weight"], epsilon)
        gate = torch.nn.functional.silu(linear(normed, weights, f"{layer}.mlp.gate_proj"))
        up = linear(normed, weights, f"{layer}.mlp.up_proj")
        hidden = hidden + linear(gate * up, weights, f"{layer}.mlp.down_proj")
    return rms_norm(hidden, weights["model.norm.weight"], epsilon) if final_norm else hidden


def embed(weights, ids):
    return weights["model.embed_tokens.weight"][torch.as_tensor(ids, dtype=torch.long)]


def logits(weights, hidden):
    """Scores of every token; a model without a head of its own uses its embeddings."""
    return hidden @ weights.get("lm_head.weight", weights["model.embed_tokens.weight"]).T
