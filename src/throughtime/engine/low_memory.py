"""A walk through time that keeps only the states at which each of about sqrt(T) parts begins, with any backend."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import ModuleType

import torch
from torch import Tensor

from throughtime.engine.tape import Tape


def length_of_parts(T: int) -> int:
    """Steps of a part, about sqrt(T), so that what one part keeps and what all parts begin with are both small."""
    return torch.sym_int(torch.sym_sqrt(T - 1)) + 1


def number_of_parts(T: int) -> int:
    """How many parts T steps are cut into; T may be a symbol."""
    return (T + length_of_parts(T) - 1) // length_of_parts(T)


def forward(
    backend: ModuleType,
    tape: Tape,
    x: Tensor,
    W: Tensor,
    U: Tensor,
    b: Tensor,
    units: Sequence[Tensor],
    matrices: Sequence[Tensor],
    states: Sequence[Tensor],
    lengths: Tensor | None,
    reverse: bool,
    shown: int,
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """The first `shown` states at every step [T, B, .], the others empty; the last states [B, .]; and the states at
    which each part begins, side by side, [parts, B, sum of widths], in the order of the walk."""
    T, B, _ = x.shape
    sequences = [s.new_empty(T, B, s.shape[1]) for s in states[:shown]]
    # In one piece: small tensors kept among the parts' large ones would break up the memory that those leave free.
    begins = states[0].new_empty(number_of_parts(T), B, sum(s.shape[1] for s in states))
    now = list(states)
    for begin, here in zip(begins, _parts(T, reverse), strict=True):
        torch.cat(now, -1, out=begin)
        inside = _inside(lengths, here)
        part, now, _ = backend.forward(tape, x[here], W, U, b, units, matrices, now, inside, reverse, False)
        for whole, steps in zip(sequences, part, strict=False):
            whole[here] = steps
    return [*sequences, *(s.new_empty(0) for s in states[shown:])], now, begins


def backward(
    backend: ModuleType,
    tape: Tape,
    x: Tensor,
    W: Tensor,
    U: Tensor,
    b: Tensor,
    units: Sequence[Tensor],
    matrices: Sequence[Tensor],
    states: Sequence[Tensor],
    lengths: Tensor | None,
    begins: Tensor,
    d_sequences: Sequence[Tensor],
    d_finals: Sequence[Tensor],
    reverse: bool,
    truncated: bool,
    need_dx: bool,
) -> list[Tensor]:
    """Gradients in the order x (empty unless need_dx), W, U, b, units, matrices, states: each part is run again with
    everything kept, the last one first. A sequence that was not shown has an empty gradient."""
    T, S = x.shape[0], len(states)
    dx = torch.empty_like(x) if need_dx else x.new_empty(0)
    targets = [W, U, b, *units, *matrices]
    total: list[Tensor] = []
    ds = list(d_finals)
    for begin, here in reversed(list(zip(begins, _parts(T, reverse), strict=True))):
        now = [s.contiguous() for s in begin.split([s.shape[1] for s in states], -1)]
        inside, x_here = _inside(lengths, here), x[here]
        part, _, kept = backend.forward(tape, x_here, W, U, b, units, matrices, now, inside, reverse, True)
        dy = [_of_part(d, here, v) for d, v in zip(d_sequences, part, strict=True)]
        d_here, *grads = backend.backward(
            tape, x_here, W, U, b, units, matrices, now, inside, part, kept, dy, ds, reverse, truncated, need_dx
        )
        if need_dx:
            dx[here] = d_here
        grads, ds = grads[:-S], grads[-S:]
        if total:
            total = [t.add_(g) for t, g in zip(total, grads, strict=True)]
        else:  # added up in the states' dtype: the weights' may be a short one
            total = [g.to(states[0].dtype) for g in grads]
    return [dx, *(t.to(v.dtype) for t, v in zip(total, targets, strict=True)), *ds]


def _parts(T: int, reverse: bool) -> Iterator[slice]:
    """The parts of the walk, in its order."""
    starts = range(0, T, length_of_parts(T))
    return (slice(t, min(t + length_of_parts(T), T)) for t in (reversed(starts) if reverse else starts))


def _of_part(d: Tensor, here: slice, part: Tensor) -> Tensor:
    return d[here] if d.dim() == 3 else d.new_zeros(()).expand(part.shape)


def _inside(lengths: Tensor | None, here: slice) -> Tensor | None:
    """How many steps of a part each sequence has; 0 where it is over before."""
    return None if lengths is None else (lengths - here.start).clamp(0, here.stop - here.start)
