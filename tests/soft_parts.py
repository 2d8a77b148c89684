"""Decoders small enough for many tests, with room for many positions."""

import torch
import transformers
from tiny_models import save_tokenizer

CONTEXT = 1024
LAYERS = 3


def save_decoder(folder, kind="llama", **settings):
    """Write a random decoder with a byte for a token."""
    folder.mkdir(parents=True)
    shared = {"vocab_size": save_tokenizer(folder), "bos_token_id": 0, "eos_token_id": 0, "hidden_size": 32}
    torch.manual_seed(settings.pop("seed", 0))
    if kind == "opt":
        settings = {"ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "pad_token_id": 1} | settings
        settings |= {"max_position_embeddings": CONTEXT, "word_embed_proj_dim": 32, "dropout": 0.0}
        config = transformers.OPTConfig(**settings, **shared)
    else:
        settings = {"num_hidden_layers": LAYERS, "num_attention_heads": 4, "num_key_value_heads": 2} | settings
        settings |= {"intermediate_size": 48, "max_position_embeddings": CONTEXT}
        config_class = {"llama": transformers.LlamaConfig, "mistral": transformers.MistralConfig}[kind]
        config = config_class(**settings, **shared)
    model = transformers.AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        # weights of the usual size would make every token equally likely
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return folder


SMALL = {
    "arc-encoder": {"chunk_tokens": 96, "n_truncated_layers": 1},
    "auto-compressor": {"summary_length": 6},
    "compllm": {},
    "extensible-tokenization": {"chunk_tokens": 64, "n_layers": 2},
    "icae": {"n_slots": 12},
}
"""Settings of untrained weights that make short texts long enough."""


def assert_close(made, expected):
    """Fp32 results of different orders of summation: 1e-5, of the largest number where that is above 1."""
    largest = max(1.0, float(expected.detach().abs().max())) if expected.numel() else 1.0
    torch.testing.assert_close(made, expected, atol=1e-5 * largest, rtol=0)
