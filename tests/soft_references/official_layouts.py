"""Tiny checkpoints of random weights, with the files, names and configurations of the released ones.

Releases come in bfloat16 (AutoCompressor on Llama, ICAE) or float32; here float32 unless ``dtype`` is given. A seed
makes them the same every time. Every writer returns the weights that it wrote.
"""

import json
from pathlib import Path

import safetensors.torch
import torch
import yaml
from soft_references.random_weights import RandomTensors, arc_encoder_weights, llama_weights, opt_weights
from tiny_models import save_tokenizer

END_OF_SEQUENCE = 0
"""The only special token of the tiny tokenizer, in place of the released models' 1 and 2."""


def write_auto_compressor(
    folder,
    family="llama",
    as_torch=False,
    shards=1,
    summary_length=5,
    accumulate=True,
    inverse_frequencies=False,
    dtype=torch.float32,
    seed=0,
    **settings,
):
    """Write config.json, tokenizer.json and the weights of an AutoCompressor on ``family``, "llama" or "opt".

    config.json is that of transformers 4 (``rope_theta``, ``torch_dtype``), as in the releases, and ``settings``
    replace its fields. ``as_torch`` writes pytorch_model.bin, several ``shards`` an index. Old Llama files repeat the
    rotary frequencies in each layer (``inverse_frequencies``), and those of OPT repeat the tied head. Without summary
    tokens (the full-attention releases) there is no table of them: an assumption.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    kind = _llama_config if family == "llama" else _opt_config
    config = kind(save_tokenizer(folder)) | {
        "bos_token_id": END_OF_SEQUENCE,
        "eos_token_id": END_OF_SEQUENCE,
        "summary_length": summary_length,
        "accumulate_summary": accumulate,
        "segment_gradient_checkpointing": False,
        "torch_dtype": str(dtype).removeprefix("torch."),
        "transformers_version": "4.34.0",
        **settings,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")

    random = RandomTensors(seed, dtype)
    weights = (llama_weights if family == "llama" else opt_weights)(config, random)
    if inverse_frequencies:
        width = config["hidden_size"] // config["num_attention_heads"]
        frequencies = config["rope_theta"] ** (-torch.arange(0, width, 2).float() / width)
        for i in range(config["num_hidden_layers"]):
            weights[f"model.layers.{i}.self_attn.rotary_emb.inv_freq"] = frequencies.clone()
    if summary_length:
        weights["embed_summary.weight"] = random.matrix(summary_length, config["hidden_size"])
    _save_shards(folder, weights, shards, as_torch)
    return weights


def _llama_config(vocabulary_size):
    return {
        "architectures": ["LlamaAutoCompressorModel"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "tie_word_embeddings": False,
        "vocab_size": vocabulary_size,
    }


def _opt_config(vocabulary_size):
    return {
        "architectures": ["AutoCompressorModel"],
        "model_type": "opt",
        "activation_function": "relu",
        "do_layer_norm_before": True,
        "dropout": 0.1,
        "hidden_size": 32,
        "ffn_dim": 48,
        "word_embed_proj_dim": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
        "pad_token_id": 1,
        "vocab_size": vocabulary_size,
    }


def _save(path, weights):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(weights, path, metadata={"format": "pt"})
    else:
        torch.save(weights, path)


def _save_shards(folder, weights, shards, as_torch):
    stem, suffix = ("pytorch_model", ".bin") if as_torch else ("model", ".safetensors")
    if shards == 1:
        _save(folder / f"{stem}{suffix}", weights)
        return
    keys = sorted(weights)
    parts = {f"{stem}-{i + 1:05}-of-{shards:05}{suffix}": keys[i::shards] for i in range(shards)}
    for name, part in parts.items():
        _save(folder / name, {key: weights[key] for key in part})
    total = sum(tensor.numel() * tensor.element_size() for tensor in weights.values())
    places = {key: name for name, part in parts.items() for key in part}
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / f"{stem}{suffix}.index.json").write_text(json.dumps(index, indent=2) + "\n", "utf-8")


def arc_encoder_args(n_decoders=1, compress_rates=(-8,), bridge_type=None, out_dim=24, pooling=None, **model):
    """The configuration that ``write_arc_encoder`` writes and the reference reads; ``model`` replaces model_args."""
    return {
        "model_args": {
            "dim": 32,
            "n_layers": 5,
            "head_dim": 8,
            "hidden_dim": 48,
            "n_heads": 4,
            "n_kv_heads": 2,
            "norm_eps": 1e-5,
            "vocab_size": 258,
            "rope_theta": 500000.0,
            **model,
        },
        "embedder_args": {
            "n_truncated_layers": 2,
            "pooling_module": pooling or {"pool_type": "mean_pooled_queries", "where": "before"},
            "memory_tokens": 0,
            "rec_tok": True,
            "cont_tok": True,
            "compress_rates": list(compress_rates),
            "trained_layers": 27,
            "causal_embedder": False,
            "train_embedding_mtx": True,
        },
        "bridge_args": {
            "bridge_type": bridge_type or ("mlp" if n_decoders == 1 else "multi_module"),
            "in_dim": model.get("dim", 32),
            "out_dim": out_dim,
            "hidden_dim": 20,
        },
    }


def write_arc_encoder(folder, n_decoders=1, layout="hub", config_name="config.yaml", args=None, seed=0, old=False):
    """Write an ARC-Encoder for ``args``, by default those of ``arc_encoder_args``, as released or as trained.

    "hub" is model.safetensors and a configuration, yaml or json by its name, with the three tables of ``args`` (that
    they are nested like a run's is an assumption). "run" is args.yaml and checkpoints/checkpoint_000010 with
    params.json, which has no ``model_args``, and a file each for the encoder and the bridge, whose names lack their
    prefixes. Assumed there: what args.yaml says, and that the base's own params.json, with names of Meta, is at
    backbone/params.json. ``old`` leaves out the decoder's number in the special vectors' names. No tokenizer: the
    releases have none.
    """
    folder = Path(folder)
    args = args or arc_encoder_args(n_decoders)
    weights = arc_encoder_weights(args, n_decoders, RandomTensors(seed, torch.float32))
    if old:
        weights = {key.replace("_tok.0.weight", "_tok.weight"): tensor for key, tensor in weights.items()}
    if layout == "hub":
        _save(folder / "model.safetensors", weights)
        _write_mapping(folder / config_name, args)
        return weights

    checkpoint = folder / "checkpoints" / "checkpoint_000010"
    for module in ("embedder", "bridge_module"):
        prefix = f"{module}."
        part = {key.removeprefix(prefix): tensor for key, tensor in weights.items() if key.startswith(prefix)}
        _save(checkpoint / module / "consolidated.safetensors", part)
    params = {
        "param_dtype": "float32",
        "embedder_params": args["embedder_args"],
        "bridge_module": args["bridge_args"],
    }
    _write_mapping(checkpoint / "params.json", params)
    _write_mapping(folder / "args.yaml", {"max_steps": 10, "seq_len": 256, "param_dtype": "float32"})
    own = ("dim", "n_layers", "n_heads", "n_kv_heads", "norm_eps", "vocab_size", "rope_theta")
    meta = {name: args["model_args"][name] for name in own}
    _write_mapping(folder / "backbone" / "params.json", meta | {"use_scaled_rope": True})
    return weights


def _write_mapping(path, mapping):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(mapping) if path.suffix == ".yaml" else json.dumps(mapping, indent=2) + "\n"
    path.write_text(text, "utf-8")


def write_icae(path, base_config, as_torch=False, slots=4, rank=3, dtype=torch.float32, seed=0):
    """Write the one file of ICAE: the adapter of queries and values, and the table of memory and marker tokens.

    ``path`` is a folder, or a file by its suffix; ``base_config`` is the configuration of the base model.
    """
    path = Path(path)
    if path.suffix not in (".safetensors", ".pt", ".bin"):
        path = path / ("mistral_7b_ft_icae.pt" if as_torch else "mistral_7b_ft_icae.safetensors")
    random = RandomTensors(seed, dtype)
    size = base_config.hidden_size
    width = getattr(base_config, "head_dim", None) or size // base_config.num_attention_heads
    heads = {"q_proj": base_config.num_attention_heads, "v_proj": base_config.num_key_value_heads}
    weights = {"memory_token_embed.weight": random.matrix(slots + 3, size)}
    for i in range(base_config.num_hidden_layers):
        for name, n_heads in heads.items():
            module = f"icae.base_model.model.model.layers.{i}.self_attn.{name}"
            weights[f"{module}.lora_A.default.weight"] = random.matrix(rank, size)
            weights[f"{module}.lora_B.default.weight"] = random.matrix(n_heads * width, rank)
    _save(path, weights)
    return weights
