"""Where the parts of a prompt stand in a decoder's sequence: its embeddings, its positions, its cache."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

from kompakt.compressor.errors import InputError
from kompakt.compressor.models.causal_lm import CausalLM
from kompakt.compressor.parts import CachePart, EmbedsPart

if TYPE_CHECKING:
    import torch

_TRIED: Final = 4
"""Tokens whose keys are moved to see whether they can be."""


@dataclass(frozen=True, slots=True, eq=False)
class Stretch:
    """Positions that are read in one pass.

    Args:
        ids: Their tokens ``[T]``; None if any of them is a vector.
        embeds: Their embeddings ``[T, D]``; None if all are tokens.
        positions: Their position ids ``[T]``.
    """

    ids: torch.Tensor | None
    embeds: torch.Tensor | None
    positions: torch.Tensor

    def __len__(self) -> int:
        return len(self.positions)


@dataclass(frozen=True, slots=True, eq=False)
class Placed:
    """A prompt whose every position is known.

    Args:
        steps: What is read, and caches that are put in, in order.
        next_position: The position of the token that follows.
        n_positions: Places that the prompt takes in the decoder's cache.
        token_ids: The tokens among its items.
        notes: What was not done as asked, and why.
    """

    steps: tuple[Stretch | CachePart, ...]
    next_position: int
    n_positions: int
    token_ids: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def is_one_pass(self) -> bool:
        """Whether a single pass reads all of it."""
        return len(self.steps) == 1 and isinstance(self.steps[0], Stretch)


@dataclass(slots=True)
class _Cursor:
    """What has been placed so far; positions go on from one step to the next."""

    lm: CausalLM
    position: int = 0
    n_positions: int = 0
    steps: list[Stretch | CachePart] = field(default_factory=list)
    pending: list[tuple[Any, list[int]]] = field(default_factory=list)

    def take_tokens(self, ids: Sequence[int]) -> None:
        self.pending.append((list(ids), list(range(self.position, self.position + len(ids)))))
        self.position += len(ids)
        self.n_positions += len(ids)

    def take_vectors(self, part: EmbedsPart, no_position: int | None) -> None:
        n = part.n_positions
        if part.placement == "none":
            self.pending.append((part.vectors, [no_position if no_position is not None else 0] * n))
        else:
            self.pending.append((part.vectors, list(range(self.position, self.position + n))))
            self.position += n
        self.n_positions += n

    def take_cache(self, part: CachePart) -> None:
        self.flush()
        self.steps.append(rotated_to(part, self.position, self.lm))
        self.position += part.n_positions
        self.n_positions += part.n_positions

    def flush(self) -> None:
        """Make one stretch of all that stands between two caches."""
        import torch

        pieces = [piece for piece in self.pending if len(piece[1])]
        self.pending.clear()
        if not pieces:
            return
        device = self.lm.model.device
        positions = torch.tensor([one for _, several in pieces for one in several], device=device)
        if all(isinstance(content, list) for content, _ in pieces):
            ids = torch.tensor([token for content, _ in pieces for token in content], device=device)
            self.steps.append(Stretch(ids, None, positions))
        else:
            self.steps.append(Stretch(None, torch.cat([self._embedded(content) for content, _ in pieces]), positions))

    def _embedded(self, content: Any) -> torch.Tensor:  # noqa: ANN401 (tokens or vectors)
        import torch

        model = self.lm.model
        if isinstance(content, list):
            vectors: torch.Tensor = model.get_input_embeddings()(torch.tensor(content, device=model.device))
            return vectors
        return content.to(model.device, model.dtype)  # type: ignore[no-any-return]


def place(
    items: Sequence[Sequence[int] | EmbedsPart | CachePart], lm: CausalLM, *, notes: Sequence[str] = ()
) -> Placed:
    """Give each item of a prompt its positions: the next ones, unless a part says otherwise.

    Args:
        items: Token ids, vectors and caches in their order, all of which the decoder can read.
        lm: The decoder.
        notes: What to say of the prompt.

    Raises:
        InputError: If a cache cannot be moved to where it is to stand.
    """
    from kompakt.compressor.soft.decoder import NO_POSITION

    cursor = _Cursor(lm)
    no_position = NO_POSITION.get(lm.model.config.model_type)
    for item in items:
        if isinstance(item, EmbedsPart):
            cursor.take_vectors(item, no_position)
        elif isinstance(item, CachePart):
            cursor.take_cache(item)
        else:
            cursor.take_tokens(item)
    cursor.flush()
    ids = (token for item in items if not isinstance(item, (EmbedsPart, CachePart)) for token in item)
    return Placed(tuple(cursor.steps), cursor.position, cursor.n_positions, tuple(ids), tuple(notes))


def rotated_to(part: CachePart, start: int, lm: CausalLM) -> CachePart:
    """Return a cache whose keys have the rotation of positions ``start``, ``start + 1``, ...

    Raises:
        InputError: If the decoder's keys cannot be moved.
    """
    wanted = tuple(range(start, start + part.n_positions))
    if part.rope == wanted or (part.rope == "unrotated" and not _has_rotations(lm)):
        return part
    reason = why_immovable(lm)
    if reason:
        where = "without a rotation" if part.rope == "unrotated" else f"at positions from {part.rope[0]} on"
        raise InputError(
            f"the keys of a cache stand {where} and would have to stand at {start}, which a decoder of type "
            f"{lm.model.config.model_type!r} does not allow: {reason}"
        )
    keys = tuple(_moved(one, part.rope, wanted, layer, lm) for layer, one in enumerate(part.keys))
    return CachePart(keys, part.values, part.space, part.source, wanted)


@functools.lru_cache(maxsize=16)
def why_immovable(lm: CausalLM) -> str:
    """Return why the rotations of a decoder's keys cannot be undone and made anew; empty if they can."""
    import torch

    rotary = _rotary(lm)
    if rotary is None:
        return "its keys have no rotations, or none that are known here"
    scalings = {getattr(rotary, name) for name in vars(rotary) if name.endswith("attention_scaling")}
    if scalings - {1.0}:
        return f"it scales its keys by {max(scalings):.4g} as it rotates them"
    kinds = getattr(rotary, "rope_type", "default")
    if any("dynamic" in one or one == "longrope" for one in (kinds.values() if isinstance(kinds, dict) else [kinds])):
        return "its rotations depend on the length of the text"
    # models differ in which dimensions of which layers they rotate, and how: what they do decides
    shift = max(1, min(64, lm.context_length - _TRIED))
    near, far = tuple(range(_TRIED)), tuple(range(shift, shift + _TRIED))
    try:
        for layer, (key, expected) in enumerate(zip(_keys_at(near, lm), _keys_at(far, lm), strict=True)):
            difference = _moved(key, near, far, layer, lm).float() - expected.float()
            if torch.linalg.norm(difference) > 0.1 * torch.linalg.norm(expected.float()):
                return f"it rotates the keys of layer {layer} in a way that is not known here"
    except RuntimeError as error:
        return f"it rotates its keys in a way that is not known here: {error}"
    return ""


def _keys_at(positions: Sequence[int], lm: CausalLM) -> list[torch.Tensor]:
    """Return the keys of some tokens at some positions, ``[H_kv, m, D_head]`` for each layer."""
    import torch
    from transformers import DynamicCache

    cache = DynamicCache()
    ids = (
        torch.arange(1, len(positions) + 1, device=lm.model.device)[None]
        % lm.model.config.get_text_config().vocab_size
    )
    with torch.no_grad():
        lm.model.base_model(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            position_ids=torch.tensor([positions], device=lm.model.device),
            past_key_values=cache,
            use_cache=True,
        )
    layers: list[Any] = list(cache.layers)
    return [layer.keys[0] for layer in layers]


def _has_rotations(lm: CausalLM) -> bool:
    config = lm.model.config.get_text_config()
    # some models rotate within their layers, and name only the dimensions
    named = (getattr(config, "rope_parameters", None), getattr(config, "rotary_dim", None))
    return _rotary(lm) is not None or any(named)


def _rotary(lm: CausalLM) -> Any:  # noqa: ANN401 (each model has its own class)
    return getattr(lm.model.base_model, "rotary_emb", None)


def _moved(
    keys: torch.Tensor, given: Sequence[int] | Literal["unrotated"], wanted: Sequence[int], layer: int, lm: CausalLM
) -> torch.Tensor:
    turned = keys.to(lm.model.device).float()
    if given != "unrotated":
        cos, sin = _tables(given, layer, lm)
        turned = _rotated(turned, cos, -sin)
    cos, sin = _tables(wanted, layer, lm)
    return _rotated(turned, cos, sin).to(keys.dtype)


def _tables(positions: Sequence[int], layer: int, lm: CausalLM) -> Iterator[torch.Tensor]:
    """Return cosines and sines ``[m, D_head]``; some models have others for layers with a window."""
    import torch

    rotary = _rotary(lm)
    ids = torch.tensor([positions], device=lm.model.device)
    kind = {}
    if "layer_type" in inspect.signature(rotary.forward).parameters:
        kind = {"layer_type": lm.model.config.get_text_config().layer_types[layer]}
    return (table[0].float() for table in rotary(torch.zeros(1, device=lm.model.device), ids, **kind))


def _rotated(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate ``[H, m, D_head]`` by tables ``[m, D_head]``."""
    import torch

    first, second = heads.chunk(2, dim=-1)
    return heads * cos + torch.cat([-second, first], dim=-1) * sin
