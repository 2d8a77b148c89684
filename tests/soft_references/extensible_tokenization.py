"""Extensible Tokenization: every k-th output of a short encoder is an embedding (Shao et al. 2024)."""

import torch
from soft_references import llama


def outputs(weights, config, ids, n_layers=8, final_norm=False):
    """Outputs [n, D] at all tokens of one chunk, of the first ``n_layers`` layers of a Llama.

    The paper does not say whether the final norm of the base follows these layers: ``final_norm`` decides.
    """
    embeds = llama.embed(weights, ids)
    length = len(embeds)
    return llama.hidden_states(
        weights, config, embeds, torch.arange(length), llama.causal(length), n_layers, final_norm
    )


def strided(chunk_outputs, stride):
    """The last output of every stride, at stride-1, 2*stride-1, ..., and that of a shorter stride at the end."""
    kept = [position for position in range(len(chunk_outputs)) if (position + 1) % stride == 0]
    if len(chunk_outputs) % stride:
        kept.append(len(chunk_outputs) - 1)
    return chunk_outputs[kept]


def vectors(weights, config, ids, stride, n_layers=8, chunk_length=4096, final_norm=False):
    """Extensible embeddings of a text, of which each chunk is read by itself at positions that start at 0."""
    parts = [
        strided(outputs(weights, config, ids[start : start + chunk_length], n_layers, final_norm), stride)
        for start in range(0, len(ids), chunk_length)
    ]
    return torch.cat([llama.embed(weights, []), *parts])


def decoder_logits(decoder_weights, config, vectors_before, ids):
    """Scores [len(ids), V] at the raw tokens of a chunk that follow the embeddings of the chunks before it."""
    embeds = torch.cat([vectors_before, llama.embed(decoder_weights, ids)])
    length = len(embeds)
    hidden = llama.hidden_states(decoder_weights, config, embeds, torch.arange(length), llama.causal(length))
    return llama.logits(decoder_weights, hidden)[len(vectors_before) :]
