"""Random weights with the names and shapes of released models, the same for the same seed."""

import torch

STANDARD_DEVIATION = 0.3


class RandomTensors:
    def __init__(self, seed, dtype):
        self.generator = torch.Generator().manual_seed(seed)
        self.dtype = dtype

    def matrix(self, *shape):
        return (torch.randn(shape, generator=self.generator) * STANDARD_DEVIATION).to(self.dtype)

    def norm(self, size):
        return (1 + torch.randn(size, generator=self.generator) * 0.1).to(self.dtype)


def llama_weights(config, random):
    size, inner, vocabulary = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    kv_size = size // config["num_attention_heads"] * config["num_key_value_heads"]
    weights = {"model.embed_tokens.weight": random.matrix(vocabulary, size)}
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        weights |= {
            f"{layer}.input_layernorm.weight": random.norm(size),
            f"{layer}.self_attn.q_proj.weight": random.matrix(size, size),
            f"{layer}.self_attn.k_proj.weight": random.matrix(kv_size, size),
            f"{layer}.self_attn.v_proj.weight": random.matrix(kv_size, size),
            f"{layer}.self_attn.o_proj.weight": random.matrix(size, size),
            f"{layer}.post_attention_layernorm.weight": random.norm(size),
            f"{layer}.mlp.gate_proj.weight": random.matrix(inner, size),
            f"{layer}.mlp.up_proj.weight": random.matrix(inner, size),
            f"{layer}.mlp.down_proj.weight": random.matrix(size, inner),
        }
    return weights | {"model.norm.weight": random.norm(size), "lm_head.weight": random.matrix(vocabulary, size)}


def opt_weights(config, random):
    size, inner = config["hidden_size"], config["ffn_dim"]
    embeddings = random.matrix(config["vocab_size"], size)
    # row 1 is zero in OPT, but it is added whatever it is
    positions = random.matrix(config["max_position_embeddings"] + 2, size)
    weights = {"model.decoder.embed_tokens.weight": embeddings, "model.decoder.embed_positions.weight": positions}
    norms = ["model.decoder.final_layer_norm"]
    shapes = {}
    for i in range(config["num_hidden_layers"]):
        layer = f"model.decoder.layers.{i}"
        norms += [f"{layer}.self_attn_layer_norm", f"{layer}.final_layer_norm"]
        shapes |= {f"{layer}.self_attn.{name}": (size, size) for name in ("q_proj", "k_proj", "v_proj", "out_proj")}
        shapes |= {f"{layer}.fc1": (inner, size), f"{layer}.fc2": (size, inner)}
    for name in norms:
        weights |= {f"{name}.weight": random.norm(size), f"{name}.bias": random.matrix(size)}
    for name, (rows, columns) in shapes.items():
        weights |= {f"{name}.weight": random.matrix(rows, columns), f"{name}.bias": random.matrix(rows)}
    return weights | {"lm_head.weight": embeddings.clone()}


def arc_encoder_weights(args, n_decoders, random):
    model, bridge = args["model_args"], args["bridge_args"]
    size, inner, width = model["dim"], model["hidden_dim"], model["head_dim"]
    weights = {"embedder.tok_embeddings.weight": random.matrix(model["vocab_size"], size)}
    for i in range(model["n_layers"] - args["embedder_args"]["n_truncated_layers"]):
        layer = f"embedder.layers.{i}"
        weights |= {
            f"{layer}.attention_norm.weight": random.norm(size),
            f"{layer}.attention.wq.weight": random.matrix(model["n_heads"] * width, size),
            f"{layer}.attention.wk.weight": random.matrix(model["n_kv_heads"] * width, size),
            f"{layer}.attention.wv.weight": random.matrix(model["n_kv_heads"] * width, size),
            f"{layer}.attention.wo.weight": random.matrix(size, model["n_heads"] * width),
            f"{layer}.ffn_norm.weight": random.norm(size),
            f"{layer}.feed_forward.w1.weight": random.matrix(inner, size),
            f"{layer}.feed_forward.w2.weight": random.matrix(size, inner),
            f"{layer}.feed_forward.w3.weight": random.matrix(inner, size),
        }
    hidden = bridge["hidden_dim"] or bridge["out_dim"]
    for decoder in range(n_decoders):
        weights |= {f"embedder.{name}_tok.{decoder}.weight": random.matrix(1, size) for name in ("rec", "cont")}
        name = f"bridge_module.{decoder}" if bridge["bridge_type"] == "multi_module" else "bridge_module"
        if bridge["bridge_type"] == "linear":
            weights[f"{name}.layer1.weight"] = random.matrix(bridge["out_dim"], size)
            continue
        weights[f"{name}.layer1.weight"] = random.matrix(hidden, size)
        weights[f"{name}.layer2.weight"] = random.matrix(bridge["out_dim"], hidden)
        if bridge["bridge_type"] == "rms":
            weights[f"{name}.norm.weight"] = random.norm(size)
    return weights
