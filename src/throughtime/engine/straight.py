"""The straight way of a call with gradients to the CPU kernels, where nothing about the call is unusual.

A training step of a small batch is over in a millisecond, and Python's own part of it shows: after a walk over
megabytes, which leaves nothing of Python in the caches, it costs four times as much. So what follows from sizes is
worked out once, and autograd sees one node. What comes out, and its derivative, is what `throughtime::unroll` gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from throughtime.cells import Cell
from throughtime.engine.backends import choose
from throughtime.engine.cpu import library
from throughtime.engine.cpu.backend import entering, is_zero
from throughtime.engine.cpu.call import Walk, run_backward, run_forward
from throughtime.engine.cpu.compiled import everything
from throughtime.engine.cpu.memory import lent
from throughtime.engine.cpu.packed_batch import PackedBatch, PackedRows
from throughtime.engine.cpu.plan import Kind, Plan, kind_of, plan
from throughtime.engine.eager import PLAIN, unwatched
from throughtime.engine.operands import Operands, bias_gradients, columns_bias, operands
from throughtime.engine.operator import tape_of
from throughtime.engine.padded import padded_backward
from throughtime.engine.tape import Tape
from throughtime.engine.trace import program

MOST_WAYS = 512


class Way(NamedTuple):
    """What all calls of one cell at one set of sizes and rules share."""

    cell: Cell
    tape: Tape
    kind: Kind
    batch: PackedBatch
    plan: Plan
    rule: tuple[bool, float | None, bool]  # reverse, clip, truncated


_ways: dict[tuple, Way | None] = {}


def straight(
    cell: Cell,
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor | None,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    units: Sequence[Tensor],
    states: Sequence[Tensor] | None,
    rule: tuple[bool, float | None, bool],
    backend: str,
    packed: PackedRows | None = None,
) -> tuple[Tensor, ...] | None:
    """The states at every step and the last states, arguments as `unroll` has them; None where the operator must run:
    without gradients, under autocast, on other tensors, for a cell with matrices of its own, or watched by anybody.

    packed: the batch of which x [rows, D] are the packed rows; the states at every step are [rows, .] then.
    """
    if not torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or not unwatched():
        return None
    if len(units) != len(cell.units):
        return None  # which the operator's way refuses
    given = [x, weight_ih, weight_hh, bias_ih, bias_hh, *units, *(states or ())]
    dtype, needed = weight_ih.dtype, False
    shapes: list[torch.Size | None] = []
    for t in given:
        if t is None:
            shapes.append(None)
            continue
        if type(t) not in PLAIN or t.dtype is not dtype or not t.is_cpu:
            return None
        shapes.append(t.shape)
        needed = needed or t.requires_grad
    if not needed or dtype.is_complex or choose(backend, "cpu", dtype, dtype)[0] != "cpu":
        return None
    key = (id(cell), dtype, torch.get_num_threads(), library.load().tt_current(), *rule, packed, *shapes)
    way = _ways.get(key)
    if way is None and key not in _ways:
        if len(_ways) >= MOST_WAYS:
            _ways.clear()
        way = _ways[key] = _way(cell, given, rule, packed)
    return None if way is None else _Straight.apply(way, *given)


def _way(
    cell: Cell, given: Sequence[Any], rule: tuple[bool, float | None, bool], packed: PackedRows | None
) -> Way | None:
    """Checks the arguments, as `operands` does, and works out what follows from them."""
    if cell.inside or cell.matrices or type(cell).input is not Cell.input:
        return None
    v = _checked(cell, given, packed)
    batch = packed or PackedBatch(v.x.shape[0], v.x.shape[1], None)
    if batch.rows == 0:
        return None
    tape = tape_of(program(cell), *rule[1:])
    kind = kind_of(tape, v.x.shape[-1], v.W, v.b, (), v.states)
    return Way(cell, tape, kind, batch, plan(tape, batch.rows, batch.B, kind, everything(tape)), rule)


def _checked(cell: Cell, given: Sequence[Any], packed: PackedRows | None) -> Operands:
    x, W, U, bias_ih, bias_hh, *rest = given
    n = len(cell.units)
    steps = x if packed is None else x[: packed.B].unsqueeze(0)  # whose sizes are checked
    return operands(cell, steps, W, U, bias_ih, bias_hh, rest[:n], (), rest[n:] or None)._replace(x=x)


class _Straight(torch.autograd.Function):
    """The kernels' two walks. A derivative of the derivative goes by the operator."""

    @staticmethod
    def forward(ctx: Any, way: Way, *given: Tensor) -> tuple[Tensor, ...]:
        p, batch = way.plan, way.batch
        _, W, _, bias_ih, bias_hh, *rest = given
        b = columns_bias(way.cell, way.kind.H, W, bias_ih, bias_hh)
        first = rest[len(way.cell.units) :] or [torch.zeros((batch.B, w), dtype=p.dtype) for w in p.sizes.states]
        sequences = [batch.room(w, p.dtype) for w in p.sizes.states]
        finals = [torch.empty((batch.B, w), dtype=p.dtype) for w in p.sizes.states]
        kept = lent.room(W, batch.shape(p.kept_row, whole=True), p.dtype)
        run_forward(_walk(way, p, given, b, first), sequences, finals, kept)
        ctx.way, ctx.n_given = way, len(given)
        ctx.save_for_backward(*given, b, *first, *sequences, kept)
        ctx.set_materialize_grads(False)
        return *sequences, *finals

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple:
        way, n, S = ctx.way, ctx.n_given, len(grads) // 2
        saved = ctx.saved_tensors
        given, b, first, sequences, kept = (
            saved[:n],
            saved[n],
            saved[n + 1 : n + 1 + S],
            saved[n + 1 + S : -1],
            saved[-1],
        )
        need_dx = ctx.needs_input_grad[1]
        if torch.is_grad_enabled() or not unwatched():
            gradients = _by_operator(way, given, sequences, kept, grads[:S], grads[S:], need_dx)
        else:
            walk = _walk(way, way.plan, given, b, first)
            gradients = _backward(way, walk, sequences, kept, grads[:S], grads[S:], need_dx)
        dx, dW, dU, db, *rest = gradients
        assert db is not None
        gradients = [dx, dW, dU, *bias_gradients(way.cell, db, way.kind.H), *rest]
        return None, *(None if v is None else d for d, v in zip(gradients, given, strict=False))


def _walk(way: Way, p: Plan, given: Sequence[Any], b: Tensor, first: Sequence[Tensor]) -> Walk:
    x, W, U, _, _, *rest = given
    U = x.new_empty(0, way.kind.P) if U is None else U
    units = [u.contiguous() for u in rest[: len(way.cell.units)]]
    return Walk(p, way.batch, x.contiguous(), W, U, b, units, (), [s.contiguous() for s in first], way.rule[0])


def _backward(
    way: Way, walk: Walk, sequences: Sequence[Tensor], kept: Tensor, d_sequences: Sequence[Tensor | None],
    d_finals: Sequence[Tensor | None], need_dx: bool,
) -> list[Tensor | None]:  # fmt: skip
    batch = way.batch
    shown = tuple(d is not None and not is_zero(d) for d in d_sequences)
    p = plan(way.tape, batch.rows, batch.B, way.kind, shown)
    dy = [None if d is None else entering(d, there, batch) for d, there in zip(d_sequences, shown, strict=True)]
    ds = [
        torch.zeros((batch.B, w), dtype=p.dtype) if d is None else d.clone(memory_format=torch.contiguous_format)
        for d, w in zip(d_finals, p.sizes.states, strict=True)
    ]
    dx = batch.room(way.kind.D, p.dtype) if need_dx else None
    dW, dU, db, *d_units = run_backward(walk._replace(plan=p), sequences, kept, dy, ds, dx, way.rule[2])
    return [dx, dW, dU, db, *d_units, *ds]


def _by_operator(
    way: Way, given: Sequence[Any], sequences: Sequence[Tensor], kept: Tensor, d_sequences: Sequence[Tensor | None],
    d_finals: Sequence[Tensor | None], need_dx: bool,
) -> list[Tensor | None]:  # fmt: skip
    v, S = _checked(way.cell, given, way.batch if isinstance(way.batch, PackedRows) else None), len(sequences)
    # An output that the loss does not use has no gradient: a zero that takes no memory stands for it.
    d = [
        a.new_zeros(()).expand(a.shape) if d is None else d
        for d, a in zip([*d_sequences, *d_finals], [*sequences, *v.states], strict=True)
    ]
    text = program(way.cell)
    if isinstance(way.batch, PackedRows):
        return padded_backward(text, way.batch, way.rule, v, sequences, kept, d[:S], d[S:], need_dx)
    dx, *others = torch.ops.throughtime.unroll_backward(
        text, *v, None, sequences, kept, d[:S], d[S:], *way.rule, "cpu", "fast", need_dx
    )
    return [dx if need_dx else None, *others]
