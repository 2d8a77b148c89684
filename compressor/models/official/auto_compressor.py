"""AutoCompressor: a decoder with all its weights, and a table of summary embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from kompakt.compressor.errors import ModelError
from kompakt.compressor.models.official.decoder_weights import decoder_and_own
from kompakt.compressor.models.official.folders import Outline, copy_tokenizer, outline, reference_inside
from kompakt.compressor.models.official.tensors import open_model, read_json, write_json, write_model
from kompakt.compressor.soft.auto_compressor import AutoCompressor
from kompakt.compressor.soft.checkpoint import Checkpoint
from kompakt.compressor.soft.decoder import NO_POSITION
from kompakt.compressor.soft.lora import Lora

_STANDARD: Final = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "opt": "OPTForCausalLM"}
"""Architectures without the method, by type of model."""

_OWN_FIELDS: Final = ("summary_length", "accumulate_summary", "segment_gradient_checkpointing", "auto_map")
_TABLE: Final = "embed_summary.weight"
_DECODER: Final = "decoder"


def convert(source: Path, folder: Path, *, tokenizer: Path | None = None) -> Checkpoint:
    """Write the decoder of a release into a checkpoint's folder, and return the checkpoint.

    Args:
        source: The release: a Hugging Face folder.
        folder: The checkpoint's folder.
        tokenizer: The folder of its tokenizer, if not the release.

    Source: Chevalier et al. 2023, "Adapting Language Models to Compress Contexts", and the authors' releases.

    Raises:
        ModelError: If the release is not what it should be.
    """
    raw = read_json(source / "config.json")
    summary_length, accumulates = _settings(raw, source)
    decoder = folder / _DECODER
    decoder.mkdir()
    own = {key: value for key, value in raw.items() if key not in _OWN_FIELDS}
    write_json(decoder / "config.json", own | {"architectures": [_STANDARD[raw["model_type"]]]})
    empty = outline(decoder)
    table = {_TABLE: (summary_length, empty.hidden_size)}
    weights, own_tensors = decoder_and_own(open_model(source), empty, table, source)
    rows = next(one.shape[0] for name, one in weights.items() if name.endswith("embed_tokens.weight"))
    copy_tokenizer(tokenizer or source, decoder, n_rows=rows)
    write_model(decoder, weights)
    settings = {
        "rates": _rates(empty, summary_length),
        "summary_length": summary_length,
        "accumulate_summary": accumulates,
        "lora": asdict(Lora(rank=0)),
    }
    base = reference_inside(folder, _DECODER)
    return Checkpoint(AutoCompressor.name, settings, {"base": base}, {_TABLE: own_tensors[_TABLE].read()})


def _settings(raw: Mapping[str, Any], source: Path) -> tuple[int, bool]:
    """Return how many summary vectors there are and whether they accumulate."""
    where = source / "config.json"
    names = raw.get("architectures")
    if not isinstance(names, list) or not any("AutoCompressor" in str(name) for name in names):
        raise ModelError(
            f"{where} has the architectures {names!r}, not LlamaAutoCompressorModel or AutoCompressorModel: "
            "name the folder of an AutoCompressor"
        )
    if raw.get("model_type") not in _STANDARD:
        raise ModelError(f"{where} has the model_type {raw.get('model_type')!r}; known are {', '.join(_STANDARD)}")
    length, accumulates = raw.get("summary_length"), raw.get("accumulate_summary")
    if length == 0 and not isinstance(length, bool):
        raise ModelError(
            f"{where} has the summary_length 0: this release reads whole texts (full attention) and writes no "
            "summary vectors, so there is nothing to convert; name an AutoCompressor or RMT release"
        )
    if not isinstance(length, int) or isinstance(length, bool) or length < 0:
        raise ModelError(f"{where} must have a whole number as summary_length, got {length!r}")
    if not isinstance(accumulates, bool):
        raise ModelError(f"{where} must have true or false as accumulate_summary, got {accumulates!r}")
    return length, accumulates


def _rates(empty: Outline, summary_length: int) -> list[int]:
    """Return the usual rates, without those whose segments the decoder cannot read at once."""
    config = empty.model.config.get_text_config()
    room = int(config.max_position_embeddings) - (0 if config.model_type in NO_POSITION else summary_length)
    usual = [rate for rate in AutoCompressor.default_settings["rates"] if rate * summary_length <= room]
    return usual or [max(room // summary_length, 1)]
