"""docs/benchmarks.md says what the committed run says."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


read_out = load(ROOT / "benchmarks" / "read_out.py")


@pytest.mark.parametrize("name", read_out.TABLES)
def test_table_is_in_the_docs(name):
    run = read_out.Run(read_out.COMMITTED)
    assert read_out.TABLES[name](run) in (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
