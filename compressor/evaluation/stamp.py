"""Where numbers come from: machine, versions, commit."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

_PACKAGES: Final = ("kompakt", "torch", "transformers", "tokenizers", "numpy", "bm25s", "sentencex", "spacy")


def stamp() -> dict[str, str]:
    """Return machine, system, versions, commit and time, as label and value."""
    found = {
        "time": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": f"{_processor()}, {os.cpu_count()} cores",
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
    }
    if commit := _commit():
        found["commit"] = commit
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _commit() -> str:
    """Return the commit of the checkout that this file belongs to, with a plus if changed; empty without."""
    here = Path(__file__).resolve()
    # installed into an environment that lies in somebody else's checkout, it belongs to none
    if not _git(here, "ls-files", "--error-unmatch", here.name):
        return ""
    return _git(here, "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*")


def _git(file: Path, *arguments: str) -> str:
    command = ["git", *arguments]
    try:
        done = subprocess.run(command, cwd=file.parent, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
