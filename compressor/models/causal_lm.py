"""Local causal language models that say how surprising each token of a text is."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from kompakt.compressor.errors import ConfigError, MissingExtraError, ModelError
from kompakt.compressor.models.devices import best_device, best_dtype, quiet_loading
from kompakt.compressor.models.locate import check_unchanged, model_path, recent_fingerprint, weights_fingerprint
from kompakt.compressor.models.tokenizers import parse_tokenizer

if TYPE_CHECKING:
    import tokenizers
    import torch
    from numpy.typing import NDArray
    from transformers import PretrainedConfig, PreTrainedModel

Dtype: TypeAlias = Literal["auto", "float32", "bfloat16"]

BATCH_TOKENS = {"cpu": 2048, "cuda": 16384}
"""Tokens in one forward pass. On a CPU, passes of 512 to 4096 tokens cost the same for each token."""

_DEFAULT_CONTEXT = 2048
"""Tokens read at once by models whose configuration names no limit."""

_TEXT_SEPARATOR = "<|endoftext|>"
"""What stands between the training texts of many models, even where their chat form begins with another token."""


@dataclass(frozen=True)
class CausalLM:
    """A causal language model with its tokenizer.

    Args:
        model: The network, in evaluation mode.
        tokenizer: Its tokenizer; text that spells a special token is ordinary text to it.
        prefix_id: The token that the first real token is conditioned on: beginning or end of text.
        context_length: The most tokens that it reads at once, the prefix included.
        fingerprint: SHA-256 over its files.
        dtype: Name of the number format of its weights.
        device: Where it computes.
    """

    model: PreTrainedModel
    tokenizer: tokenizers.Tokenizer
    prefix_id: int
    context_length: int
    fingerprint: str
    dtype: str
    device: str


@dataclass(frozen=True)
class Tokens:
    """A tokenized text.

    Args:
        ids: Token ids [T].
        ends: Offset after the last character that each token reaches [T], ascending. Tokens that hold pieces of one
            character share its end.
    """

    ids: NDArray[np.int64]
    ends: NDArray[np.int64]


def load_causal_lm(
    name_or_path: str | os.PathLike[str],
    *,
    dtype: Dtype = "auto",
    device: str | None = None,
    plain_rope: bool = False,
) -> CausalLM:
    """Load a model from this machine; repeated calls return the same object.

    Args:
        name_or_path: A named model (``smollm2-135m``) or a Hugging Face folder with a ``tokenizer.json``.
        dtype: Number format of the weights. ``auto`` is bf16 where the processor computes in it, else fp32.
        device: A torch device; CUDA if there is one and None is given.
        plain_rope: Switch off any scaling of the rotary frequencies that its configuration asks for.

    Raises:
        ModelNotFoundError: If it is not on this machine; the message names the command that pulls it.
        MissingExtraError: If the extra ``local`` is not installed.
        ModelError: If the folder holds no causal language model that can be used.
        ConfigError: If ``dtype`` is unknown.
    """
    if dtype not in ("auto", "float32", "bfloat16"):
        raise ConfigError(f"dtype must be 'auto', 'float32' or 'bfloat16', got {dtype!r}")
    folder = model_path(name_or_path)
    return _load_with(folder, weights_fingerprint(folder), dtype=dtype, device=device, plain_rope=plain_rope)


def recent_causal_lm(name_or_path: str | os.PathLike[str]) -> CausalLM:
    """Do as ``load_causal_lm``, but look at the files once a second: for calls that come by the thousand."""
    folder = model_path(name_or_path)
    return _load_with(folder, recent_fingerprint(folder))


def _load_with(
    folder: Path,
    fingerprint: str,
    *,
    dtype: Dtype = "auto",
    device: str | None = None,
    plain_rope: bool = False,
) -> CausalLM:
    try:
        import torch
        import transformers  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("a local language model", "local") from error
    chosen = device or best_device()
    number_format = str(best_dtype(torch.device(chosen).type)).removeprefix("torch.") if dtype == "auto" else dtype
    return _load(folder.absolute(), fingerprint, number_format, chosen, plain_rope)


@functools.lru_cache(maxsize=4)
def _load(folder: Path, fingerprint: str, dtype: str, device: str, plain_rope: bool) -> CausalLM:
    import torch

    network = _load_network(folder, getattr(torch, dtype), device, plain_rope=plain_rope)
    config = network.config.get_text_config()
    tokenizer = _load_tokenizer(folder)
    check_unchanged(folder, fingerprint)
    prefix = prefix_id(tokenizer, config, folder)
    context = getattr(config, "max_position_embeddings", None) or _DEFAULT_CONTEXT
    return CausalLM(network, tokenizer, prefix, int(context), fingerprint, dtype, device)


def prefix_id(tokenizer: tokenizers.Tokenizer, config: PretrainedConfig, folder: Path) -> int:
    """Return the token that a model's texts begin with.

    Raises:
        ModelError: If it has none.
    """
    candidates = (tokenizer.token_to_id(_TEXT_SEPARATOR), config.bos_token_id, config.eos_token_id)
    found = next((candidate for candidate in candidates if candidate is not None), None)
    if found is None:
        raise ModelError(f"the model in {folder} has neither a beginning-of-text nor an end-of-text token")
    return int(found[0] if isinstance(found, list) else found)


def _load_network(folder: Path, dtype: torch.dtype, device: str, *, plain_rope: bool) -> PreTrainedModel:
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        if plain_rope:
            _unscale_rope(config.get_text_config())
        with quiet_loading():
            loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
            )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(f"{folder} holds no causal language model that can be loaded: {error}") from error
    # the stubs of transformers describe this method as a function of the class
    loaded.to(device)  # type: ignore[arg-type]
    loaded.eval()  # type: ignore[no-untyped-call]
    loaded.requires_grad_(False)
    head = output_layer(loaded)
    if head is not None:
        head.register_forward_pre_hook(_without_gaps)
    return loaded


def _without_gaps(head: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Return the states that a head is given with strides of their own.

    The last of many states keep the strides of all, and torch would copy the whole head to multiply them by it.
    """
    del head
    states = inputs[0].contiguous()
    # a dimension of size 1 may have any stride and be contiguous
    return states.reshape(-1, states.shape[-1]).reshape(states.shape)


def scales_rope(folder: Path) -> bool:
    """Tell whether a model's configuration asks for a scaling of the rotary frequencies."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"the configuration in {folder} cannot be read: {error}") from error
    return has_scaled_rope(config)


def has_scaled_rope(config: PretrainedConfig) -> bool:
    """Tell whether rotary frequencies are scaled."""
    parameters = getattr(config.get_text_config(), "rope_parameters", None) or {}
    return bool(parameters.get("rope_type", "default") != "default")


def _unscale_rope(config: PretrainedConfig) -> None:
    theta = (getattr(config, "rope_parameters", None) or {}).get("rope_theta")
    if theta is not None:
        config.rope_parameters = {"rope_type": "default", "rope_theta": theta}


def _load_tokenizer(folder: Path) -> tokenizers.Tokenizer:
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise ModelError(f"{folder} has no tokenizer.json")
    return parse_tokenizer(str(folder), file.read_bytes())


def output_layer(network: PreTrainedModel) -> Any:  # noqa: ANN401 (some models have none)
    """Return the layer that makes logits of states; None for a model without one."""
    return network.get_output_embeddings()  # type: ignore[no-untyped-call]


def tokenize(lm: CausalLM, texts: Sequence[str]) -> list[Tokens]:
    """Return the tokens of each text, without special tokens."""
    return [_tokens(encoding) for encoding in lm.tokenizer.encode_batch(list(texts), add_special_tokens=False)]


def _tokens(encoding: tokenizers.Encoding) -> Tokens:
    ends = np.fromiter((end for _, end in encoding.offsets), dtype=np.int64, count=len(encoding))
    return Tokens(np.array(encoding.ids, dtype=np.int64), np.maximum.accumulate(ends))
