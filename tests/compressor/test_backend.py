from importlib.metadata import EntryPoint

import pytest

from kompakt.compressor import backend
from kompakt.compressor.backend import Generation, Prompt, load_backend
from kompakt.compressor.errors import ConfigError, ModelNotFoundError


class Echo:
    def __init__(self, name):
        self.name = name


@pytest.fixture
def entries(monkeypatch):
    """Backends as if two packages had registered them."""
    monkeypatch.setattr(backend, "_entries", lambda: {"echo": Entry(), "http": Entry()})


class Entry:
    def load(self):
        return Echo


def test_the_named_backend_gets_the_name_as_it_is(entries):
    made = load_backend("echo", "http://127.0.0.1:8080/v1#a model")
    assert isinstance(made, Echo)
    assert made.name == "http://127.0.0.1:8080/v1#a model"


def test_an_unknown_kind_is_named_with_a_near_one(entries):
    with pytest.raises(ConfigError, match=r"'htpp'; did you mean 'http'\? Installed: echo, http"):
        load_backend("htpp", "x")


def test_an_unknown_kind_without_a_near_one(entries):
    with pytest.raises(ConfigError, match=r"'zzz'\. Installed: echo, http"):
        load_backend("zzz", "x")


def test_no_backend_at_all(monkeypatch):
    monkeypatch.setattr(backend, "_entries", dict)
    with pytest.raises(ConfigError, match="Installed: none"):
        load_backend("transformers", "x")


def test_the_package_registers_its_local_one():
    entry = backend._entries()["transformers"]
    assert isinstance(entry, EntryPoint)
    assert entry.group == backend.GROUP


def test_what_stands_in_the_way_of_loading_is_raised(empty_cache):
    pytest.importorskip("torch")
    with pytest.raises(ModelNotFoundError, match="kompakt models pull smollm2-135m"):
        load_backend("transformers", "smollm2-135m")


def test_values_are_frozen_and_default_to_a_chat_without_a_stop():
    prompt = Prompt(())
    assert (prompt.is_chat, prompt.stop, prompt.before, prompt.after) == (True, "", "", "")
    with pytest.raises(AttributeError):
        prompt.stop = "\n"
    assert Generation("", 0, 0, 0.0, 0.0).likelihoods is None
