"""Turns a GGUF file into a folder that transformers and tokenizers load directly.

The conversion reads the file with the ``gguf`` package alone. The loader of transformers needs accelerate, keeps the
weights packed, and gives SmolLM2 a tokenizer that does not split digits as its training did.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kompakt.compressor.errors import MissingExtraError, ModelError
from kompakt.compressor.models.locate import RECORD_FILE, file_sha256

if TYPE_CHECKING:
    import numpy as np
    import torch
    from gguf import GGUFReader, ReaderTensor
    from numpy.typing import NDArray

_CONTROL_TOKEN = 3
_USER_DEFINED_TOKEN = 4

_WHOLE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_PER_LAYER = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_LAYER_TENSOR = re.compile(r"blk\.(\d+)\.(\w+)\.weight")


def require_converter() -> None:
    """Check that the packages which the conversion needs are installed.

    Raises:
        MissingExtraError: If one is not.
    """
    try:
        import gguf  # noqa: F401
        import safetensors.torch  # noqa: F401
        import torch  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("converting a GGUF model", "local") from error


def convert_gguf(gguf_file: Path, target_folder: Path) -> None:
    """Write the model in ``gguf_file`` as safetensors (bfloat16), configuration and tokenizer.

    The same file gives the same bytes each time.

    Args:
        gguf_file: A Llama-like model whose tokenizer is a byte-level BPE of the SmolLM family.
        target_folder: Where to write; created if it does not exist.

    Raises:
        MissingExtraError: If the extra ``local`` is not installed.
        ModelError: If the file is broken, or holds another kind of model.
    """
    require_converter()
    from gguf import GGUFReader
    from safetensors.torch import save_file

    try:
        reader = GGUFReader(gguf_file)
    except (OSError, ValueError, IndexError, KeyError) as error:
        raise ModelError(f"{gguf_file.name} is not a readable GGUF file: {error}") from error
    config = _config(reader)
    weights = _weights(reader, config)
    tokenizer = _tokenizer_json(reader)
    target_folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, target_folder / "model.safetensors", metadata={"format": "pt"})
    (target_folder / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
    _write_json(target_folder / "tokenizer_config.json", _tokenizer_config(reader))
    _write_json(target_folder / "config.json", config)
    # safetensors writes files that only their owner can read
    shutil.copymode(target_folder / "config.json", target_folder / "model.safetensors")
    record = {
        "schema_version": 1,
        "converted_from": gguf_file.name,
        "converted_from_sha256": file_sha256(gguf_file),
    }
    _write_json(target_folder / RECORD_FILE, record)


def _field(reader: GGUFReader, name: str) -> Any:  # noqa: ANN401
    field = reader.fields.get(name)
    if field is None:
        raise ModelError(f"the GGUF file has no field {name!r}")
    return field.contents()


def _config(reader: GGUFReader) -> dict[str, Any]:
    architecture = _field(reader, "general.architecture")
    if architecture != "llama" or "llama.rope.scaling.type" in reader.fields:
        raise ModelError(
            f"cannot convert GGUF models of architecture {architecture!r}; only plain 'llama' is supported"
        )
    heads = _field(reader, "llama.attention.head_count")
    hidden = _field(reader, "llama.embedding_length")
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "bos_token_id": _field(reader, "tokenizer.ggml.bos_token_id"),
        "dtype": "bfloat16",
        "eos_token_id": _field(reader, "tokenizer.ggml.eos_token_id"),
        "head_dim": hidden // heads,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": _field(reader, "llama.feed_forward_length"),
        "max_position_embeddings": _field(reader, "llama.context_length"),
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": heads,
        "num_hidden_layers": _field(reader, "llama.block_count"),
        "num_key_value_heads": _field(reader, "llama.attention.head_count_kv"),
        "pad_token_id": _field(reader, "tokenizer.ggml.padding_token_id"),
        "rms_norm_eps": _field(reader, "llama.attention.layer_norm_rms_epsilon"),
        "rope_parameters": {"rope_theta": _field(reader, "llama.rope.freq_base"), "rope_type": "default"},
        "tie_word_embeddings": all(tensor.name != "output.weight" for tensor in reader.tensors),
        "vocab_size": len(_field(reader, "tokenizer.ggml.tokens")),
    }


def _weights(reader: GGUFReader, config: dict[str, Any]) -> dict[str, torch.Tensor]:
    import torch
    from gguf.quants import dequantize

    weights = {}
    for tensor in reader.tensors:
        try:
            values = dequantize(tensor.data, tensor.tensor_type)
        except (NotImplementedError, ValueError) as error:
            raise ModelError(f"cannot dequantise the GGUF tensor {tensor.name!r}: {error}") from error
        name = _weight_name(tensor)
        for part, heads in (("q_proj", "num_attention_heads"), ("k_proj", "num_key_value_heads")):
            if part in name:
                values = _undo_rotary_order(values, config[heads])
        weights[name] = torch.tensor(values, dtype=torch.float32).to(torch.bfloat16)
    return weights


def _weight_name(tensor: ReaderTensor) -> str:
    if tensor.name in _WHOLE:
        return _WHOLE[tensor.name]
    match = _LAYER_TENSOR.fullmatch(tensor.name)
    if match is None or match[2] not in _PER_LAYER:
        raise ModelError(f"cannot convert the GGUF tensor {tensor.name!r}")
    return f"model.layers.{match[1]}.{_PER_LAYER[match[2]]}.weight"


def _undo_rotary_order(values: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Reorder the rows of ``values`` ``[heads * head_dim, D]``: GGUF interleaves the two halves of each head."""
    half = values.shape[0] // heads // 2
    return values.reshape(heads, half, 2, values.shape[1]).swapaxes(1, 2).reshape(values.shape)


def _tokenizer_json(reader: GGUFReader) -> str:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    kind = (_field(reader, "tokenizer.ggml.model"), _field(reader, "tokenizer.ggml.pre"))
    if kind != ("gpt2", "smollm"):
        raise ModelError(f"cannot convert GGUF tokenizers of kind {kind}; only ('gpt2', 'smollm') is supported")
    tokens = _field(reader, "tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ", 1)) for merge in _field(reader, "tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    types = _field(reader, "tokenizer.ggml.token_type")
    for token, type_ in zip(tokens, types, strict=True):
        if type_ in (_CONTROL_TOKEN, _USER_DEFINED_TOKEN):
            added = AddedToken(token, special=type_ == _CONTROL_TOKEN, normalized=False)
            tokenizer.add_special_tokens([added]) if added.special else tokenizer.add_tokens([added])
    return str(tokenizer.to_str())


def _tokenizer_config(reader: GGUFReader) -> dict[str, Any]:
    tokens = _field(reader, "tokenizer.ggml.tokens")
    config: dict[str, Any] = {
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": _field(reader, "llama.context_length"),
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    for role, field in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown")):
        config[f"{role}_token"] = tokens[_field(reader, f"tokenizer.ggml.{field}_token_id")]
    if "tokenizer.chat_template" in reader.fields:
        config["chat_template"] = _field(reader, "tokenizer.chat_template")
    return config


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
