"""Pipelines as TOML files: registry names and options, never import paths, so that files outlive code."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

import tomli_w

from kompakt.compressor.errors import BudgetError, ConfigError
from kompakt.compressor.pipeline import Pipeline, Stage
from kompakt.compressor.registry import compressor_names, load

SCHEMA_VERSION: Final = 1
_PIPELINE_TYPES: Final[Mapping[str, type]] = {
    "schema_version": int,
    "tokenizer": str,
    "strict": bool,
    "on_error": str,
    "mark_omissions": bool,
    "keep": dict,
    "store": str,
    "tenant": str,
    "stages": list,
}
_STAGE_TYPES: Final[Mapping[str, type]] = {"compressor": str, "share": float, "options": dict}


def read_pipeline(path: Path) -> Pipeline:
    """Read a pipeline from a TOML file.

    Raises:
        ConfigError: If the file cannot be read, is not TOML, or says something unknown; the message names the file.
    """
    try:
        return parse_pipeline(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (ConfigError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error


def parse_pipeline(text: str) -> Pipeline:
    """Make a pipeline from TOML.

    Raises:
        ConfigError: If the text is not TOML or says something unknown.
    """
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"not valid TOML: {error}") from error
    _check_keys(data, _PIPELINE_TYPES, "the pipeline")
    version = data.pop("schema_version", SCHEMA_VERSION)
    if version != SCHEMA_VERSION:
        raise ConfigError(f"schema_version {version} is not known; this version reads {SCHEMA_VERSION}")
    stages = data.pop("stages", [])
    if not stages:
        raise ConfigError('a pipeline needs at least one [[stages]] table with compressor = "..."')
    try:
        return Pipeline([_parse_stage(stage, index) for index, stage in enumerate(stages)], **data)
    except BudgetError as error:
        raise ConfigError(f"[keep]: {error}") from error


def _parse_stage(data: object, index: int) -> Stage:
    where = f"stage {index + 1}"
    if not isinstance(data, dict) or "compressor" not in data:
        raise ConfigError(f'{where} must be a table with compressor = "...", got {data!r}')
    _check_keys(data, _STAGE_TYPES, where)
    return Stage(load(data["compressor"], **data.get("options", {})), float(data.get("share", 1.0)))


def _check_keys(data: Mapping[str, Any], types: Mapping[str, type], where: str) -> None:
    for key, value in data.items():
        if key not in types:
            close = get_close_matches(key, types, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else "."
            raise ConfigError(f"{where} has no setting {key!r}{hint} It takes: {', '.join(types)}")
        wanted = (int, float) if types[key] is float else (types[key],)
        if not isinstance(value, wanted) or (isinstance(value, bool) and types[key] is not bool):
            raise ConfigError(f"{where}: {key} must be {types[key].__name__}, got {value!r}")


def write_pipeline(pipeline: Pipeline) -> str:
    """Return a pipeline as TOML that ``parse_pipeline`` reads back to an equal one.

    Raises:
        ConfigError: If a stage or the tokenizer has no name by which it could be found again.
    """
    data: dict[str, object] = {"schema_version": SCHEMA_VERSION}
    if pipeline.tokenizer is not None:
        if not isinstance(pipeline.tokenizer, (str, os.PathLike)):
            raise ConfigError(f"tokenizer {pipeline.tokenizer!r} has no name; give the pipeline a name or a folder")
        data["tokenizer"] = os.fspath(pipeline.tokenizer)
    data |= {"strict": pipeline.strict, "on_error": pipeline.on_error, "mark_omissions": pipeline.mark_omissions}
    if pipeline.budget is not None and pipeline.budget.by_kind:
        data["keep"] = {kind.value: keep for kind, keep in pipeline.budget.by_kind.items()}
    if pipeline.store is not None:
        if not isinstance(pipeline.store, (str, os.PathLike)):
            raise ConfigError(f"store {pipeline.store!r} has no name; give the pipeline a path or a URL")
        data["store"] = os.fspath(pipeline.store)
    if pipeline.tenant:
        data["tenant"] = pipeline.tenant
    data["stages"] = [_stage_table(stage) for stage in pipeline.stages]
    return tomli_w.dumps(data)


def _stage_table(stage: Stage) -> dict[str, object]:
    name = stage.compressor.name
    if name not in compressor_names():
        raise ConfigError(f"{stage.compressor!r} is not registered, so a file cannot name it")
    options = {key: value for key, value in stage.compressor.options.items() if value is not None}
    return {"compressor": name, "share": stage.share} | ({"options": options} if options else {})
