"""The forward walk that keeps on its way what a step's derivative multiplies by: no second pass over the net inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from throughtime.engine.cpu import plan as planning
from throughtime.engine.cpu.call import Walk, run_forward
from throughtime.engine.cpu.compiled import Compiled, Programs, arrange
from throughtime.engine.cpu.lower import lower
from throughtime.engine.cpu.packed_batch import packed_batch
from throughtime.engine.cpu.program import Sizes
from throughtime.engine.linear import LinearStep, linear_step
from throughtime.engine.optimise import fuse, without_identities
from throughtime.engine.tape import Builder, Op, Output, Tape
from throughtime.errors import BackendError


class LaidOut(NamedTuple):
    """What the linear steps of a pass multiply by.

    kept:   all of it side by side, [T, B, row]; see `throughtime.engine.linear.laid_out`.
    widths: those of the values of `LinearStep.kept`.
    units:  those of `LinearStep.units`, [H] each.
    """

    kept: Tensor
    widths: tuple[int, ...]
    units: list[Tensor]


@torch.no_grad()
def forward_laid_out(
    tape: Tape, x: Tensor, W: Tensor, U: Tensor, b: Tensor, units: Sequence[Tensor], matrices: Sequence[Tensor],
    states: Sequence[Tensor], lengths: Tensor | None, reverse: bool, most: int,
) -> tuple[list[Tensor], list[Tensor], LaidOut] | None:  # fmt: skip
    """States at every step [T, B, .], last states [B, .], and what the linear step of `tape` multiplies by.

    The arguments are those of `backend.forward`. most: bytes that may be kept. None where it would be more, where there
    are no rows, or where the step with all of that is too long for the kernels.
    """
    T, B, D = x.shape
    batch = packed_batch(T, B, lengths)
    if batch.rows == 0 or batch.running < B:
        return None
    p = planning.plan(tape, batch.rows, batch.running, planning.kind_of(tape, D, W, b, matrices, states), None)
    if p.low:
        return None
    program = _program(tape, p.sizes)
    if program is None:
        return None
    row = planning.padded_row(program.kept_row)
    if T * B * row * x.element_size() > most:
        return None
    call = type(p.forward).from_buffer_copy(p.forward)
    call.program, call.kept_row = program.address, row
    p = replace(p, programs=Programs(program, None), kept_row=row, forward=call)
    kept = batch.room(row, x.dtype)
    sequences = [batch.room(w, x.dtype) for w in p.sizes.states]
    finals = [torch.empty((B, w), dtype=x.dtype) for w in p.sizes.states]
    first = [batch.sorted(s.contiguous()) for s in states]
    units = [w.contiguous() for w in units]
    walk = Walk(p, batch, batch.gather(x.contiguous()), W, U, b.contiguous(), units, matrices, first, reverse)
    run_forward(walk, sequences, finals, kept)
    step = linear_step(tape)
    widths = tuple(program.program.kept_widths[: len(step.kept)])
    laid = LaidOut(batch.spread(kept), widths, _units(step, p.sizes, units, matrices, x))
    return [batch.spread(s) for s in sequences], [batch.unsorted(f) for f in finals], laid


@lru_cache(maxsize=256)
def _program(tape: Tape, sizes: Sizes) -> Compiled | None:
    order = arrange(tape.columns).order
    names = [tape.columns[k].name for k in order]
    try:
        return Compiled(lower(fuse(with_factors(tape, order)), sizes, names, tape.names("s")))
    except BackendError:  # too many values for the kernels
        return None


def with_factors(tape: Tape, order: Sequence[int]) -> Tape:
    """The tape of a step that also keeps, as its outputs "k", what `laid_out` puts side by side, in that order."""
    plain, step = without_identities(tape), linear_step(tape)
    build, n = Builder(plain.inputs, plain.ops), len(plain.inputs)
    made = {op: n + i for i, op in enumerate(plain.ops)}
    number = {v: v for v in range(n)}
    for v, op in step.early:
        op = Op(op.name, tuple(number[a] for a in op.args), op.consts)
        turned = Op(op.name, op.args[::-1], op.consts) if op.name in ("add", "mul") else op
        if op not in made:
            made[op] = made[turned] if turned in made else build.emit(op.name, *op.args, consts=op.consts)
        number[v] = made[op]
    parts = [number[v] for v in step.kept]
    squares: dict[int, int] = {}
    some = next(v for v, i in enumerate(plain.inputs) if i.kind == "z")
    for c in order if step.bases else ():
        base, by, k = step.columns[c]
        part = build.emit("clamp", some, consts=(k, k)) if by is None else build.scale(number[by], k)
        square = build.emit("mul", part, part)
        squares[base] = build.emit("add", squares[base], square) if base in squares else square
        parts.append(part)
    parts += [squares[j] for j in range(step.bases)]
    outputs = [*plain.outputs, *(Output("k", str(j), (v,)) for j, v in enumerate(parts))]
    return Tape(tape.columns, plain.inputs, tuple(build.ops), tuple(outputs)).pruned()


def _units(
    step: LinearStep, sizes: Sizes, units: Sequence[Tensor], matrices: Sequence[Tensor], like: Tensor
) -> list[Tensor]:
    # They depend on the per-unit weights alone, so that any net inputs and states will do.
    if not step.units:
        return []
    blank = [like.new_zeros(w) for w in (*[sizes.H] * len(step.tape.columns), *sizes.states)]
    values = step.values([*blank, *units, *matrices])
    return [values[v].expand(sizes.H).contiguous() for v in step.units]
