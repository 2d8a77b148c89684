"""Make the environments of the peers, one after the other.

    python benchmarks/peers/make_environments.py FOLDER [PEER ...]

Each becomes a virtual environment FOLDER/NAME with pinned versions. One that is already there with the same pins is
left alone; one with other pins is made anew. A peer that cannot be installed does not stop the others.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from peers import CACHE_PEERS, ENVIRONMENTS, PEERS, interpreter

STAMP = "requirements.sha256"
"""Written last into each environment."""

ALL = {**PEERS, **CACHE_PEERS}


def fingerprint(requirements: Sequence[Sequence[str]]) -> str:
    identity = [sys.version_info[:2], requirements]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()


def is_made(environment: Path, requirements: Sequence[Sequence[str]]) -> bool:
    stamp = environment / STAMP
    return stamp.is_file() and stamp.read_text(encoding="utf-8") == fingerprint(requirements)


def make(environment: Path, requirements: Sequence[Sequence[str]]) -> None:
    """Make one environment.

    Raises:
        CalledProcessError: If a step fails.
    """
    run([sys.executable, "-m", "venv", "--clear", str(environment)])
    for wanted in requirements:
        run([str(interpreter(environment)), "-m", "pip", "install", "--quiet", *wanted])
    (environment / STAMP).write_text(fingerprint(requirements), encoding="utf-8")


def run(command: Sequence[str]) -> None:
    print("   ", *command[1:], flush=True)
    # what this interpreter finds through them must not count as installed there
    variables = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    subprocess.run(command, check=True, env=variables)


def chosen(names: Sequence[str]) -> list[str]:
    """Return the environments that the named peers need, each once."""
    return list(dict.fromkeys(ALL[name].environment for name in names))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("peers", nargs="*", metavar="PEER", help=f"of {', '.join(ALL)}; all by default")
    args = parser.parse_args()
    if unknown := sorted(set(args.peers) - set(ALL)):
        parser.error(f"no peer is named {', '.join(unknown)}; there are {', '.join(ALL)}")
    failed = []
    for name in chosen(args.peers or list(ALL)):
        environment = args.folder.resolve() / name
        if is_made(environment, ENVIRONMENTS[name]):
            print(f"{name}: is there", flush=True)
            continue
        print(f"{name}: making", flush=True)
        began = time.perf_counter()
        try:
            make(environment, ENVIRONMENTS[name])
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"{name}: FAILED: {error}", flush=True)
            failed.append(name)
        else:
            print(f"{name}: made in {time.perf_counter() - began:.0f} s", flush=True)
    if failed:
        print(f"not made: {', '.join(failed)}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
