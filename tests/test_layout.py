"""The folders, the links between them, and the one direction in which imports point."""

import ast
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("adapters", "compressor", "kernels", "retrieval")
MAY_IMPORT = {
    "adapters": {"adapters", "compressor", "retrieval"},
    "compressor": {"compressor", "kernels"},
    "kernels": {"kernels"},
    "retrieval": {"compressor", "retrieval"},
}
KERNELS_NEED = {"torch", "triton"}
# asks the front door for the version
FRONT_DOOR = {"compressor/cli.py"}


def modules(folder):
    return sorted((ROOT / folder).rglob("*.py"))


def imports(path):
    """Every module that a file imports, at any depth, as ``(line, level, dotted name)``."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, 0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from ((node.lineno, node.level, name) for name in names)


def is_allowed(path, folder, name):
    top, _, rest = name.partition(".")
    if top != "kompakt":
        return folder != "kernels" or top in KERNELS_NEED or top in sys.stdlib_module_names
    inner = rest.partition(".")[0]
    if inner not in FOLDERS:
        return path.relative_to(ROOT).as_posix() in FRONT_DOOR
    return inner in MAY_IMPORT[folder]


@pytest.mark.parametrize("folder", FOLDERS)
def test_imports_point_one_way(folder):
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in modules(folder)
        for line, level, name in imports(path)
        if level or not is_allowed(path, folder, name)
    ]
    assert not wrong


@pytest.mark.parametrize(
    ("folder", "name", "expected"),
    [
        ("compressor", "kompakt.adapters.openai", False),
        ("compressor", "kompakt.Document", False),
        ("compressor", "kompakt.kernels.nll", True),
        ("retrieval", "kompakt.adapters.openai", False),
        ("kernels", "kompakt.compressor.types", False),
        ("kernels", "transformers", False),
        ("kernels", "math", True),
        ("adapters", "kompakt.retrieval", True),
    ],
)
def test_the_rule_itself(folder, name, expected):
    assert is_allowed(ROOT / folder / "x.py", folder, name) is expected


@pytest.mark.parametrize("folder", ["adapters", "kernels"])
def test_namespace_folders_have_no_init(folder):
    # with one, it would shadow an installed package of that name in the working directory
    assert not (ROOT / folder / "__init__.py").exists()


@pytest.mark.parametrize("folder", FOLDERS)
def test_links_are_relative(folder):
    link = ROOT / "src" / "kompakt" / folder
    assert link.is_symlink()
    assert Path(os.readlink(link)) == Path("..", "..", folder)
    assert link.resolve() == ROOT / folder


def test_front_door_holds_nothing_else():
    found = {path.name for path in (ROOT / "src" / "kompakt").iterdir()} - {"__pycache__"}
    assert found == {"__init__.py", "__main__.py", "py.typed", *FOLDERS}


def test_modules_stay_readable():
    long = [str(path) for folder in FOLDERS for path in modules(folder) if path.read_text("utf-8").count("\n") > 600]
    assert not long
