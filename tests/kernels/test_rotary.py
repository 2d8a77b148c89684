"""Rotations of keys, against complex numbers."""

import pytest
import torch

from kompakt.kernels.rotary import rerotate_, rerotated, rerotated_reference

# keys, dimensions that are rotated, axes of the tables before their last one
SHAPES = {
    "heads": ((2, 7, 8), 8, (1, 7)),
    "no-leading-axis": ((5, 6), 6, (5,)),
    "odd-half": ((3, 5, 10), 10, (5,)),
    "some-dimensions": ((2, 5, 11), 6, (1, 5)),
    "many-positions": ((1, 123, 66), 66, (1, 123)),
    "positions-of-each-head": ((3, 4, 8), 8, (3, 4)),
    "layers-and-batches": ((2, 3, 2, 4, 8), 8, (1, 4)),
    "positions-of-each-text": ((3, 2, 4, 8), 4, (3, 1, 4)),
    "one-angle-for-all": ((2, 3, 8), 8, (1, 1)),
    "one-position": ((2, 1, 2), 2, (1, 1)),
    "wide-heads": ((1, 2, 260), 256, (2,)),
    "no-positions": ((2, 0, 8), 8, (1, 0)),
    "no-heads": ((0, 3, 8), 8, (1, 3)),
}
ROTATIONS = {"old-and-new": (True, True), "old": (True, False), "new": (False, True), "neither": (False, False)}
# one step of the format: Triton's interpreter does not round to the nearest
TOLERANCES = {torch.float32: 1e-6, torch.bfloat16: 2**-7, torch.float16: 2**-10}


def numbers(*shape, device="cpu", dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)


def rotation(shape, width, *, device="cpu", dtype=torch.float32, seed=1):
    angles = 40 * numbers(*shape, width // 2, seed=seed).repeat(*[1] * len(shape), 2)
    return angles.cos().to(device, dtype), angles.sin().to(device, dtype)


def case(name, rotations, device, dtype=torch.float32, tables=torch.float32):
    shape, width, lead = SHAPES[name]
    given = [
        rotation(lead, width, device=device, dtype=tables, seed=seed) if wanted else None
        for seed, wanted in enumerate(ROTATIONS[rotations], 1)
    ]
    return numbers(*shape, device=device, dtype=dtype), *given


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("rotations", [name for name in ROTATIONS if name != "neither"])
@pytest.mark.parametrize("name", SHAPES)
def test_rotated_keys_are_those_of_the_reference(implementation, device, name, rotations, dtype):
    keys, old, new = case(name, rotations, device, dtype)
    before = keys.clone()
    expected = rerotated_reference(keys, old, new)
    close = {"atol": TOLERANCES[dtype] * 4, "rtol": TOLERANCES[dtype]}
    apart = rerotated(keys, old, new)
    assert apart.dtype == dtype
    torch.testing.assert_close(apart, expected, **close)
    assert torch.equal(keys, before)
    assert rerotate_(keys, old, new) is keys
    torch.testing.assert_close(keys, expected, **close)


def test_the_reference_rotates_pairs_of_halves():
    quarter = torch.tensor([[0.0, 1.0, 0.0, 1.0]]), torch.tensor([[1.0, 0.0, 1.0, 0.0]])
    keys = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0]])
    assert rerotated_reference(keys, None, quarter).tolist() == [[-3.0, 2.0, 1.0, 4.0, 5.0]]
    assert rerotated_reference(keys, quarter, None).tolist() == [[3.0, 2.0, -1.0, 4.0, 5.0]]


def test_the_new_rotation_is_the_one_that_bare_keys_would_have(implementation, device):
    bare, old, new = case("some-dimensions", "old-and-new", device)
    moved = rerotated(rerotated(bare, None, old), old, new)
    torch.testing.assert_close(moved, rerotated(bare, None, new), atol=1e-5, rtol=0)


def test_bf16_keys_are_rounded_once(implementation, device):
    keys, old, new = case("many-positions", "old-and-new", device, torch.bfloat16)
    exact = rerotated_reference(keys.double(), old, new)
    once = (rerotated(keys, old, new).double() - exact).norm()
    twice = (rerotated(rerotated(keys, old, None), None, new).double() - exact).norm()
    assert once < 0.8 * twice


def test_keys_without_old_and_new_rotation_stay(implementation, device):
    keys, old, new = case("heads", "neither", device)
    assert torch.equal(rerotated(keys, old, new), keys)
    assert rerotated(keys, old, new) is not keys
    assert rerotate_(keys.clone(), old, new).equal(keys)


def test_tables_may_be_rounded(implementation, device):
    keys, old, new = case("heads", "old-and-new", device, tables=torch.bfloat16)
    torch.testing.assert_close(rerotated(keys, old, new), rerotated_reference(keys, old, new))


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (1, 0, 2, 3), (0, 2, 1, 3), (3, 1, 2, 0)], ids=str)
def test_keys_may_stand_anywhere_in_memory(implementation, device, order):
    room = numbers(6, 4, 8, 6, device=device).permute(order)
    keys = room[:, :, ::2, :6]
    old, new = (rotation((1, keys.shape[2]), 6, device=device, seed=seed) for seed in (1, 2))
    # tables that were cut out of longer and wider ones
    old = tuple(torch.nn.functional.pad(table, (0, 3, 2, 0))[:, 2:, :6] for table in old)
    expected, others = rerotated_reference(keys, old, new), room[:, :, 1::2].clone()
    torch.testing.assert_close(rerotated(keys, old, new), expected)
    rerotate_(keys, old, new)
    torch.testing.assert_close(keys, expected)
    assert torch.equal(room[:, :, 1::2], others)


@pytest.mark.parametrize("in_place", [False, True], ids=["apart", "in-place"])
@pytest.mark.parametrize("name", ["heads", "some-dimensions", "positions-of-each-text"])
def test_gradients_are_those_of_the_reference(implementation, device, name, in_place):
    keys, old, new = case(name, "old-and-new", device)
    found, expected = keys.clone().requires_grad_(), keys.clone().requires_grad_()
    weights = numbers(*keys.shape, device=device, seed=5)
    turned = rerotate_(found * 1, old, new) if in_place else rerotated(found, old, new)
    (turned.square() * weights).sum().backward()
    (rerotated_reference(expected, old, new).square() * weights).sum().backward()
    torch.testing.assert_close(found.grad, expected.grad, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rotations", ["old-and-new", "old", "new"])
@pytest.mark.parametrize("name", ["some-dimensions", "positions-of-each-head"])
def test_gradients_are_those_of_small_steps(monkeypatch, name, rotations):
    monkeypatch.delenv("KOMPAKT_KERNELS", raising=False)
    keys, old, new = case(name, rotations, "cpu", torch.float64, torch.float64)
    keys.requires_grad_()
    assert torch.autograd.gradcheck(lambda keys: rerotated(keys, old, new), keys)
    assert torch.autograd.gradcheck(lambda keys: rerotate_(keys * 1, old, new), keys)
    assert torch.autograd.gradgradcheck(lambda keys: rerotated(keys, old, new), keys)


def test_keys_that_are_fitted_are_not_overwritten(implementation, device):
    keys, old, new = case("heads", "old-and-new", device)
    with pytest.raises(RuntimeError, match="leaf Variable that requires grad"):
        rerotate_(keys.requires_grad_(), old, new)


def test_the_setting_takes_the_reference(monkeypatch, device):
    monkeypatch.setenv("KOMPAKT_KERNELS", "reference")
    keys, old, new = case("many-positions", "old-and-new", device)
    expected = rerotated_reference(keys, old, new)
    assert torch.equal(rerotated(keys, old, new), expected)
    assert torch.equal(rerotate_(keys, old, new), expected)


@pytest.mark.parametrize(
    ("keys", "old", "new", "message"),
    [
        ((8,), (1, 8), (1, 8), r"keys must be \[\.\.\., m, D_head\] in floating point, got \[8\]"),
        ((2, 3, 8), (3, 8), (3, 6), "with one even R from 2 to 8, got .*3, 6"),
        ((2, 3, 8), (3, 10), None, "from 2 to 8, got .*3, 10"),
        ((2, 3, 7), None, (3, 7), "one even R from 2 to 7, got .*3, 7"),
        ((2, 3, 8), (3, 0), None, "from 2 to 8, got .*3, 0"),
        ((2, 3, 8), (8,), None, r"tables must be \[\.\.\., m, R\]"),
        ((2, 3, 8), (4, 8), None, r"a table \[4, 8\] cannot be broadcast to keys \[2, 3, 8\]"),
        ((2, 3, 8), None, (2, 2, 3, 8), r"a table \[2, 2, 3, 8\] cannot be broadcast"),
    ],
    ids=["one-axis", "two-widths", "too-wide", "odd", "nothing", "flat-table", "other-positions", "more-axes"],
)
def test_wrong_shapes_are_named(keys, old, new, message):
    rotations = [None if shape is None else (torch.zeros(shape), torch.zeros(shape)) for shape in (old, new)]
    for operation in (rerotated, rerotate_):
        with pytest.raises(ValueError, match=message):
            operation(torch.zeros(keys), *rotations)


def test_whole_numbers_and_shared_memory_are_named():
    with pytest.raises(ValueError, match=r"got .* in torch\.int64"):
        rerotated(torch.zeros(2, 8, dtype=torch.int64), None, rotation((2,), 8))
    with pytest.raises(ValueError, match="share their memory"):
        rerotate_(torch.zeros(1, 2, 8).expand(3, -1, -1), None, rotation((2,), 8))
