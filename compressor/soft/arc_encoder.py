"""ARC-Encoder: a bidirectional encoder that pools its queries, and a bridge to each of several frozen decoders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil
from typing import Any, ClassVar, Final, Literal, cast

import torch
from torch import nn

from kompakt.compressor.errors import ConfigError, ModelError
from kompakt.compressor.models.causal_lm import BATCH_TOKENS, CausalLM
from kompakt.compressor.soft.allocation import interpolated, windows
from kompakt.compressor.soft.checkpoint import ModelReference
from kompakt.compressor.soft.decoder import body_of, embed, load_decoder, truncated
from kompakt.compressor.soft.lora import Lora
from kompakt.compressor.soft.module import SlotModule, seeded
from kompakt.compressor.soft.plan import Segment
from kompakt.compressor.soft.slot_encoder import SlotEncoder
from kompakt.kernels.packed_attention import packed_attention
from kompakt.kernels.segment_pooling import segment_mean, segment_offsets

_FAMILIES: Final = ("llama", "mistral", "qwen2", "qwen3")


def group_sizes(n: int, rate: float) -> list[int]:
    """Return how many vectors in a row are pooled into each one.

    Args:
        n: How many vectors there are.
        rate: As in the authors' configurations: ``-x`` pools x into one (in balanced groups where x does not divide
            n), ``-1`` none, ``g`` above 0 pools into g groups, 0 into one. Here x need not be whole.

    Source: Pilchen et al. 2025, "ARC-Encoder", section 3.1, as in the authors' code.
    """
    # where n is below the rate, all of it is one group: the quotient rounded up
    n_groups = ceil(n / -rate) if rate < 0 else min(n, int(rate) or 1)
    size, larger = divmod(n, max(n_groups, 1))
    return [size + 1] * larger + [size] * (n_groups - larger)


class Bridge(nn.Module):
    """The map from an encoder's vectors to a decoder's embeddings: linear, without bias.

    Args:
        d_in: Width of the encoder.
        d_out: Width of the decoder's embeddings.
        d_hidden: Rank of the map; None for a single layer.
        normalise: Whether an RMS normalisation comes first.
    """

    def __init__(self, d_in: int, d_out: int, *, d_hidden: int | None, normalise: bool = False) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(d_in, eps=1e-5) if normalise else None
        self.layer1 = nn.Linear(d_in, d_out if d_hidden is None else d_hidden, bias=False)
        self.layer2 = None if d_hidden is None else nn.Linear(d_hidden, d_out, bias=False)

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """Map vectors ``[m, d_in]`` to ``[m, d_out]``."""
        hidden = self.layer1(vectors if self.norm is None else self.norm(vectors))
        mapped: torch.Tensor = hidden if self.layer2 is None else self.layer2(hidden)
        return mapped


class Head(nn.Module):
    """What belongs to one decoder: the bridge, and the vectors that say what is to be done with a text.

    Args:
        bridge: The bridge.
        d_in: Width of the encoder.
    """

    def __init__(self, bridge: Bridge, d_in: int) -> None:
        super().__init__()
        self.bridge = bridge
        self.cont_token = nn.Parameter(torch.ones(1, d_in))
        self.rec_token = nn.Parameter(torch.ones(1, d_in))


class ARCModule(SlotModule):
    """A Llama-like body without its causal mask and final normalisation, and a head for each decoder.

    Args:
        lm: The encoder.
        n_truncated_layers: How many of its last layers are left out.
        heads: What belongs to each decoder.

    Source: Pilchen et al. 2025, "ARC-Encoder: learning compressed text representations for large language models",
    section 3.

    Raises:
        ModelError: If the encoder is of a type that is not known here.
    """

    def __init__(self, lm: CausalLM, *, n_truncated_layers: int, heads: Sequence[Head]) -> None:
        config = lm.model.config.get_text_config()
        if config.model_type not in _FAMILIES:
            raise ModelError(
                f"an ARC-Encoder cannot be made of a model of type {config.model_type!r}: "
                f"its layers must be those of {', '.join(_FAMILIES)}"
            )
        body = truncated(body_of(lm), config.num_hidden_layers - n_truncated_layers)
        super().__init__(lm, body, Lora(rank=0))
        self.heads = nn.ModuleList(heads)

    def forward(self, texts: Sequence[torch.Tensor], rates: Sequence[float]) -> list[torch.Tensor]:
        """Encode texts that are packed one behind the other and cannot see each other.

        Args:
            texts: The input embeddings of each text's tokens, ``[T_i, D]``.
            rates: How the last layers pool, one a layer; see ``group_sizes``.

        Returns:
            The pooled residual stream ``[m_i, D]`` of each text, not normalised.
        """
        lengths = [len(text) for text in texts]
        hidden = torch.cat(list(texts)).to(self.body.device, self.body.dtype)
        layers: Any = self.body.layers
        first_pooling = len(layers) - len(rates)
        for index, layer in enumerate(layers):
            pooled = None
            if index >= first_pooling:
                sizes = [group_sizes(length, rates[index - first_pooling]) for length in lengths]
                pooled = segment_mean(hidden, segment_offsets(size for own in sizes for size in own))
                new_lengths = [len(own) for own in sizes]
            else:
                new_lengths = lengths
            hidden = self._layer(layer, hidden, lengths, hidden if pooled is None else pooled, new_lengths)
            lengths = new_lengths
        return list(torch.split(hidden, lengths))

    def _layer(
        self,
        layer: nn.Module,
        hidden: torch.Tensor,
        lengths: Sequence[int],
        queries: torch.Tensor,
        query_lengths: Sequence[int],
    ) -> torch.Tensor:
        """Run a layer whose queries and residual stream are ``queries``, and whose keys and values are of ``hidden``.

        Both are numbered from 0 on in each text.
        """
        part: Any = layer  # the attributes of its type are those of the families named above
        attention = part.self_attn
        normed, normed_queries = part.input_layernorm(hidden), part.input_layernorm(queries)
        heads = (-1, attention.head_dim)
        q = attention.q_proj(normed_queries).unflatten(-1, heads)
        k = attention.k_proj(normed).unflatten(-1, heads)
        v = attention.v_proj(normed).unflatten(-1, heads)
        if hasattr(attention, "q_norm"):
            q, k = attention.q_norm(q), attention.k_norm(k)
        q, k = self._rotated(q, query_lengths), self._rotated(k, lengths)
        attended = packed_attention(q, k, v, query_lengths=query_lengths, key_lengths=lengths)
        residual = queries + attention.o_proj(attended.flatten(1))
        out: torch.Tensor = residual + part.mlp(part.post_attention_layernorm(residual))
        return out

    def _rotated(self, heads: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        """Rotate ``[T, H, D_head]`` by positions that begin anew in each text."""
        positions = torch.cat([torch.arange(length, device=heads.device) for length in lengths])
        rotary: Any = self.body.rotary_emb
        cos, sin = (table[0, :, None, :] for table in rotary(heads, positions[None]))
        first, second = heads.chunk(2, dim=-1)
        rotated: torch.Tensor = heads * cos + torch.cat([-second, first], dim=-1) * sin
        return rotated


@dataclass(frozen=True, kw_only=True)
class ARCEncoder(SlotEncoder):
    """Compress whole texts with an encoder of its own, for any of the unchanged decoders that it has a bridge to.

    What is stored is the encoder's output, so that one encoding serves all decoders.

    Source: Pilchen et al. 2025, "ARC-Encoder: learning compressed text representations for large language models",
    section 3.

    Args:
        decoder: Which of the checkpoint's decoders reads the vectors.
        special: The vector that ends each text: ``cont`` (go on, or answer), ``rec`` (repeat it) or ``none``; the
            checkpoint's own if None.
    """

    decoder: int = 0
    special: Literal["cont", "rec", "none"] | None = None

    name: ClassVar[str] = "arc-encoder"
    default_settings: ClassVar[Mapping[str, Any]] = {
        "rates": [2, 4, 8],
        "chunk_tokens": 1024,
        "n_truncated_layers": 2,
        "special": "cont",
        "specials": ["cont", "rec"],
        "heads": [],
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.special not in ("cont", "rec", "none", None):
            raise ConfigError(f"special must be cont, rec or none, got {self.special!r}")
        if self.decoder < 0 or (self.checkpoint is None and self.decoder):
            raise ConfigError(f"decoder must be the number of one of the checkpoint's decoders, got {self.decoder}")

    @cached_property
    def lm(self) -> CausalLM:
        """The encoder: the decoder is not needed to write what it reads."""
        if self.weights is None:
            return load_decoder(self.base or "", dtype=self.dtype, device=self.device)
        path = self.weights.resolve("encoder", self.base)
        return load_decoder(path, dtype=self.dtype, device=self.device, plain_rope=True)

    @property
    def models(self) -> Mapping[str, ModelReference]:
        """The encoder and the decoders."""
        if self.weights is not None:
            return self.weights.models
        return {"encoder": self.base_reference, "decoder.0": self.base_reference}

    @property
    def space(self) -> str:
        """Fingerprint of the decoder that reads the vectors."""
        role = f"decoder.{self.decoder}"
        if role not in self.models:
            raise ConfigError(
                f"{self.checkpoint} has {len(self.models) - 1} decoders, so there is no number {self.decoder}"
            )
        return self.models[role].space

    @property
    def code_identity(self) -> list[object]:
        """The encoder without its bridges."""
        truncated_layers = self.settings["n_truncated_layers"]
        return [self.name, self.models["encoder"].fingerprint, truncated_layers, self.lm.dtype]

    @cached_property
    def levels(self) -> tuple[float, ...]:
        """The rates and others between them, so that a budget is used well."""
        return interpolated(self.used_rates)

    def pieces(self, n_tokens: int) -> list[int]:
        """Return the lengths of the chunks: each may have its own rate."""
        return windows(n_tokens, min(int(self.settings["chunk_tokens"]), self.lm.context_length))

    def cut(self, n_tokens: int, rate: float) -> list[int]:
        """Return a chunk as one segment."""
        del rate
        return [n_tokens]

    def n_vectors(self, n_tokens: int, rate: float) -> int:
        """Return the number of groups that are pooled."""
        return len(group_sizes(n_tokens, -rate))

    def after_text(self) -> torch.Tensor | None:
        """Return the special vector as the decoder reads it."""
        name = self.special or str(self.settings["special"])
        if name == "none":
            return None
        if name not in self.settings["specials"]:
            raise ConfigError(f"{self.checkpoint} has no vector {name!r}: use special='none'")
        head = self._head
        with torch.no_grad():
            mapped: torch.Tensor = head.bridge(head.cont_token if name == "cont" else head.rec_token)
        return mapped.cpu()

    def place(self, code: torch.Tensor, rate: float) -> torch.Tensor:
        """Return a chunk's vectors as the decoder reads them."""
        del rate
        mapped: torch.Tensor = self._head.bridge(code.to(self.lm.model.device))
        return mapped.cpu()

    @property
    def _head(self) -> Head:
        head = self.module.heads[self.decoder]
        return cast("Head", head)

    def build_module(self) -> ARCModule:
        """Return the network: the encoder as it is, with untrained heads."""
        width = self.lm.model.config.get_text_config().hidden_size
        described = self.settings["heads"] or [{"d_out": width, "d_hidden": width, "normalise": False}]
        with seeded():
            heads = [Head(Bridge(width, one.pop("d_out"), **one), width) for one in map(dict, described)]
        return ARCModule(self.lm, n_truncated_layers=int(self.settings["n_truncated_layers"]), heads=heads)

    def encode(self, segments: Sequence[Segment]) -> list[torch.Tensor]:
        """Return the pooled vectors of each chunk before the bridge, ``[m, D_encoder]``."""
        codes: list[torch.Tensor] = [torch.empty(0)] * len(segments)
        limit = BATCH_TOKENS["cuda" if self.lm.model.device.type == "cuda" else "cpu"]
        for places in packed_batches([(segment.rate, len(segment.ids)) for segment in segments], limit):
            texts = [embed(self.lm, segments[place].ids) for place in places]
            pooled = self.module(texts, [-segments[places[0]].rate])
            for place, code in zip(places, pooled, strict=True):
                codes[place] = code
        return codes


def packed_batches(rows: Sequence[tuple[float, int]], max_tokens: int) -> Iterator[list[int]]:
    """Group rows of one rate, given as ``(rate, tokens)``, up to ``max_tokens`` tokens or a single longer one."""
    batch: list[int] = []
    n_tokens = 0
    for place in sorted(range(len(rows)), key=lambda place: rows[place][0]):
        rate, length = rows[place]
        if batch and (n_tokens + length > max_tokens or rows[batch[0]][0] != rate):
            yield batch
            batch, n_tokens = [], 0
        batch.append(place)
        n_tokens += length
    if batch:
        yield batch
