"""The base of compressors that write slots: segments in, a few vectors for each out."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Final

import torch

from kompakt.compressor.base import Compressor, Request, open_job, request_groups
from kompakt.compressor.errors import ConfigError
from kompakt.compressor.models.causal_lm import CausalLM, Dtype
from kompakt.compressor.models.locate import model_path, weights_fingerprint
from kompakt.compressor.parts import CachePart, EmbedsPart, Placement, TextPart
from kompakt.compressor.results import fits
from kompakt.compressor.soft.checkpoint import Checkpoint, ModelReference, read_checkpoint, write_checkpoint
from kompakt.compressor.soft.decoder import load_decoder
from kompakt.compressor.soft.module import SlotModule
from kompakt.compressor.soft.plan import Plan, Segment
from kompakt.compressor.soft.vectors import VectorCodec
from kompakt.compressor.store.artefacts import Artefacts, as_stored
from kompakt.compressor.store.codec import Precision
from kompakt.compressor.types import Compressed

_LOG = logging.getLogger(__name__)
_SCHEMA: Final = 2
"""Raised where the same weights come to give other codes, be it by rounding."""
_WHERE_IT_RUNS: Final = ("checkpoint", "base", "device")


@dataclass(frozen=True, kw_only=True)
class SlotEncoder(Compressor):
    """A compressor that writes a few vectors for each segment, which a decoder reads in place of tokens.

    An author says how a text is cut (``pieces``, ``cut``), how many vectors a segment gets (``n_vectors``), and
    writes ``encode``. This class chooses rates under the budget, looks segments up in the store, encodes the missing
    ones in one batch, keeps protected text as text, and accounts for every position.

    Args:
        checkpoint: Folder of the method's weights.
        base: The decoder: a named model or its folder. With a checkpoint, where its base lies on this machine, if not
            where the checkpoint says; without one, untrained weights are made for it, which no reader understands.
        rates: Source tokens that one vector may stand for, the finest first; the budget chooses among them. The
            checkpoint's own if empty.
        precision: How vectors are kept in the store: ``full``, ``int8`` or ``int4``.
        dtype: Number format of the encoder.
        device: A torch device; CUDA if there is one and None is given.

    Raises:
        ConfigError: If an option makes no sense.
    """

    checkpoint: str | None = None
    base: str | None = None
    rates: tuple[int, ...] = ()
    precision: Precision = "full"
    dtype: Dtype = "auto"
    device: str | None = None

    name: ClassVar[str]
    default_settings: ClassVar[Mapping[str, Any]] = {"rates": [2, 4, 8]}
    emits = "embeds"
    locality = "segment"
    uses_query = False

    def __post_init__(self) -> None:
        if self.checkpoint is None and self.base is None:
            raise ConfigError(
                f"{self.name} needs weights: give checkpoint=, a folder that training or `kompakt models convert` "
                "wrote, or base=, a model for which untrained weights are made"
            )
        # a configuration file gives a list
        object.__setattr__(self, "rates", tuple(self.rates))
        if not all(isinstance(rate, int) and not isinstance(rate, bool) and rate > 0 for rate in self.rates):
            raise ConfigError(f"rates must be whole numbers from 1 on, got {self.rates!r}")
        if list(self.rates) != sorted(set(self.rates)):
            raise ConfigError(f"rates must rise, the finest first, got {self.rates!r}")
        VectorCodec(self.precision)

    def pieces(self, n_tokens: int) -> list[int]:
        """Return the lengths of the parts of a text for each of which a rate is chosen; by default the whole text."""
        return [n_tokens]

    @abstractmethod
    def cut(self, n_tokens: int, rate: float) -> list[int]:
        """Return the lengths of the segments of a piece."""

    @abstractmethod
    def n_vectors(self, n_tokens: int, rate: float) -> int:
        """Return how many vectors a segment of ``n_tokens`` tokens gets."""

    @abstractmethod
    def encode(self, segments: Sequence[Segment]) -> list[torch.Tensor]:
        """Return the code of each segment ``[m, D_code]``, which does not depend on the other segments."""

    def place(self, code: torch.Tensor, rate: float) -> torch.Tensor:
        """Return the vectors of a segment ``[m, D]`` from its stored code; by default the code itself."""
        del rate
        return code

    def code_rate(self, rate: float) -> float:
        """Return the rate at which a segment is encoded and stored: 1 where ``place`` makes any rate of one code."""
        return rate

    def after_text(self) -> torch.Tensor | None:
        """Return vectors ``[s, D]`` that follow each compressed text, None for none."""
        return None

    def after_context(self) -> torch.Tensor | None:
        """Return vectors ``[s, D]`` that follow the last compressed text of a context, None for none."""
        return None

    @property
    def is_sequential(self) -> bool:
        """Whether a segment reads the vectors of those before it."""
        return False

    @property
    def accumulates(self) -> bool:
        """Whether a context keeps the vectors of all its segments, not those of the last one alone."""
        return True

    def make_part(self, vectors: torch.Tensor, source: TextPart) -> EmbedsPart | CachePart:
        """Return what the decoder reads, from the vectors ``[m, D]`` of a text; by default in place of embeddings."""
        return EmbedsPart(vectors, self.space, source, self.placement)

    @property
    def placement(self) -> Placement:
        """Whether the vectors take positions in the decoder."""
        return "contiguous"

    @cached_property
    def weights(self) -> Checkpoint | None:
        """The checkpoint, read once; None for untrained weights."""
        if self.checkpoint is None:
            _LOG.warning("%s has untrained weights: no reader understands its vectors", self.name)
            return None
        return read_checkpoint(self.checkpoint, self.name)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What must be known to read the weights."""
        return {**self.default_settings, **(self.weights.settings if self.weights else {})}

    @cached_property
    def used_rates(self) -> tuple[int, ...]:
        """The rates that were asked for, or else those of the weights, the finest first."""
        return self.rates or tuple(self.settings["rates"])

    @property
    def levels(self) -> tuple[float, ...]:
        """The rates among which the budget chooses; by default the given ones."""
        return self.used_rates

    @cached_property
    def module(self) -> Any:  # noqa: ANN401 (a module's forward pass is its method's own)
        """The network that encodes, a ``SlotModule``, with the checkpoint's weights if there is one."""
        module = self.build_module()
        if self.weights is not None:
            module.fill(self.weights.tensors, str(self.weights.folder))
        return module.to(self.lm.model.device, self.lm.model.dtype).eval()

    @abstractmethod
    def build_module(self) -> SlotModule:
        """Return the network with untrained weights."""

    def save(self, folder: str | os.PathLike[str], *, made_from: str = "") -> Path:
        """Write the weights as a checkpoint, which ``checkpoint=`` reads.

        Args:
            folder: Where to; it must hold no checkpoint.
            made_from: Where they come from, for people.

        Raises:
            ConfigError: If the folder holds a checkpoint.
            ModelError: If it cannot be written.
        """
        checkpoint = Checkpoint(self.name, self.settings, self.models, self.module.trainable(), made_from)
        return write_checkpoint(folder, checkpoint)

    @property
    def models(self) -> Mapping[str, ModelReference]:
        """The models that the weights build upon, by role."""
        return {"base": self.base_reference} if self.weights is None else self.weights.models

    @property
    def base_reference(self) -> ModelReference:
        """The base as it lies on this machine, for untrained weights."""
        return ModelReference(self.base or "", weights_fingerprint(model_path(self.base or "")))

    @cached_property
    def lm(self) -> CausalLM:
        """The decoder, which lends the encoder its weights."""
        if self.weights is None:
            return load_decoder(self.base or "", dtype=self.dtype, device=self.device)
        path = self.weights.resolve("base", self.base)
        plain_rope = self.weights.models["base"].plain_rope
        return load_decoder(path, dtype=self.dtype, device=self.device, plain_rope=plain_rope)

    @property
    def reading_lm(self) -> CausalLM:
        """The model whose tokens the encoder reads; by default the decoder."""
        return self.lm

    @property
    def space(self) -> str:
        """Fingerprint of the decoder that reads the vectors."""
        return self.models["base"].space

    @property
    def weights_fingerprint(self) -> str:
        """SHA-256 of the checkpoint's files; of the base's for untrained weights."""
        return self.space if self.weights is None else self.weights.fingerprint

    @property
    def code_identity(self) -> list[object]:
        """Everything but the segment that decides its code."""
        return [self.name, self.weights_fingerprint, self.reading_lm.dtype]

    @property
    def fingerprint(self) -> str:
        """SHA-256 over what decides the vectors; not over where the weights lie."""
        options = {key: value for key, value in self.options.items() if key not in _WHERE_IT_RUNS}
        identity = [type(self).__module__, self.name, options, self.weights_fingerprint, self.space]
        return hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()

    def compress_batch(self, requests: Sequence[Request]) -> list[Compressed]:
        """Compress several requests; see ``Compressor.compress_batch``.

        Raises:
            BudgetError: If a budget is below what the coarsest rate, protected text and chats need.
            InputError: If a state is not of this compressor.
        """
        results: list[Compressed] = []
        for group in request_groups(requests):
            views = Artefacts.together([request.artefacts for request in group])
            results += self._compress_group(
                [dataclasses.replace(request, artefacts=view) for request, view in zip(group, views, strict=True)]
            )
        return results

    def _compress_group(self, requests: Sequence[Request]) -> list[Compressed]:
        began = time.perf_counter()
        jobs = [open_job(request) for request in requests]
        plans = {id(job): Plan(self, job) for job in jobs if job.tokens_before > job.max_tokens}
        with torch.no_grad():
            self._encode(list(plans.values()))
            made = {key: plan.result() for key, plan in plans.items()}
        # what was done for all is shared out evenly
        seconds = (time.perf_counter() - began) / max(1, len(requests))
        results = []
        for job in jobs:
            fitting = fits(job.request.documents, job.tokens_before, self.name, seconds)
            result = made.get(id(job)) or dataclasses.replace(fitting, state=job.request.state)
            trace = dataclasses.replace(result.trace[0], seconds=seconds)
            results.append(dataclasses.replace(result, trace=(trace,)))
        return results

    def _encode(self, plans: Sequence[Plan]) -> None:
        """Encode the segments of all plans: all at once, or one after another where each needs those before it."""
        if not self.is_sequential:
            everything = [plan.segments for plan in plans]
            for plan, codes in zip(plans, self._fetch(plans, everything), strict=True):
                plan.add(codes)
            return
        for step in range(max((len(plan.segments) for plan in plans), default=0)):
            going_on = [plan for plan in plans if step < len(plan.segments)]
            following = [[plan.following(step)] for plan in going_on]
            for plan, codes in zip(going_on, self._fetch(going_on, following), strict=True):
                plan.add(codes)

    def _fetch(self, plans: Sequence[Plan], segments: Sequence[Sequence[Segment]]) -> list[list[torch.Tensor]]:
        by_content = {one.content: one for several in segments for one in several}
        codec = VectorCodec(self.precision)

        def compute(contents: list[str]) -> list[torch.Tensor]:
            return [code.cpu() for code in self.encode([by_content[content] for content in contents])]

        identity = ["vectors", _SCHEMA, *self.code_identity, self.precision]
        recipe = as_stored(identity, compute, codec.encode, codec.decode)
        if len(plans) > 1:
            for artefacts in _distinct([plan.artefacts for plan in plans]):
                theirs = [
                    one.content
                    for plan, several in zip(plans, segments, strict=True)
                    if plan.artefacts.is_shared_with(artefacts)
                    for one in several
                ]
                artefacts.fetch(recipe, theirs, is_ahead=True)
        return [
            [code for code, _ in plan.artefacts.fetch(recipe, [one.content for one in several])]
            for plan, several in zip(plans, segments, strict=True)
        ]


def _distinct(several: Sequence[Artefacts]) -> list[Artefacts]:
    distinct: list[Artefacts] = []
    for one in several:
        if not any(one.is_shared_with(other) for other in distinct):
            distinct.append(one)
    return distinct
