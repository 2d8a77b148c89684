"""Causal language models of a few thousand random weights, in the layout of real ones."""

import tokenizers
import torch
import transformers

CONTEXT = 24
"""Tokens that they read at once."""


def save_tokenizer(folder):
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    vocabulary = {"<|endoftext|>": 0} | {symbol: i + 1 for i, symbol in enumerate(sorted(alphabet))}
    vocabulary["Ġt"] = len(vocabulary)
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, [("Ġ", "t")]))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    return len(vocabulary)


def save_model(folder, kind="llama"):
    """Write a model of two layers into a new folder: random, but not the same for every token."""
    folder.mkdir()
    shared = {"vocab_size": save_tokenizer(folder), "bos_token_id": 0, "eos_token_id": 0}
    torch.manual_seed(0)
    if kind == "gpt2":
        config = transformers.GPT2Config(n_positions=CONTEXT, n_embd=32, n_layer=2, n_head=2, **shared)
    else:
        settings = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
        settings |= {"num_key_value_heads": 2, "max_position_embeddings": CONTEXT}
        if kind == "gemma2":
            settings |= {"final_logit_softcapping": 0.01, "head_dim": 8}
        config_class = transformers.Gemma2Config if kind == "gemma2" else transformers.LlamaConfig
        config = config_class(**settings, **shared)
    model = transformers.AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        # the default initialisation makes every token equally likely
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return folder
