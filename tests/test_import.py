"""``import kompakt`` is cheap, and our folder names break nobody's imports."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = (
    "anthropic",
    "faiss",
    "numpy",
    "openai",
    "sentence_transformers",
    "spacy",
    "torch",
    "transformers",
)
LIMIT_SECONDS = 0.3


def python(code, **environment):
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@pytest.mark.parametrize("code", ["import kompakt", "import kompakt.compressor.cli"])
def test_imports_nothing_heavy(code):
    loaded = python(f"{code}; import sys; print([name for name in {HEAVY} if name in sys.modules])")
    assert loaded == "[]"


def test_is_fast(tmp_path):
    # the time of this process, so that other work on the machine does not count; installed code is compiled, too
    code = "import time; a = time.process_time(); import kompakt; print(time.process_time() - a)"
    compiled = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(tmp_path)}
    seconds = [float(python(code, **compiled)) for _ in range(6)]
    assert min(seconds[1:]) < LIMIT_SECONDS


def test_runs_as_a_module():
    result = subprocess.run(
        [sys.executable, "-m", "kompakt", "--version"], capture_output=True, text=True, check=True
    )
    assert result.stdout.startswith("kompakt ")


@pytest.mark.slow
def test_transformers_ignores_our_folder_kernels():
    pytest.importorskip("transformers")
    code = "from transformers import pipeline; import kompakt; print(pipeline.__name__)"
    assert python(code, PYTHONSAFEPATH="") == "pipeline"
