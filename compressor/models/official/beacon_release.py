"""What the configuration of an Activation Beacon release says, in either version of the authors' code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from kompakt.compressor.cache.beacon_config import BeaconConfig
from kompakt.compressor.errors import ConfigError, ModelError

FAMILIES: Final = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "qwen2": "Qwen2ForCausalLM"}
"""Architectures without the method, by type of model."""

_FIRST: Final = ("beacon_attend_previous", "beacon_stride_mix")
"""Fields of the first version alone."""

_KNOWN: Final = frozenset(
    {
        "beacon_window",
        "beacon_stride",
        "beacon_attn",
        "beacon_ratio",
        "beacon_ratio_mix",
        "beacon_param",
        "beacon_embed_init",
        "beacon_sink_size",
        "beacon_attend_prev",
        "beacon_pos",
        # how many windows are read at once, which changes no result
        "beacon_parallel_window",
        *_FIRST,
    }
)
_OTHER: Final = ("auto_map", "enable_beacon", "retrieval_method", "retrieval_topk")
"""Fields beside those of the beacons that an ordinary model has not."""


def without_beacons(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration of the decoder alone."""
    own = {name: value for name, value in raw.items() if not name.startswith("beacon_") and name not in _OTHER}
    return own | {"architectures": [FAMILIES[raw["model_type"]]]}


def beacon_config(raw: Mapping[str, Any], where: Path) -> BeaconConfig:
    """Return what the beacons of a release are like.

    Args:
        raw: Its configuration.
        where: The file, for messages.

    Raises:
        ModelError: If it is not that of a release, or of a variant that is not known here.
    """
    if "beacon_window" not in raw:
        raise ModelError(f"{where} has no beacon_window: name the folder of an Activation Beacon")
    if raw.get("model_type") not in FAMILIES:
        raise ModelError(f"{where} has the model_type {raw.get('model_type')!r}; known are {', '.join(FAMILIES)}")
    # what is switched off need not be known
    unknown = sorted(name for name in raw if name.startswith("beacon_") and raw[name] and name not in _KNOWN)
    if unknown:
        raise ModelError(f"{where} has {', '.join(unknown)}: this variant of the method is not known here")
    if raw.get("retrieval_method"):
        raise ModelError(f"{where} has the retrieval_method {raw['retrieval_method']!r}, which is not supported here")
    try:
        is_first = any(name in raw for name in _FIRST)
        return BeaconConfig(**_common(raw, where), **(_first(raw, where) if is_first else _second(raw)))
    except (ConfigError, TypeError) as error:
        raise ModelError(f"the beacons that {where} describes are not supported here: {error}") from error


def _common(raw: Mapping[str, Any], where: Path) -> dict[str, Any]:
    window, stride = raw["beacon_window"], raw.get("beacon_stride", raw["beacon_window"])
    if isinstance(stride, list) and len(stride) == 1:
        stride = stride[0]
    if not isinstance(window, int) or isinstance(window, bool):
        raise ModelError(f"{where} must have a whole number as beacon_window, got {window!r}")
    ratios = raw.get("beacon_ratio", [2, 4, 8, 16, 32])
    ratios = ratios if isinstance(ratios, list) else [ratios]
    if not all(isinstance(ratio, int) and not isinstance(ratio, bool) for ratio in ratios):
        raise ModelError(f"{where} must have whole numbers as beacon_ratio, got {raw['beacon_ratio']!r}")
    if len(ratios) > 1:
        # as the authors do, who take a single one whatever it is
        ratios = [ratio for ratio in ratios if ratio <= window and (not ratio or window % ratio == 0)]
    return {
        "window": window,
        "stride": stride,
        "ratios": ratios,
        "ratio_mix": raw.get("beacon_ratio_mix", "step-random"),
        "params": raw.get("beacon_param", []),
    }


def _second(raw: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "placement": raw.get("beacon_pos", "interleave"),
        "attention": raw.get("beacon_attn", "full-coverage"),
        "attend_previous": raw.get("beacon_attend_prev", True),
        "embed_init": raw.get("beacon_embed_init", "eos"),
        "sink_size": raw.get("beacon_sink_size", 0),
    }


def _first(raw: Mapping[str, Any], where: Path) -> dict[str, Any]:
    attention = raw.get("beacon_attn", "step-expansion")
    if attention != "step-expansion":
        raise ModelError(
            f"{where} is of the method's first version and has the beacon_attn {attention!r}; of that version, "
            "step-expansion alone is supported here"
        )
    # it means the beacons of earlier windows; those of a window never see each other in that version
    if not raw.get("beacon_attend_previous", True):
        raise ModelError(f"{where} has beacon_attend_previous false: without a memory there is nothing to convert")
    return {"placement": "append", "attention": attention, "attend_previous": False}
