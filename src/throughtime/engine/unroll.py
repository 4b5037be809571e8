"""The one entry: a cell, unrolled through time over a batch of sequences."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from throughtime.cells import Cell
from throughtime.engine import derivative, operator, reference
from throughtime.engine.backends import check_memory, choose
from throughtime.engine.eager import refuse_transforms, unwatched
from throughtime.engine.operands import operands
from throughtime.engine.straight import straight
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
    memory: str = "fast",
    backend: str = "auto",
    every_state: bool = True,
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

    memory: what the forward pass keeps for the backward pass. "fast" keeps what the steps computed; "low" keeps the
    states at the begin of about sqrt(T) parts, and works out one part at a time anew in the backward pass: for long
    sequences, at about 1.3 times the cost. Gradients agree up to rounding.

    backend: "cpu" runs the traced tape with kernels in C++, "triton" with kernels for NVIDIA GPUs, "torch" with torch's
    operations, step by step; "reference" runs the cell's own `step` in a loop under autograd (for steps that cannot be
    traced; without training rules); "auto" is "cpu" where the kernels can, else "torch". See `throughtime.explain`.

    every_state=False says that of the sequences only the first is wanted: the others may come back empty, which they
    do with memory="low".

    Under autocast the products run in autocast's dtype; states, net inputs and the step stay in the states' dtype
    (float32 for float32 parameters).

    Raises ShapeError where sizes, dtypes or devices do not fit, CellError where the step cannot be traced,
    BackendError for a backend that does not exist or cannot do what is asked.
    """
    if clip is not None and not (clip > 0 and math.isfinite(clip)):
        raise ShapeError(f"clip must be a positive number, the bound of the derivative; came {clip}")
    if memory == "fast" and lengths is None and not matrices and not torch.compiler.is_compiling():
        rule = (reverse, clip, truncated)
        outputs = straight(cell, x, weight_ih, weight_hh, bias_ih, bias_hh, units, states, rule, backend)
        if outputs is not None:
            S = len(cell.states)
            return outputs[:S], outputs[S:]
    v = operands(cell, x, weight_ih, weight_hh, bias_ih, bias_hh, units, matrices, states, lengths)
    S = len(v.states)
    backend, why = choose(backend, x.device.type, v.states[0].dtype, v.W.dtype)
    check_memory(memory, backend, why)
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

    shown = S if every_state else 1
    tensors = v.tensors()
    refuse_transforms(tensors)
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        out = derivative.unroll(program(cell), *v, lengths, reverse, clip, truncated, backend, memory, shown)
    else:
        infer = operator.infer if unwatched(tensors) else torch.ops.throughtime.infer.default
        out = infer(program(cell), *v, lengths, reverse, backend, memory, shown)
    return tuple(out[:S]), tuple(out[S : 2 * S])
