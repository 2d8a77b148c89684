"""Attention over two ranges of keys against the mask that spells them out."""

import pytest
import torch
from attention_parts import compare, heads

from kompakt.kernels.beacon_attention import beacon_attention, beacon_attention_reference
from kompakt.kernels.dispatch import KernelUnavailableError
from kompakt.kernels.range_attention import visible


def causal(n_queries, n_keys):
    ranges = torch.zeros(n_queries, 2, 2, dtype=torch.long)
    ranges[:, 0, 1] = torch.arange(n_keys - n_queries, n_keys) + 1
    return ranges


def appended(n_context, n_tokens, ratio):
    """Beacons behind the tokens, each of which sees those up to the ones that it stands for, and beacons before."""
    n_beacons = n_tokens // ratio
    ranges = causal(n_tokens + n_beacons, n_context + n_tokens + n_beacons)
    for number in range(n_beacons):
        own = n_context + n_tokens + number
        ranges[n_tokens + number] = torch.tensor(
            [[0, n_context + (number + 1) * ratio], [n_context + n_tokens, own + 1]]
        )
    return ranges


def drawn(n_queries, n_keys):
    """Ranges of all kinds: empty, reversed, beyond the keys, overlapping and apart."""
    return torch.randint(-9, n_keys + 9, (n_queries, 2, 2), generator=torch.Generator().manual_seed(n_queries))


def every(step, n_keys):
    return torch.arange(n_keys) % step == 1


SIGHTS = {
    "one-row": (causal(1, 1), 1, None),
    "one-row-of-many-keys": (causal(1, 70), 70, every(3, 70)),
    "causal": (causal(70, 75), 75, None),
    "appended": (appended(7, 65, 16), 76, None),
    "appended-behind-much": (appended(150, 12, 4), 165, None),
    "interleaved": (causal(11, 70), 70, every(5, 70)),
    "all-hidden": (causal(5, 9), 9, every(1, 9) | True),
    "apart": (torch.tensor([[[0, 3], [135, 140]]]).repeat(5, 1, 1), 140, None),
    "overlapping": (torch.tensor([[[0, 70], [60, 200]]]).repeat(3, 1, 1), 200, None),
    "overlapping-in-reverse": (torch.tensor([[[100, 140], [0, 110]]]).repeat(3, 1, 1), 200, None),
    "drawn": (drawn(7, 123), 123, None),
    "drawn-and-hidden": (drawn(66, 67).to(torch.int32), 67, every(2, 67)),
    "blind": (torch.zeros(7, 2, 2, dtype=torch.int32), 20, None),
}
CASES = pytest.mark.parametrize(("ranges", "n_keys", "hidden"), list(SIGHTS.values()), ids=list(SIGHTS))


def calls(ranges, hidden, device="cpu"):
    sight = {"ranges": ranges.to(device), "hidden": None if hidden is None else hidden.to(device)}
    return (
        lambda *inputs: beacon_attention(*inputs, **sight),
        lambda *inputs: beacon_attention_reference(*inputs, **sight),
    )


@CASES
def test_the_mask_is_that_of_a_look_at_each_query_and_key(ranges, n_keys, hidden):
    mask = visible(ranges, n_keys, hidden)
    for query, own in enumerate(range(n_keys - len(ranges), n_keys)):
        for key in range(n_keys):
            in_range = any(start <= key < end for start, end in ranges[query].tolist())
            is_hidden = hidden is not None and bool(hidden[key]) and key != own
            assert bool(mask[query, key]) == (in_range and not is_hidden)


@CASES
def test_outputs_and_gradients_are_those_of_the_mask(implementation, device, ranges, n_keys, hidden):
    compare(*calls(ranges, hidden, device), heads(len(ranges), n_keys, device=device))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("name", ["one-row", "appended", "drawn-and-hidden", "blind"])
def test_half_the_bits_stay_near(implementation, device, name, dtype):
    ranges, n_keys, hidden = SIGHTS[name]
    compare(*calls(ranges, hidden, device), heads(len(ranges), n_keys, dtype=dtype, device=device))


@pytest.mark.parametrize(("n_heads", "head_size"), [((1, 1), 1), ((2, 2), 16), ((6, 2), 5), ((3, 1), 80)], ids=str)
def test_heads_of_any_number_and_size(implementation, device, n_heads, head_size):
    inputs = heads(13, 18, n_heads=n_heads, head_size=head_size, device=device)
    compare(*calls(appended(5, 10, 3), every(4, 18), device), inputs)


def test_what_sees_nothing_gives_zeros_and_no_gradient(implementation, device):
    ranges = causal(5, 9)
    ranges[1] = 0
    queries, keys, values = (tensor.requires_grad_() for tensor in heads(5, 9, device=device))
    attended = beacon_attention(queries, keys, values, ranges=ranges.to(device))
    attended.sum().backward()
    blind = torch.arange(5) == 1
    assert not attended[blind].any()
    assert attended[~blind].all()
    assert not queries.grad[blind].any()


def test_keys_that_nobody_sees_do_not_matter(implementation, device):
    attend, _ = calls(causal(9, 70), every(5, 70), device)
    queries, keys, values = heads(9, 70, device=device)
    expected = attend(queries, keys, values)
    unseen = every(5, 70).to(device) & (torch.arange(70, device=device) < 61)
    keys[unseen], values[unseen] = 1e4, 1e4
    assert torch.equal(attend(queries, keys, values), expected)


@pytest.mark.parametrize(("n_queries", "n_keys"), [(0, 5), (0, 0), (3, 0)])
def test_nothing_sees_and_is_seen(implementation, device, n_queries, n_keys):
    ranges = torch.tensor([[[0, 5], [2, 9]]]).repeat(n_queries, 1, 1)
    inputs = [tensor.requires_grad_() for tensor in heads(n_queries, n_keys, device=device)]
    attended = beacon_attention(*inputs, ranges=ranges.to(device))
    assert attended.shape == (n_queries, 4, 24)
    assert not attended.any()


def test_gradients_are_those_of_finite_differences(monkeypatch):
    monkeypatch.setenv("KOMPAKT_KERNELS", "auto")
    inputs = [tensor.requires_grad_() for tensor in heads(7, 9, head_size=3, dtype=torch.float64)]
    assert torch.autograd.gradcheck(calls(drawn(7, 9), every(3, 9))[0], inputs)


def test_the_setting_reference_takes_the_definition(monkeypatch):
    monkeypatch.setenv("KOMPAKT_KERNELS", "reference")
    attend, define = calls(causal(5, 9), None)
    inputs = heads(5, 9)
    assert torch.equal(attend(*inputs), define(*inputs))


def test_what_triton_cannot_take_is_said(monkeypatch):
    monkeypatch.setenv("KOMPAKT_KERNELS", "triton")
    with pytest.raises(KernelUnavailableError, match="float64 is not supported"):
        calls(causal(5, 9), None)[0](*heads(5, 9, dtype=torch.float64))


@pytest.mark.parametrize(
    ("n_queries", "ranges", "hidden", "message"),
    [
        (5, causal(4, 9), None, r"ranges must be whole numbers \[5, 2, 2\] for 5 queries, got .* \(4, 2, 2\)"),
        (5, causal(5, 9)[:, 0], None, r"got torch.int64 of \(5, 2\)"),
        (5, causal(5, 9).float(), None, "got torch.float32"),
        (5, causal(5, 9), every(2, 8), r"hidden must be bool \[9\] for 9 keys, got torch.bool of \(8,\)"),
        (5, causal(5, 9), torch.zeros(9), "got torch.float32"),
        (12, torch.zeros(12, 2, 2, dtype=torch.long), every(2, 9), "each of the 12 queries must have a key"),
    ],
    ids=["fewer-ranges", "one-range", "fractions", "fewer-hidden", "numbers-hidden", "queries-without-keys"],
)
def test_a_sight_that_does_not_fit_is_refused(n_queries, ranges, hidden, message):
    with pytest.raises(ValueError, match=message):
        beacon_attention(*heads(n_queries, 9), ranges=ranges, hidden=hidden)


def test_heads_that_do_not_fit_together_are_refused():
    queries, keys, values = heads(5, 9)
    with pytest.raises(ValueError, match=r"beacon_attention takes queries \[T, H, D_head\]"):
        beacon_attention(queries, keys, values[:5], ranges=causal(5, 9))
