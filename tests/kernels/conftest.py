"""Kernels run in Triton's interpreter where there is no GPU, and memory that they leave unset is NaN."""

import os

import pytest
import torch

if not torch.cuda.is_available():
    # read when a kernel is defined
    os.environ["TRITON_INTERPRET"] = "1"

# without a choice, its compiler warns that it makes one
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")


@pytest.fixture
def device():
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def _unset_memory_is_nan():
    was_on = torch.are_deterministic_algorithms_enabled()
    # torch fills what torch.empty returns with NaN while this mode is on
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(was_on)


@pytest.fixture(params=["torch", "triton"])
def implementation(request, monkeypatch):
    """Run a test once in plain torch and once in Triton."""
    monkeypatch.setenv("KOMPAKT_KERNELS", request.param)
    return request.param
