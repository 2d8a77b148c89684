"""Rows of a quantised table, against the table dequantised as a whole."""

import pytest
import torch

from kompakt.kernels.gather_dequantised import gather_dequantised, gather_dequantised_reference
from kompakt.kernels.quantisation import quantise

IDS = {"none": [], "one": [36], "some": [36, 0, 5, 5, 9], "many": list(range(36, -1, -5)) * 2}


def table(n_rows, width, bits, group, device):
    """An embedding table, and its codes and scales, a row each."""
    numbers = torch.randn(n_rows, width, generator=torch.Generator().manual_seed(1)).to(device)
    quantised = quantise(numbers, bits=bits, group=group)
    return numbers, quantised.codes.view(n_rows, -1), quantised.scales.view(n_rows, -1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("ids", IDS.values(), ids=IDS.keys())
@pytest.mark.parametrize("width_and_group", [(6, 2), (126, 6), (24, 24), (2, 2), (1536, 64)], ids=str)
@pytest.mark.parametrize("bits", [8, 4])
def test_rows_are_those_of_the_whole_table(implementation, device, bits, width_and_group, ids, dtype):
    width, group = width_and_group
    numbers, codes, scales = table(37, width, bits, group, device)
    ids = torch.tensor(ids, dtype=torch.int64, device=device)
    found = gather_dequantised(codes, scales, ids, bits=bits, group=group, dtype=dtype)
    expected = gather_dequantised_reference(codes, scales, ids, bits=bits, group=group, dtype=dtype)
    assert (found.dtype, found.shape) == (dtype, (len(ids), width))
    # Triton's interpreter cuts bf16 off where a GPU rounds
    torch.testing.assert_close(found, expected, rtol=2**-7 if dtype == torch.bfloat16 else 0, atol=0)
    step = numbers.abs().max() / (127 if bits == 8 else 7)
    assert (found.float() - numbers[ids]).abs().max().item() <= 0.6 * step + 0.02 if len(ids) else True


def test_groups_of_8_bits_may_be_odd(implementation, device):
    _, codes, scales = table(5, 15, 8, 5, device)
    ids = torch.tensor([4, 1], device=device)
    found = gather_dequantised(codes, scales, ids, bits=8, group=5)
    assert torch.equal(found, gather_dequantised_reference(codes, scales, ids, bits=8, group=5))


@pytest.mark.parametrize("bits", [8, 4])
def test_layout_and_the_type_of_ids_do_not_matter(implementation, device, bits):
    _, codes, scales = table(7, 12, bits, 4, device)
    ids = torch.tensor([6, 9, 0, 9, 3], dtype=torch.int32, device=device)[::2]
    mirrored = [tensor.T.contiguous().T for tensor in (codes, scales)]
    found = gather_dequantised(*mirrored, ids, bits=bits, group=4)
    assert torch.equal(found, gather_dequantised(codes, scales, ids.long().contiguous(), bits=bits, group=4))
    assert torch.equal(found, gather_dequantised_reference(codes, scales, ids, bits=bits, group=4))


@pytest.mark.skipif(torch.cuda.is_available(), reason="ids on a GPU are not looked at")
@pytest.mark.parametrize("wrong", [-1, 7])
def test_ids_out_of_range_are_named(implementation, device, wrong):
    _, codes, scales = table(7, 12, 8, 4, device)
    with pytest.raises(IndexError, match=rf"ids must be in \[0, 7\), got {wrong}"):
        gather_dequantised(codes, scales, torch.tensor([0, wrong, 6], device=device), bits=8, group=4)


@pytest.mark.parametrize("bits", [8, 4])
def test_the_kernel_reads_nothing_outside_the_table(device, bits):
    from kompakt.kernels.gather_dequantised_triton import gathered

    _, codes, scales = table(7, 12, bits, 4, device)
    ids = torch.tensor([2, -1, 7, 6, 1 << 40], device=device)
    found = gathered(codes, scales, ids, bits=bits, group=4, dtype=torch.float32)
    assert found.isnan().all(dim=1).tolist() == [False, True, True, False, True]
    assert torch.equal(found[[0, 3]], gathered(codes, scales, ids[[0, 3]], bits=bits, group=4, dtype=torch.float32))


GOOD = {"codes": torch.zeros(7, 12, dtype=torch.int8), "scales": torch.ones(7, 3), "ids": torch.tensor([1])}


@pytest.mark.parametrize(("change", "words"), [
    ({"bits": 4}, r"torch.uint8 \[V, D / 2\]"),
    ({"bits": 3}, "bits must be 8 or 4"),
    ({"group": 3}, r"scales torch.float32 \[V, D / 3\], got torch.int8 \[7, 12\] and torch.float32 \[7, 3\]"),
    ({"scales": torch.ones(6, 3)}, r"float32 \[6, 3\]"),
    ({"scales": torch.ones(7, 3).half()}, r"float16 \[7, 3\]"),
    ({"codes": torch.zeros(84, dtype=torch.int8)}, r"got torch.int8 \[84\]"),
    ({"ids": torch.tensor([[1]])}, r"ids must be int64 or int32 \[N\], got torch.int64 \[1, 1\]"),
    ({"ids": torch.tensor([1.0])}, "got torch.float32"),
    ({"dtype": torch.int8}, "dtype must be floating point"),
])  # fmt: skip
def test_what_does_not_fit_is_named(change, words):
    given = GOOD | {"bits": 8, "group": 4} | change
    with pytest.raises(ValueError, match=words):
        gather_dequantised(given.pop("codes"), given.pop("scales"), given.pop("ids"), **given)
