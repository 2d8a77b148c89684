"""The reader behind an endpoint, against a real server with a real model."""

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from kompakt.adapters.http import HttpBackend
from kompakt.adapters.transformers import TransformersBackend
from kompakt.compressor.backend import Prompt
from kompakt.compressor.errors import BackendError
from kompakt.compressor.models.locate import model_path
from kompakt.compressor.types import TextPart

CONTEXT = TextPart("Paris is the capital of France.", (), ())
PROMPT = Prompt((CONTEXT,), before="Read.\n\n", after="\n\nWhich city?", stop="\n")


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A real server with a real model: its address and the name of the model there."""
    for needed in ("accelerate", "fastapi", "transformers", "uvicorn"):
        pytest.importorskip(needed)
    folder = model_path("smollm2-135m")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    scratch = tmp_path_factory.mktemp("server")
    options = ["--device", "cpu", "--dtype", "float32", "--host", "127.0.0.1", "--port", str(port)]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(folder), *options]
    with (scratch / "log").open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, cwd=scratch, env={**os.environ, "HF_HUB_OFFLINE": "1"}
        )
    try:
        wait_for(f"http://127.0.0.1:{port}/health", process, scratch / "log")
        yield f"http://127.0.0.1:{port}/v1", folder
    finally:
        process.kill()
        process.wait()


def wait_for(url, process, log, *, seconds=180):
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), direct.open(url, timeout=5):
            return
        time.sleep(0.2)
    pytest.fail(f"no server after {seconds} s, or it ended:\n{log.read_text(errors='replace')[-3000:]}")


@pytest.mark.models
@pytest.mark.slow
@pytest.mark.parametrize("stop", ["", "\n"])
def test_a_real_server(served, stop):
    """It answers as the same model does on this machine."""
    url, folder = served
    prompt = Prompt(PROMPT.parts, PROMPT.before, PROMPT.after, stop=stop)
    with HttpBackend(f"{url}#{folder}") as backend:
        made, again = (backend.generate(prompt, max_new_tokens=24) for _ in range(2))
    local = TransformersBackend(folder, dtype="float32", device="cpu").generate(prompt, max_new_tokens=24)
    assert made.text == again.text == local.text != ""
    assert made.n_positions == again.n_positions == local.n_positions
    assert 0 < made.n_tokens <= 24
    assert made.seconds_to_first > 0
    assert made.tokens_per_second > 0


@pytest.mark.models
@pytest.mark.slow
def test_a_real_server_without_the_model(served):
    url, _ = served
    with HttpBackend(f"{url}#another") as backend, pytest.raises(BackendError, match=r"answered 400: .*another"):
        backend.generate(PROMPT, max_new_tokens=4)
