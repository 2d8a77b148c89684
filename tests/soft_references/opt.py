"""OPT for one sequence, with the interface of the reference for Llama.

The norm comes before attention and before the MLP, positions are learned. Not written: the sizes of OPT that norm
afterwards or project their embeddings (350m), none of which is the base of a soft compressor.
"""

import torch
from soft_references.llama import attend, linear

POSITION_OFFSET = 2
"""Row of position 0 in the table of positions."""


def layer_norm(inputs, weights, name, epsilon=1e-5):
    centred = inputs - inputs.mean(-1, keepdim=True)
    normed = centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + epsilon)
    return normed * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def hidden_states(weights, config, embeds, positions, visible, n_layers=None, final_norm=True):
    """Outputs [T, D] of the first ``n_layers`` layers (by default all), after the final norm unless it is left out.

    ``positions`` [T] count from 0. A position of -1 stands for row 1, the padding row, which AutoCompressor adds to
    soft prompts and summary tokens (Chevalier et al. 2023, section 3).
    """
    n_heads = config.num_attention_heads
    length, size = embeds.shape
    width = size // n_heads

    hidden = embeds + weights["model.decoder.embed_positions.weight"][positions + POSITION_OFFSET]
    for i in range(config.num_hidden_layers if n_layers is None else n_layers):
        layer = f"model.decoder.layers.{i}"
        normed = layer_norm(hidden, weights, f"{layer}.self_attn_layer_norm")
        queries = linear(normed, weights, f"{layer}.self_attn.q_proj").reshape(length, n_heads, width)
        keys = linear(normed, weights, f"{layer}.self_attn.k_proj").reshape(length, n_heads, width)
        values = linear(normed, weights, f"{layer}.self_attn.v_proj").reshape(length, n_heads, width)
        hidden = hidden + linear(attend(queries, keys, values, visible), weights, f"{layer}.self_attn.out_proj")

        normed = layer_norm(hidden, weights, f"{layer}.final_layer_norm")
        inner = torch.relu(linear(normed, weights, f"{layer}.fc1"))
        hidden = hidden + linear(inner, weights, f"{layer}.fc2")
    return layer_norm(hidden, weights, "model.decoder.final_layer_norm") if final_norm else hidden


def embed(weights, ids):
    return weights["model.decoder.embed_tokens.weight"][torch.as_tensor(ids, dtype=torch.long)]


def logits(weights, hidden):
    """Scores of every token; the head is tied to the embeddings, whether or not the file repeats it."""
    return hidden @ weights.get("lm_head.weight", weights["model.decoder.embed_tokens.weight"]).T
