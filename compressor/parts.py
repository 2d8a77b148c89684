"""The forms in which a compressed context travels: text, input embeddings, and key-value cache."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Literal, TypeAlias

from kompakt.compressor.errors import ConfigError, InputError

if TYPE_CHECKING:
    import torch


class Kind(StrEnum):
    """What a range of text is, which decides how it may be cut."""

    PROSE = "prose"
    CODE = "code"
    JSON = "json"
    LOG = "log"
    TABLE = "table"
    MESSAGE = "message"
    INSTRUCTION = "instruction"
    OMISSION = "omission"
    """Text written by kompakt in place of the source range that it left out."""
    SEPARATOR = "separator"
    """Text written by kompakt between two pieces; its source range is empty."""


@dataclass(frozen=True, slots=True)
class Span:
    """A half-open range ``[start, end)`` of characters of one source document.

    Args:
        document_id: The document's id.
        start: Offset of the first character.
        end: Offset after the last character.
        kind: What stands there.
        protected: Whether it must survive compression byte for byte.
    """

    document_id: str
    start: int
    end: int
    kind: Kind = Kind.PROSE
    protected: bool = False


@dataclass(frozen=True, slots=True)
class TextPart:
    """Compressed context as text.

    ``spans`` tile ``text``: the i-th reaches from ``starts[i]`` to ``starts[i + 1]`` (or the end). A span whose
    kind is neither ``omission`` nor ``separator`` stands there verbatim.

    Args:
        text: What is sent.
        spans: Where each piece of ``text`` comes from.
        starts: Offset in ``text`` at which each span begins, ascending from 0.
    """

    text: str
    spans: tuple[Span, ...]
    starts: tuple[int, ...]

    def source_of(self, offset: int) -> Span:
        """Return the source range of the character at ``offset``.

        Verbatim text gives a range of one character; text written by kompakt gives the whole range it stands for.

        Raises:
            InputError: If ``offset`` is outside the text.
        """
        if not 0 <= offset < len(self.text):
            raise InputError(f"offset {offset} is outside the text's {len(self.text)} characters")
        index = bisect_right(self.starts, offset) - 1
        span = self.spans[index]
        if span.kind in (Kind.OMISSION, Kind.SEPARATOR):
            return span
        start = span.start + offset - self.starts[index]
        return Span(span.document_id, start, start + 1, span.kind, span.protected)

    @property
    def source(self) -> TextPart:
        """The text that the part stands for: itself."""
        return self


Placement: TypeAlias = Literal["contiguous", "none"]
Rope: TypeAlias = Literal["unrotated", "as-is"] | tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class EmbedsPart:
    """Compressed context as input embeddings of a decoder, also called a soft prompt.

    Args:
        vectors: What stands in the decoder's sequence in place of token embeddings, floating point ``[m, D]``.
        space: Fingerprint of the decoder that can read them.
        source: The text that they stand for, for provenance and for backends that read text alone.
        placement: ``contiguous`` vectors take the next m positions, as tokens do; with ``none`` they take none, and
            a decoder with learned positions adds its row for padding (AutoCompressor for OPT).
    """

    vectors: torch.Tensor
    space: str
    source: TextPart
    placement: Placement = "contiguous"

    def __post_init__(self) -> None:
        if len(getattr(self.vectors, "shape", ())) != 2 or not self.vectors.is_floating_point():
            raise InputError(f"vectors must be a floating-point tensor [m, D], got {_shape_of(self.vectors)}")

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, EmbedsPart)
            and (self.space, self.source, self.placement) == (other.space, other.source, other.placement)
            and _are_equal([self.vectors], [other.vectors])
        )

    __hash__ = None  # type: ignore[assignment]

    @property
    def spans(self) -> tuple[Span, ...]:
        """Where the text comes from that the vectors stand for."""
        return self.source.spans

    @property
    def n_positions(self) -> int:
        """Places that the vectors take in the decoder's sequence and cache."""
        return int(self.vectors.shape[0])

    @property
    def n_bytes(self) -> int:
        """Size of the vectors."""
        return int(self.vectors.nbytes)


@dataclass(frozen=True, slots=True, eq=False)
class CachePart:
    """Compressed context as keys and values of each of a decoder's layers.

    Args:
        keys: One tensor a layer, ``[H_kv, m, D_head]``.
        values: One tensor a layer, ``[H_kv, m, D_head]``.
        space: Fingerprint of the decoder that can read them.
        source: The text that they stand for.
        rope: ``unrotated`` keys get the rotation of wherever they are placed, ``as-is`` ones stay as they are
            wherever they are placed, as keys that were learned do; else the positions ``[m]`` with which they were
            rotated already.
    """

    keys: tuple[torch.Tensor, ...]
    values: tuple[torch.Tensor, ...]
    space: str
    source: TextPart
    rope: Rope = "unrotated"

    def __post_init__(self) -> None:
        shapes = {_shape_of(tensor) for tensor in (*self.keys, *self.values)}
        if len(self.keys) != len(self.values) or len(shapes) != 1 or self.keys[0].dim() != 3:
            raise InputError(
                "keys and values must be one tensor [H_kv, m, D_head] a layer, all of one shape; "
                f"got {len(self.keys)} keys and {len(self.values)} values of: {', '.join(sorted(shapes)) or 'none'}"
            )
        if isinstance(self.rope, str):
            if self.rope not in ("unrotated", "as-is"):
                raise InputError(f"rope must be 'unrotated', 'as-is' or positions, got {self.rope!r}")
        elif len(self.rope) != self.n_positions:
            raise InputError(f"rope must name {self.n_positions} positions, one a key, got {len(self.rope)}")

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, CachePart)
            and (self.space, self.source, self.rope) == (other.space, other.source, other.rope)
            and _are_equal([*self.keys, *self.values], [*other.keys, *other.values])
        )

    __hash__ = None  # type: ignore[assignment]

    @property
    def spans(self) -> tuple[Span, ...]:
        """Where the text comes from that the cache stands for."""
        return self.source.spans

    @property
    def n_positions(self) -> int:
        """Places that the keys take in the decoder's cache."""
        return int(self.keys[0].shape[1])

    @property
    def n_bytes(self) -> int:
        """Size of the keys and values."""
        return sum(int(tensor.nbytes) for tensor in (*self.keys, *self.values))

    def to(self, *, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> CachePart:
        """Return the part on another device or in another number format; tensors that have both already are shared.

        Args:
            device: Where to, such as ``"cpu"`` or ``"cuda:0"``; None for where they are.
            dtype: A floating-point type, such as ``torch.bfloat16``; None for the one that they have.

        Raises:
            ConfigError: If there is no such device, or the type is not floating point.
        """
        import torch

        if dtype is not None and not dtype.is_floating_point:
            raise ConfigError(f"keys and values must be floating point, such as torch.bfloat16, got {dtype}")
        try:
            place = None if device is None else torch.empty(0, device=device).device
        # a build of torch without a kind of device asserts that it has it
        except (RuntimeError, AssertionError) as error:
            raise ConfigError(f"there is no device {str(device)!r} here: {error}") from error
        keys, values = (
            tuple(tensor.to(device=place, dtype=dtype) for tensor in several) for several in (self.keys, self.values)
        )
        return replace(self, keys=keys, values=values)


def made_for_another(theirs: str, own: str) -> str:
    """Return the reason for which a part for one decoder is not for another, with the beginning of both spaces."""

    def short(space: str) -> str:
        return ":".join(piece[:12] for piece in space.split(":"))

    return f"it was made for the decoder {short(theirs)}, and this one is {short(own)}"


def _shape_of(value: object) -> str:
    shape = getattr(value, "shape", None)
    return f"{type(value).__name__} {list(shape) if shape is not None else ''} {getattr(value, 'dtype', '')}".strip()


def _are_equal(ours: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor]) -> bool:
    return len(ours) == len(theirs) and all(
        one.dtype == two.dtype and one.equal(two) for one, two in zip(ours, theirs, strict=True)
    )


Part: TypeAlias = TextPart | EmbedsPart | CachePart
Form: TypeAlias = Literal["text", "embeds", "cache"]


def form_of(part: Part) -> Form:
    """Return in which form a part carries its context."""
    if isinstance(part, EmbedsPart):
        return "embeds"
    return "cache" if isinstance(part, CachePart) else "text"
