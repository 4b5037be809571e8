"""A batch of packed sequences through time, row by row as it came: no padding is made, and none is taken out.

Only the CPU kernels walk over packed rows. The result is that of `unroll` on the padded batch with its lengths.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from throughtime.cells import Cell
from throughtime.engine.backends import choose
from throughtime.engine.cpu.backend import backward_rows, forward_rows
from throughtime.engine.cpu.packed_batch import packed_rows
from throughtime.engine.eager import PLAIN, unwatched
from throughtime.engine.operands import Operands, autocast_dtype, operands
from throughtime.engine.operator import chosen_dtypes, tape_of
from throughtime.engine.padded import padded_backward
from throughtime.engine.straight import straight
from throughtime.engine.trace import program
from throughtime.errors import ShapeError


def takes_rows(x: Tensor, weight: Tensor, backend: str, memory: str) -> bool:
    """Whether `unroll_rows` can run this: plain tensors in main memory, on the CPU kernels, kept as they are, with
    nobody watching."""
    if memory != "fast" or not (type(x) in PLAIN and x.is_cpu and weight.is_cpu) or not unwatched():
        return False
    low = autocast_dtype("cpu")
    if low is None and x.dtype != weight.dtype:
        return False  # which `unroll` will refuse
    products = weight.dtype if low is None or weight.dtype == torch.float64 else low
    return choose(backend, "cpu", weight.dtype, products)[0] == "cpu"


def unroll_rows(
    cell: Cell,
    x: Tensor,
    batch_sizes: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor | None,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    *,
    units: Sequence[Tensor] = (),
    matrices: Sequence[Tensor] = (),
    states: Sequence[Tensor] | None = None,
    reverse: bool = False,
    clip: float | None = None,
    truncated: bool = False,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Runs `cell` over packed rows x [rows, D] and gives its first state for each row [rows, P], and its last states.

    batch_sizes [T]: how many sequences are still running at each step, the longest first, as in torch's
    PackedSequence; its first number is B. The last states [B, .] are in the same order. Everything else is as in
    `throughtime.engine.unroll`. Raises ShapeError where sizes do not fit.
    """
    batch = packed_rows(tuple(batch_sizes.tolist()))
    if x.dim() != 2 or x.shape[0] != batch.rows:
        raise ShapeError(f"x must be [{batch.rows}, D], a row for each step of batch_sizes; came {tuple(x.shape)}")
    if not matrices:
        rule = (reverse, clip, truncated)
        outputs = straight(cell, x, weight_ih, weight_hh, bias_ih, bias_hh, units, states, rule, "cpu", batch)
        if outputs is not None:
            return outputs[0], outputs[len(cell.states) :]
    first = x[: batch.B].unsqueeze(0)  # stands for x where sizes are checked
    v = operands(cell, first, weight_ih, weight_hh, bias_ih, bias_hh, units, matrices, states)
    inputs = cell.input(x.unsqueeze(0)).squeeze(0)
    v = v._replace(x=inputs if inputs.dtype == v.x.dtype else inputs.to(v.x.dtype))
    S, call = len(v.states), (program(cell), batch, reverse, clip, truncated)
    if torch.is_grad_enabled() and any(t.requires_grad for t in v.tensors()):
        out = _Rows.apply((*call, v), *v.tensors())
        return out[0], tuple(out[1 : 1 + S])
    with chosen_dtypes(x):
        sequences, finals, _ = forward_rows(tape_of(call[0], None, False), batch, *v, reverse, False)
    return sequences[0], tuple(finals)


class _Rows(torch.autograd.Function):
    """The kernels' two walks. A derivative of the derivative goes by the operator, on the padded batch."""

    @staticmethod
    def forward(ctx: Any, call: tuple, *tensors: Tensor) -> tuple[Tensor, ...]:  # the tensors of call, for autograd
        text, batch, reverse, clip, truncated = call[:-1]
        v: Operands = call[-1]
        with chosen_dtypes(v.x):
            sequences, finals, kept = forward_rows(tape_of(text, clip, truncated), batch, *v, reverse, True)
        ctx.call, ctx.sizes = call[:-1], (len(v.units), len(v.matrices), len(v.states))
        ctx.save_for_backward(*tensors, *sequences, kept)
        ctx.set_materialize_grads(False)
        return sequences[0], *finals

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple:
        n_units, n_matrices, S = ctx.sizes
        *saved, kept = ctx.saved_tensors
        n = len(saved) - S
        x, W, U, b, *rest = saved[:n]
        units, matrices, states = rest[:n_units], rest[n_units : n_units + n_matrices], rest[n_units + n_matrices :]
        sequences = saved[n:]
        # An output that the loss does not use has no gradient: a zero that takes no memory stands for it.
        like = [sequences[0], *states]
        d_y, *d_finals = (a.new_zeros(()).expand(a.shape) if g is None else g for g, a in zip(grads, like, strict=True))
        d_sequences = [d_y, *(a.new_zeros(()).expand(a.shape) for a in sequences[1:])]
        v = Operands(x, W, U, b, units, matrices, states)
        need_dx = ctx.needs_input_grad[1]
        if torch.is_grad_enabled():
            text, batch, *rule = ctx.call
            return None, *padded_backward(text, batch, tuple(rule), v, sequences, kept, d_sequences, d_finals, need_dx)
        return None, *_backward(ctx.call, v, sequences, kept, d_sequences, d_finals, need_dx)


def _backward(
    call: tuple, v: Operands, sequences: Sequence[Tensor], kept: Tensor, d_sequences: Sequence[Tensor],
    d_finals: Sequence[Tensor], need_dx: bool,
) -> list[Tensor | None]:  # fmt: skip
    text, batch, reverse, clip, truncated = call
    with chosen_dtypes(v.x):
        dx, *others = backward_rows(
            tape_of(text, clip, truncated), batch, *v, sequences, kept, d_sequences, d_finals, reverse, truncated,
            need_dx,
        )  # fmt: skip
    return [dx if need_dx else None, *others]
