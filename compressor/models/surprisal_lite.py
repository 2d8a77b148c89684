"""The first layers of a language model, trained to say how surprising the whole model finds each token."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from kompakt.compressor.errors import ConfigError, ModelError
from kompakt.compressor.models.causal_lm import CausalLM, load_causal_lm
from kompakt.compressor.models.locate import check_unchanged
from kompakt.compressor.models.packed_decoder import packed_decoder
from kompakt.compressor.models.scorers import SETTINGS_FILE
from kompakt.compressor.models.self_information import Scorer
from kompakt.compressor.soft.decoder import body_of, truncated
from kompakt.compressor.store.codec import TensorCodec

CHANGES_FILE: Final = "changes.safetensors"
"""What training added to the weights of the base, in int4."""
READOUT_FILE: Final = "readout.safetensors"
_SCHEMA: Final = 1


@dataclass(frozen=True, kw_only=True)
class LiteSettings:
    """What must be known to read the weights.

    Args:
        base: The language model whose first layers these are: a named model or a folder.
        base_fingerprint: SHA-256 over its files.
        n_layers: How many of its layers there are.
        window: The most tokens that are read at once, as in training.
        overlap: Tokens that the next window reads again.
        d_correction: Width of the correction's hidden layer.
    """

    base: str
    base_fingerprint: str
    n_layers: int
    window: int
    overlap: int
    d_correction: int

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read a folder's settings.

        Raises:
            ModelError: If they cannot be read, or are of a later version.
        """
        file = folder / SETTINGS_FILE
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
            schema = data.pop("schema_version")
            settings = cls(**data) if schema == _SCHEMA else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{file} cannot be read: {error}") from error
        if settings is None:
            raise ModelError(f"{file} has schema version {schema!r}; this release reads {_SCHEMA}: update kompakt")
        return settings

    def to_json(self) -> str:
        """Return the settings as ``read`` reads them."""
        return json.dumps({"schema_version": _SCHEMA, **vars(self)}, indent=1)


class Readout(nn.Module):
    """What makes a surprisal of two states and a token's embedding, without the logits of all other tokens.

    The state before a token predicts it: the product of that state's projection and the token's embedding stands for
    the logit. A small network of both states and the embedding stands for the normaliser, and corrects.

    Args:
        d_model: Width of states and embeddings.
        d_correction: Width of that network's hidden layer.
    """

    def __init__(self, d_model: int, d_correction: int) -> None:
        super().__init__()
        self.predict = nn.Linear(d_model, d_model, bias=False)
        self.hidden = nn.Linear(3 * d_model, d_correction)
        self.correction = nn.Linear(d_correction, 1)

    def forward(self, before: torch.Tensor, after: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
        """Return nats in fp32 ``[N]``.

        Args:
            before: States of what stands before each token ``[N, D]``.
            after: States that have read the token as well ``[N, D]``.
            embeddings: The tokens' embeddings ``[N, D]``.
        """
        logit = (self.predict(before).float() * embeddings.float()).sum(dim=-1)
        hidden = functional.silu(self.hidden(torch.cat([before, after, embeddings], dim=-1)))
        return functional.softplus(self.correction(hidden)[:, 0].float() - logit)


class SurprisalLite(Scorer):
    """Surprisals from the first layers of a language model; see ``load_surprisal_lite``.

    Args:
        lm: The trained layers, with the base's tokenizer.
        readout: What makes nats of their states.
        settings: How they were made.
    """

    reads_targets = True

    def __init__(self, lm: CausalLM, readout: Readout, settings: LiteSettings) -> None:
        super().__init__(lm, packed_decoder(body_of(lm)))
        self.readout = readout
        self.settings = settings

    def nats(self, states: Sequence[torch.Tensor], first: Sequence[int], targets: torch.Tensor) -> torch.Tensor:
        """Return surprisals; see ``Scorer.nats``."""
        before = torch.cat([state[start:-1] for state, start in zip(states, first, strict=True)])
        after = torch.cat([state[start + 1 :] for state, start in zip(states, first, strict=True)])
        embeddings: torch.Tensor = self.lm.model.get_input_embeddings()(targets)
        nats: torch.Tensor = self.readout(before, after, embeddings)
        return nats


@functools.lru_cache(maxsize=2)
def load_surprisal_lite(folder: Path, fingerprint: str) -> SurprisalLite:
    """Load the weights of a folder, upon the base on this machine.

    Args:
        folder: Where they lie.
        fingerprint: SHA-256 over its files.

    Raises:
        ModelNotFoundError: If the base is not on this machine; the message names the command that pulls it.
        ModelError: If the weights cannot be read, or the base is another one.
    """
    settings = LiteSettings.read(folder)
    base = load_causal_lm(settings.base)
    if base.fingerprint != settings.base_fingerprint:
        raise ModelError(
            f"the weights in {folder} were trained upon a {settings.base} with the fingerprint "
            f"{settings.base_fingerprint[:12]}; the one on this machine has {base.fingerprint[:12]}"
        )
    try:
        body = _changed(base, settings.n_layers, _tensors(folder / CHANGES_FILE))
        readout = Readout(body.config.hidden_size, settings.d_correction)
        readout.load_state_dict(_tensors(folder / READOUT_FILE))
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(f"the weights in {folder} cannot be read: {error}") from error
    check_unchanged(folder, fingerprint)
    identity = f"{fingerprint} {base.fingerprint}"
    lm = CausalLM(body, base.tokenizer, base.prefix_id, settings.window + 1, identity, base.dtype, base.device)
    return SurprisalLite(lm, readout.to(body.device, body.dtype).eval().requires_grad_(False), settings)


def _tensors(file: Path) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(value.copy()) for name, value in TensorCodec.decode(file.read_bytes()).items()}


def _changed(base: CausalLM, n_layers: int, changes: Mapping[str, torch.Tensor]) -> PreTrainedModel:
    """Return the first layers with weights of their own; the embeddings stay the base's."""
    body = truncated(body_of(base), n_layers, final_norm=True)
    left = dict(changes)
    for name, parameter in [*body.named_parameters()]:
        if name not in left:
            continue
        owner, _, attribute = name.rpartition(".")
        changed = (parameter.float() + left.pop(name).to(parameter.device)).to(parameter.dtype)
        setattr(body.get_submodule(owner), attribute, nn.Parameter(changed, requires_grad=False))
    if left:
        raise KeyError(f"no weight of the base is named {sorted(left)[0]!r}")
    return body


def save_surprisal_lite(
    folder: Path, settings: LiteSettings, changes: Mapping[str, torch.Tensor], readout: Readout
) -> None:
    """Write weights as ``load_surprisal_lite`` reads them, its changes rounded to int4.

    Args:
        folder: An empty folder.
        settings: How they were made.
        changes: What training added to the base's weights, by their names in its body.
        readout: What makes nats of states.

    Raises:
        ConfigError: If the folder is not empty, or a number is not finite.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder} is not empty")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CHANGES_FILE).write_bytes(TensorCodec("int4").encode(_arrays(changes)))
    halves = {name: value.half() for name, value in readout.state_dict().items()}
    (folder / READOUT_FILE).write_bytes(TensorCodec().encode(_arrays(halves)))
    (folder / SETTINGS_FILE).write_text(settings.to_json(), encoding="utf-8")


def _arrays(tensors: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: value.detach().cpu().numpy() for name, value in tensors.items()}
