"""The gradients of many losses sent back through one recurrence, all the way: by the CPU kernels, or else by torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from throughtime.engine.cpu.map import Prepared, prepare
from throughtime.engine.rules import with_rule
from throughtime.engine.torch_backend import previous
from throughtime.engine.trace import tape_of
from throughtime.errors import FlowError
from throughtime.flow.entering import Entering
from throughtime.flow.ran import by_kernels

if TYPE_CHECKING:
    from throughtime.flow.recurrence import Recurrence

DTYPES = (torch.float64, torch.float32)


class Sent(NamedTuple):
    """What arrived everywhere from every loss step that was followed; one row in all if they were summed.

    rows:  the loss steps, in the order of the rows.
    sizes: by name, ||dL_t/dz_k|| and ||dL_t/ds_k||, over the batch, each [rows, T] float64.
    dx:    dL_t/dx_k [rows, T, B, D] float64; None if it was not asked for.
    values: dL_t/dz_k and dL_t/ds_k themselves by name, each [rows, T, B, .] float64; None likewise.
    """

    rows: list[int]
    sizes: dict[str, Tensor]
    dx: Tensor | None
    values: dict[str, Tensor] | None


def prepared(r: Recurrence, dtype: torch.dtype = torch.float64) -> Prepared | None:
    """The recurrence made ready for the CPU kernels; None where they do not run it."""
    v = r.operands
    if not by_kernels(v):
        return None
    before = [previous(s, first, r.lengths, r.reverse) for s, first in zip(r.sequences, v.states, strict=True)]
    tape = with_rule(tape_of(r.cell), None, r.truncated)
    return prepare(tape, r.z, v.W, v.U, v.units, v.matrices, before, r.lengths, r.reverse, r.truncated, dtype)


@torch.no_grad()
def send(
    r: Recurrence,
    entering: Entering,
    *,
    want_dx: bool = False,
    want_values: bool = False,
    dtype: torch.dtype = torch.float64,
) -> Sent:
    """Sends every row of `entering` back through the recurrence.

    dtype: in what it is computed. float32 takes about half the time, with a relative error of about 1e-6 in each size
    and the range of float64; without the CPU kernels it is float64 in any case.

    Raises FlowError for another dtype, and where the entering gradients do not fit the cell.
    """
    S, T = len(r.cell.states), r.x.shape[0]
    direct, above = entering.direct, entering.above
    if len(direct) != S or (above is not None and len(above) != S):
        raise FlowError(f"{r.cell!r} has {S} state(s), and so many gradients can enter; came {len(direct)}")
    if dtype not in DTYPES:
        raise FlowError(f"the gradient is followed in float64 or float32; came {dtype}")
    rows = [0] if entering.summed else list(range(T) if entering.rows is None else entering.rows)
    ready = prepared(r, dtype)
    if ready is None:
        return _step_by_step(r, entering, rows, want_dx, want_values)
    names = ("z", *r.cell.states)
    slope = r.input_slope if want_dx else None
    direct = [None] * S if entering.summed else direct
    found = ready.send_back(rows, direct, above, want_dx=want_dx, input_slope=slope, want_values=want_values)
    values = None if found.values is None else dict(zip(names, found.values, strict=True))
    return Sent(rows, dict(zip(names, found.sizes, strict=True)), found.dx, values)


def _step_by_step(r: Recurrence, entering: Entering, rows: Sequence[int], want_dx: bool, want_values: bool) -> Sent:
    T, at, blank = r.x.shape[0], {t: n for n, t in enumerate(rows)}, r.output.new_zeros
    names = ("z", *r.cell.states)
    sizes = {name: blank(len(rows), T) for name in names}
    dx = blank(len(rows), T, *r.x.shape[1:]) if want_dx else None
    values = None
    if want_values:
        values = {n: blank(len(rows), *v.shape) for n, v in zip(names, (r.z, *r.sequences), strict=True)}
    for step in r.follow(entering):
        here = [at[t] for t in step.rows]
        for name, value in {"z": step.dz, **step.states}.items():
            sizes[name][here, step.k] = row_sizes(value)
            if values is not None:
                values[name][here, step.k] = value
        if dx is not None:
            dx[here, step.k] = r.to_input(step)
    return Sent(list(rows), sizes, dx, values)


def row_sizes(v: Tensor) -> Tensor:
    """||v[n]|| for each n, over all the rest; scaled, so that no square leaves the range of the dtype."""
    rows = v.flatten(1)
    largest = rows.abs().amax(1)
    scale = torch.where((largest > 0) & largest.isfinite(), largest, 1.0)
    return (rows / scale[:, None]).norm(dim=1) * scale
