"""Steps of Adam on fp32 weights whose copies of less precision compute."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch
from torch import nn

from kompakt.compressor.errors import ModelError

_BETAS: Final = (0.9, 0.98)
_LARGEST_NORM: Final = 1.0
_MOMENTS: Final = ("step", "exp_avg", "exp_avg_sq")


class MasterWeights:
    """The weights that the optimiser changes, in fp32: in bf16, most of its steps would be rounded away.

    Args:
        working: What computes and gets gradients, by name.
        first: Its values in fp32.
        factors: By what the learning rate is multiplied, by the beginning of names.

    Source: Micikevicius et al. 2018, "Mixed precision training", section 3.1; Kingma and Ba 2015, "Adam: A method
    for stochastic optimization".
    """

    def __init__(
        self,
        working: Mapping[str, nn.Parameter],
        first: Mapping[str, torch.Tensor],
        *,
        factors: Mapping[str, float] | None = None,
    ) -> None:
        self.working = working
        self.masters = {name: nn.Parameter(first[name].float().clone()) for name in working}
        self._factors = {
            name: next((factor for start, factor in (factors or {}).items() if name.startswith(start)), 1.0)
            for name in working
        }
        groups = [{"params": [master], "lr": 0.0} for master in self.masters.values()]
        self._optimiser = torch.optim.Adam(groups, betas=_BETAS)

    def step(self, learning_rate: float) -> None:
        """Change the weights by the gradients of what computes, and forget these."""
        for name, master in self.masters.items():
            gradient = self.working[name].grad
            master.grad = torch.zeros_like(master) if gradient is None else gradient.float()
            self.working[name].grad = None
        nn.utils.clip_grad_norm_(self.masters.values(), _LARGEST_NORM)
        for group, factor in zip(self._optimiser.param_groups, self._factors.values(), strict=True):
            group["lr"] = learning_rate * factor
        self._optimiser.step()
        self._optimiser.zero_grad()
        self._copy()

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the weights and what the optimiser remembers of them, as ``restore`` takes them."""
        tensors: dict[str, torch.Tensor] = {f"weight.{name}": master for name, master in self.masters.items()}
        for name, master in self.masters.items():
            tensors |= {f"{moment}.{name}": self._optimiser.state[master][moment] for moment in _MOMENTS}
        return tensors

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Go on from where ``tensors`` was called.

        Raises:
            ModelError: If one is missing or has another shape.
        """
        try:
            with torch.no_grad():
                for name, master in self.masters.items():
                    master.copy_(tensors[f"weight.{name}"])
            moments = [{moment: tensors[f"{moment}.{name}"] for moment in _MOMENTS} for name in self.masters]
        except (LookupError, RuntimeError) as error:
            raise ModelError(f"the checkpoint is damaged: {error}; give another folder") from error
        groups = self._optimiser.state_dict()["param_groups"]
        self._optimiser.load_state_dict({"state": dict(enumerate(moments)), "param_groups": groups})
        self._copy()

    def _copy(self) -> None:
        with torch.no_grad():
            for name, master in self.masters.items():
                self.working[name].copy_(master)
