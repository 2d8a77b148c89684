"""Llama-like decoders over rows that are packed one behind the other: no padding, and few passes over memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any, Final
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers import PreTrainedModel

from kompakt.compressor.models.packed_linear import PackedLinear, merged_weight
from kompakt.kernels.packed_attention import packed_attention

_FAMILIES: Final = ("llama", "mistral", "qwen2", "qwen3")
_TRIED: Final = (5, 3)
"""Lengths of the rows that a new packed decoder is tried on."""

_MOST_BYTES: Final = 1 << 31
"""Layers that take more are not held twice."""

_MADE: WeakKeyDictionary[PreTrainedModel, tuple[object, PackedDecoder | None]] = WeakKeyDictionary()
_LOCK: Final = Lock()


@dataclass(frozen=True)
class _Layer:
    qkv: PackedLinear
    q_norm: torch.Tensor | None
    k_norm: torch.Tensor | None
    out: PackedLinear
    gate: PackedLinear
    up: PackedLinear
    down: PackedLinear


class PackedDecoder:
    """The body of a decoder, for inference: rows stand one behind the other and cannot see each other.

    It computes what ``body(inputs_embeds=...)`` computes for each row, with the weights of normalisations, adapters
    and joined projections folded in: a copy of the layers' weights. Where transformers makes thirty passes over the
    states of a layer, it makes about ten.

    Args:
        body: A decoder without its head, of a family that ``why_not_packed`` accepts.
    """

    def __init__(self, body: PreTrainedModel) -> None:
        inner: Any = body  # the attributes of its type are those of the families named above
        config = body.config
        self.n_heads = int(config.num_attention_heads)
        self.n_kv_heads = int(config.num_key_value_heads)
        self.eps = float(config.rms_norm_eps)
        self.d_head = int(inner.layers[0].self_attn.head_dim)
        self._rotary = inner.rotary_emb
        self._final_norm = inner.norm
        self._layers = [_folded(layer) for layer in inner.layers]

    def __call__(self, embeddings: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        """Run rows, each at positions from 0 on.

        Args:
            embeddings: Input embeddings ``[sum(lengths), D]``.
            lengths: Tokens of each row. Rows of one length that follow each other are attended to together.

        Returns:
            The states after the final normalisation, ``[sum(lengths), D]``.
        """
        cos, sin = self._tables(embeddings, lengths)
        hidden = embeddings
        for layer in self._layers:
            attended = self._attention(layer, self._normed(hidden), cos, sin, lengths)
            hidden = layer.out.plus(attended, hidden)
            normed = self._normed(hidden)
            hidden = layer.down.plus(layer.up.times(normed, layer.gate.swish(normed)), hidden)
        states: torch.Tensor = self._final_norm(hidden)
        return states

    def _attention(
        self, layer: _Layer, normed: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, lengths: Sequence[int]
    ) -> torch.Tensor:
        heads = layer.qkv(normed).view(len(normed), -1, self.d_head)
        n_rotated = self.n_heads + self.n_kv_heads
        rotated = heads[:, :n_rotated]
        if layer.q_norm is not None and layer.k_norm is not None:
            gains = torch.cat([layer.q_norm.expand(self.n_heads, -1), layer.k_norm.expand(self.n_kv_heads, -1)])
            rotated = self._normed(rotated) * gains
        rotated = _rotated(rotated, cos, sin)
        attended: torch.Tensor = packed_attention(
            rotated[:, : self.n_heads],
            rotated[:, self.n_heads :],
            heads[:, n_rotated:],
            query_lengths=lengths,
            key_lengths=lengths,
            is_causal=True,
        )
        return attended.reshape(len(normed), -1)

    def _normed(self, states: torch.Tensor) -> torch.Tensor:
        """Divide states by the root of their mean square; the gains are folded into the product that follows."""
        norms: torch.Tensor = torch.linalg.vector_norm(states, dim=-1, keepdim=True, dtype=torch.float32)
        scale = norms.square_().div_(states.shape[-1]).add_(self.eps).rsqrt_()
        return states * scale.to(states.dtype)

    def _tables(self, embeddings: torch.Tensor, lengths: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cosines and sines for each token, ``[T, 1, 1, D_head / 2]``."""
        longest = torch.arange(max(lengths), device=embeddings.device)
        tables = self._rotary(embeddings, longest[None])
        places = torch.cat([longest[:length] for length in lengths])
        cos, sin = (table[0, :, : self.d_head // 2][places][:, None, None] for table in tables)
        return cos, sin


def why_not_packed(body: PreTrainedModel) -> str:
    """Return why a decoder cannot be packed; empty if it can."""
    config = body.config
    if config.model_type not in _FAMILIES:
        return f"models of type {config.model_type!r} are not known here"
    if body.device.type != "cpu":
        return f"on {body.device.type} it was never measured"
    if sum(parameter.nbytes for parameter in body.parameters()) > _MOST_BYTES:
        return "its weights are too large to be held twice"
    if getattr(config, "hidden_act", "silu") != "silu":
        return f"its activation is {config.hidden_act!r}"
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    window = getattr(config, "sliding_window", None)
    if kinds != {"full_attention"} or (config.model_type == "mistral" and window):
        return "some of its layers see a window alone"
    return "its rotations depend on the length of the text" if _has_changing_rotations(config) else ""


def packed_decoder(body: PreTrainedModel) -> PackedDecoder | None:
    """Return a decoder for packed rows: the same one until the decoder's weights change.

    Args:
        body: A decoder without its head, in evaluation mode.

    Returns:
        None for a decoder that cannot be packed, or that would not give the same.
    """
    # tensors that were made for inference alone count no versions
    state = tuple((one.data_ptr(), 0 if one.is_inference() else one._version) for one in body.parameters())
    with _LOCK:
        made = _MADE.get(body)
        if made is None or made[0] != state:
            made = _MADE[body] = state, _made(body)
    return made[1]


def _made(body: PreTrainedModel) -> PackedDecoder | None:
    if why_not_packed(body):
        return None
    with torch.inference_mode():
        try:
            packed = PackedDecoder(body)
            is_equal = _gives_the_same(packed, body)
        except (AttributeError, RuntimeError):
            # a model of a known type whose layers are not what that type's are
            return None
    return packed if is_equal else None


def _gives_the_same(packed: PackedDecoder, body: PreTrainedModel) -> bool:
    table: Any = body.get_input_embeddings()
    # spread over the vocabulary: the first tokens are often special, and a text of these alone has no stable states
    ids = torch.arange(1, sum(_TRIED) + 1, device=body.device) * table.num_embeddings // (sum(_TRIED) + 1)
    embeddings = table(ids)
    got = packed(embeddings, _TRIED)
    expected = torch.cat([body(inputs_embeds=row[None], use_cache=False)[0][0] for row in embeddings.split(_TRIED)])
    error = torch.linalg.norm(got.float() - expected.float()) / torch.linalg.norm(expected.float())
    return bool(error < (0.1 if body.dtype == torch.bfloat16 else 1e-3))


def _has_changing_rotations(config: Any) -> bool:  # noqa: ANN401 (its attributes are its type's)
    kind = str((getattr(config, "rope_parameters", None) or {}).get("rope_type", "default"))
    return kind in ("dynamic", "longrope")


def _folded(layer: nn.Module) -> _Layer:
    part: Any = layer
    attention, mlp = part.self_attn, part.mlp
    before, after = part.input_layernorm.weight, part.post_attention_layernorm.weight
    joined = [merged_weight(getattr(attention, name)) for name in ("q_proj", "k_proj", "v_proj")]
    biases = [bias for _, bias in joined if bias is not None]
    has_norms = hasattr(attention, "q_norm")
    return _Layer(
        PackedLinear(
            torch.cat([weight for weight, _ in joined]), torch.cat(biases) if biases else None, gains=before
        ),
        attention.q_norm.weight if has_norms else None,
        attention.k_norm.weight if has_norms else None,
        PackedLinear(*merged_weight(attention.o_proj)),
        PackedLinear(*merged_weight(mlp.gate_proj), gains=after),
        PackedLinear(*merged_weight(mlp.up_proj), gains=after),
        PackedLinear(*merged_weight(mlp.down_proj)),
    )


def _rotated(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate ``[T, H, D_head]``, the first half of each head against the second."""
    halves = heads.view(*heads.shape[:-1], 2, heads.shape[-1] // 2)
    rotated = halves * cos
    first, second = rotated.unbind(-2)
    sines = sin.squeeze(-2)
    first.addcmul_(halves[:, :, 1], sines, value=-1)
    second.addcmul_(halves[:, :, 0], sines)
    return rotated.flatten(-2)
