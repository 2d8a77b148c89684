"""The base of compressors whose output is a key-value cache: a decoder reads a context, some keys are kept."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Final

import torch

from kompakt.compressor.base import Compressor, Job, Request, open_job
from kompakt.compressor.cache.cache_gen import CachePrecision, cache_codec
from kompakt.compressor.cache.context import CacheContext, read_context
from kompakt.compressor.cache.rotary import has_rotations, moved, why_immovable
from kompakt.compressor.errors import BudgetError, ModelError
from kompakt.compressor.models.causal_lm import CausalLM, Dtype, load_causal_lm
from kompakt.compressor.models.locate import model_path, weights_fingerprint
from kompakt.compressor.parts import CachePart, Rope
from kompakt.compressor.results import fits
from kompakt.compressor.store.artefacts import as_stored
from kompakt.compressor.types import Compressed, Outcome, StageTrace, Status

_SCHEMA: Final = 2
"""Raised where the same weights come to give other caches, be it by rounding."""
_WHERE_IT_RUNS: Final = ("device",)


@dataclass(frozen=True, kw_only=True)
class CacheCompressor(Compressor):
    """A compressor that lets a decoder read a context and keeps some of its keys and values.

    An author writes ``compute``. This class finds out what stands around the context in the prompt, resolves the
    budget, stores the outcome and accounts for every position. Protected text keeps all its positions.

    A cache is right where it is read as it was made: behind the same beginning. That is the chat format's, or the
    token that a text begins with, and ``before``.

    Args:
        decoder: The model that will read the cache: a named model or its folder.
        is_chat: Whether the cache will stand in a user's message; see ``Prompt``.
        before: The text before it in the prompt.
        precision: How caches are kept in the store: ``full``, ``int8``, ``int4`` or, with less than ``int4`` has of
            bytes and of error, ``cachegen``; see ``CacheCodec``.
        dtype: Number format of the decoder.
        device: A torch device; CUDA if there is one and None is given.

    Raises:
        ConfigError: If an option makes no sense.
    """

    decoder: str = "smollm2-135m"
    is_chat: bool = True
    before: str = ""
    precision: CachePrecision = "full"
    dtype: Dtype = "auto"
    device: str | None = None

    name: ClassVar[str]
    emits = "cache"
    locality = "global"

    def __post_init__(self) -> None:
        cache_codec(self.precision)

    @abstractmethod
    def compute(self, context: CacheContext, n_keep: int) -> torch.Tensor:
        """Read a context and return what is kept, ``[2, L, H_kv, n_keep, D_head]``: keys, then values.

        Keys have the rotation of the positions where they stand behind one another, from ``context.first`` on.

        Raises:
            InputError: If the prompt is longer than the decoder reads.
        """

    @property
    def space(self) -> str:
        """Fingerprint of the decoder that reads the cache."""
        return weights_fingerprint(model_path(self.decoder))

    @property
    def weights_fingerprint(self) -> str:
        """SHA-256 of the decoder's files."""
        return self.space

    @property
    def fingerprint(self) -> str:
        """SHA-256 over what decides the cache."""
        options = {key: value for key, value in self.options.items() if key not in _WHERE_IT_RUNS}
        options["decoder"] = self.space
        identity = [type(self).__module__, self.name, options]
        return hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()

    @cached_property
    def lm(self) -> CausalLM:
        """The decoder.

        Raises:
            ModelError: If its keys cannot be moved.
        """
        lm = load_causal_lm(self.decoder, dtype=self.dtype, device=self.device)
        reason = why_immovable(lm) if has_rotations(lm) else ""
        if reason:
            raise ModelError(f"the keys of {self.decoder!r} cannot be moved together: {reason}")
        return lm

    def compress_batch(self, requests: Sequence[Request]) -> list[Compressed]:
        """Compress several requests; see ``Compressor.compress_batch``.

        Raises:
            BudgetError: If a budget does not hold what is protected.
            InputError: If a context is longer than the decoder reads, or a question is missing.
        """
        return [self._compress(open_job(request)) for request in requests]

    def _compress(self, job: Job) -> Compressed:
        began = time.perf_counter()
        request = job.request
        if job.tokens_before <= job.max_tokens:
            result = fits(request.documents, job.tokens_before, self.name, time.perf_counter() - began)
            return dataclasses.replace(result, state=request.state)
        if self.lm.fingerprint != self.space:
            raise ModelError(f"the files of {self.decoder!r} changed since it was loaded: make the compressor anew")
        context = read_context(
            request.documents,
            self.lm,
            query=request.query if self.uses_query else None,
            model=self.decoder,
            is_chat=self.is_chat,
            before=self.before,
        )
        n_keep = min(job.max_tokens, len(context.ids))
        if len(context.protected) > n_keep:
            raise BudgetError(
                f"{len(context.protected)} positions hold protected text and the budget is {n_keep}: raise it"
            )
        hits, misses = request.artefacts.hits, request.artefacts.misses
        tensor = self._fetch(job, context, n_keep)
        part = self._part(tensor, context)
        trace = StageTrace(
            self.name,
            time.perf_counter() - began,
            job.tokens_before,
            part.n_positions,
            request.artefacts.hits - hits,
            request.artefacts.misses - misses,
        )
        return Compressed(
            parts=(part,),
            documents=request.documents,
            outcome=Outcome(Status.COMPRESSED),
            tokens_before=job.tokens_before,
            tokens_after=part.n_positions,
            n_bytes=part.n_bytes,
            trace=(trace,),
            sources=request.documents,
            state=request.state,
        )

    def _fetch(self, job: Job, context: CacheContext, n_keep: int) -> torch.Tensor:
        codec = cache_codec(self.precision)

        def compute(contents: list[str]) -> list[torch.Tensor]:
            with torch.inference_mode():
                return [self.compute(context, n_keep).cpu() for _ in contents]

        identity = ["cache", _SCHEMA, self.fingerprint, self.lm.fingerprint, self.lm.dtype]
        recipe = as_stored(identity, compute, codec.encode, codec.decode)
        return job.request.artefacts.fetch(recipe, [json.dumps([context.content, n_keep])])[0][0]

    def _part(self, tensor: torch.Tensor, context: CacheContext) -> CachePart:
        n_keep = tensor.shape[-2]
        positions = tuple(range(context.first, context.first + n_keep))
        rope: Rope = positions if has_rotations(self.lm) else "unrotated"
        return CachePart(tuple(tensor[0]), tuple(tensor[1]), self.lm.fingerprint, context.source, rope)

    def moved_together(
        self, keys: torch.Tensor, positions: torch.Tensor, layer: int, *, start: int = 0
    ) -> torch.Tensor:
        """Return keys of ``positions``, ``[n]`` or ``[H_kv, n]``, as if they stood from ``start`` on."""
        if not has_rotations(self.lm):
            return keys
        together = torch.arange(start, start + keys.shape[1])
        return moved(keys, positions, together, layer, self.lm)
