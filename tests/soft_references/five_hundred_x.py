"""500xCompressor: keys and values of memory tokens behind a segment, layer by layer (Li et al. 2025, section 3).

``memory`` are the embeddings [k, D] of the memory tokens; encoder weights have the adapter merged in, decoder weights
are the base's own.
"""

import math

import torch
from soft_references import llama


def segments(ids, longest):
    """As few segments of at most ``longest`` tokens as there can be, equally long but for the last."""
    n_segments = math.ceil(len(ids) / longest)
    if n_segments == 0:
        return []
    length = math.ceil(len(ids) / n_segments)
    return [ids[number * length : (number + 1) * length] for number in range(n_segments)]


def keys_and_values(weights, config, embeds, positions, layer, hidden):
    """Rotated keys and values [T, H_kv, w] that a layer makes of the outputs of the one before."""
    n_heads = config.num_key_value_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    name = f"model.layers.{layer}"
    normed = llama.rms_norm(hidden, weights[f"{name}.input_layernorm.weight"], config.rms_norm_eps)
    keys = llama.linear(normed, weights, f"{name}.self_attn.k_proj").reshape(len(embeds), n_heads, width)
    values = llama.linear(normed, weights, f"{name}.self_attn.v_proj").reshape(len(embeds), n_heads, width)
    return llama.rotate(keys, positions, llama.rope_theta(config), llama.half_rotation_pairs(width)), values


def compressed(weights, config, memory, ids, pad_to=0, pad_id=None):
    """For each layer the keys and values [k, H_kv, w] of the memory tokens, which stand behind the segment.

    With ``pad_to``, padding tokens fill the segment up first; nothing hides them.
    """
    filled = [*ids, *[pad_id] * (pad_to - len(ids))]
    embeds = torch.cat([llama.embed(weights, filled), memory])
    positions = torch.arange(len(embeds))
    result = []
    for layer in range(config.num_hidden_layers):
        hidden = llama.hidden_states(
            weights, config, embeds, positions, llama.causal(len(embeds)), n_layers=layer, final_norm=False
        )
        keys, values = keys_and_values(weights, config, embeds, positions, layer, hidden)
        result.append((keys[len(filled) :], values[len(filled) :]))
    return result


def decoder_logits(weights, config, past, ids):
    """Scores [T, V] of the decoder after tokens that follow ``past``, a pair of keys and values for each layer.

    Positions go on behind the number of memory tokens, whatever positions their keys were rotated for.
    """
    hidden = llama.embed(weights, ids)
    n_past, length = len(past[0][0]), len(ids)
    positions = n_past + torch.arange(length)
    visible = torch.cat([torch.ones(length, n_past, dtype=torch.bool), llama.causal(length)], dim=1)
    n_heads = config.num_attention_heads
    width = config.hidden_size // n_heads
    for layer, (past_keys, past_values) in enumerate(past):
        name = f"model.layers.{layer}"
        keys, values = keys_and_values(weights, config, hidden, positions, layer, hidden)
        normed = llama.rms_norm(hidden, weights[f"{name}.input_layernorm.weight"], config.rms_norm_eps)
        queries = llama.linear(normed, weights, f"{name}.self_attn.q_proj").reshape(length, n_heads, width)
        queries = llama.rotate(queries, positions, llama.rope_theta(config), llama.half_rotation_pairs(width))
        attended = llama.attend(queries, torch.cat([past_keys, keys]), torch.cat([past_values, values]), visible)
        hidden = hidden + llama.linear(attended, weights, f"{name}.self_attn.o_proj")
        normed = llama.rms_norm(hidden, weights[f"{name}.post_attention_layernorm.weight"], config.rms_norm_eps)
        gate = torch.nn.functional.silu(llama.linear(normed, weights, f"{name}.mlp.gate_proj"))
        up = llama.linear(normed, weights, f"{name}.mlp.up_proj")
        hidden = hidden + llama.linear(gate * up, weights, f"{name}.mlp.down_proj")
    return llama.logits(weights, llama.rms_norm(hidden, weights["model.norm.weight"], config.rms_norm_eps))
