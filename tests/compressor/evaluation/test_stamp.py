"""A stamp says where numbers come from, and claims no commit that is not its own."""

import platform
import subprocess
from importlib.metadata import version

import pytest

from kompakt.compressor.evaluation import stamp as stamp_module
from kompakt.compressor.evaluation.stamp import stamp


def git(folder, *arguments):
    own = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *own, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout that the module seems to lie in."""
    file = tmp_path / "stamp.py"
    file.write_text("first\n")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", "stamp.py")
    git(tmp_path, "commit", "--quiet", "--message", "one")
    monkeypatch.setattr(stamp_module, "__file__", str(file))
    return tmp_path


def test_machine_and_versions():
    made = stamp()
    assert made["kompakt"] == version("kompakt")
    assert made["numpy"] == version("numpy")
    assert made["system"] == f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    assert made["processor"].endswith(" cores")
    assert made["time"].endswith(" UTC")
    assert all(isinstance(value, str) and value for value in made.values())


def test_a_package_that_is_not_installed_is_left_out(monkeypatch):
    monkeypatch.setattr(stamp_module, "_PACKAGES", ("no-such-package", "numpy"))
    assert "no-such-package" not in stamp()
    assert "numpy" in stamp()


def test_the_commit_of_the_checkout(checkout):
    commit = stamp()["commit"]
    assert len(commit) == 12
    assert git(checkout, "rev-parse", "HEAD").startswith(commit)


def test_a_tag_does_not_hide_the_commit(checkout):
    git(checkout, "tag", "--annotate", "--message", "x", "v1")
    assert git(checkout, "rev-parse", "HEAD").startswith(stamp()["commit"])


def test_changes_show(checkout):
    (checkout / "other.txt").write_text("not of the checkout")
    assert not stamp()["commit"].endswith("+")
    (checkout / "stamp.py").write_text("second\n")
    assert stamp()["commit"].endswith("+")


def test_a_checkout_that_only_surrounds_it_is_not_its_own(checkout, monkeypatch):
    installed = checkout / "venv" / "stamp.py"
    installed.parent.mkdir()
    installed.write_text("installed\n")
    monkeypatch.setattr(stamp_module, "__file__", str(installed))
    assert "commit" not in stamp()


@pytest.mark.parametrize("error", [FileNotFoundError("git"), subprocess.TimeoutExpired("git", 10)])
def test_without_git_there_is_no_commit(checkout, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(stamp_module.subprocess, "run", fail)
    assert "commit" not in stamp()


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("processor\t: 0\nmodel name\t: Fast: One 3000 \nmodel name\t: Other\n", "Fast: One 3000"),
        ("processor\t: 0\nBogoMIPS\t: 50\n", "elsewhere"),
        (None, "elsewhere"),
    ],
)
def test_the_name_of_the_processor(tmp_path, monkeypatch, content, named):
    cpuinfo = tmp_path / "cpuinfo"
    if content is not None:
        cpuinfo.write_text(content)
    monkeypatch.setattr(stamp_module, "Path", lambda _: cpuinfo)
    monkeypatch.setattr(platform, "processor", lambda: "")
    monkeypatch.setattr(platform, "machine", lambda: "elsewhere")
    assert stamp_module._processor() == named
