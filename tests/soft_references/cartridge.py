"""A cartridge, one position at a time (Eyuboglu et al. 2025): attention over a prefix, and the loss.

The prefix is a list over layers of keys and of values [H_kv, p, D_head]; its keys are compared as they are. The
decoder is a llama whose every weight is in ``weights``.
"""

import math

import torch

TOP = 20


def _norm(vector, weight, eps):
    return vector / math.sqrt(float((vector * vector).mean()) + eps) * weight


def _turned(head, position, theta):
    half = len(head) // 2
    turned = head.clone()
    for index in range(half):
        angle = position * theta ** (-index / half)
        first, second = head[index], head[index + half]
        turned[index] = first * math.cos(angle) - second * math.sin(angle)
        turned[index + half] = second * math.cos(angle) + first * math.sin(angle)
    return turned


def _silu(vector):
    return vector / (1 + torch.exp(-vector))


def log_probabilities(weights, config, prefix_keys, prefix_values, ids):
    """What the decoder says after each token that it reads behind the prefix: [T, V]."""
    n_heads, n_kv = config.num_attention_heads, config.num_key_value_heads
    width = config.hidden_size // n_heads
    theta = config.rope_parameters["rope_theta"]
    keys = [[list(head) for head in layer] for layer in prefix_keys]
    values = [[list(head) for head in layer] for layer in prefix_values]
    rows = []
    for token in ids:
        state = weights["model.embed_tokens.weight"][token]
        position = len(keys[0][0])
        for layer in range(config.num_hidden_layers):
            name = f"model.layers.{layer}."
            normed = _norm(state, weights[name + "input_layernorm.weight"], config.rms_norm_eps)
            query, key, value = (
                (weights[f"{name}self_attn.{kind}_proj.weight"] @ normed).split(width) for kind in "qkv"
            )
            for head in range(n_kv):
                keys[layer][head].append(_turned(key[head], position, theta))
                values[layer][head].append(value[head])
            mixed = []
            for head in range(n_heads):
                shared = head // (n_heads // n_kv)
                turned = _turned(query[head], position, theta)
                scores = torch.stack([turned @ one / math.sqrt(width) for one in keys[layer][shared]])
                shares = torch.softmax(scores, 0)
                mixed.append(sum(share * one for share, one in zip(shares, values[layer][shared], strict=True)))
            state = state + weights[name + "self_attn.o_proj.weight"] @ torch.cat(mixed)
            normed = _norm(state, weights[name + "post_attention_layernorm.weight"], config.rms_norm_eps)
            gate, up = (weights[f"{name}mlp.{kind}_proj.weight"] @ normed for kind in ("gate", "up"))
            state = state + weights[name + "mlp.down_proj.weight"] @ (_silu(gate) * up)
        final = _norm(state, weights["model.norm.weight"], config.rms_norm_eps)
        rows.append(torch.log_softmax(weights["lm_head.weight"] @ final, 0))
    return torch.stack(rows)


def loss(teacher, student):
    """The mean over positions of the cross entropy with the teacher's 20 most probable tokens, not normalised again.

    ``teacher`` and ``student`` are log-probabilities [T, V].
    """
    total = 0.0
    for known, guessed in zip(teacher.tolist(), student.tolist(), strict=True):
        most_probable = sorted(range(len(known)), key=lambda token: -known[token])[:TOP]
        total += sum(-math.exp(known[token]) * guessed[token] for token in most_probable)
    return total / len(teacher)
