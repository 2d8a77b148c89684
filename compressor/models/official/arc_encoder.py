"""ARC-Encoder: an encoder in Meta's layout, and a bridge and special vectors for each decoder."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch

from kompakt.compressor.errors import ConfigError, ModelError
from kompakt.compressor.models.causal_lm import scales_rope
from kompakt.compressor.models.locate import model_path
from kompakt.compressor.models.official.arc_release import Release, open_release
from kompakt.compressor.models.official.folders import copy_tokenizer, outline, reference_inside, reference_to
from kompakt.compressor.models.official.tensors import Shape, Stored, check_shapes, read_json, write_json, write_model
from kompakt.compressor.models.tokenizers import parse_tokenizer
from kompakt.compressor.soft.arc_encoder import ARCEncoder
from kompakt.compressor.soft.checkpoint import Checkpoint

_ENCODER: Final = "encoder"
_EMBEDDINGS: Final = "embedder.tok_embeddings.weight"
_FINAL_NORM: Final = "model.norm.weight"
_LAYER_NAMES: Final = {
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
}
"""Names in a layer of a Hugging Face model, by those of Meta."""

_ROTATED: Final = ("attention.wq", "attention.wk")
_SPECIAL: Final = ("cont", "rec")
_BOS: Final = ("<|begin_of_text|>", "<s>", "<|endoftext|>")
_EOS: Final = ("<|end_of_text|>", "</s>", "<|endoftext|>")


def convert(
    source: Path,
    folder: Path,
    *,
    decoders: Sequence[str | os.PathLike[str]],
    tokenizer: Path | None = None,
    encoder_config: Path | None = None,
) -> Checkpoint:
    """Write the encoder of a release into a checkpoint's folder, and return the checkpoint.

    Args:
        source: The release, or the folder of a training run.
        folder: The checkpoint's folder.
        decoders: The decoders in the order of the release: named models, or paths of folders.
        tokenizer: The folder of the encoder's tokenizer, if not the release.
        encoder_config: The configuration of the model that the encoder was made of, if the release has none.

    Source: Pilchen et al. 2025, "ARC-Encoder: learning compressed text representations for large language models",
    and the authors' releases.

    Raises:
        ConfigError: If there are more or fewer decoders than bridges.
        ModelError: If the release is not what it should be, or no decoder of that width.
    """
    release = open_release(source, encoder_config)
    heads = _head_prefixes(release, decoders)
    encoder = folder / _ENCODER
    encoder.mkdir()
    config = _encoder_config(release)
    write_json(encoder / "config.json", config)
    names, expected = _encoder_shapes(release, outline(encoder).shapes)
    widths = [_check_width(release, prefix, one) for prefix, one in zip(heads, decoders, strict=True)]
    for prefix, width in zip(heads, widths, strict=True):
        expected |= _bridge_shapes(release, prefix, width)
    expected |= _special_shapes(release, len(heads))
    hint = "Copy the whole release again, and check that its configuration belongs to it"
    check_shapes(expected, release.tensors, str(release.where), hint)
    tokenizer = tokenizer or source
    copy_tokenizer(tokenizer, encoder, n_rows=config["vocab_size"])
    write_json(encoder / "config.json", config | _text_limits(encoder, tokenizer))
    write_model(encoder, _encoder_tensors(release, names))
    tensors = {name: value for number in range(len(heads)) for name, value in _head(release, heads, number).items()}
    models = {"encoder": reference_inside(folder, _ENCODER)} | {
        f"decoder.{number}": reference_to(one, plain_rope=scales_rope(model_path(one)))
        for number, one in enumerate(decoders)
    }
    return Checkpoint(ARCEncoder.name, _settings(release, tensors, len(heads)), models, tensors)


def _settings(release: Release, tensors: Mapping[str, torch.Tensor], n_heads: int) -> dict[str, Any]:
    rate = release.variant.trained_rate
    specials = [
        kind
        for kind in _SPECIAL
        if all(f"embedder.{kind}_tok.{number}.weight" in release.tensors for number in range(n_heads))
    ]
    return {
        "rates": sorted({*ARCEncoder.default_settings["rates"], rate}),
        "trained_rate": rate,
        "n_truncated_layers": 0,
        "special": "cont" if "cont" in specials else "none",
        "specials": specials,
        "heads": [_described(tensors, f"heads.{number}.bridge.") for number in range(n_heads)],
    }


def _described(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, Any]:
    first, second = tensors[f"{prefix}layer1.weight"], tensors.get(f"{prefix}layer2.weight")
    return {
        "d_out": len(first if second is None else second),
        "d_hidden": None if second is None else len(first),
        "normalise": f"{prefix}norm.weight" in tensors,
    }


def _head_prefixes(release: Release, decoders: Sequence[str | os.PathLike[str]]) -> list[str]:
    """Return the prefix of each bridge's weights; there is one for each decoder."""
    if release.variant.bridge == "multi_module":
        prefixes = [f"bridge_module.{number}." for number in range(_count(release, r"bridge_module\.(\d+)\."))]
    else:
        prefixes = ["bridge_module."]
    if len(prefixes) != len(decoders):
        raise ConfigError(
            f"{release.where} has bridges to {len(prefixes)} decoders, and {len(decoders)} were named: "
            "give --decoder once for each, in the order of the release"
        )
    return prefixes


def _encoder_config(release: Release) -> dict[str, Any]:
    backbone = release.backbone
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": backbone.hidden_size,
        "intermediate_size": backbone.intermediate_size or _rows(release, "embedder.layers.0.feed_forward.w1.weight"),
        "vocab_size": backbone.vocab_size or _rows(release, _EMBEDDINGS),
        "num_hidden_layers": _n_kept(release),
        "num_attention_heads": backbone.n_heads,
        "num_key_value_heads": backbone.n_kv_heads,
        "head_dim": backbone.head_dim,
        "rms_norm_eps": backbone.norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": backbone.rope_theta},
        "max_position_embeddings": backbone.max_positions,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
    }


def _rows(release: Release, name: str) -> int:
    one = release.tensors.get(name)
    if one is None or not one.shape:
        raise ModelError(f"{release.where} does not hold the tensors that it should; missing: {name}")
    return one.shape[0]


def _n_kept(release: Release) -> int:
    """Return how many layers there are: a configuration counts those that were left out, or does not."""
    whole, found = release.backbone.n_layers, _count(release, r"embedder\.layers\.(\d+)\.")
    kept = whole - release.variant.n_truncated
    return whole if found == whole else max(kept, 1)


def _count(release: Release, pattern: str) -> int:
    """Return the highest number that a name has where the pattern says, plus one."""
    matches = [re.match(pattern, name) for name in release.tensors]
    return max((int(match[1]) for match in matches if match), default=-1) + 1


def _encoder_shapes(release: Release, shapes: Mapping[str, Shape]) -> tuple[dict[str, str], dict[str, Shape]]:
    """Return the names in a Hugging Face model, and the shapes, by the names in the release."""
    names = {_EMBEDDINGS: "model.embed_tokens.weight"} | {
        f"embedder.layers.{layer}.{ours}.weight": f"model.layers.{layer}.{theirs}.weight"
        for layer in range(_n_kept(release))
        for ours, theirs in _LAYER_NAMES.items()
    }
    return names, {name: shapes[theirs] for name, theirs in names.items()}


def _check_width(release: Release, prefix: str, decoder: str | os.PathLike[str]) -> int:
    """Return the width of a decoder, which must be that of the bridge."""
    width = outline(model_path(decoder)).hidden_size
    last = "layer1" if release.variant.bridge == "linear" else "layer2"
    one = release.tensors.get(f"{prefix}{last}.weight")
    if one is not None and one.shape and one.shape[0] != width:
        raise ModelError(
            f"{prefix}{last}.weight in {release.where} is {list(one.shape)}, and the hidden size of the decoder "
            f"{os.fspath(decoder)!r} is {width}: give --decoder for each decoder in the order of the release"
        )
    return width


def _bridge_shapes(release: Release, prefix: str, width: int) -> dict[str, Shape]:
    variant, d_in = release.variant, release.backbone.hidden_size
    if variant.bridge == "linear":
        return {f"{prefix}layer1.weight": (width, d_in)}
    first = release.tensors.get(f"{prefix}layer1.weight")
    d_hidden = variant.d_hidden or (first.shape[0] if first is not None and first.shape else width)
    norm: dict[str, Shape] = {f"{prefix}norm.weight": (d_in,)} if variant.bridge == "rms" else {}
    return norm | {f"{prefix}layer1.weight": (d_hidden, d_in), f"{prefix}layer2.weight": (width, d_hidden)}


def _special_shapes(release: Release, n_heads: int) -> dict[str, Shape]:
    """Return the special vectors that the configuration promises or the release has."""
    names = {kind: [f"embedder.{kind}_tok.{number}.weight" for number in range(n_heads)] for kind in _SPECIAL}
    return {
        name: (1, release.backbone.hidden_size)
        for kind, several in names.items()
        if kind in release.variant.special or any(name in release.tensors for name in several)
        for name in several
    }


def _encoder_tensors(release: Release, names: Mapping[str, str]) -> dict[str, Stored]:
    tensors = {}
    for name, theirs in names.items():
        one = release.tensors[name]
        if any(f".{kind}." in name for kind in _ROTATED):
            one = _half_rotated(one, release.backbone.head_dim)
        tensors[theirs] = one
    width = release.backbone.hidden_size
    # the layout asks for one, and the method does not use it
    return tensors | {_FINAL_NORM: Stored((width,), 4 * width, lambda: torch.ones(width))}


def _half_rotated(one: Stored, head_dim: int) -> Stored:
    """Return rows of queries or keys for rotary embeddings of two halves instead of interleaved pairs."""

    def read() -> torch.Tensor:
        rows = one.read()
        return rows.view(-1, head_dim // 2, 2, rows.shape[1]).transpose(1, 2).reshape(rows.shape)

    return dataclasses.replace(one, read=read)


def _head(release: Release, prefixes: Sequence[str], number: int) -> dict[str, torch.Tensor]:
    """Return what belongs to one decoder, by the names in checkpoints of this package."""
    prefix = prefixes[number]
    own = {
        f"heads.{number}.bridge.{name.removeprefix(prefix)}": one.read()
        for name, one in release.tensors.items()
        if name.startswith(prefix)
    }
    for kind in _SPECIAL:
        one = release.tensors.get(f"embedder.{kind}_tok.{number}.weight")
        # where there is none, what training begins with; the settings say whether it is used
        vector = torch.ones(1, release.backbone.hidden_size) if one is None else one.read()
        own[f"heads.{number}.{kind}_token"] = vector
    return own


def _text_limits(encoder: Path, source: Path) -> dict[str, int]:
    """Return the ids of the tokens that begin and end a text; loading a model wants one, the method none."""
    parsed = parse_tokenizer(str(source), (encoder / "tokenizer.json").read_bytes())
    file = encoder / "tokenizer_config.json"
    named = read_json(file) if file.is_file() else {}
    ids = {}
    for role, usual in (("bos", _BOS), ("eos", _EOS)):
        own = named.get(f"{role}_token")
        spelling = own.get("content") if isinstance(own, dict) else own
        candidates = (parsed.token_to_id(name) for name in (spelling, *usual) if isinstance(name, str))
        ids[f"{role}_token_id"] = next((number for number in candidates if number is not None), None)
    found = {role: number for role, number in ids.items() if number is not None}
    if not found:
        raise ModelError(
            f"the tokenizer in {source} names no token that begins or ends a text: "
            "add bos_token to its tokenizer_config.json"
        )
    # the library would assume ids of its own
    return {role: found.get(role, next(iter(found.values()))) for role in ids}
