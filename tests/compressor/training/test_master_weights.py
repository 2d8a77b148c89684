"""Steps on fp32 weights, against Adam written out number by number."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from kompakt.compressor.errors import ModelError
from kompakt.compressor.training.master_weights import MasterWeights

RATES = (1e-2, 3e-2, 1e-3, 2e-2)


def written_out(first, gradients, factors):
    """Kingma and Ba, algorithm 1, with gradients clipped to a norm of 1."""
    weights = {name: value.double().clone() for name, value in first.items()}
    mean = {name: torch.zeros_like(value) for name, value in weights.items()}
    square = {name: torch.zeros_like(value) for name, value in weights.items()}
    for step, (rate, given) in enumerate(zip(RATES, gradients, strict=True), start=1):
        norm = sum(float((value.double() ** 2).sum()) for value in given.values()) ** 0.5
        for name in weights:
            gradient = given[name].double() * min(1.0, 1 / norm)
            mean[name] = 0.9 * mean[name] + 0.1 * gradient
            square[name] = 0.98 * square[name] + 0.02 * gradient**2
            corrected = mean[name] / (1 - 0.9**step), square[name] / (1 - 0.98**step)
            weights[name] -= rate * factors[name] * corrected[0] / (corrected[1].sqrt() + 1e-8)
    return {name: value.float() for name, value in weights.items()}


@pytest.fixture
def first():
    torch.manual_seed(0)
    return {"body.a": torch.randn(5, 3), "readout.b": torch.randn(7), "body.c": torch.randn(1)}


@pytest.fixture
def gradients(first):
    # some above the norm at which they are clipped, some below; exact in bf16
    scales = (1.0, 0.01, 3.0, 0.05)
    return [
        {name: (scale * torch.randn(value.shape)).bfloat16() for name, value in first.items()} for scale in scales
    ]


def masters(first, dtype):
    working = {name: nn.Parameter(value.to(dtype).clone()) for name, value in first.items()}
    return MasterWeights(working, first, factors={"readout.": 4.0})


def steps(weights, gradients, rates):
    for given, rate in zip(gradients, rates, strict=True):
        for name, parameter in weights.working.items():
            parameter.grad = given[name].to(parameter.dtype)
        weights.step(rate)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_steps_are_those_of_the_definition(first, gradients, dtype):
    weights = masters(first, dtype)
    steps(weights, gradients, RATES)
    expected = written_out(first, gradients, {"body.a": 1.0, "readout.b": 4.0, "body.c": 1.0})
    for name, master in weights.masters.items():
        assert_close(master.detach(), expected[name], atol=1e-5, rtol=0)
        assert torch.equal(weights.working[name], master.to(dtype))
        assert weights.working[name].grad is None


def test_steps_that_bf16_would_round_away_add_up(first):
    weights = masters({"body.a": torch.ones(4)}, torch.bfloat16)
    steps(weights, [{"body.a": torch.ones(4)}] * 40, [1e-4] * 40)
    assert_close(weights.masters["body.a"].detach(), torch.full((4,), 1 - 40e-4), atol=1e-5, rtol=0)
    assert (weights.working["body.a"] < 1).all()


def test_they_go_on_from_what_was_saved(first, gradients):
    whole, before, after = (masters(first, torch.bfloat16) for _ in range(3))
    steps(whole, gradients, RATES)
    steps(before, gradients[:2], RATES[:2])
    after.restore({name: value.detach().clone() for name, value in before.tensors().items()})
    steps(after, gradients[2:], RATES[2:])
    for name, value in whole.tensors().items():
        assert torch.equal(after.tensors()[name], value), name


def test_what_was_never_used_stays_as_it_is(first):
    weights = masters(first, torch.float32)
    weights.working["body.a"].grad = torch.ones(5, 3)
    weights.step(0.1)
    assert torch.equal(weights.masters["body.c"], first["body.c"])
    assert not torch.equal(weights.masters["body.a"], first["body.a"])


def test_tensors_that_do_not_fit_are_refused(first):
    weights = masters(first, torch.float32)
    steps(weights, [{name: torch.ones_like(value) for name, value in first.items()}], [0.1])
    saved = weights.tensors()
    del saved["weight.body.c"]
    with pytest.raises(ModelError, match=r"the checkpoint is damaged: 'weight\.body\.c'"):
        masters(first, torch.float32).restore(saved)
