"""ICAE, the second version: the adapted model reads a segment and memory tokens (Ge et al. 2024, section 2).

``table`` is the file's ``memory_token_embed.weight`` [slots + 3, D]: the memory tokens, then the markers of
auto-encoding ("ae"), of language modelling ("lm") and of instruction tuning ("ft").
"""

import math

import torch
from soft_references import llama

MARKERS = ("ae", "lm", "ft")
INSTRUCTION_START = (1, 733, 16289, 28793)
"""``[INST]`` of Mistral after its beginning-of-sequence token."""
INSTRUCTION_END = (733, 28748, 16289, 28793)
"""``[/INST]`` of Mistral."""


def segments(ids, slots=128, rate=4):
    """ceil(length / (slots * rate)) segments of equal length, the last of which may be shorter."""
    n_segments = math.ceil(len(ids) / (slots * rate))
    if n_segments == 0:
        return []
    length = math.ceil(len(ids) / n_segments)
    return [ids[number * length : (number + 1) * length] for number in range(n_segments)]


def segment_memory(weights, config, table, ids, slots):
    """Outputs [slots, D] at the memory tokens after one segment, after the final norm; positions start at 0.

    ``weights`` have the adapter merged in.
    """
    embeds = torch.cat([llama.embed(weights, ids), table[:slots]])
    length = len(embeds)
    hidden = llama.hidden_states(weights, config, embeds, torch.arange(length), llama.causal(length))
    return hidden[len(ids) :]


def memory(weights, config, table, ids, slots=128, rate=4):
    """Memory of all segments in their order: every segment, a shorter one too, has all the slots."""
    parts = [segment_memory(weights, config, table, segment, slots) for segment in segments(ids, slots, rate)]
    return torch.cat([table[:0], *parts])


def marker(table, name):
    """The row [1, D] of the marker "ae", "lm" or "ft"."""
    row = len(table) - len(MARKERS) + MARKERS.index(name)
    return table[row : row + 1]


def row_of_id(token_id, vocabulary_size):
    """Row of the table that belongs to an id beyond the base's vocabulary; the first new id, padding, has none."""
    return token_id - (vocabulary_size + 1)


def auto_encoding_embeds(table, memory_vectors):
    """Input [memory | AE], after which the decoder repeats the text."""
    return torch.cat([memory_vectors, marker(table, "ae")])


def continuation_embeds(table, memory_vectors, with_marker=False):
    """Input [memory], or [memory | LM], after which the decoder continues the text."""
    return torch.cat([memory_vectors, marker(table, "lm")]) if with_marker else memory_vectors


def instruction_embeds(base_weights, table, memory_vectors, prompt_ids, start=INSTRUCTION_START, end=INSTRUCTION_END):
    """Input [start | memory | FT | prompt | end], after which the decoder answers; it has no adapter."""
    return torch.cat(
        [
            llama.embed(base_weights, start),
            memory_vectors,
            marker(table, "ft"),
            llama.embed(base_weights, prompt_ids),
            llama.embed(base_weights, end),
        ]
    )


def decoder_logits(base_weights, config, embeds):
    """Scores of the base model over embeddings at contiguous positions."""
    length = len(embeds)
    hidden = llama.hidden_states(base_weights, config, embeds, torch.arange(length), llama.causal(length))
    return llama.logits(base_weights, hidden)
