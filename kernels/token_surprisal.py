"""Surprisals of given tokens under an output layer, without the logits of all tokens at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import torch
from torch.autograd.function import once_differentiable

from kompakt.kernels.dispatch import Implementation, choose

_CPU_BLOCK: Final = 2048 * 2048
"""Logits that one product makes on a CPU: more leave its cache, fewer read the head in pieces too small."""

_GPU_BLOCK: Final = 2048 * 16384
"""Logits that one product makes on a GPU, which must be filled."""

_BLOCK_ROWS: Final = 2048
"""The most tokens in a block."""

_TILE: Final = 32 * 2048
"""Logits that each thread of a CPU takes to fp32 at one time: they stay in its own cache until they are summed."""

_SAFE_SUM: Final = 1e20
"""Sums of exponentials between this and its inverse have lost nothing at either end of fp32."""


def token_surprisal(
    hidden: torch.Tensor, head: torch.Tensor, targets: torch.Tensor, *, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """Return how surprising each target is: ``-ln softmax(hidden @ head.T + bias)[target]``.

    The logits ``[N, V]`` never exist as a whole: blocks of them are made, reduced in fp32, and made again for the
    gradients, which flow into ``hidden``, ``head`` and ``bias`` once. The mean of the result is the cross-entropy.
    Plain torch rounds logits to the number format of ``hidden``, as an output layer does; Triton keeps them in fp32.

    Args:
        hidden: Last hidden states ``[N, D]`` of floating-point numbers.
        head: Weights of the output layer ``[V, D]`` in the same number format.
        targets: Ids of the tokens that came, int64 ``[N]``. Ids on the CPU are checked, and may be given for states
            on a GPU. A check of those on a GPU would wait for it: the surprisal of one that does not exist is NaN.
        bias: Added to the logits ``[V]``, in the same number format; an entry of ``-inf`` takes a token out.

    Returns:
        Surprisals in nats ``[N]``, in fp32, or in fp64 for hidden states in fp64.

    Raises:
        ValueError: If shapes, number formats, or targets on the CPU are others.

    Source: Wijmans et al. 2024, "Cut Your Losses in Large-Vocabulary Language Models", section 4.2.
    """
    _check(hidden, head, targets, bias)
    refusal = "fp64 is not supported" if hidden.dtype == torch.float64 else ""
    chosen = choose("token_surprisal", hidden, head, refusal=refusal)
    targets = targets.to(hidden.device, non_blocking=True)
    if chosen == "reference":
        return token_surprisal_reference(hidden, head, targets, bias=bias)
    surprisals: torch.Tensor = _TokenSurprisal.apply(hidden, head, targets, bias, chosen)  # type: ignore[no-untyped-call]
    return surprisals


def token_surprisal_reference(
    hidden: torch.Tensor, head: torch.Tensor, targets: torch.Tensor, *, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """Return what ``token_surprisal`` returns, from all logits in fp32."""
    exact = _exact_type(hidden)
    logits = hidden.to(exact) @ head.to(exact).T
    if bias is not None:
        logits = logits + bias.to(exact)
    return -logits.log_softmax(dim=-1).gather(1, targets[:, None])[:, 0]


class _TokenSurprisal(torch.autograd.Function):
    """The surprisals, and gradients from logits that are made a second time."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        hidden: torch.Tensor,
        head: torch.Tensor,
        targets: torch.Tensor,
        bias: torch.Tensor | None,
        chosen: Implementation,
    ) -> torch.Tensor:
        # given states with the strides of a longer tensor, torch would copy the whole head to multiply it by them
        layer = _Layer(hidden.contiguous(), head, targets, bias)
        if chosen == "triton":
            from kompakt.kernels.token_surprisal_triton import normalisers_triton

            normalisers, wanted = normalisers_triton(layer.hidden, head, targets, bias)
        else:
            normalisers, wanted = _normalisers_torch(layer)
        ctx.save_for_backward(layer.hidden, head, targets, bias, normalisers)
        ctx.chosen = chosen
        return normalisers - wanted

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # noqa: ANN401
        *layer, normalisers = ctx.saved_tensors
        needs = tuple(ctx.needs_input_grad[place] for place in (0, 1, 3))
        rows = _RowGradients(normalisers, gradient.contiguous())
        of_hidden, of_head, of_bias = _gradients(_Layer(*layer), rows, needs, ctx.chosen)
        return of_hidden, of_head, None, of_bias, None


@dataclass(frozen=True)
class _Layer:
    """Hidden states ``[n, D]``, rows of a head ``[m, D]``, targets ``[n]`` counted from its first, biases ``[m]``."""

    hidden: torch.Tensor
    head: torch.Tensor
    targets: torch.Tensor
    bias: torch.Tensor | None

    def part(self, rows: slice, columns: slice) -> _Layer:
        """Return what a block of the logits is made from. Targets elsewhere have ids that do not exist in it."""
        bias = None if self.bias is None else self.bias[columns]
        return _Layer(self.hidden[rows], self.head[columns], self.targets[rows] - columns.start, bias)

    def logits(self, memory: torch.Tensor) -> torch.Tensor:
        """Return the logits ``[n, m]``, in memory that is used again and again."""
        logits = self.room(memory)
        if self.bias is None:
            return torch.mm(self.hidden, self.head.T, out=logits)
        return torch.addmm(self.bias, self.hidden, self.head.T, out=logits)

    def room(self, memory: torch.Tensor) -> torch.Tensor:
        """Return the first ``[n, m]`` numbers of ``memory``."""
        shape = (len(self.hidden), len(self.head))
        return memory[: shape[0] * shape[1]].view(shape)

    def places(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the column of each target ``[n, 1]``, any for targets elsewhere, and which are here ``[n, 1]``."""
        targets = self.targets[:, None]
        last = len(self.head) - 1
        return targets.clamp(0, last), (targets >= 0) & (targets <= last)


class _RowGradients(NamedTuple):
    """The normaliser of each row ``[n]`` and the gradient of its surprisal ``[n]``."""

    normalisers: torch.Tensor
    of_surprisals: torch.Tensor

    def part(self, rows: slice) -> _RowGradients:
        return _RowGradients(self.normalisers[rows], self.of_surprisals[rows])


def _normalisers_torch(layer: _Layer) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ``ln sum exp`` of all logits of each row ``[N]``, and the logit of its target ``[N]``."""
    # a GPU would have to wait for the check of the sums
    return _reduce(layer, shifted=layer.hidden.device.type != "cpu")


def _reduce(layer: _Layer, *, shifted: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Do so with the exponentials of the logits as they are, or of how far they are below the highest so far.

    As they are, all takes a quarter less time, and fp32 can sum the exponentials of nearly all models' logits. Where
    it cannot, this begins anew.
    """
    exact = _exact_type(layer.hidden)
    sums = layer.hidden.new_zeros(len(layer.hidden), dtype=exact)
    highest = torch.full_like(sums, torch.finfo(exact).min if shifted else 0.0)
    wanted = torch.full_like(sums, torch.nan)
    memory, tile = _memory(layer)
    for rows, columns in _blocks(layer):
        part = layer.part(rows, columns)
        logits = part.logits(memory)
        places, are_here = part.places()
        wanted[rows] = torch.where(are_here, logits.gather(1, places).to(exact), wanted[rows, None])[:, 0]
        row_sums, row_highest = sums[rows], highest[rows]
        for some in _tiles(logits):
            numbers = _copied(logits[some], tile)
            if shifted:
                _rescale(numbers, row_sums[some], row_highest[some])
            row_sums[some].add_(numbers.exp_().sum(dim=1))
        if not shifted and not _can_be_trusted(row_sums):
            return _reduce(layer, shifted=True)
    return highest + sums.log(), wanted


def _can_be_trusted(sums: torch.Tensor) -> bool:
    """Tell whether no exponential can have been too large for fp32, and not all of a row too small."""
    return bool(((sums > 1 / _SAFE_SUM) & (sums < _SAFE_SUM)).all())


def _rescale(logits: torch.Tensor, sums: torch.Tensor, highest: torch.Tensor) -> None:
    """Take the highest logit of each row, these among them, from the logits, and out of the sums so far."""
    # never -inf, from which it could not be taken
    higher = torch.maximum(highest, logits.amax(dim=1))
    sums.mul_((highest - higher).exp_())
    highest.copy_(higher)
    logits.sub_(higher[:, None])


def _gradients(
    layer: _Layer, rows_of_all: _RowGradients, needs: tuple[bool, ...], chosen: Implementation
) -> tuple[torch.Tensor | None, ...]:
    """Return the gradients of hidden states, head and bias, None for those that are not needed."""
    tensors = (layer.hidden, layer.head, layer.bias)
    exact = rows_of_all.normalisers.dtype
    of_hidden, of_head, of_bias = (
        torch.zeros_like(tensor, dtype=exact) if needed and tensor is not None else None
        for tensor, needed in zip(tensors, needs, strict=True)
    )
    memory, tile = _memory(layer)
    for rows, columns in _blocks(layer):
        part = layer.part(rows, columns)
        of_logits = _logit_gradients(part, rows_of_all.part(rows), memory, tile, chosen)
        # libraries of matrix products are as good here as a kernel, and sum in the same order each time
        if of_hidden is not None:
            of_hidden[rows] += of_logits @ part.head
        if of_head is not None:
            of_head[columns] += of_logits.T @ part.hidden
        if of_bias is not None:
            of_bias[columns] += of_logits.sum(dim=0, dtype=exact)
    return tuple(None if sums is None else sums.to(layer.hidden.dtype) for sums in (of_hidden, of_head, of_bias))


def _logit_gradients(
    part: _Layer, rows: _RowGradients, memory: torch.Tensor, tile: torch.Tensor, chosen: Implementation
) -> torch.Tensor:
    if chosen == "triton":
        from kompakt.kernels.token_surprisal_triton import logit_gradients_triton

        return logit_gradients_triton(part.hidden, part.head, part.targets, part.bias, *rows, out=part.room(memory))
    logits = part.logits(memory)
    places, are_here = part.places()
    for some in _tiles(logits):
        numbers = _copied(logits[some], tile).sub_(rows.normalisers[some, None]).exp_()
        # before they are rounded: where a target is all but certain, little is left
        numbers.scatter_(1, places[some], numbers.gather(1, places[some]) - are_here[some].to(numbers.dtype))
        logits[some] = numbers.mul_(rows.of_surprisals[some, None])
    return logits


def _memory(layer: _Layer) -> tuple[torch.Tensor, torch.Tensor]:
    """Return room for the logits of a block, and for those that are taken to fp32 at one time, if need be."""
    n_rows, n_columns = _block_shape(layer)
    size, exact = n_rows * n_columns, _exact_type(layer.hidden)
    memory = layer.hidden.new_empty(size)
    if memory.dtype == exact:
        return memory, memory
    on_cpu = memory.device.type == "cpu"
    return memory, memory.new_empty(min(size, max(n_columns, _tile_size())) if on_cpu else size, dtype=exact)


def _blocks(layer: _Layer) -> Iterator[tuple[slice, slice]]:
    """Yield rows and columns of blocks that cover all logits; a piece of the head meets all rows before the next."""
    n_rows, n_columns = _block_shape(layer)
    for columns in _spans(len(layer.head), n_columns):
        for rows in _spans(len(layer.hidden), n_rows):
            yield rows, columns


def _block_shape(layer: _Layer) -> tuple[int, int]:
    n_rows = max(1, min(len(layer.hidden), _BLOCK_ROWS))
    size = _CPU_BLOCK if layer.hidden.device.type == "cpu" else _GPU_BLOCK
    return n_rows, max(1, min(len(layer.head), size // n_rows))


def _tiles(logits: torch.Tensor) -> Iterator[slice]:
    """Yield the rows of a block that are taken to fp32 at one time."""
    n_rows, n_columns = logits.shape
    return _spans(n_rows, n_rows if logits.device.type != "cpu" else max(1, _tile_size() // n_columns))


def _tile_size() -> int:
    return _TILE * torch.get_num_threads()


def _copied(logits: torch.Tensor, tile: torch.Tensor) -> torch.Tensor:
    """Return logits in the format and the memory of ``tile``, or themselves if they have that format."""
    if logits.dtype == tile.dtype:
        return logits
    return tile[: logits.numel()].view(logits.shape).copy_(logits)


def _spans(length: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, length)) for start in range(0, length, size))


def _exact_type(hidden: torch.Tensor) -> torch.dtype:
    return torch.promote_types(hidden.dtype, torch.float32)


def _check(hidden: torch.Tensor, head: torch.Tensor, targets: torch.Tensor, bias: torch.Tensor | None) -> None:
    shapes = [list(tensor.shape) for tensor in (hidden, head, targets)]
    if (
        [len(shape) for shape in shapes] != [2, 2, 1]
        or hidden.shape[1] != head.shape[1]
        or len(hidden) != len(targets)
    ):
        raise ValueError(f"expected [N, D], [V, D] and [N], got {shapes[0]}, {shapes[1]} and {shapes[2]}")
    if bias is not None and bias.shape != head.shape[:1]:
        raise ValueError(f"expected a bias [{len(head)}], got {list(bias.shape)}")
    formats = {tensor.dtype for tensor in (hidden, head, bias) if tensor is not None}
    if not hidden.is_floating_point() or len(formats) > 1:
        names = ", ".join(sorted(str(one) for one in formats))
        raise ValueError(f"expected hidden states, head and bias in one floating-point format, got {names}")
    if targets.dtype != torch.int64:
        raise ValueError(f"expected targets in torch.int64, got {targets.dtype}")
    if targets.device.type != "cpu" or not len(targets):
        return
    lowest, highest = (int(end) for end in targets.aminmax())
    if lowest < 0 or highest >= len(head):
        wrong = lowest if lowest < 0 else highest
        raise ValueError(f"targets must be ids from 0 up to the {len(head)} rows of the head, got {wrong}")
