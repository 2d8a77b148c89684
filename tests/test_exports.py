"""What is public is listed, sorted and documented."""

import inspect

import pytest

import kompakt
from kompakt.compressor import errors


def test_all_is_sorted():
    assert list(kompakt.__all__) == sorted(set(kompakt.__all__))


def test_all_is_complete():
    public = {
        name for name, value in vars(kompakt).items() if not name.startswith("_") and not inspect.ismodule(value)
    }
    assert public == set(kompakt.__all__)


def test_every_error_is_public():
    family = {name for name, value in vars(errors).items() if inspect.isclass(value) and issubclass(value, Exception)}
    assert family <= set(kompakt.__all__)


@pytest.mark.parametrize("name", kompakt.__all__)
def test_is_documented(name):
    value = getattr(kompakt, name)
    # a dataclass without a docstring gets its signature as one
    assert inspect.getdoc(value)
    assert not inspect.getdoc(value).startswith(f"{name}(")


@pytest.mark.parametrize("name", [name for name in kompakt.__all__ if inspect.isclass(getattr(kompakt, name))])
def test_public_members_are_documented(name):
    cls = getattr(kompakt, name)
    members = [member for member in vars(cls) if not member.startswith("_") and callable(getattr(cls, member))]
    assert [member for member in members if not inspect.getdoc(getattr(cls, member))] == []
