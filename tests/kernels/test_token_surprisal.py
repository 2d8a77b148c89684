"""Surprisals of tokens, against the logits of all of them."""

import math

import pytest
import torch

from kompakt.kernels import token_surprisal as module
from kompakt.kernels.token_surprisal import token_surprisal, token_surprisal_reference

# tokens, vocabulary, width
SHAPES = {
    "ragged": (5, 123, 7),
    "one-token": (1, 300, 33),
    "one-word": (3, 1, 4),
    "one-number": (2, 5, 1),
    "whole-blocks": (32, 256, 64),
    "more-than-a-block": (70, 130, 65),
    "no-tokens": (0, 9, 4),
    "no-width": (3, 6, 0),
}
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2**-6, torch.float16: 2**-9}


def numbers(*shape, device="cpu", dtype=torch.float32, scale=1.0):
    generator = torch.Generator().manual_seed(sum(shape))
    return (torch.randn(*shape, generator=generator) * scale).to(device, dtype)


def case(name, device="cpu", dtype=torch.float32):
    n, vocabulary, width = SHAPES[name]
    hidden = numbers(n, width, device=device, dtype=dtype)
    head = numbers(vocabulary, width, device=device, dtype=dtype, scale=2 / math.sqrt(max(width, 1)))
    return hidden, head, targets(n, vocabulary, device)


def targets(n, vocabulary, device="cpu"):
    return torch.randint(vocabulary, (n,), generator=torch.Generator().manual_seed(n)).to(device)


@pytest.fixture
def small_blocks(monkeypatch):
    """Cut the logits into blocks of 4 tokens and 10 words, and those into tiles of 2 tokens."""
    monkeypatch.setattr(module, "_BLOCK_ROWS", 4)
    monkeypatch.setattr(module, "_CPU_BLOCK", 40)
    monkeypatch.setattr(module, "_GPU_BLOCK", 40)
    monkeypatch.setattr(module, "_tile_size", lambda: 20)


@pytest.mark.parametrize("with_bias", [False, True], ids=["no-bias", "bias"])
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_surprisals_are_those_of_the_reference(implementation, device, name, dtype, with_bias):
    hidden, head, wanted = case(name, device, dtype)
    bias = numbers(len(head), device=device, dtype=dtype) if with_bias else None
    found = token_surprisal(hidden, head, wanted, bias=bias)
    assert found.dtype == torch.float32
    expected = token_surprisal_reference(hidden, head, wanted, bias=bias)
    torch.testing.assert_close(found, expected, atol=TOLERANCES[dtype], rtol=TOLERANCES[dtype])


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_blocks_and_tiles_make_no_difference(small_blocks, monkeypatch, name, dtype):
    monkeypatch.delenv("KOMPAKT_KERNELS", raising=False)
    hidden, head, wanted = case(name, dtype=dtype)
    found = token_surprisal(hidden, head, wanted)
    expected = token_surprisal_reference(hidden, head, wanted)
    torch.testing.assert_close(found, expected, atol=TOLERANCES[dtype], rtol=TOLERANCES[dtype])


@pytest.mark.parametrize("programs", [1, 2, 100])
def test_programs_may_share_a_vocabulary(monkeypatch, device, programs):
    from kompakt.kernels import token_surprisal_triton

    monkeypatch.setenv("KOMPAKT_KERNELS", "triton")
    monkeypatch.setattr(token_surprisal_triton, "_PROGRAMS", programs)
    hidden, head, wanted = numbers(5, 7, device=device), numbers(600, 7, device=device), targets(5, 600, device)
    # the highest comes late, for some of them
    hidden[0], hidden[1] = 30 * head[599], 30 * head[200]
    expected = token_surprisal_reference(hidden, head, wanted)
    torch.testing.assert_close(token_surprisal(hidden, head, wanted), expected, atol=1e-4, rtol=1e-5)


def test_the_reference_is_the_logarithm_of_the_probability():
    head = torch.tensor([[math.log(6)], [math.log(3)], [0.0]])
    found = token_surprisal_reference(torch.ones(3, 1), head, torch.tensor([0, 1, 2]))
    torch.testing.assert_close(found.exp(), torch.tensor([10 / 6, 10 / 3, 10.0]))


@pytest.mark.parametrize("level", [-300.0, -90.0, 0.0, 90.0, 300.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_logits_may_all_be_high_or_low(small_blocks, implementation, device, level, dtype):
    hidden, head, wanted = case("ragged", device, dtype)
    # a product of its own for the level, which any of the formats holds
    hidden = torch.cat([hidden, torch.ones_like(hidden[:, :1])], dim=1)
    head = torch.cat([head, torch.full_like(head[:, :1], level)], dim=1)
    found = token_surprisal(hidden, head, wanted)
    expected = token_surprisal_reference(hidden, head, wanted)
    assert expected.isfinite().all()
    # logits in bf16 as far from 0 as that are 1 apart
    torch.testing.assert_close(found, expected, atol=1e-4 if dtype == torch.float32 else 2.0, rtol=1e-4)


@pytest.mark.parametrize("place", [0, 50, 122])
@pytest.mark.parametrize("logit", [-200.0, 60.0, 200.0])
def test_one_logit_may_stand_out(small_blocks, implementation, device, place, logit):
    hidden, head, wanted = case("ragged", device)
    wanted[1], wanted[2] = place, 7
    bias = torch.zeros(len(head), device=device)
    bias[place] = logit
    found = token_surprisal(hidden, head, wanted, bias=bias)
    expected = token_surprisal_reference(hidden, head, wanted, bias=bias)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("allowed", [slice(0, 12), slice(60, 70), slice(280, 300)], ids=["first", "middle", "last"])
def test_a_bias_may_take_tokens_out(small_blocks, implementation, device, allowed):
    # of whole blocks, in Triton too, nothing is left
    hidden, head = numbers(5, 7, device=device), numbers(300, 7, device=device)
    bias = torch.full((len(head),), -math.inf, device=device)
    bias[allowed] = 0.0
    inside = torch.full((len(hidden),), allowed.start + 2, device=device)
    expected = token_surprisal_reference(hidden, head[allowed], torch.full_like(inside, 2))
    torch.testing.assert_close(token_surprisal(hidden, head, inside, bias=bias), expected)
    outside = torch.full_like(inside, 40)
    assert token_surprisal(hidden, head, outside, bias=bias).tolist() == [math.inf] * len(hidden)


def test_broken_states_have_no_surprisal(implementation, device):
    hidden, head, wanted = case("ragged", device)
    hidden[2, 3] = math.nan
    found = token_surprisal(hidden, head, wanted)
    assert found.isnan().tolist() == [False, False, True, False, False]


def test_states_may_stand_apart(implementation, device):
    hidden, head = numbers(12, 10, device=device)[::2, ::2], numbers(5, 40, device=device).T[:, :]
    wanted, bias = targets(12, 40, device)[::2], numbers(80, device=device)[::2]
    found = token_surprisal(hidden, head, wanted, bias=bias)
    torch.testing.assert_close(found, token_surprisal_reference(hidden, head, wanted, bias=bias))


def gradients(function, tensors, wanted, weights):
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    (function(leaves[0], leaves[1], wanted, bias=leaves[2]) * weights).sum().backward()
    return [leaf.grad for leaf in leaves]


def check_gradients(name, device, dtype):
    hidden, head, wanted = case(name, device, dtype)
    tensors = (hidden, head, numbers(len(head), device=device, dtype=dtype))
    weights = numbers(len(hidden), device=device)
    found = gradients(token_surprisal, tensors, wanted, weights)
    expected = gradients(token_surprisal_reference, tensors, wanted, weights)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == dtype
        torch.testing.assert_close(one, other, atol=2 * TOLERANCES[dtype], rtol=2 * TOLERANCES[dtype])


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_gradients_are_those_of_the_reference(implementation, device, name, dtype):
    check_gradients(name, device, dtype)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("name", ["ragged", "one-word", "no-tokens", "no-width"])
def test_gradients_may_be_summed_over_blocks(small_blocks, implementation, device, name, dtype):
    check_gradients(name, device, dtype)


@pytest.mark.parametrize("needed", [(True, False, False), (False, True, False), (False, False, True)])
def test_gradients_go_only_where_they_are_needed(implementation, device, needed):
    hidden, head, wanted = case("ragged", device)
    tensors = (hidden, head, numbers(len(head), device=device))
    expected = gradients(token_surprisal_reference, tensors, wanted, 1.0)
    leaves = [tensor.clone().requires_grad_(one) for tensor, one in zip(tensors, needed, strict=True)]
    token_surprisal(leaves[0], leaves[1], wanted, bias=leaves[2]).sum().backward()
    for leaf, one, gradient in zip(leaves, needed, expected, strict=True):
        assert (leaf.grad is None) != one
        if one:
            torch.testing.assert_close(leaf.grad, gradient)


def test_gradients_of_certain_tokens_are_small(implementation, device):
    # rounded to bf16 before 1 is taken from them, probabilities this near to 1 would leave nothing
    hidden = torch.ones(1, 1, device=device, dtype=torch.bfloat16).requires_grad_()
    head = torch.tensor([[7.0], [0.0]], device=device, dtype=torch.bfloat16)
    token_surprisal(hidden, head, torch.tensor([0], device=device)).sum().backward()
    assert hidden.grad.item() == pytest.approx(-7 / (1 + math.exp(7)), rel=0.01)


@pytest.mark.parametrize("with_bias", [False, True], ids=["no-bias", "bias"])
def test_gradients_are_those_of_small_steps(small_blocks, monkeypatch, with_bias):
    monkeypatch.delenv("KOMPAKT_KERNELS", raising=False)
    hidden, head, wanted = (tensor.double() for tensor in (numbers(6, 3), numbers(23, 3), targets(6, 23)))
    bias = numbers(23).double().requires_grad_() if with_bias else None
    leaves = (hidden.requires_grad_(), head.requires_grad_())
    assert token_surprisal(*leaves, wanted.long(), bias=bias).dtype == torch.float64
    assert torch.autograd.gradcheck(
        lambda hidden, head, bias: token_surprisal(hidden, head, wanted.long(), bias=bias), (*leaves, bias)
    )


def test_the_mean_is_the_cross_entropy(implementation, device):
    hidden, head, wanted = case("more-than-a-block", device)
    expected = torch.nn.functional.cross_entropy(hidden @ head.T, wanted)
    torch.testing.assert_close(token_surprisal(hidden, head, wanted).mean(), expected)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_weights_of_a_layer_can_be_read_without_gradients(implementation, device, mode):
    layer = torch.nn.Linear(7, 123, device=device)
    hidden, _, wanted = case("ragged", device)
    with mode():
        found = token_surprisal(hidden, layer.weight, wanted, bias=layer.bias)
        expected = -layer(hidden).log_softmax(dim=-1).gather(1, wanted[:, None])[:, 0]
    assert not found.requires_grad
    torch.testing.assert_close(found, expected)


def test_the_setting_takes_the_reference(monkeypatch, device):
    monkeypatch.setenv("KOMPAKT_KERNELS", "reference")
    hidden, head, wanted = case("ragged", device)
    assert torch.equal(token_surprisal(hidden, head, wanted), token_surprisal_reference(hidden, head, wanted))


class _Products(torch.utils._python_dispatch.TorchDispatchMode):
    """Keeps the shapes of all that operations return."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.sizes += [result.numel()] if isinstance(result, torch.Tensor) else []
        return result


def test_the_logits_never_exist_as_a_whole(small_blocks, monkeypatch):
    monkeypatch.delenv("KOMPAKT_KERNELS", raising=False)
    hidden, head, wanted = case("more-than-a-block")
    hidden = hidden[:, :2].clone().requires_grad_()
    with _Products() as seen:
        token_surprisal(hidden, head[:, :2].clone().requires_grad_(), wanted).sum().backward()
    assert max(seen.sizes) <= max(2 * len(head), 2 * len(hidden)) < len(hidden) * len(head)


IDS = torch.zeros(4, dtype=torch.int64)


@pytest.mark.parametrize(
    ("hidden", "head", "wanted", "bias", "message"),
    [
        (torch.zeros(4), torch.zeros(9, 2), IDS, None, r"expected \[N, D\], \[V, D\] and \[N\], got \[4\], \[9, 2\]"),
        (torch.zeros(4, 2), torch.zeros(9, 3), IDS, None, r"got \[4, 2\], \[9, 3\] and \[4\]"),
        (torch.zeros(4, 2), torch.zeros(9, 2), IDS[:3], None, r"got \[4, 2\], \[9, 2\] and \[3\]"),
        (torch.zeros(4, 2), torch.zeros(9, 2), IDS[:, None], None, r"and \[4, 1\]"),
        (torch.zeros(4, 2), torch.zeros(9, 2), IDS, torch.zeros(8), r"expected a bias \[9\], got \[8\]"),
        (torch.zeros(4, 2), torch.zeros(9, 2).half(), IDS, None, "got torch.float16, torch.float32"),
        (torch.zeros(4, 2), torch.zeros(9, 2), IDS, torch.zeros(9).half(), "got torch.float16, torch.float32"),
        (IDS[:, None], IDS[:, None], IDS, None, "got torch.int64"),
        (torch.zeros(4, 2), torch.zeros(9, 2), IDS.int(), None, "targets in torch.int64, got torch.int32"),
        (torch.zeros(4, 2), torch.zeros(9, 2), IDS + 9, None, "from 0 up to the 9 rows of the head, got 9"),
        (torch.zeros(4, 2), torch.zeros(9, 2), IDS - 100, None, "got -100"),
        (torch.zeros(4, 2), torch.zeros(0, 2), IDS, None, "the 0 rows of the head, got 0"),
    ],
    ids=[
        "one-axis",
        "widths",
        "too-few-targets",
        "targets-with-two-axes",
        "bias",
        "formats",
        "format-of-the-bias",
        "whole-numbers",
        "format-of-targets",
        "target-behind-the-last",
        "target-below-0",
        "no-vocabulary",
    ],
)
def test_wrong_inputs_are_named(hidden, head, wanted, bias, message):
    with pytest.raises(ValueError, match=message):
        token_surprisal(hidden, head, wanted, bias=bias)
