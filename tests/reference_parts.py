"""Random models of transformers, and what the tests of references measure by them."""

import pytest
import torch
import transformers
from soft_references import llama, opt

TOLERANCE = 1e-5
N_SUMMARY = 3
REFERENCES = {"llama": llama, "mistral": llama, "qwen2": llama, "opt": opt}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def stock_model(kind, **settings):
    """A model of transformers with random weights, norms and biases too, and its weights by name."""
    shared = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
    shared |= {"max_position_embeddings": 64, "pad_token_id": 1, "attn_implementation": "eager"}
    if kind == "opt":
        shared |= {"ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0.0}
    else:
        shared |= {"intermediate_size": 48, "num_key_value_heads": 2, "rms_norm_eps": 1e-5}
    classes = {
        "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
        "mistral": (transformers.MistralConfig, transformers.MistralForCausalLM),
        "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
        "opt": (transformers.OPTConfig, transformers.OPTForCausalLM),
    }
    config_class, model_class = classes[kind]
    model = model_class(config_class(**(shared | settings))).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            mean = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.copy_(mean + 0.15 * torch.randn(parameter.shape, generator=generator))
    return model, dict(model.state_dict())


def random_ids(*shape, seed=0, vocabulary=61):
    return torch.randint(2, vocabulary, shape, generator=torch.Generator().manual_seed(seed))


def random_vectors(*shape, seed=0):
    return 0.3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def in_float64(weights):
    return {name: tensor.double() for name, tensor in weights.items()}


def distance(found, expected):
    assert found.shape == expected.shape
    return (found.double() - expected.double()).abs().max().item() if found.numel() else 0.0


def run(reference, weights, config, embeds, **settings):
    length = len(embeds)
    return reference.hidden_states(weights, config, embeds, torch.arange(length), llama.causal(length), **settings)


def mask_of_padding(length):
    """Rows without padding, with it on the left and with it on the right."""
    mask = torch.ones(3, length, dtype=torch.long)
    mask[1, :4] = 0
    mask[2, -5:] = 0
    return mask
