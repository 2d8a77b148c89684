"""Quantisation: the codes and scales of the store's codec, bit for bit."""

import math

import numpy as np
import pytest
import torch

from kompakt.compressor.store import codec
from kompakt.kernels.dispatch import KernelUnavailableError
from kompakt.kernels.quantisation import (
    LEVELS,
    dequantise,
    dequantise_reference,
    quantise,
    quantise_reference,
)

SHAPES = [(), (0,), (1,), (5, 7), (3, 0, 2), (123,), (2, 3, 64), (1, 700)]
GROUPS = [2, 6, 64]
TINY = float(np.finfo(np.float32).smallest_subnormal)
HUGE = float(np.finfo(np.float32).max)


def numbers(shape, device, dtype=torch.float32, seed=0):
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 3).to(device, dtype)


def by_the_codec(x, bits, group):
    codes, scales = codec.quantise(x.float().cpu().numpy(), levels=LEVELS[bits], group=group)
    packed = codec._packed(codes).reshape(len(codes), group // 2) if bits == 4 else codes
    return torch.from_numpy(packed), torch.from_numpy(scales)


def same_bits(ours, theirs):
    ours = ours.cpu().contiguous()
    return (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape) and (
        ours.numpy().tobytes() == theirs.contiguous().numpy().tobytes()
    )


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_codes_and_scales_are_those_of_the_store(implementation, device, bits, group, shape, dtype):
    x = numbers(shape, device, dtype)
    found = quantise(x, bits=bits, group=group)
    codes, scales = by_the_codec(x, bits, group)
    assert same_bits(found.codes, codes)
    assert same_bits(found.scales, scales)
    reference = quantise_reference(x, bits=bits, group=group)
    assert same_bits(found.codes, reference.codes.cpu())
    assert same_bits(found.scales, reference.scales.cpu())


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_numbers_come_back_as_from_the_store(implementation, device, bits, group, shape):
    x = numbers(shape, device)
    quantised = quantise(x, bits=bits, group=group)
    found = dequantise(quantised.codes, quantised.scales, shape=shape, bits=bits, group=group)
    codes, scales = codec.quantise(x.cpu().numpy(), levels=LEVELS[bits], group=group)
    assert same_bits(found, torch.from_numpy(codec.dequantise(codes, scales, shape=shape, group=group)))
    assert (found.cpu() - x.cpu()).abs().sum() <= 0.2 * x.abs().sum().cpu()


@pytest.mark.parametrize("bits", [8, 4])
def test_numbers_around_every_step_and_at_both_ends_round_alike(implementation, device, bits):
    # halves between two codes, and their neighbours among floats
    halves = (torch.arange(-LEVELS[bits], LEVELS[bits]) + 0.5) * 0.37
    rows = [
        [half, math.nextafter(half, 9), math.nextafter(half, -9), LEVELS[bits] * 0.37] for half in halves.tolist()
    ]
    rows += [[HUGE, -HUGE, HUGE / 3, 0.0], [TINY, 0.0, 0.0, 0.0], [TINY * 100, -TINY * 60, TINY, 0.0], [0.0] * 4]
    rows += [[1e-38, -1e-38, 3e-39, 1e-45], [-0.0, -1.0, -0.5, 0.25]]
    x = torch.tensor(rows, device=device)
    found = quantise(x, bits=bits, group=4)
    codes, scales = by_the_codec(x, bits, 4)
    assert same_bits(found.codes, codes)
    assert same_bits(found.scales, scales)
    assert dequantise(found.codes, found.scales, shape=x.shape, bits=bits, group=4).isfinite().all()


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_a_group_that_is_not_finite_says_so_and_spoils_no_other(implementation, device, bits, wrong):
    x = numbers((5, 6), device)
    x[2, 3] = wrong
    found = quantise(x, bits=bits, group=6)
    clean = quantise(x[[0, 1, 3, 4]], bits=bits, group=6)
    assert found.scales[2].isnan()
    assert (found.codes[2] == (0 if bits == 8 else 0x88)).all()
    assert torch.equal(found.codes[[0, 1, 3, 4]], clean.codes)
    assert torch.equal(found.scales[[0, 1, 3, 4]], clean.scales)
    restored = dequantise(found.codes, found.scales, shape=(5, 6), bits=bits, group=6)
    assert restored.isnan().any(dim=1).tolist() == [False, False, True, False, False]
    reference = quantise_reference(x, bits=bits, group=6)
    assert torch.equal(found.codes, reference.codes)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_numbers_are_rounded_to_the_format_that_is_wanted(implementation, device, bits, dtype):
    quantised = quantise(numbers((5, 123), device), bits=bits, group=6)
    options = {"shape": (5, 123), "bits": bits, "group": 6}
    found = dequantise(quantised.codes, quantised.scales, **options, dtype=dtype)
    expected = dequantise_reference(quantised.codes, quantised.scales, **options, dtype=dtype)
    assert found.dtype == dtype
    # Triton's interpreter cuts bf16 off where a GPU rounds
    torch.testing.assert_close(found, expected, rtol=2**-7 if dtype == torch.bfloat16 else 0, atol=0)


@pytest.mark.parametrize("bits", [8, 4])
def test_every_code_survives_packing(implementation, device, bits):
    codes = torch.arange(-LEVELS[bits], LEVELS[bits] + 1, device=device)
    pairs = torch.cartesian_prod(codes, codes).float()[:: 1 if bits == 4 else 97]
    ends = torch.full_like(pairs, LEVELS[bits])
    x = torch.cat([pairs, ends], dim=1)
    found = quantise(x, bits=bits, group=4)
    assert (found.scales == 1).all()
    assert torch.equal(dequantise(found.codes, found.scales, shape=x.shape, bits=bits, group=4), x)


def test_memory_layout_does_not_matter(implementation, device):
    x = numbers((14, 22), device)
    for view in (x.T, x[::2, ::3], x[3:, 1:]):
        found, plain = (quantise(tensor, bits=4, group=6) for tensor in (view, view.contiguous().clone()))
        assert torch.equal(found.codes, plain.codes)
        assert torch.equal(found.scales, plain.scales)


def test_a_whole_tensor_may_be_one_group(implementation, device):
    x = numbers((1500,), device)
    found = quantise(x, bits=8, group=5000)
    assert found.codes.shape == (1, 5000)
    assert torch.equal(found.codes, quantise_reference(x, bits=8, group=5000).codes)


def test_what_was_given_is_left_alone_and_gets_no_gradient(implementation, device):
    x = numbers((4, 6), device).requires_grad_()
    before = x.detach().clone()
    found = quantise(x, bits=8, group=6)
    dequantise(found.codes, found.scales, shape=(4, 6), bits=8, group=6)
    assert torch.equal(x, before)
    assert not found.scales.requires_grad


def test_groups_too_long_for_a_kernel_are_refused_by_it_alone(monkeypatch, device):
    x = numbers((10,), device)
    monkeypatch.setenv("KOMPAKT_KERNELS", "triton")
    with pytest.raises(KernelUnavailableError, match="groups of 40000 are longer than 32768"):
        quantise(x, bits=8, group=40000)
    monkeypatch.setenv("KOMPAKT_KERNELS", "reference")
    assert quantise(x, bits=8, group=40000).codes.shape == (1, 40000)


@pytest.mark.parametrize(("x", "options", "words"), [
    (torch.zeros(4), {"bits": 2, "group": 2}, "bits must be 8 or 4, got 2"),
    (torch.zeros(4), {"bits": 8, "group": 0}, "group must be at least 1, .* got 0"),
    (torch.zeros(4), {"bits": 4, "group": 3}, "even for 4 bits, got 3"),
    (torch.zeros(4, dtype=torch.int32), {"bits": 8, "group": 2}, "floating point to be quantised, got torch.int32"),
])  # fmt: skip
def test_what_cannot_be_quantised_is_named(x, options, words):
    with pytest.raises(ValueError, match=words):
        quantise(x, **options)


@pytest.mark.parametrize(("change", "words"), [
    ({"bits": 4}, "codes of 4 bits must be torch.uint8"),
    ({"bits": 16}, "bits must be 8 or 4"),
    ({"group": 4}, r"12 codes, 2 scales and groups of 4 are not numbers of the shape \[2, 6\]"),
    ({"shape": (13,)}, r"the shape \[13\]"),
    ({"shape": (-2, -3)}, r"the shape \[-2, -3\]"),
    ({"scales": torch.zeros(3, 1)}, "12 codes, 3 scales"),
    ({"scales": torch.zeros(2, 1).half()}, "got torch.int8 and torch.float16"),
    ({"dtype": torch.int32}, "dtype must be floating point"),
])  # fmt: skip
def test_codes_that_stand_for_no_such_numbers_are_named(change, words):
    given = {"codes": torch.zeros(2, 6, dtype=torch.int8), "scales": torch.ones(2, 1), "shape": (2, 6),
             "bits": 8, "group": 6} | change  # fmt: skip
    with pytest.raises(ValueError, match=words):
        dequantise(given.pop("codes"), given.pop("scales"), **given)
