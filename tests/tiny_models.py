"""Causal language models of a few thousand random weights, in the layout of real ones."""

import tokenizers
import torch
import transformers

CONTEXT = 24
"""Tokens that they read at once."""

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "opt", "gpt2", "gemma2", "gemma3")

SCALED_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8,
}
"""Settings of a llama that reads further than it was trained for."""


def save_tokenizer(folder):
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    vocabulary = {"<|endoftext|>": 0} | {symbol: i + 1 for i, symbol in enumerate(sorted(alphabet))}
    vocabulary["Ġt"] = len(vocabulary)
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, [("Ġ", "t")]))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    return len(vocabulary)


def _config(kind, settings):
    n_layers = settings.pop("num_hidden_layers", 2)
    if kind == "gpt2":
        sizes = {"n_positions": CONTEXT, "n_embd": 32, "n_layer": n_layers, "n_head": 2}
        return transformers.GPT2Config(**(sizes | settings))
    if kind == "gptj":
        sizes = {"n_positions": CONTEXT, "n_embd": 32, "n_layer": n_layers, "n_head": 2, "rotary_dim": 8}
        return transformers.GPTJConfig(**(sizes | settings))
    sizes = {"hidden_size": 32, "num_hidden_layers": n_layers, "num_attention_heads": 4}
    sizes |= {"max_position_embeddings": CONTEXT}
    if kind == "opt":
        sizes |= {"ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0.0}
        return transformers.OPTConfig(**(sizes | settings))
    sizes |= {"intermediate_size": 48, "num_key_value_heads": 2}
    if kind in ("qwen3", "gemma2", "gemma3"):
        sizes["head_dim"] = 8
    if kind == "gemma2":
        sizes["final_logit_softcapping"] = 4.0
    if kind == "smollm3":
        sizes |= {"no_rope_layers": [1, 0] * (n_layers // 2), "pad_token_id": 0}
    if kind == "gemma3":
        sizes["layer_types"] = ["sliding_attention", "full_attention"] * (n_layers // 2)
    config_class = {
        "llama": transformers.LlamaConfig,
        "mistral": transformers.MistralConfig,
        "qwen2": transformers.Qwen2Config,
        "qwen3": transformers.Qwen3Config,
        "gemma2": transformers.Gemma2Config,
        "gemma3": transformers.Gemma3TextConfig,
        "cohere": transformers.CohereConfig,
        "phi": transformers.PhiConfig,
        "smollm3": transformers.SmolLM3Config,
    }[kind]
    return config_class(**(sizes | settings))


def save_model(folder, kind="llama", **settings):
    """Write a model of two layers into a new folder: random, but not the same for every token."""
    folder.mkdir()
    shared = {"vocab_size": save_tokenizer(folder), "bos_token_id": 0, "eos_token_id": 0}
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(_config(kind, settings | shared))
    for name, parameter in model.named_parameters():
        # the default initialisation makes every token equally likely; normalising to near 0 makes all texts alike
        torch.nn.init.normal_(parameter, mean=float(kind == "opt" and name.endswith("norm.weight")), std=0.3)
    model.save_pretrained(folder)
    return folder
