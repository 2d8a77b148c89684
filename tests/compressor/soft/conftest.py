"""A random decoder for all tests, and settings that suit short texts."""

import pytest
from soft_parts import SMALL, save_decoder

from kompakt.compressor.registry import compressor_class


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    return str(save_decoder(tmp_path_factory.mktemp("decoders") / "llama"))


@pytest.fixture(scope="session")
def opt_base(tmp_path_factory):
    return str(save_decoder(tmp_path_factory.mktemp("decoders") / "opt", "opt"))


@pytest.fixture(scope="session")
def small_settings():
    with pytest.MonkeyPatch.context() as patch:
        for name, settings in SMALL.items():
            cls = compressor_class(name)
            patch.setattr(cls, "default_settings", {**cls.default_settings, **settings})
        yield
