"""Packed attention against one mask over everything, and against each segment alone."""

import pytest
import torch
from attention_parts import assert_near, compare, heads

from kompakt.kernels.dispatch import KernelUnavailableError
from kompakt.kernels.packed_attention import packed_attention, packed_attention_reference

SEGMENTS = {
    "one-row": ([1], [1]),
    "alike": ([7, 7, 7], [7, 7, 7]),
    "ragged": ([5, 1, 33, 5], [5, 1, 33, 5]),
    "across-blocks": ([60, 9], [60, 9]),
    "pooled": ([3, 1, 31, 3], [5, 2, 70, 5]),
    "more-queries": ([9, 60], [4, 5]),
    "without-queries": ([0, 4, 0], [3, 4, 70]),
    "without-keys": ([4, 5, 7], [4, 0, 7]),
}
CASES = pytest.mark.parametrize(("query_lengths", "key_lengths"), list(SEGMENTS.values()), ids=list(SEGMENTS))
CAUSAL = pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])


def calls(query_lengths, key_lengths, is_causal):
    lengths = {"query_lengths": query_lengths, "key_lengths": key_lengths, "is_causal": is_causal}
    return (
        lambda *inputs: packed_attention(*inputs, **lengths),
        lambda *inputs: packed_attention_reference(*inputs, **lengths),
    )


def alone(queries, keys, values, is_causal):
    """Attention inside one segment, a query and a head at a time."""
    attended = torch.zeros_like(queries)
    group = queries.shape[1] // keys.shape[1]
    for index, head in ((index, head) for index in range(len(queries)) for head in range(queries.shape[1])):
        n_seen = len(keys) - (len(queries) - 1 - index) if is_causal else len(keys)
        if n_seen > 0:
            own_keys, own_values = keys[:n_seen, head // group], values[:n_seen, head // group]
            weights = (own_keys @ queries[index, head] / queries.shape[2] ** 0.5).exp()
            attended[index, head] = weights @ own_values / weights.sum()
    return attended


@CAUSAL
@CASES
def test_outputs_and_gradients_are_those_of_one_mask(implementation, device, query_lengths, key_lengths, is_causal):
    inputs = heads(sum(query_lengths), sum(key_lengths), device=device)
    compare(*calls(query_lengths, key_lengths, is_causal), inputs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("name", ["one-row", "across-blocks", "pooled", "without-keys"])
def test_half_the_bits_stay_near(implementation, device, name, dtype):
    query_lengths, key_lengths = SEGMENTS[name]
    inputs = heads(sum(query_lengths), sum(key_lengths), dtype=dtype, device=device)
    compare(*calls(query_lengths, key_lengths, True), inputs)


@pytest.mark.parametrize(("n_heads", "head_size"), [((1, 1), 1), ((2, 2), 16), ((6, 2), 5), ((3, 1), 80)], ids=str)
def test_heads_of_any_number_and_size(implementation, device, n_heads, head_size):
    inputs = heads(12, 17, n_heads=n_heads, head_size=head_size, device=device)
    compare(*calls([5, 7], [9, 8], True), inputs)


@CAUSAL
@CASES
def test_each_segment_attends_as_if_it_were_alone(query_lengths, key_lengths, is_causal):
    inputs = heads(sum(query_lengths), sum(key_lengths), head_size=8)
    segments = zip(
        torch.split(inputs[0], query_lengths),
        *(torch.split(tensor, key_lengths) for tensor in inputs[1:]),
        strict=True,
    )
    expected = torch.cat([alone(*segment, is_causal) for segment in segments])
    assert_near(calls(query_lengths, key_lengths, is_causal)[1](*inputs), expected)


def test_what_sees_nothing_gives_zeros_and_no_gradient(implementation, device):
    query_lengths, key_lengths = [3, 4, 2], [0, 2, 2]
    queries, keys, values = (tensor.requires_grad_() for tensor in heads(9, 4, device=device))
    lengths = {"query_lengths": query_lengths, "key_lengths": key_lengths, "is_causal": True}
    attended = packed_attention(queries, keys, values, **lengths)
    attended.sum().backward()
    assert not attended[:5].any()
    assert attended[5:].all()
    assert not queries.grad[:5].any()


@pytest.mark.parametrize("lengths", [[], [0, 0]], ids=["no-segments", "empty-segments"])
def test_nothing_is_attended_to_by_nothing(implementation, device, lengths):
    inputs = heads(0, 0, device=device)
    assert packed_attention(*inputs, query_lengths=lengths, key_lengths=lengths).shape == (0, 4, 24)


def test_heads_need_not_lie_one_behind_the_other(implementation, device):
    query_lengths, key_lengths = [5, 30], [8, 30]
    inputs = heads(35, 38, device=device)
    # as a projection to all three gives them, and as a cache holds them
    inputs[0] = torch.cat([inputs[0], inputs[0]], dim=1)[:, :4]
    inputs[1] = inputs[1].transpose(0, 1).contiguous().transpose(0, 1)
    inputs[2] = inputs[2].transpose(1, 2).contiguous().transpose(1, 2)
    attend, define = calls(query_lengths, key_lengths, True)
    assert_near(attend(*inputs), define(*inputs))


def test_large_products_do_not_overflow(implementation, device):
    inputs = [30 * tensor for tensor in heads(12, 12, device=device)]
    attend, define = calls([5, 7], [5, 7], True)
    assert_near(attend(*inputs), define(*inputs))


@CAUSAL
def test_gradients_are_those_of_finite_differences(monkeypatch, is_causal):
    monkeypatch.setenv("KOMPAKT_KERNELS", "auto")
    inputs = [tensor.requires_grad_() for tensor in heads(9, 10, head_size=3, dtype=torch.float64)]
    attend, _ = calls([2, 2, 4, 1], [3, 3, 2, 2], is_causal)
    assert torch.autograd.gradcheck(attend, inputs)


def test_the_setting_reference_takes_the_definition(monkeypatch):
    monkeypatch.setenv("KOMPAKT_KERNELS", "reference")
    attend, define = calls([5], [5], True)
    inputs = heads(5, 5)
    assert torch.equal(attend(*inputs), define(*inputs))


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"dtype": torch.float64}, "float64 is not supported"), ({"head_size": 257}, "257 numbers are wider than 256")],
    ids=["float64", "wide-heads"],
)
def test_what_triton_cannot_take_is_said(monkeypatch, options, reason):
    monkeypatch.setenv("KOMPAKT_KERNELS", "triton")
    with pytest.raises(KernelUnavailableError, match=reason):
        calls([5], [5], False)[0](*heads(5, 5, **options))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda q, k, v: (q[0], k, v), r"queries \[T, H, D_head\]"),
        (lambda q, k, v: (q, k, v[:4]), r"got \(5, 4, 24\), \(5, 2, 24\) and \(4, 2, 24\)"),
        (lambda q, k, v: (q[:, :3], k, v), "H a multiple of H_kv"),
        (lambda q, k, v: (q[:, :1], k, v), "H a multiple of H_kv"),
        (lambda q, k, v: (q[..., :8], k, v), r"got \(5, 4, 8\)"),
        (lambda q, k, v: (q.double(), k, v), "torch.float32, torch.float64"),
    ],
    ids=["two-dimensions", "fewer-values", "odd-heads", "fewer-heads", "head-sizes", "formats"],
)
def test_heads_that_do_not_fit_together_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        packed_attention(*change(*heads(5, 5)), query_lengths=[5], key_lengths=[5])


@pytest.mark.parametrize(
    ("query_lengths", "key_lengths", "message"),
    [
        ([5], [2, 3], "got 1 of queries and 2 of keys"),
        ([4], [5], r"query_lengths must be numbers from 0 on that add up to the 5 packed, got \[4\]"),
        ([5], [6], r"key_lengths must .* 5 packed, got \[6\]"),
        ([6, -1], [2, 3], r"query_lengths must .* got \[6, -1\]"),
    ],
    ids=["numbers", "queries", "keys", "negative"],
)
def test_lengths_that_do_not_fit_are_refused(query_lengths, key_lengths, message):
    with pytest.raises(ValueError, match=message):
        packed_attention(*heads(5, 5), query_lengths=query_lengths, key_lengths=key_lengths)
