import logging

import pytest
import torch

from kompakt.kernels import dispatch
from kompakt.kernels.dispatch import KernelUnavailableError, choose

ROW = torch.zeros(1)


@pytest.fixture(autouse=True)
def _forget():
    dispatch._say_once.cache_clear()


def test_without_a_setting_tensors_on_the_cpu_take_torch(monkeypatch):
    monkeypatch.delenv("KOMPAKT_KERNELS", raising=False)
    assert choose("sum", ROW) == "torch"


@pytest.mark.parametrize("setting", ["reference", "torch", "triton"])
def test_an_implementation_asked_for_by_name_is_taken(monkeypatch, setting):
    monkeypatch.setenv("KOMPAKT_KERNELS", setting)
    assert choose("sum", ROW) == setting


def test_an_unknown_setting_is_named(monkeypatch):
    monkeypatch.setenv("KOMPAKT_KERNELS", "cuda")
    with pytest.raises(ValueError, match="must be one of auto, reference, torch, triton, got 'cuda'"):
        choose("sum", ROW)


def test_triton_asked_for_by_name_raises_for_a_call_that_it_refuses(monkeypatch):
    monkeypatch.setenv("KOMPAKT_KERNELS", "triton")
    with pytest.raises(KernelUnavailableError, match="sum cannot run in Triton here: float64 is not supported"):
        choose("sum", ROW, refusal="float64 is not supported")


def test_triton_asked_for_by_name_raises_where_it_is_not_installed(monkeypatch):
    monkeypatch.setenv("KOMPAKT_KERNELS", "triton")
    monkeypatch.setattr(dispatch, "find_spec", lambda name: None)
    with pytest.raises(KernelUnavailableError, match=r"pip install 'kompakt\[triton\]'"):
        choose("sum", ROW)


@pytest.mark.skipif(torch.cuda.is_available(), reason="Triton runs there")
def test_triton_asked_for_by_name_raises_on_a_cpu_without_the_interpreter(monkeypatch):
    monkeypatch.setenv("KOMPAKT_KERNELS", "triton")
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(KernelUnavailableError, match="not on a GPU"):
        choose("sum", ROW)


def test_an_automatic_choice_falls_back_and_says_so_once(monkeypatch, caplog):
    monkeypatch.setenv("KOMPAKT_KERNELS", "auto")
    elsewhere = torch.zeros(1, device="meta")
    monkeypatch.setattr(type(elsewhere), "is_cuda", True)
    with caplog.at_level(logging.WARNING):
        found = [choose("sum", elsewhere, refusal="rows are too long") for _ in range(3)]
    assert found == ["torch"] * 3
    assert [record.message for record in caplog.records] == ["sum runs in torch, not in Triton: rows are too long"]
