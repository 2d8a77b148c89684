"""What is built is what is in the tree, and it runs where it is installed."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("adapters", "compressor", "kernels", "retrieval")

pytestmark = pytest.mark.slow


def python(*arguments, cwd, **environment):
    result = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONSAFEPATH": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout.strip()


def expected_files():
    front = [path for path in (ROOT / "src" / "kompakt").iterdir() if path.is_file()]
    names = {f"kompakt/{path.name}" for path in front}
    for folder in FOLDERS:
        files = (path for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts)
        names |= {f"kompakt/{path.relative_to(ROOT).as_posix()}" for path in files}
    return names


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """An sdist, and the wheel built from that sdist."""
    folder = tmp_path_factory.mktemp("dist")
    python("-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT), cwd=folder)
    return folder


def test_wheel_holds_exactly_the_tree(dist):
    (wheel,) = dist.glob("*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == expected_files()


def test_sdist_holds_each_file_once(dist):
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "compressor/cli.py", "src/kompakt/py.typed"} <= names
    assert not {name for name in names if name.startswith(tuple(f"src/kompakt/{folder}" for folder in FOLDERS))}
    assert not {name for name in names if name.startswith((".venv", "dist/", ".git/"))}


def test_installed_wheel_runs(dist, tmp_path):
    (wheel,) = dist.glob("*.whl")
    target = tmp_path / "target"
    install(wheel, target)
    code = (
        "import kompakt; print(kompakt.__file__); print(kompakt.compress('A b. C d.', max_tokens=90).outcome.status)"
    )
    lines = python("-c", code, cwd=tmp_path, PYTHONPATH=str(target)).splitlines()
    assert lines == [str(target / "kompakt" / "__init__.py"), "fits"]
    version = python("-m", "kompakt", "--version", cwd=tmp_path, PYTHONPATH=str(target))
    assert version.split()[1] in wheel.name
    assert "kompakt = kompakt.compressor.cli:main" in entry_points(target)


def test_editable_install_points_at_the_tree(tmp_path):
    build = "import sys; from hatchling.build import build_editable; print(build_editable(sys.argv[1]))"
    name = python("-c", build, str(tmp_path), cwd=ROOT).splitlines()[-1]
    target = tmp_path / "target"
    install(tmp_path / name, target)
    (pth,) = target.glob("*.pth")
    assert pth.read_text(encoding="utf-8").split() == [str(ROOT / "src")]
    code = f"import site; site.addsitedir({str(target)!r}); import kompakt.compressor.cli as m; print(m.__file__)"
    assert python("-c", code, cwd=tmp_path, PYTHONPATH="") == str(ROOT / "src" / "kompakt" / "compressor" / "cli.py")


def install(wheel, target):
    python("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target), str(wheel), cwd="/")


def entry_points(target):
    (file,) = target.glob("*.dist-info/entry_points.txt")
    return file.read_text(encoding="utf-8")
