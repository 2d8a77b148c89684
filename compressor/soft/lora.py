"""Low-rank adapters over shared weights (Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models")."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from kompakt.compressor.errors import ConfigError, MissingExtraError, ModelError
from kompakt.compressor.soft.decoder import shared_copy

_PREFIX = "lora."


@dataclass(frozen=True, slots=True)
class Lora:
    """What an adapter looks like.

    Args:
        rank: Width of the bottleneck; 0 for no adapter.
        alpha: The update is scaled by ``alpha / rank``.
        targets: Names of the linear layers that have one; empty for all, as for a model that has none of these names.
        dropout: Share of the inputs that is dropped in training.
    """

    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] = ()
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.rank < 0 or self.alpha <= 0 or not 0 <= self.dropout < 1:
            raise ConfigError(
                "a LoRA needs rank >= 0, alpha > 0 and dropout in [0, 1), "
                f"got {self.rank}, {self.alpha} and {self.dropout}"
            )

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read what ``dataclasses.asdict`` wrote."""
        return cls(int(data["rank"]), float(data["alpha"]), tuple(data["targets"]), float(data["dropout"]))


def with_adapter(body: PreTrainedModel, lora: Lora) -> PreTrainedModel:
    """Return a copy of a model that shares all its weights and has a new adapter, which changes nothing yet.

    Raises:
        ModelError: If the model has none of the target layers.
        MissingExtraError: If peft is not installed.
    """
    adapted = shared_copy(body)
    if not lora.rank:
        return adapted
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise MissingExtraError("an adapter", "local") from error
    names = {name.rpartition(".")[2] for name, _ in adapted.named_modules()}
    trainable = [parameter.requires_grad for parameter in body.parameters()]
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        lora_dropout=lora.dropout,
        target_modules=sorted(names & set(lora.targets)) or "all-linear",
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in adapted.modules()),
    )
    try:
        inject_adapter_in_model(config, adapted)
    except ValueError as error:
        raise ModelError(f"no adapter fits a model of type {body.config.model_type!r}: {error}") from error
    # the weights are the original's too, whose owner decides whether they are trained
    for parameter, wanted in zip(body.parameters(), trainable, strict=True):
        parameter.requires_grad_(wanted)
    adapted.train(body.training)
    return adapted


def adapter_parameters(adapted: PreTrainedModel) -> dict[str, torch.nn.Parameter]:
    """Return an adapter's parameters by the names under which checkpoints keep them."""
    return {
        _PREFIX + name.replace(".default.", "."): parameter
        for name, parameter in adapted.named_parameters()
        if ".lora_" in name
    }


def check_tensors(expected: Mapping[str, tuple[int, ...]], given: Mapping[str, torch.Tensor], where: str) -> None:
    """Raise unless tensors are just those that are expected.

    Raises:
        ModelError: Naming what is missing, superfluous or of another shape.
    """
    missing = sorted(set(expected) - set(given))
    unknown = sorted(set(given) - set(expected))
    wrong = [
        f"{name} is {list(given[name].shape)} and should be {list(shape)}"
        for name, shape in sorted(expected.items())
        if name in given and tuple(given[name].shape) != tuple(shape)
    ]
    complaints = [
        f"{title}: {', '.join(items[:5])}" + (f" and {len(items) - 5} more" if len(items) > 5 else "")
        for title, items in (("missing", missing), ("not known", unknown), ("of another shape", wrong))
        if items
    ]
    if complaints:
        raise ModelError(f"{where} does not hold the tensors that it should; {'; '.join(complaints)}")
