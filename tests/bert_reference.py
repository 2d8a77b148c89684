"""BERT for one sequence, token by token and head by head, and random weights for it.

Sources: Devlin et al. 2019, "BERT: Pre-training of Deep Bidirectional Transformers", section 3; Vaswani et al. 2017,
"Attention Is All You Need", section 3; names of the weights as in the released checkpoints.
"""

import math

import torch
import transformers

VOCABULARY = 61


def bert_model(*, seed=0, dtype=torch.float32, **settings):
    """A model of transformers with random weights, biases and norms too."""
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"intermediate_size": 48, "max_position_embeddings": 64}
    model = transformers.BertModel(transformers.BertConfig(**(sizes | settings)), add_pooling_layer=False).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            mean = 1.0 if name.endswith("LayerNorm.weight") else 0.0
            parameter.copy_(mean + 0.3 * torch.randn(parameter.shape, generator=generator))
    return model.to(dtype).requires_grad_(False)


def bert(model, ids):
    """The last layer's states ``[T, D]`` of one sequence, in float64."""
    config = model.config
    weights = {name: tensor.double() for name, tensor in model.state_dict().items()}

    def linear(name, vector):
        return weights[f"{name}.weight"] @ vector + weights[f"{name}.bias"]

    def norm(name, vector):
        centred = vector - vector.mean()
        scaled = centred / torch.sqrt((centred**2).mean() + config.layer_norm_eps)
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    states = [
        norm(
            "embeddings.LayerNorm",
            weights["embeddings.word_embeddings.weight"][token]
            + weights["embeddings.position_embeddings.weight"][position]
            + weights["embeddings.token_type_embeddings.weight"][0],
        )
        for position, token in enumerate(ids.tolist())
    ]
    size = config.hidden_size // config.num_attention_heads
    for number in range(config.num_hidden_layers):
        layer = f"encoder.layer.{number}"
        queries, keys, values = (
            [linear(f"{layer}.attention.self.{name}", state) for state in states]
            for name in ("query", "key", "value")
        )
        after = []
        for state, query in zip(states, queries, strict=True):
            heads = []
            for head in range(config.num_attention_heads):
                own = slice(head * size, (head + 1) * size)
                weight = [math.exp(float(query[own] @ key[own]) / math.sqrt(size)) for key in keys]
                heads.append(sum(w * value[own] for w, value in zip(weight, values, strict=True)) / sum(weight))
            attended = linear(f"{layer}.attention.output.dense", torch.cat(heads))
            after.append(norm(f"{layer}.attention.output.LayerNorm", attended + state))
        states = []
        for state in after:
            inner = linear(f"{layer}.intermediate.dense", state)
            inner = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
            states.append(norm(f"{layer}.output.LayerNorm", linear(f"{layer}.output.dense", inner) + state))
    return torch.stack(states)
