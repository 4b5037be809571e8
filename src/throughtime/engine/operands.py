"""The arguments of `unroll` checked, and brought into the form in which the backends take them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from throughtime.cells import Cell
from throughtime.errors import ShapeError


class Operands(NamedTuple):
    """What the backends take: checked, the biases added up by column, the recurrent weights split.

    x [T, B, D] behind the cell's input map, W [G*H, D], U [R'*H, P] the blocks multiplied before the step,
    b [C*H], units [H] each, matrices (the blocks of weight_hh that are multiplied inside the step, then the cell's
    own), states [B, H] each.
    """

    x: Tensor
    W: Tensor
    U: Tensor
    b: Tensor
    units: list[Tensor]
    matrices: list[Tensor]
    states: list[Tensor]

    def tensors(self) -> list[Tensor]:
        """All of them in one list."""
        return [self.x, self.W, self.U, self.b, *self.units, *self.matrices, *self.states]


def operands(
    cell: Cell,
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor | None,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    units: Sequence[Tensor],
    matrices: Sequence[Tensor],
    states: Sequence[Tensor] | None,
    lengths: Tensor | None = None,
) -> Operands:
    """The arguments of `unroll` as the backends take them; raises ShapeError where they do not fit."""
    H, P = _sizes(cell, x, weight_ih, weight_hh)
    b = columns_bias(cell, H, weight_ih, bias_ih, bias_hh)
    if states is None:
        dtype = weight_ih.dtype
        states = [x.new_zeros(x.shape[1], P if k == 0 else H, dtype=dtype) for k in range(len(cell.states))]
    _check(cell, H, P, x, weight_ih, units, matrices, states, lengths)
    U, inside = _split_recurrent(cell, H, P, weight_ih, weight_hh)
    full = states[0].dtype
    x, b, units, matrices = cell.input(x), _as(b, full), [_as(w, full) for w in units], [*inside, *matrices]
    low = autocast_dtype(x.device.type)
    if low is None or full == torch.float64:  # autocast leaves float64 as it is
        return Operands(x, weight_ih, U, b, units, matrices, list(states))
    return Operands(
        _as(x, low), _as(weight_ih, low), _as(U, low), b, units, [_as(m, low) for m in matrices], list(states)
    )


def _as(v: Tensor, dtype: torch.dtype) -> Tensor:
    # `to` costs a microsecond where there is nothing to do: much for one step of a stream.
    return v if v.dtype == dtype else v.to(dtype)


def autocast_dtype(device: str) -> torch.dtype | None:
    """The dtype that a surrounding torch.autocast asks for on this kind of device; None where there is none."""
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return None


def _sizes(cell: Cell, x: Tensor, weight_ih: Tensor, weight_hh: Tensor | None) -> tuple[int, int]:
    G, R = len(cell.gates), len(cell.recurrent_gates)
    if x.dim() != 3:
        raise ShapeError(f"x must be [T, B, D], time first; came {tuple(x.shape)}")
    if x.shape[0] == 0:
        raise ShapeError("x has no time steps; expected [T, B, D] with T >= 1")
    if weight_ih.dim() != 2 or weight_ih.shape[0] % G or weight_ih.shape[1] != x.shape[2]:
        raise ShapeError(
            f"weight_ih must be [{G} * H, D] for the gates {tuple(cell.gates)} with D = {x.shape[2]} as in x "
            f"{tuple(x.shape)}; came {tuple(weight_ih.shape)}"
        )
    H = weight_ih.shape[0] // G
    if R == 0:
        if weight_hh is not None and weight_hh.numel():
            raise ShapeError(
                f"{cell!r} has no recurrent weights; weight_hh must be None, came {tuple(weight_hh.shape)}"
            )
        return H, H
    if weight_hh is None:
        raise ShapeError(f"{cell!r} needs weight_hh [{R} * H, H] for its gates {cell.recurrent_gates}; came None")
    if weight_hh.dim() != 2 or weight_hh.shape[0] != R * H:
        raise ShapeError(
            f"weight_hh must be [{R} * {H}, H] for the gates {cell.recurrent_gates}, a full matrix for each gate; "
            f"came {tuple(weight_hh.shape)}"
        )
    P = weight_hh.shape[1]
    if P != H and not cell.matrices:
        raise ShapeError(f"weight_hh must be [{R * H}, {H}] for H = {H}; came {tuple(weight_hh.shape)}")
    return H, P


def _check(
    cell: Cell,
    H: int,
    P: int,
    x: Tensor,
    weight_ih: Tensor,
    units: Sequence[Tensor],
    matrices: Sequence[Tensor],
    states: Sequence[Tensor],
    lengths: Tensor | None,
) -> None:
    T, B, _ = x.shape
    for what, names, given in (
        ("unit", cell.units, units),
        ("matrix", cell.matrices, matrices),
        ("state", cell.states, states),
    ):
        if len(given) != len(names):
            raise ShapeError(f"{cell!r} takes {len(names)} {what} tensor(s) {tuple(names)}; came {len(given)}")
    device, width = weight_ih.device, P
    if x.device != device:
        raise _elsewhere("x", x, device)
    for name, s in zip(cell.states, states, strict=True):
        if s.shape != (B, width):
            raise ShapeError(f"initial state {name} must be [B, H] = {[B, width]}; came {list(s.shape)}")
        if s.device != device:
            raise _elsewhere(name, s, device)
        width = H
    for name, w in zip(cell.units, units, strict=True):
        if w.shape != (H,):
            raise ShapeError(f"unit weight {name} must be [{H}], one number a hidden unit; came {tuple(w.shape)}")
        if w.device != device:
            raise _elsewhere(name, w, device)
    if x.dtype != weight_ih.dtype and autocast_dtype(x.device.type) is None:
        raise ShapeError(f"x is {x.dtype}, the weights are {weight_ih.dtype}; convert one, or use torch.autocast")
    if lengths is not None and (lengths.dtype not in (torch.int64, torch.int32) or lengths.shape != (B,)):
        raise ShapeError(f"lengths must be [{B}] whole numbers (int64); came {list(lengths.shape)} {lengths.dtype}")
    # The values of lengths are data: looking at them would break a compiled graph, and the capture of a CUDA graph.
    if lengths is not None and not torch.compiler.is_compiling() and not capturing(lengths):
        low, high = int(lengths.min()), int(lengths.max())
        if low < 1 or high > T:
            raise ShapeError(f"lengths must lie in 1..{T}, the number of steps of x; came {low}..{high}")


def capturing(v: Tensor) -> bool:
    """Whether what is done to a tensor is being recorded into a CUDA graph, where nobody may look at a number."""
    return v.is_cuda and torch.cuda.is_current_stream_capturing()


def _elsewhere(name: str, v: Tensor, device: torch.device) -> ShapeError:
    return ShapeError(f"{name} is on {v.device}, the weights are on {device}; move one to the other")


def columns_bias(cell: Cell, H: int, weight_ih: Tensor, bias_ih: Tensor | None, bias_hh: Tensor | None) -> Tensor:
    """One bias [C*H] over the cell's columns, from torch's two."""
    R = len(cell.recurrent_gates)
    for name, bias, n in (("bias_ih", bias_ih, len(cell.gates)), ("bias_hh", bias_hh, R)):
        if bias is not None and bias.shape != (n * H,):
            raise ShapeError(f"{name} must be [{n} * {H}]; came {list(bias.shape)}")
    if bias_ih is not None and bias_hh is not None and len(cell.columns) == len(cell.gates) == R:
        return bias_ih + bias_hh
    zero = weight_ih.new_zeros(H)
    parts = []
    for column in cell.columns:
        part = zero
        if bias_ih is not None and column.x is not None:
            part = part + bias_ih[column.x * H : (column.x + 1) * H]
        gate = column.name.removesuffix("_h") if column.x is None else column.name
        if bias_hh is not None and gate in cell.recurrent_gates:
            k = cell.recurrent_gates.index(gate)
            part = part + bias_hh[k * H : (k + 1) * H]
        parts.append(part)
    return torch.cat(parts)


def bias_gradients(cell: Cell, db: Tensor, H: int) -> tuple[Tensor, Tensor]:
    """The gradients of bias_ih and bias_hh from that of the columns' bias [C*H]; for cells with no products inside."""
    columns, G = cell.columns, len(cell.gates)
    d_ih = db if len(columns) == G else db[: G * H]  # the gates come first, in their order
    own = [k for k, column in enumerate(columns) if column.h is not None]
    if len(own) == len(columns):
        return d_ih, db
    return d_ih, torch.cat([db[:0], *(db[k * H : (k + 1) * H] for k in own)])


def _split_recurrent(
    cell: Cell, H: int, P: int, weight_ih: Tensor, weight_hh: Tensor | None
) -> tuple[Tensor, list[Tensor]]:
    """weight_hh as U, the blocks multiplied before the step, and the blocks that are multiplied inside it."""
    if weight_hh is None or not cell.recurrent_gates:
        return weight_ih.new_zeros(0, P), []
    if not cell.inside:
        return weight_hh, []
    blocks = dict(zip(cell.recurrent_gates, weight_hh.split(H), strict=True))
    outside = [v for g, v in blocks.items() if g not in cell.inside]
    U = torch.cat(outside) if outside else weight_ih.new_zeros(0, P)
    return U, [blocks[g] for g in cell.inside]
