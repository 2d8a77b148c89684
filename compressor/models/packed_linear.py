"""Linear layers for inference, with what follows them done in the same pass where the processor's library can."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional


class PackedLinear:
    """A linear layer whose weight is laid out for the processor once, not for each product.

    On CPUs that multiply bf16, the product and the operation behind it are one call of oneDNN: what is between them
    stays in fp32 and in the processor's cache. Elsewhere they are plain torch.

    Args:
        weight: ``[D_out, D_in]``.
        bias: ``[D_out]`` or None.
        gains: Factors of the inputs ``[D_in]``, folded into the weight.
    """

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor | None = None, *, gains: torch.Tensor | None = None
    ) -> None:
        if gains is not None:
            weight = (weight.float() * gains.float()).to(weight.dtype)
        self._bias = bias
        self._fused: Any = _fused_operations(weight)
        self._weight = self._fused._reorder_linear_weight(weight.contiguous()) if self._fused else weight

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """Map ``[T, D_in]`` to ``[T, D_out]``."""
        if self._fused:
            return self._unary(inputs, "none")
        return functional.linear(inputs, self._weight, self._bias)

    def swish(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return ``silu(self(inputs))``."""
        return self._unary(inputs, "swish") if self._fused else functional.silu(self(inputs), inplace=True)

    def times(self, inputs: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """Return ``self(inputs) * other``."""
        return self._binary(inputs, other, "mul") if self._fused else self(inputs).mul_(other)

    def plus(self, inputs: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """Return ``self(inputs) + other``."""
        return self._binary(inputs, other, "add") if self._fused else self(inputs).add_(other)

    def _unary(self, inputs: torch.Tensor, operation: str) -> torch.Tensor:
        result: torch.Tensor = self._fused._linear_pointwise(inputs, self._weight, self._bias, operation, [], "")
        return result

    def _binary(self, inputs: torch.Tensor, other: torch.Tensor, operation: str) -> torch.Tensor:
        result: torch.Tensor = self._fused._linear_pointwise.binary(
            inputs, other, self._weight, self._bias, operation
        )
        return result


def merged_weight(layer: nn.Module) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the weight and the bias of a linear layer, with what its adapters add."""
    part: Any = layer
    base = getattr(part, "base_layer", part)
    weight, bias = base.weight.detach(), None if base.bias is None else base.bias.detach()
    for name in getattr(part, "active_adapters", ()):
        weight = (weight.float() + part.get_delta_weight(name).float()).to(weight.dtype)
    return weight, bias


def _fused_operations(weight: torch.Tensor) -> Any:  # noqa: ANN401 (a namespace that torch makes as it is asked)
    """Return torch's door to oneDNN, which its compiler uses too; None where it does not help or is not there."""
    operations = getattr(torch.ops, "mkldnn", None)
    names = ("_linear_pointwise", "_reorder_linear_weight")
    is_there = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if weight.device.type != "cpu" or weight.dtype != torch.bfloat16 or not is_there:
        return None
    return operations if all(hasattr(operations, name) for name in names) else None
