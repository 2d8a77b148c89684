"""Which methods of which clients go out compressed: the tests of ``wrap``, read out as a table.

    python benchmarks/conformance.py [PYTHON ...]

Each ``PYTHON`` is the interpreter of an environment with other versions of the clients, such as
``.venv/environments/older-clients/bin/python``; without one, this one. A test passes if the request goes out
compressed, with the question and the answer in it, if the answer has the same type and content as that of the plain
client, and if the events of a stream come one by one.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TESTS = "tests/adapters/test_wrap.py"
PATTERN = re.compile(r"test_every_method_\w*?(is_compressed|async_clients)\w*\[(.+)\] (PASSED|FAILED|SKIPPED)")
VERSIONS = "from importlib.metadata import version as v; print(f\"openai {v('openai')}, anthropic {v('anthropic')}\")"


def outcomes(python: str) -> dict[tuple[str, str], str]:
    """Return how each test ended, by method and by the kind of client."""
    done = subprocess.run(
        [python, "-m", "pytest", "-v", TESTS], cwd=ROOT, capture_output=True, text=True, check=False
    )
    found = PATTERN.findall(done.stdout)
    if not found:
        raise SystemExit(f"{python} ran no test:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return {(method, "sync" if kind == "is_compressed" else "async"): ended for kind, method, ended in found}


def main() -> None:
    for python in sys.argv[1:] or [sys.executable]:
        print(subprocess.run([python, "-c", VERSIONS], capture_output=True, text=True, check=True).stdout.strip())
        ended = outcomes(python)
        for method in dict.fromkeys(method for method, _ in ended):
            print(f"  {method:32} sync {ended[method, 'sync'].lower():8} async {ended[method, 'async'].lower()}")


if __name__ == "__main__":
    main()
