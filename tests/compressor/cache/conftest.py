"""Random decoders for all tests of key-value caches."""

import json

import pytest
from soft_parts import save_decoder
from tiny_models import save_model

CHAT_TEMPLATE = (
    "{% for m in messages %}<|endoftext|>{{ m['role'] }}: {{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|endoftext|>assistant:{% endif %}"
)
N_POSITIONS = 1024
FAMILIES = ("llama", "all-heads", "mistral", "window", "qwen2", "qwen3", "gpt2", "opt")


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """A llama with fewer heads of keys than of queries."""
    return str(save_decoder(tmp_path_factory.mktemp("decoders") / "llama"))


@pytest.fixture(scope="session")
def opt_base(tmp_path_factory):
    """A decoder that adds its positions to the embeddings, so that its keys have no rotations."""
    return str(save_decoder(tmp_path_factory.mktemp("decoders") / "opt", "opt"))


@pytest.fixture(scope="session")
def chat_base(tmp_path_factory):
    """The same llama with a chat format."""
    folder = save_decoder(tmp_path_factory.mktemp("decoders") / "chat")
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": CHAT_TEMPLATE,
        "eos_token": "<|endoftext|>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return str(folder)


@pytest.fixture(scope="session")
def family_bases(tmp_path_factory):
    """One decoder of each kind of attention and of positions, by name."""
    root = tmp_path_factory.mktemp("families")
    made = {
        "llama": save_decoder(root / "llama"),
        "all-heads": save_decoder(root / "all-heads", num_key_value_heads=4),
        "mistral": save_decoder(root / "mistral", "mistral"),
        # its layers see 48 tokens back
        "window": save_decoder(root / "window", "mistral", sliding_window=48),
        "qwen2": save_model(root / "qwen2", "qwen2", max_position_embeddings=N_POSITIONS),
        "qwen3": save_model(root / "qwen3", "qwen3", max_position_embeddings=N_POSITIONS),
        "gpt2": save_model(root / "gpt2", "gpt2", n_positions=N_POSITIONS),
        "opt": save_decoder(root / "opt", "opt"),
    }
    return {name: str(folder) for name, folder in made.items()}


@pytest.fixture(scope="session", params=FAMILIES)
def family(request, family_bases):
    """The folder of a decoder of each family."""
    return family_bases[request.param]
