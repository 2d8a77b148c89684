"""What the tests of attention share: random heads, and outputs and gradients beside those of a definition."""

import torch

NARROW = 0.02
"""Largest error of bf16, relative to the root of the mean square."""


def heads(n_queries, n_keys, *, n_heads=(4, 2), head_size=24, dtype=torch.float32, device="cpu"):
    generator = torch.Generator().manual_seed(n_queries + n_keys)
    return [
        torch.randn(length, number, head_size, generator=generator).to(device, dtype)
        for length, number in zip((n_queries, n_keys, n_keys), (n_heads[0], n_heads[1], n_heads[1]), strict=True)
    ]


def assert_near(made, expected, name=""):
    assert made.shape == expected.shape
    assert not made.isnan().any(), f"{name} is not a number somewhere"
    if not expected.numel():
        return
    if made.dtype == torch.float32:
        largest = max(1.0, float(expected.abs().max()))
        torch.testing.assert_close(made, expected, atol=1e-5 * largest, rtol=0, msg=lambda why: f"{name}: {why}")
        return
    error = (made.float() - expected).pow(2).mean().sqrt()
    assert error <= NARROW * expected.pow(2).mean().sqrt() + 1e-6, f"{name} is off by {float(error)}"


def with_gradients(attend, inputs):
    """Return an output, and the gradients of a fixed weighted sum of it."""
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    attended = attend(*leaves)
    weights = torch.randn(attended.shape, generator=torch.Generator().manual_seed(1)).to(attended.device)
    (attended.float() * weights).sum().backward()
    return attended.detach(), *(leaf.grad for leaf in leaves)


def compare(attend, define, inputs):
    """Compare outputs and gradients with those of a definition in fp32."""
    made = with_gradients(attend, inputs)
    expected = with_gradients(define, [tensor.float() for tensor in inputs])
    for name, own, right in zip(("output", "of queries", "of keys", "of values"), made, expected, strict=True):
        assert_near(own, right, name)
