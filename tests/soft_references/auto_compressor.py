"""AutoCompressor: summary vectors accumulate over the segments of a text (Chevalier et al. 2023, section 3)."""

import torch
from soft_references import llama, opt

IGNORED = -100
_MODELS = {"llama": llama, "opt": opt}


def forward(
    family,
    weights,
    config,
    ids,
    mask,
    segment_lengths,
    softprompt=None,
    accumulate=True,
    output_softprompt=False,
    labels=None,
):
    """Read ids [B, N] segment by segment; return logits [B, N, V], the soft prompt [B, s', D] and a loss or None.

    ``family`` is "llama" or "opt". ``segment_lengths`` is None for one segment, one length (the last segment may be
    shorter) or a list of lengths. Where ``mask`` [B, N] is 0 (None: nowhere), a token is invisible and takes no
    position, and its logits are zeros: with left padding, the label of the first real token scores the logits of a
    masked position, and is -100 unless that is wanted.
    """
    mask = torch.ones_like(ids) if mask is None else mask
    rows = [
        _read_sequence(
            family,
            weights,
            config,
            ids[b],
            mask[b],
            lengths_of_segments(ids.shape[1], segment_lengths),
            None if softprompt is None else softprompt[b],
            accumulate,
            output_softprompt,
        )
        for b in range(len(ids))
    ]
    logits = torch.stack([row_logits for row_logits, _ in rows])
    softprompts = torch.stack([row_softprompt for _, row_softprompt in rows])
    return logits, softprompts, None if labels is None else next_token_loss(logits, labels)


def lengths_of_segments(length, segment_lengths):
    if segment_lengths is None:
        return [length]
    if isinstance(segment_lengths, int):
        return [min(segment_lengths, length - start) for start in range(0, length, segment_lengths)]
    if sum(segment_lengths) != length:
        raise ValueError(f"segments of {sum(segment_lengths)} tokens for a text of {length}")
    return list(segment_lengths)


def _read_sequence(family, weights, config, ids, mask, lengths, softprompt, accumulate, output_softprompt):
    model = _MODELS[family]
    embeds = model.embed(weights, ids)
    nothing = embeds[:0]
    summary_tokens = weights.get("embed_summary.weight", nothing)
    # vectors may come from a store of another dtype
    softprompt = nothing if softprompt is None else softprompt.to(embeds.dtype)

    logits = []
    start = 0
    for number, length in enumerate(lengths):
        is_last = number == len(lengths) - 1
        emitting = summary_tokens if output_softprompt or not is_last else nothing
        real = mask[start : start + length].bool()
        token_hidden, summary = read_segment(
            family, weights, config, softprompt, embeds[start : start + length][real], emitting
        )
        token_logits = model.logits(weights, token_hidden)
        with_padding = token_logits.new_zeros(length, token_logits.shape[-1])
        with_padding[real] = token_logits
        logits.append(with_padding)
        if accumulate:
            softprompt = torch.cat([softprompt, summary])
        elif len(summary):
            softprompt = summary
        start += length
    return torch.cat(logits), softprompt


def read_segment(family, weights, config, softprompt, embeds, summary_tokens):
    """Run the model over [soft prompt | tokens | summary tokens]: the tokens' hidden states, and the summary vectors.

    Both come after the final norm, and the summary vectors are used as embeddings as they are. In Llama everything
    takes a position. In OPT only tokens do, from 0 in every segment: the rest has none, which is position -1.
    """
    inputs = torch.cat([softprompt, embeds, summary_tokens])
    n_soft, n_tokens, n_summary = len(softprompt), len(embeds), len(summary_tokens)
    if family == "llama":
        positions = torch.arange(len(inputs))
    else:
        positions = torch.tensor([-1] * n_soft + list(range(n_tokens)) + [-1] * n_summary, dtype=torch.long)
    hidden = _MODELS[family].hidden_states(weights, config, inputs, positions, llama.causal(len(inputs)))
    return hidden[n_soft : n_soft + n_tokens], hidden[n_soft + n_tokens :]


def next_token_loss(logits, labels):
    """Mean cross-entropy over all targets of the call, those across the border of two segments too."""
    losses = []
    for row_logits, row_labels in zip(logits, labels, strict=True):
        for position in range(len(row_labels) - 1):
            target = row_labels[position + 1]
            if target != IGNORED:
                losses.append(-torch.log_softmax(row_logits[position], dim=0)[target])
    return torch.stack(losses).mean()
