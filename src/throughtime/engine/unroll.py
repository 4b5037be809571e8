"""The one entry: a cell, unrolled through time over a batch of sequences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from throughtime.cells import Cell
from throughtime.engine import reference
from throughtime.engine.backends import choose
from throughtime.engine.operator import unroll_op
from throughtime.engine.trace import program, step_of
from throughtime.errors import BackendError, ShapeError


def unroll(
    cell: Cell,
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor | None = None,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    *,
    units: Sequence[Tensor] = (),
    matrices: Sequence[Tensor] = (),
    states: Sequence[Tensor] | None = None,
    lengths: Tensor | None = None,
    reverse: bool = False,
    clip: float | None = None,
    truncated: bool = False,
    backend: str = "auto",
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Runs `cell` over x and gives back its states at every step and its last states.

    z_t = x_t W^T + b + h_{t-1} U^T,  s_t = step(z_t, s_{t-1})  for t = 0 .. T-1, or backwards if `reverse`.

    Shapes: x [T, B, D]; weight_ih [G*H, D] and bias_ih [G*H], a block for each of the cell's gates; weight_hh
    [R*H, P] and bias_hh [R*H], a block for each recurrent gate (P = H unless a matrix of the cell projects h);
    units each [H]; initial states each [B, H] (zeros if None; the first [B, P]); lengths [B], whole numbers in
    1..T. Returns (sequences, finals): each state as [T, B, H], 0 beyond a sequence's length, and its value
    [B, H] after the last valid step (after step 0 if `reverse`).

    The gradient is that of back-propagation through time (Werbos 1990), of any order, unless a training rule
    is chosen:
    clip:      derivative clipping (Graves 2013): the derivative of the loss with respect to every net input is
               clamped to [-clip, clip] at each step, inside the recurrence. A clipped gradient is not the gradient
               of any function; a second derivative is clipped at the same places as the first.
    truncated: the truncated gradient (Hochreiter & Schmidhuber 1997): no error flows from a net input back to a
               state; it leaves a memory cell along the carousel only.

    backend: "cpu" runs the traced tape with kernels in C++, "torch" with torch's operations, step by step; "reference"
    runs the cell's own `step` in a loop under autograd (for steps that cannot be traced; without training rules);
    "auto" is "cpu" where the kernels can, else "torch". See `throughtime.explain`.

    Under autocast the products run in autocast's dtype; states, net inputs and the step stay in the states' dtype
    (float32 for float32 parameters).

    Raises ShapeError where sizes, dtypes or devices do not fit, CellError where the step cannot be traced,
    BackendError for a backend that does not exist or cannot do what is asked.
    """
    if clip is not None and not (clip > 0 and math.isfinite(clip)):
        raise ShapeError(f"clip must be a positive number, the bound of the derivative; came {clip}")
    v = operands(cell, x, weight_ih, weight_hh, bias_ih, bias_hh, units, matrices, states, lengths)
    S = len(v.states)
    backend, why = choose(backend, x.device.type, v.states[0].dtype, v.W.dtype)
    if backend == "reference":
        if clip is not None or truncated:
            raise BackendError(
                f"the training rules clip and truncated need the traced step; the reference backend has none ({why})"
            )
        with torch.autocast(x.device.type, enabled=False):
            sequences, finals = reference.unroll(
                lambda values: step_of(cell, values), cell.columns, *v, lengths=lengths, reverse=reverse
            )
        return tuple(sequences), tuple(finals)

    tensors = [v.x, v.W, v.U, v.b, *v.units, *v.matrices, *v.states]
    save = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    out = unroll_op(program(cell), *v, lengths, reverse, clip, truncated, backend, save)
    return tuple(out[:S]), tuple(out[S : 2 * S])


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
    b = _columns_bias(cell, H, weight_ih, bias_ih, bias_hh)
    if states is None:
        dtype = weight_ih.dtype
        states = [x.new_zeros(x.shape[1], P if k == 0 else H, dtype=dtype) for k in range(len(cell.states))]
    _check(cell, H, P, x, weight_ih, units, matrices, states, lengths)
    U, inside = _split_recurrent(cell, H, P, weight_ih, weight_hh)
    low, full = autocast_dtype(x.device.type), states[0].dtype
    v = Operands(
        cell.input(x), weight_ih, U, b.to(full), [w.to(full) for w in units], [*inside, *matrices], list(states)
    )
    if low is None or full == torch.float64:  # autocast leaves float64 as it is
        return v
    return v._replace(x=v.x.to(low), W=v.W.to(low), U=v.U.to(low), matrices=[m.to(low) for m in v.matrices])


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
    for name, w in zip(cell.units, units, strict=True):
        if tuple(w.shape) != (H,):
            raise ShapeError(f"unit weight {name} must be [{H}], one number a hidden unit; came {tuple(w.shape)}")
    for k, (name, s) in enumerate(zip(cell.states, states, strict=True)):
        want = (B, P if k == 0 else H)
        if tuple(s.shape) != want:
            raise ShapeError(f"initial state {name} must be [B, H] = {list(want)}; came {list(s.shape)}")
    for name, v in (("x", x), *zip(cell.units, units, strict=True), *zip(cell.states, states, strict=True)):
        if v.device != weight_ih.device:
            raise ShapeError(f"{name} is on {v.device}, the weights are on {weight_ih.device}; move one to the other")
    if x.dtype != weight_ih.dtype and autocast_dtype(x.device.type) is None:
        raise ShapeError(f"x is {x.dtype}, the weights are {weight_ih.dtype}; convert one, or use torch.autocast")
    if lengths is not None and (lengths.dtype not in (torch.int64, torch.int32) or tuple(lengths.shape) != (B,)):
        raise ShapeError(f"lengths must be [{B}] whole numbers (int64); came {list(lengths.shape)} {lengths.dtype}")
    # The values of lengths are data: looking at them would break a compiled graph.
    if lengths is not None and not torch.compiler.is_compiling():
        low, high = int(lengths.min()), int(lengths.max())
        if low < 1 or high > T:
            raise ShapeError(f"lengths must lie in 1..{T}, the number of steps of x; came {low}..{high}")


def _columns_bias(cell: Cell, H: int, weight_ih: Tensor, bias_ih: Tensor | None, bias_hh: Tensor | None) -> Tensor:
    """One bias [C*H] over the cell's columns, from torch's two."""
    R = len(cell.recurrent_gates)
    for name, bias, n in (("bias_ih", bias_ih, len(cell.gates)), ("bias_hh", bias_hh, R)):
        if bias is not None and tuple(bias.shape) != (n * H,):
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
