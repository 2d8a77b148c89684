"""Selection under a budget, against the rule of the compressors, item by item."""

import math

import pytest
import torch

from kompakt.compressor.budget import Candidates, fill
from kompakt.kernels import budget_selection
from kompakt.kernels.budget_selection import select_within_budget, select_within_budget_reference


def drawn(n_rows, n_items, device, seed=0):
    """Scores with many ties, lengths with zeros, budgets from nothing to nearly everything, and masks."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(-2, 5, (n_rows, n_items), generator=generator).float()
    lengths = torch.randint(0, 12, (n_rows, n_items), generator=generator)
    budgets = (torch.rand(n_rows, generator=generator) * 6 * n_items).long()
    masks = {
        "protected": torch.rand(n_rows, n_items, generator=generator) < 0.1,
        "valid": torch.rand(n_rows, n_items, generator=generator) < 0.8,
    }
    return (
        [tensor.to(device) for tensor in (scores, lengths, budgets)],
        {name: mask.to(device) for name, mask in masks.items()},
    )


def filled(scores, lengths, budgets, protected=None, valid=None):
    """The same by ``fill`` of the compressors, row by row."""
    kept = torch.zeros_like(scores, dtype=torch.bool)
    for row, (ranks, costs) in enumerate(zip(scores.tolist(), lengths.tolist(), strict=True)):
        items = [item for item in range(len(ranks)) if valid is None or valid[row, item]]
        found = fill(
            Candidates(
                # sorted is stable
                order=sorted(items, key=lambda item: -ranks[item]),
                costs=costs,
                needs=[frozenset({item}) for item in range(len(ranks))],
                protected=frozenset(item for item in items if protected is not None and protected[row, item]),
            ),
            budgets[row].item(),
        )
        kept[row, sorted(found)] = True
    return kept


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("masks", ["none", "protected", "valid", "both"])
@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (1, 1), (1, 2), (5, 7), (4, 123)], ids=str)
def test_what_is_kept_is_what_the_compressors_fill(implementation, device, shape, masks, seed):
    data, every_mask = drawn(*shape, device, seed)
    given = {name: mask for name, mask in every_mask.items() if masks in (name, "both")}
    kept = select_within_budget(*data, **given)
    assert (kept.dtype, kept.shape) == (torch.bool, shape)
    assert torch.equal(kept, filled(*data, **given))
    assert torch.equal(kept, select_within_budget_reference(*data, **given))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rows_longer_than_a_block_are_filled_too(implementation, device, dtype):
    (scores, lengths, budgets), masks = drawn(2, 2500, device)
    scores = (scores + torch.rand(scores.shape, device=device)).to(dtype)
    kept = select_within_budget(scores, lengths, budgets, **masks)
    assert torch.equal(kept, filled(scores, lengths, budgets, **masks))


def test_lengths_that_need_a_round_for_each_item_are_filled_too(implementation, device):
    n_items = 8 * budget_selection._ROUNDS
    lengths = torch.ones(2, n_items, dtype=torch.int64, device=device)
    # each one that fits alone does not fit after the one before
    lengths[:, 1::2] = torch.arange(n_items // 2, 0, -1, device=device) + n_items
    scores = torch.arange(n_items, 0, -1.0, device=device).expand(2, -1)
    budgets = torch.tensor([n_items // 2 + n_items, n_items // 4 + n_items], device=device)
    assert torch.equal(select_within_budget(scores, lengths, budgets), filled(scores, lengths, budgets))


def test_equal_scores_go_by_place(implementation, device):
    scores = torch.tensor([[0.0, -0.0, 0.0, 1.0, 0.0]], device=device)
    kept = select_within_budget(scores, torch.full((1, 5), 2, device=device), torch.tensor([6], device=device))
    assert kept.tolist() == [[True, True, False, True, False]]


def test_an_item_too_long_is_passed_over_for_later_ones(implementation, device):
    scores = torch.tensor([[5.0, 4.0, 3.0, 2.0]], device=device)
    kept = select_within_budget(scores, torch.tensor([[3, 9, 1, 2]], device=device), torch.tensor([5], device=device))
    assert kept.tolist() == [[True, False, True, False]]


def test_without_a_score_an_item_comes_last_and_is_kept_if_it_fits(implementation, device):
    scores = torch.tensor([[math.nan, -math.inf, -9.0, math.nan, math.inf]], device=device)
    lengths = torch.full((1, 5), 2, device=device)
    budgets = [torch.tensor([budget], device=device) for budget in (4, 6, 8, 10)]
    kept = [select_within_budget(scores, lengths, budget)[0].tolist() for budget in budgets]
    assert kept == [
        [False, False, True, False, True],
        [True, False, True, False, True],
        [True, True, True, False, True],
        [True] * 5,
    ]
    reference = select_within_budget_reference(scores, lengths, budgets[1])
    assert reference[0].tolist() == kept[1]


@pytest.mark.parametrize(("budget", "expected"), [
    (-1, [False, True, False]), (6, [False, True, False]), (7, [True, True, False]), (9, [True, True, True]),
])  # fmt: skip
def test_protected_items_take_from_the_budget_and_may_exceed_it(implementation, device, budget, expected):
    kept = select_within_budget(
        torch.tensor([[3.0, 1.0, 2.0]], device=device),
        torch.tensor([[0, 7, 2]], device=device),
        torch.tensor([budget], device=device),
        protected=torch.tensor([[False, True, False]], device=device),
    )
    assert kept.tolist() == [expected]


def test_rows_of_different_lengths_are_filled_as_each_alone(implementation, device):
    (scores, lengths, budgets), _ = drawn(3, 9, device)
    n_items = torch.tensor([9, 1, 4], device=device)
    valid = torch.arange(9, device=device) < n_items[:, None]
    padded = scores.masked_fill(~valid, math.nan), lengths.masked_fill(~valid, -5)
    kept = select_within_budget(*padded, budgets, protected=~valid, valid=valid)
    for row, n in enumerate(n_items.tolist()):
        alone = select_within_budget(scores[row : row + 1, :n], lengths[row : row + 1, :n], budgets[row : row + 1])
        assert kept[row].tolist() == [*alone[0].tolist(), *[False] * (9 - n)]


def test_lengths_are_added_beyond_32_bits(implementation, device):
    lengths = torch.tensor([[2**31 - 1, 2**31 - 1, 5, 7]], dtype=torch.int32, device=device)
    scores = torch.tensor([[4.0, 3.0, 2.0, 1.0]], device=device)
    kept = select_within_budget(scores, lengths, torch.tensor([2**32 + 3], device=device))
    assert kept.tolist() == [[True, True, True, False]]


def test_a_larger_budget_never_keeps_less(implementation, device):
    (scores, lengths, _), masks = drawn(1, 30, device, seed=3)
    used = [
        int(lengths[select_within_budget(scores, lengths, torch.tensor([budget], device=device), **masks)].sum())
        for budget in range(0, 160, 8)
    ]
    assert used == sorted(used)
    assert used[-1] == int(lengths[masks["valid"]].sum())


def test_layout_does_not_matter_and_what_was_given_is_left_alone(implementation, device):
    (scores, lengths, budgets), masks = drawn(6, 8, device)
    mirrored = [tensor.T.contiguous().T for tensor in (scores, lengths)]
    masks = {name: mask.T.contiguous().T for name, mask in masks.items()}
    before = [tensor.clone() for tensor in (*mirrored, *masks.values())]
    kept = select_within_budget(*mirrored, budgets, **masks)
    assert torch.equal(kept, filled(scores, lengths, budgets, **masks))
    assert all(map(torch.equal, (*mirrored, *masks.values()), before))


ONES = torch.ones(2, 3)
WHOLE = torch.ones(2, 3, dtype=torch.int64)


@pytest.mark.parametrize(("change", "words"), [
    ({"scores": WHOLE}, r"scores must be floating point \[B, N\], got torch.int64 \[2, 3\]"),
    ({"scores": ONES[0]}, r"got torch.float32 \[3\]"),
    ({"lengths": ONES}, r"lengths must be int64 or int32 \[2, 3\], got torch.float32 \[2, 3\]"),
    ({"lengths": WHOLE[:1]}, r"got torch.int64 \[1, 3\]"),
    ({"budgets": WHOLE[0]}, r"budgets must be int64 or int32 \[2\], got torch.int64 \[3\]"),
    ({"budgets": ONES[:, 0]}, r"got torch.float32 \[2\]"),
    ({"protected": WHOLE}, r"protected must be bool \[2, 3\], got torch.int64 \[2, 3\]"),
    ({"valid": WHOLE[0] > 0}, r"valid must be bool \[2, 3\], got torch.bool \[3\]"),
    ({"lengths": WHOLE - 4}, "lengths must be at least 0, got -3"),
])  # fmt: skip
def test_what_does_not_fit_is_named(change, words):
    given = {"scores": ONES, "lengths": WHOLE, "budgets": WHOLE[:, 0]} | change
    with pytest.raises(ValueError, match=words):
        select_within_budget(given.pop("scores"), given.pop("lengths"), given.pop("budgets"), **given)
