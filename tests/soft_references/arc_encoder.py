"""ARC-Encoder: a bidirectional encoder whose last layers pool their queries (Pilchen et al. 2025).

Weights have the names and the interleaved rotary layout of the released files. ``args`` is the released config,
a dict of ``model_args`` (those of the encoder's base), ``embedder_args`` and ``bridge_args``.
"""

import torch
from soft_references import llama

BRIDGE_NORM_EPSILON = 1e-5
THETA_WHEN_UNSET = 1e6


def interleaved_pairs(width):
    """The layout of Meta's checkpoints: neighbouring dimensions turn together."""
    return [(2 * i, 2 * i + 1) for i in range(width // 2)]


def balanced(length, n_groups):
    """Sizes of ``n_groups`` groups that differ by one at most, the larger ones first."""
    return [length // n_groups + (1 if group < length % n_groups else 0) for group in range(n_groups)]


def group_sizes(length, rate):
    """Sizes of the consecutive groups that ``length`` vectors are pooled in.

    A rate of 0 is one group. A rate g > 0 is g balanced groups, or groups of one if there are fewer vectors than g. A
    rate of -x is one group if there are fewer vectors than x, groups of x where x divides the length, and
    floor(length / x) + 1 balanced groups otherwise, so that -1 leaves the vectors alone.
    """
    if length == 0:
        raise ValueError("nothing to pool")
    if rate == 0:
        return [length]
    if rate > 0:
        return balanced(length, min(rate, length))
    factor = -rate
    if length < factor:
        return [length]
    if length % factor == 0:
        return [factor] * (length // factor)
    return balanced(length, length // factor + 1)


def pool(hidden, rate, kind):
    """One vector per group: the mean of the group, its last vector or its sum."""
    pooled = []
    start = 0
    for size in group_sizes(len(hidden), rate):
        group = hidden[start : start + size]
        pooled.append({"mean": group.mean(0), "last": group[-1], "sum": group.sum(0)}[kind])
        start += size
    return torch.stack(pooled)


def encode(weights, args, ids):
    """The pooled vectors [m, d] of one text: the raw output of the last layer, without a final norm."""
    hidden = weights["embedder.tok_embeddings.weight"][torch.as_tensor(ids, dtype=torch.long)]
    rates = args["embedder_args"]["compress_rates"]
    # the files hold the layers that were kept, whatever number the base had
    n_layers = 1 + max(int(key.split(".")[2]) for key in weights if key.startswith("embedder.layers."))
    first_pooling_layer = n_layers - len(rates)
    for layer in range(n_layers):
        rate = rates[layer - first_pooling_layer] if layer >= first_pooling_layer else -1
        hidden = encoder_layer(weights, args, layer, hidden, rate)
    return hidden


def encoder_layer(weights, args, layer, hidden, rate):
    """One layer, which pools on entry ("before") or between attention and the feed-forward ("between").

    A pooling type with "pooled_queries" in its name (the released one is "mean_pooled_queries") pools the queries and
    the residual stream, and leaves keys and values as they are; one without pools all of them.
    """
    name = f"embedder.layers.{layer}"
    epsilon = args["model_args"]["norm_eps"]
    pooling = args["embedder_args"]["pooling_module"]
    kind = pooling["pool_type"].split("_")[0]

    residual = pool(hidden, rate, kind) if pooling["where"] == "before" else hidden
    sources = hidden if "pooled_queries" in pooling["pool_type"] else residual
    attention_norm = weights[f"{name}.attention_norm.weight"]
    attended = attention(
        weights,
        args,
        f"{name}.attention",
        llama.rms_norm(residual, attention_norm, epsilon),
        llama.rms_norm(sources, attention_norm, epsilon),
    )
    residual = residual + attended
    if pooling["where"] == "between":
        residual = pool(residual, rate, kind)

    normed = llama.rms_norm(residual, weights[f"{name}.ffn_norm.weight"], epsilon)
    gate = torch.nn.functional.silu(llama.linear(normed, weights, f"{name}.feed_forward.w1"))
    up = llama.linear(normed, weights, f"{name}.feed_forward.w3")
    return residual + llama.linear(gate * up, weights, f"{name}.feed_forward.w2")


def attention(weights, args, name, query_inputs, key_inputs):
    """Attention of m queries at positions 0 ... m-1 over n keys at positions 0 ... n-1.

    Every query sees every key, but in a causal encoder query j sees keys 0 ... j, however large its group is.
    """
    model = args["model_args"]
    n_heads, n_kv_heads = model["n_heads"], model["n_kv_heads"]
    width = model.get("head_dim") or model["dim"] // n_heads
    theta = model.get("rope_theta") or THETA_WHEN_UNSET
    n_queries, n_keys = len(query_inputs), len(key_inputs)

    queries = llama.linear(query_inputs, weights, f"{name}.wq").reshape(n_queries, n_heads, width)
    keys = llama.linear(key_inputs, weights, f"{name}.wk").reshape(n_keys, n_kv_heads, width)
    values = llama.linear(key_inputs, weights, f"{name}.wv").reshape(n_keys, n_kv_heads, width)
    queries = llama.rotate(queries, torch.arange(n_queries), theta, interleaved_pairs(width))
    keys = llama.rotate(keys, torch.arange(n_keys), theta, interleaved_pairs(width))
    visible = torch.ones(n_queries, n_keys, dtype=torch.bool)
    if args["embedder_args"].get("causal_embedder"):
        visible = visible.tril()
    return llama.linear(llama.attend(queries, keys, values, visible), weights, f"{name}.wo")


def bridge(weights, args, vectors, decoder_index=0):
    """From the width of the encoder to that of the decoder: linear maps without an activation and without a bias."""
    kind = args["bridge_args"]["bridge_type"]
    name = f"bridge_module.{decoder_index}" if kind == "multi_module" else "bridge_module"
    if kind == "rms":
        vectors = llama.rms_norm(vectors, weights[f"{name}.norm.weight"], BRIDGE_NORM_EPSILON)
    vectors = llama.linear(vectors, weights, f"{name}.layer1")
    return vectors if kind == "linear" else llama.linear(vectors, weights, f"{name}.layer2")


def special_vector(weights, special, decoder_index=0):
    """The vector [1, d] of ``special``, "cont" or "rec"; very old runs have one decoder and no number in the name."""
    numbered = f"embedder.{special}_tok.{decoder_index}.weight"
    return weights[numbered] if numbered in weights else weights[f"embedder.{special}_tok.weight"]


def span_vectors(weights, args, chunks, special=None, decoder_index=0):
    """Vectors of a span that is read in chunks, each by itself; the one special vector comes after the last."""
    parts = [encode(weights, args, ids) for ids in chunks]
    if special is not None:
        parts.append(special_vector(weights, special, decoder_index))
    return bridge(weights, args, torch.cat(parts), decoder_index)


def vectors(weights, args, spans, special=None, decoder_index=0):
    """For every span (a list of ids), its vectors [m, D], or [m + 1, D] with the special vector "cont" or "rec"."""
    return [span_vectors(weights, args, [ids], special, decoder_index) for ids in spans]


def decoder_logits(decoder_weights, config, text_ids, spans_of_vectors, increments):
    """Scores [len(text_ids), V] at the text of a sequence into which vectors are inserted.

    An increment is the number of text tokens between the previous insertion, or the start, and this one: [3, 5] puts
    spans before the tokens 3 and 8. Vectors take positions like tokens, and what the decoder says at them is dropped.
    """
    if sum(increments) > len(text_ids):
        raise ValueError(f"spans inserted at {increments} in a text of {len(text_ids)} tokens")
    text = llama.embed(decoder_weights, text_ids)
    pieces, is_text = [], []
    start = 0
    for vectors_of_span, increment in zip(spans_of_vectors, increments, strict=True):
        pieces += [text[start : start + increment], vectors_of_span]
        is_text += [True] * increment + [False] * len(vectors_of_span)
        start += increment
    pieces.append(text[start:])
    is_text += [True] * (len(text) - start)

    embeds = torch.cat(pieces)
    length = len(embeds)
    hidden = llama.hidden_states(decoder_weights, config, embeds, torch.arange(length), llama.causal(length))
    return llama.logits(decoder_weights, hidden)[torch.tensor(is_text)]
