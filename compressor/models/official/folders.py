"""Hugging Face folders: what is read of those that exist, and what is put into those that are written."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from kompakt.compressor.errors import ModelError, ModelNotFoundError
from kompakt.compressor.models.catalog import CATALOG
from kompakt.compressor.models.devices import quiet_loading
from kompakt.compressor.models.locate import model_path, weights_fingerprint
from kompakt.compressor.models.official.tensors import Shape, read_json
from kompakt.compressor.models.tokenizers import parse_tokenizer
from kompakt.compressor.soft.checkpoint import ModelReference

_TOKENIZER: Final = "tokenizer.json"
_SLOW: Final = (("vocab.json", "merges.txt"), ("tokenizer.model",))
"""Files from which a tokenizer can be made, without the other one."""

_TOKENIZER_FILES: Final = (
    _TOKENIZER,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    *(name for names in _SLOW for name in names),
)


@dataclass(frozen=True, slots=True)
class Outline:
    """A model without its weights.

    Args:
        model: The network, on no device.
        shapes: Shapes of its tensors, by name.
    """

    model: PreTrainedModel
    shapes: dict[str, Shape]

    @property
    def hidden_size(self) -> int:
        """Width of its hidden states."""
        return int(self.model.config.get_text_config().hidden_size)

    def linear_layers(self) -> dict[str, nn.Linear]:
        """Return the linear layers of its body, by their names there."""
        return {name: one for name, one in self.model.base_model.named_modules() if isinstance(one, nn.Linear)}


def outline(folder: Path) -> Outline:
    """Return the model that the configuration in a folder describes.

    Raises:
        ModelError: If it describes none.
    """
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        with quiet_loading(), torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)  # type: ignore[no-untyped-call]
        return Outline(model, {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()})
    except Exception as error:
        # a wrong value in a configuration fails wherever it is first used
        reason = f"{type(error).__name__}: {error}"
        raise ModelError(f"{folder / 'config.json'} describes no causal language model: {reason}") from error


def reference_to(name_or_path: str | os.PathLike[str], *, plain_rope: bool = False) -> ModelReference:
    """Return the reference to a model outside the checkpoint.

    Raises:
        ModelNotFoundError: If it is not on this machine.
    """
    folder = model_path(name_or_path)
    is_named = isinstance(name_or_path, str) and name_or_path in CATALOG
    name = str(name_or_path) if is_named else str(folder.absolute())
    return ModelReference(name, weights_fingerprint(folder), plain_rope=plain_rope)


def reference_inside(checkpoint: Path, name: str) -> ModelReference:
    """Return the reference to a model that was written into a checkpoint."""
    return ModelReference(name, weights_fingerprint(checkpoint / name), is_inside=True)


def copy_tokenizer(source: Path, folder: Path, *, n_rows: int) -> None:
    """Copy a tokenizer, and make its ``tokenizer.json`` where there are only files of the older kinds.

    Args:
        source: The folder that it lies in.
        folder: The folder of the model, with its configuration already.
        n_rows: Tokens that the model has embeddings for.

    Raises:
        ModelNotFoundError: If there is none.
        ModelError: If it cannot be used, or is not this model's.
    """
    has_own = (source / _TOKENIZER).is_file()
    if not has_own and not any(all((source / name).is_file() for name in names) for names in _SLOW):
        raise ModelNotFoundError(f"{source} has no {_TOKENIZER}: name a folder that has one with --tokenizer")
    for name in _TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    if not has_own:
        _make_fast(source, folder)
    tokenizer = parse_tokenizer(str(source), (folder / _TOKENIZER).read_bytes())
    # special tokens that were added later never come out of a text here
    highest = max(tokenizer.get_vocab(with_added_tokens=False).values(), default=-1)
    if not 0 <= highest < n_rows:
        raise ModelError(
            f"the tokenizer in {source} has ids up to {highest} and the model embeddings for {n_rows} tokens: "
            "name the folder of this model's tokenizer with --tokenizer"
        )


def _make_fast(source: Path, folder: Path) -> None:
    hint = f"make a {_TOKENIZER} elsewhere and name its folder with --tokenizer"
    try:
        with quiet_loading():
            loaded = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            loaded.backend_tokenizer.save(str(folder / _TOKENIZER))
    except Exception as error:
        # the converters want packages of their own and fail in any way without them
        reason = f"{type(error).__name__}: {error}"
        raise ModelError(f"no {_TOKENIZER} can be made of the tokenizer in {source}: {reason}; {hint}") from error
    made = parse_tokenizer(str(source), (folder / _TOKENIZER).read_bytes()).get_vocab()
    listed = read_json(folder / "vocab.json") if (folder / "vocab.json").is_file() else {}
    lost = [token for token, number in listed.items() if made.get(token) != number]
    if lost:
        raise ModelError(f"the {_TOKENIZER} made of the tokenizer in {source} lacks {lost[0]!r}: {hint}")
