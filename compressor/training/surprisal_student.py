"""The first layers of a language model with a readout, while they are trained."""

from __future__ import annotations

import copy
from typing import Any, Final

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from kompakt.compressor.models.causal_lm import CausalLM
from kompakt.compressor.models.surprisal_lite import Readout
from kompakt.compressor.soft.decoder import body_of, truncated
from kompakt.compressor.training.surprisal_batches import Batch

_OFFSET: Final = 0.1
"""Nats below which ratios of surprisals do not matter."""
_WEIGHT_OF_NATS: Final = 0.3
_PREDICTION: Final = 0.3
_NORMALISER: Final = 3.0


class Student(nn.Module):
    """The first layers with weights of their own, and a readout; tables of embeddings are never changed.

    Args:
        lm: The whole model in fp32, which stays as it is.
        n_layers: How many layers are used.
        d_correction: Width of the readout's hidden layer.
        dtype: Number format in which it computes.
        seed: Decides the readout's first weights.

    Raises:
        ModelError: If the model has not that many layers, or is built in a way that is not known here.
    """

    def __init__(self, lm: CausalLM, *, n_layers: int, d_correction: int, dtype: torch.dtype, seed: int) -> None:
        super().__init__()
        self.body: Any = copy.deepcopy(truncated(body_of(lm), n_layers, final_norm=True))
        self.body.requires_grad_(True)
        for module in self.body.modules():
            if isinstance(module, nn.Embedding):
                module.requires_grad_(False)
        self.readout = _first_readout(self.body.config.hidden_size, d_correction, seed).to(self.body.device)
        self.first = {name: p.detach().clone() for name, p in self.named_parameters() if p.requires_grad}
        # not .to(dtype), which would round the frequencies of rotations as well
        for parameter in self.parameters():
            parameter.data = parameter.data.to(dtype)

    def trained(self) -> dict[str, nn.Parameter]:
        """Return what is trained, by name."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def forward(self, batch: Batch) -> torch.Tensor:
        """Return nats of the tokens that count, in fp32 ``[N]``."""
        # padding stands behind, where a causal model does not look
        states = self.body(input_ids=batch.ids, use_cache=False).last_hidden_state
        embeddings = self.body.get_input_embeddings()(batch.ids[:, 1:][batch.is_scored])
        nats: torch.Tensor = self.readout(states[:, :-1][batch.is_scored], states[:, 1:][batch.is_scored], embeddings)
        return nats


def _first_readout(d_model: int, d_correction: int, seed: int) -> Readout:
    """Return a readout that begins as a plain product of the state and the embedding."""
    draws = torch.Generator().manual_seed(seed)
    readout = Readout(d_model, d_correction)
    with torch.no_grad():
        readout.predict.weight.copy_(_PREDICTION * torch.eye(d_model))
        readout.hidden.weight.normal_(std=(3 * d_model) ** -0.5, generator=draws)
        readout.hidden.bias.zero_()
        readout.correction.weight.zero_()
        readout.correction.bias.fill_(_NORMALISER)
    return readout


def surprisal_loss(nats: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Return how far surprisals are from those of the whole model.

    The squared error of their logarithms makes for the right order among the many tokens of little surprise, where
    that of nats would see the rare surprising ones alone; a smooth L1 of nats keeps the scale of these.

    Args:
        nats: What the student says ``[N]``.
        wanted: What the whole model says ``[N]``.

    Returns:
        A number.
    """
    ratios = torch.log(nats + _OFFSET) - torch.log(wanted + _OFFSET)
    return ratios.square().mean() + _WEIGHT_OF_NATS * functional.smooth_l1_loss(nats, wanted)


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """Return the correlation of the ranks of two series ``[N]``; 0 if one of them is constant.

    Source: Spearman 1904, "The proof and measurement of association between two things".
    """
    places, others = _ranks(first), _ranks(second)
    if np.ptp(places) == 0 or np.ptp(others) == 0:
        return 0.0
    return float(np.corrcoef(places, others)[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    """Return the place of each value in ascending order; equal ones share the mean of their places."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: np.ndarray = (np.cumsum(counts) - (counts - 1) / 2)[places]
    return ranks
