"""CompLLM: short segments are compressed each by itself to concept embeddings (Berton et al. 2025).

Weights are those of the base model with the adapter merged in, with the names that Hugging Face gives them.
"""

import math

import torch
from soft_references import llama


def segment_vectors(weights, config, ids, n_slots, eos_id, linear_weight, linear_bias=None):
    """Concept embeddings [n_slots, D] of one segment.

    The tokens are followed by copies of the end-of-sequence token's embedding; what the model says at those, after
    its final norm, goes through the linear layer. The paper does not say whether that is before or after the norm,
    nor whether positions start again in each segment: here after, and they do.
    """
    embeds = llama.embed(weights, list(ids) + [eos_id] * n_slots)
    length = len(embeds)
    hidden = llama.hidden_states(weights, config, embeds, torch.arange(length), llama.causal(length))
    concepts = hidden[len(ids) :] @ linear_weight.T
    return concepts if linear_bias is None else concepts + linear_bias


def split(ids, segment_length):
    """Segments of ``segment_length`` tokens, the last of which may be shorter."""
    return [ids[start : start + segment_length] for start in range(0, len(ids), segment_length)]


def document_vectors(
    weights, config, ids, segment_length, ratio, eos_id, linear_weight, linear_bias=None, segments=None
):
    """Concept embeddings of a document: ceil(t / ratio) for a segment of t tokens, in the order of the segments.

    ``segments`` are those of another splitter, in place of equal ones.
    """
    vectors = [
        segment_vectors(weights, config, segment, math.ceil(len(segment) / ratio), eos_id, linear_weight, linear_bias)
        for segment in (split(ids, segment_length) if segments is None else segments)
    ]
    return torch.cat([linear_weight.new_zeros(0, len(linear_weight)), *vectors])
