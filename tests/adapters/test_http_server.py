"""The reader behind an endpoint, against a real server with a real model."""

import pytest
from servers import transformers_server

from kompakt.adapters.http import HttpBackend
from kompakt.adapters.transformers import TransformersBackend
from kompakt.compressor.backend import Prompt
from kompakt.compressor.errors import BackendError
from kompakt.compressor.types import TextPart

CONTEXT = TextPart("Paris is the capital of France.", (), ())
PROMPT = Prompt((CONTEXT,), before="Read.\n\n", after="\n\nWhich city?", stop="\n")


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with transformers_server(tmp_path_factory.mktemp("server")) as (url, folder):
        yield url, folder


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
