"""Means of runs of rows, against a loop over the segments."""

import math

import pytest
import torch

from kompakt.kernels.segment_pooling import segment_mean, segment_mean_reference, segment_offsets, strided_mean

# rows, width, offsets
SHAPES = {
    "ragged": (123, 7, [0, 5, 6, 60, 123]),
    "empty-segments": (9, 5, [0, 0, 4, 4, 9, 9]),
    "one-row": (1, 1, [0, 1]),
    "rows-of-no-segment": (20, 33, [3, 8, 17]),
    "long-segment": (70, 130, [0, 70]),
    "more-columns-than-a-block": (6, 2050, [0, 1, 6]),
    "no-rows": (0, 4, [0, 0]),
    "no-segments": (4, 4, [2]),
    "no-columns": (4, 0, [0, 4]),
}
# one step of the format: Triton's interpreter does not round to the nearest
TOLERANCES = {torch.float32: 1e-6, torch.bfloat16: 2**-7, torch.float16: 2**-10}


def rows(n, width, *, device="cpu", dtype=torch.float32):
    return torch.randn(n, width, generator=torch.Generator().manual_seed(n + width)).to(device, dtype)


def case(name, device, dtype=torch.float32):
    n, width, offsets = SHAPES[name]
    return rows(n, width, device=device, dtype=dtype), torch.tensor(offsets, device=device)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_means_are_those_of_the_reference(implementation, device, name, dtype):
    x, offsets = case(name, device, dtype)
    means = segment_mean(x, offsets)
    assert means.dtype == dtype
    expected = segment_mean_reference(x, offsets)
    torch.testing.assert_close(means, expected, atol=TOLERANCES[dtype], rtol=TOLERANCES[dtype])


def test_the_reference_is_the_mean_of_the_rows():
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0], [10.0, 20.0]])
    means = segment_mean_reference(x, torch.tensor([0, 2, 2, 3]))
    assert means.tolist() == [[2.0, 3.0], [0.0, 0.0], [10.0, 20.0]]


def test_sums_are_made_in_fp32(implementation, device):
    # in bf16, 256 + 1 is 256
    x = torch.tensor([256.0] + [1.0] * 128 + [0.0] * 127, device=device, dtype=torch.bfloat16)[:, None]
    assert segment_mean(x, torch.tensor([0, 256], device=device)).item() == 1.5


def test_rows_may_stand_apart(implementation, device):
    x, offsets = rows(12, 10, device=device)[::2, ::3], torch.tensor([0, 2, 6], device=device)
    transposed = rows(6, 6, device=device).T
    for strided in (x, transposed):
        torch.testing.assert_close(segment_mean(strided, offsets), segment_mean_reference(strided, offsets))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_gradients_are_those_of_the_reference(implementation, device, name, dtype):
    x, offsets = case(name, device, dtype)
    found, expected = x.clone().requires_grad_(), x.clone().requires_grad_()
    means = segment_mean(found, offsets)
    weights = rows(*means.shape, device=device, dtype=dtype)
    (means * weights).sum().backward()
    (segment_mean_reference(expected, offsets) * weights).sum().backward()
    assert found.grad.dtype == dtype
    torch.testing.assert_close(found.grad, expected.grad, atol=1e-6, rtol=TOLERANCES[dtype])


def test_gradients_are_those_of_small_steps(monkeypatch):
    monkeypatch.delenv("KOMPAKT_KERNELS", raising=False)
    x = rows(11, 3, dtype=torch.float64).requires_grad_()
    offsets = torch.tensor([1, 4, 4, 9])
    assert torch.autograd.gradcheck(segment_mean, (x, offsets))
    assert torch.autograd.gradgradcheck(segment_mean, (x, offsets))


def test_the_setting_takes_the_reference(monkeypatch, device):
    monkeypatch.setenv("KOMPAKT_KERNELS", "reference")
    x, offsets = case("ragged", device)
    assert torch.equal(segment_mean(x, offsets), segment_mean_reference(x, offsets))


@pytest.mark.parametrize("stride", [1, 3, 8, 100])
def test_strides_begin_anew_in_each_segment(implementation, device, stride):
    lengths = [7, 0, 1, 16]
    x = rows(24, 5, device=device)
    expected = [group.mean(dim=0) for one in x.split(lengths) for group in one.split(stride) if len(group)]
    means = strided_mean(x, lengths, stride)
    assert len(means) == sum(math.ceil(length / stride) for length in lengths)
    torch.testing.assert_close(means, torch.stack(expected))


def test_no_segments_have_no_strides(implementation, device):
    assert strided_mean(rows(0, 5, device=device), [], 4).shape == (0, 5)


def test_offsets_are_the_ends_of_lengths():
    assert segment_offsets([2, 0, 3]).tolist() == [0, 2, 2, 5]
    assert segment_offsets([]).tolist() == [0]


@pytest.mark.parametrize(
    ("x", "offsets", "message"),
    [
        (torch.zeros(4), [0, 4], r"expected \[T, D\] and \[S \+ 1\], got \[4\] and \[2\]"),
        (torch.zeros(4, 2), [[0, 4]], r"got \[4, 2\] and \[1, 2\]"),
        (torch.zeros(4, 2), torch.zeros(0, dtype=torch.int64), r"got \[4, 2\] and \[0\]"),
        (torch.zeros(4, 2, dtype=torch.int64), [0, 4], "got torch.int64"),
        (torch.zeros(4, 2), [0.0, 4.0], "and torch.float32"),
        (torch.zeros(4, 2), [0, 5], r"to at most 4, got \[0, 5\]"),
        (torch.zeros(4, 2), [-1, 4], r"got \[-1, 4\]"),
        (torch.zeros(4, 2), [0, 3, 2], r"got \[0, 3, 2\]"),
    ],
    ids=["no-columns", "two-axes", "no-offsets", "whole-rows", "broken-offsets", "too-far", "below-0", "falling"],
)
def test_wrong_shapes_and_offsets_are_named(x, offsets, message):
    with pytest.raises(ValueError, match=message):
        segment_mean(x, torch.as_tensor(offsets))


def test_wrong_strides_and_lengths_are_named():
    with pytest.raises(ValueError, match="stride must be at least 1, got 0"):
        strided_mean(torch.zeros(4, 2), [4], 0)
    for lengths in ([3], [5, -1]):
        with pytest.raises(ValueError, match="sum to the 4 rows, got"):
            strided_mean(torch.zeros(4, 2), lengths, 2)
