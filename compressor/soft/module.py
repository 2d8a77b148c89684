"""The torch modules of soft compressors: a body of shared weights, and what a method adds to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel

from kompakt.compressor.models.causal_lm import CausalLM
from kompakt.compressor.soft.lora import Lora, adapter_parameters, check_tensors, with_adapter

_BODY = "body."


class SlotModule(nn.Module):
    """A decoder's body with an adapter; subclasses add parameters of their own and a forward pass.

    The body shares its weights with the decoder that it comes from. What is trained and saved are the adapter and the
    subclass's own parameters.

    Args:
        lm: The decoder.
        body: Its body, or what a method makes of it.
        lora: The adapter.
    """

    def __init__(self, lm: CausalLM, body: PreTrainedModel, lora: Lora) -> None:
        super().__init__()
        with seeded():
            self.body = with_adapter(body, lora)
        self.max_positions = lm.context_length

    def trainable(self) -> dict[str, nn.Parameter]:
        """Return what is trained and saved, by the names in checkpoints."""
        own = {name: value for name, value in self.named_parameters() if not name.startswith(_BODY)}
        return adapter_parameters(self.body) | own

    def fill(self, tensors: Mapping[str, torch.Tensor], where: str) -> None:
        """Take trained weights, in the number format of the body.

        Args:
            tensors: The weights by name.
            where: Where they come from, for messages.

        Raises:
            ModelError: If one is missing, superfluous or of another shape.
        """
        own = self.trainable()
        check_tensors({name: tuple(value.shape) for name, value in own.items()}, tensors, where)
        for name, parameter in own.items():
            parameter.data = tensors[name].to(self.body.device, parameter.dtype)


@contextmanager
def seeded() -> Iterator[None]:
    """Draw the same untrained weights each time, and leave the caller's source of chance as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
