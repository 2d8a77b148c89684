"""Where the parts of a prompt stand in a decoder's sequence: its embeddings, its positions, its cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kompakt.compressor.models.causal_lm import CausalLM
from kompakt.compressor.parts import CachePart, EmbedsPart

if TYPE_CHECKING:
    import torch


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
        from kompakt.compressor.cache.rotary import rotated_to

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
