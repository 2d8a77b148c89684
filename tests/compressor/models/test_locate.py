from __future__ import annotations

import os

import pytest

from kompakt.compressor.errors import ModelNotFoundError
from kompakt.compressor.models import locate
from kompakt.compressor.models.catalog import CATALOG, Bundled, env_var_for
from kompakt.compressor.models.locate import (
    cache_root,
    cached_path,
    get_spec,
    installed,
    is_complete,
    model_path,
    weights_fingerprint,
)


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KOMPAKT_CACHE", str(tmp_path / "cache"))
    for name in CATALOG:
        monkeypatch.delenv(env_var_for(name), raising=False)


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "model"
    (root / "sub").mkdir(parents=True)
    (root / "config.json").write_text("{}")
    (root / "model.safetensors").write_bytes(b"weights")
    (root / "sub" / "tokenizer").write_bytes(b"words")
    return root


def put_in_cache(name):
    folder = cached_path(CATALOG[name])
    folder.mkdir(parents=True)
    (folder / "kompakt.json").write_text("{}")
    return folder


def test_catalogue_is_consistent():
    for name, spec in CATALOG.items():
        assert spec.name == name
        assert spec.env_var == env_var_for(name)
        if isinstance(spec.carrier, Bundled):
            assert spec.carrier.base in CATALOG
            assert is_complete(cached_path(spec))
        else:
            assert len(spec.carrier.sha256) == 64
        assert spec.licence
    assert env_var_for("smollm2-135m") == "KOMPAKT_MODEL_SMOLLM2_135M"


def test_a_folder_is_its_own_path(folder):
    assert model_path(folder) == folder
    assert model_path(str(folder)) == folder


def test_a_missing_model_names_the_command():
    with pytest.raises(ModelNotFoundError, match="`kompakt models pull minilm-l6`"):
        model_path("minilm-l6")


def test_the_cache_is_found():
    folder = put_in_cache("minilm-l6")
    assert model_path("minilm-l6") == folder


def test_an_unfinished_folder_in_the_cache_is_not_a_model():
    cached_path(CATALOG["minilm-l6"]).mkdir(parents=True)
    with pytest.raises(ModelNotFoundError, match="pull minilm-l6"):
        model_path("minilm-l6")


def test_the_environment_wins_over_the_cache(folder, monkeypatch):
    put_in_cache("minilm-l6")
    monkeypatch.setenv("KOMPAKT_MODEL_MINILM_L6", str(folder))
    assert model_path("minilm-l6") == folder


def test_a_wrong_environment_variable_is_named(monkeypatch):
    monkeypatch.setenv("KOMPAKT_MODEL_MINILM_L6", "/no/such/folder")
    with pytest.raises(ModelNotFoundError, match=r"KOMPAKT_MODEL_MINILM_L6 is '/no/such/folder'"):
        model_path("minilm-l6")


def test_a_name_wins_over_a_folder_of_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "minilm-l6").mkdir()
    monkeypatch.chdir(tmp_path)
    cached = put_in_cache("minilm-l6")
    assert model_path("minilm-l6") == cached
    assert model_path("./minilm-l6").resolve() == tmp_path / "minilm-l6"


def test_an_unknown_name_is_answered_with_a_suggestion():
    with pytest.raises(ModelNotFoundError, match="Did you mean 'smollm2-135m'") as caught:
        model_path("smolm2-135m")
    assert all(name in str(caught.value) for name in CATALOG)
    assert "local folder" in str(caught.value)


@pytest.mark.parametrize("name", ["", "zzz", "a" * 5000, "nul\0", "~nobody-has-this-name"])
def test_nonsense_names_are_not_found(name):
    with pytest.raises(ModelNotFoundError):
        model_path(name)
    with pytest.raises(ModelNotFoundError):
        get_spec(name)


def test_a_missing_folder_is_called_a_folder():
    with pytest.raises(ModelNotFoundError, match="no such model folder"):
        model_path("models/missing")


def test_the_default_cache_is_the_users(monkeypatch):
    monkeypatch.delenv("KOMPAKT_CACHE")
    assert cache_root().name == "models"
    assert "kompakt" in cache_root().parts


def test_installed_lists_every_model():
    folder = put_in_cache("en-core-web-sm")
    rows = {row.spec.name: row for row in installed()}
    assert list(rows) == list(CATALOG)
    assert rows["en-core-web-sm"].path == folder
    assert rows["en-core-web-sm"].n_bytes == 2
    assert rows["minilm-l6"].path is None
    assert rows["minilm-l6"].n_bytes == 0


def test_the_fingerprint_changes_with_any_model_file(folder):
    seen = {weights_fingerprint(folder)}
    (folder / "model.safetensors").write_bytes(b"WEIGHTS")
    os.utime(folder / "model.safetensors", ns=(1, 1))
    seen.add(weights_fingerprint(folder))
    (folder / "sub" / "tokenizer").write_bytes(b"other words")
    seen.add(weights_fingerprint(folder))
    (folder / "config.json").rename(folder / "config2.json")
    seen.add(weights_fingerprint(folder))
    assert len(seen) == 4


def test_the_fingerprint_ignores_place_time_and_documentation(folder, tmp_path):
    before = weights_fingerprint(folder)
    for name in ("README.md", "LICENSE", "LICENSES_SOURCES", ".hidden", "kompakt.json"):
        (folder / name).write_text("text")
    os.utime(folder / "model.safetensors", ns=(5, 5))
    folder.rename(tmp_path / "moved")
    assert weights_fingerprint(tmp_path / "moved") == before


def test_the_fingerprint_is_not_computed_twice(folder, monkeypatch):
    before = weights_fingerprint(folder)
    locate._file_sha256.cache_clear()
    monkeypatch.setattr(locate, "file_sha256", lambda path: pytest.fail(f"read {path}"))
    assert weights_fingerprint(folder) == before


@pytest.mark.parametrize("content", ["", "[]", '{"schema_version": 1, "files": 3}', '{"schema_version": 9}'])
def test_a_broken_fingerprint_file_is_ignored(folder, content):
    before = weights_fingerprint(folder)
    (folder / ".kompakt-fingerprint.json").write_text(content)
    assert weights_fingerprint(folder) == before


def test_a_folder_that_cannot_be_written_has_a_fingerprint(folder, monkeypatch):
    def refuse(**_):
        raise PermissionError("read-only")

    monkeypatch.setattr(locate.tempfile, "mkstemp", refuse)
    before = weights_fingerprint(folder)
    assert not (folder / ".kompakt-fingerprint.json").exists()
    monkeypatch.setattr(locate, "file_sha256", lambda path: pytest.fail(f"read {path}"))
    assert weights_fingerprint(folder) == before


def test_an_empty_folder_has_no_fingerprint(tmp_path):
    with pytest.raises(ModelNotFoundError, match="no model files"):
        weights_fingerprint(tmp_path)
    with pytest.raises(ModelNotFoundError, match="no model files"):
        weights_fingerprint(tmp_path / "missing")
