"""No test reaches the network, and none sees a cache that it did not ask for."""

import os
import signal
import socket
from pathlib import Path

import pytest
from hypothesis import settings

# read by these libraries when they are first imported
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"

# Triton reads it when it is first imported, which other libraries do: kernels run in Python where there is no GPU
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# processes that a test starts, workers of a cluster too, find the parts that tests share
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
)

# a run in the background of a shell ignores it, and so would the processes that tests interrupt
signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("kompakt", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("kompakt")

_LOOPBACK = ("127.", "::1", "localhost")


def _guarded(connect):
    def guard(self, address):
        if self.family != socket.AF_UNIX and not str(address[0]).startswith(_LOOPBACK):
            raise RuntimeError(f"a test tried to reach {address}: tests run without the network")
        return connect(self, address)

    return guard


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    monkeypatch.setattr(socket.socket, "connect", _guarded(socket.socket.connect))
    monkeypatch.setattr(socket.socket, "connect_ex", _guarded(socket.socket.connect_ex))


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    """An empty folder in place of the user's cache of models."""
    folder = tmp_path / "kompakt-cache"
    monkeypatch.setenv("KOMPAKT_CACHE", str(folder))
    return folder
