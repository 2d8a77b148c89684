"""What tests of the gateway share. Nothing is imported before: some tests run where not all of it is installed."""

import pytest

from kompakt import Pipeline
from kompakt.adapters._settings import Settings


@pytest.fixture(scope="module")
def upstream():
    """A server that says what it was sent."""
    from gateway_parts import Running, Upstream

    app = Upstream()
    with Running(app) as running:
        app.url = running.url
        yield app


@pytest.fixture
def gateway(upstream, tmp_path):
    """Starts a gateway with options; a client of it comes back."""
    import httpx2
    from gateway_parts import Running

    from kompakt.adapters.gateway import create_app

    running = []

    def start(**options):
        settings = Settings(keep=0.3, deadline=20)
        pipeline = options.pop("pipeline", None) or Pipeline(["lexical"], store=tmp_path / "s.sqlite")
        app = create_app(options.pop("upstream", upstream.url), pipeline, settings, **options)
        running.append(Running(app).__enter__())
        return httpx2.Client(base_url=running[-1].url, timeout=20)

    yield start
    for one in running:
        one.__exit__()
