"""Every operation runs in torch and in Triton, and memory that it leaves unset is NaN."""

import os

import pytest
import torch

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
