"""The gradients of many losses sent back through one recurrence, all the way: by kernels, or else by torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from throughtime.engine.arrived import Ready
from throughtime.engine.cpu import map as by_cpu
from throughtime.engine.rules import with_rule
from throughtime.engine.torch_backend import previous
from throughtime.engine.trace import tape_of
from throughtime.engine.triton import map as by_triton
from throughtime.errors import FlowError
from throughtime.flow.entering import Entering
from throughtime.flow.ran import kernels_for

if TYPE_CHECKING:
    from throughtime.flow.recurrence import Recurrence

DTYPES = (torch.float64, torch.float32)


class Sent(NamedTuple):
    """What arrived everywhere from every loss step that was followed; one row in all if they were summed.

    rows:  the loss steps, in the order of the rows.
    sizes: by name, ||dL_t/dz_k|| and ||dL_t/ds_k||, over the batch, each [rows, T] float64; or of each sequence by
           itself [B, rows, T], if asked for.
    dx:    dL_t/dx_k [rows, T, B, D] float64; None if it was not asked for.
    values: dL_t/dz_k and dL_t/ds_k themselves by name, each [rows, T, B, .] float64; None likewise.
    """

    rows: list[int]
    sizes: dict[str, Tensor]
    dx: Tensor | None
    values: dict[str, Tensor] | None

    def maps(self) -> dict[str, Tensor]:
        """The sizes by loss step t and past step k, each [T, T]; 0 where t was not followed."""
        found = {}
        for name, sizes in self.sizes.items():
            found[name] = sizes.new_zeros(sizes.shape[-1], sizes.shape[-1])
            found[name][self.rows] = sizes
        return found


def prepared(r: Recurrence) -> Ready | None:
    """The recurrence made ready for the kernels that run it; None where torch does."""
    v = r.operands
    name = kernels_for(v, r.backend)
    if name is None:
        return None
    tape = with_rule(tape_of(r.cell), None, r.truncated)
    laid = r.laid_out()
    if laid is not None:
        H, P = v.b.shape[0] // len(tape.columns), v.states[0].shape[1]
        return by_cpu.prepare_laid_out(tape, laid, H, P, v.W, v.U, v.matrices, r.lengths, r.reverse, r.truncated)
    prepare: Callable[..., Ready]
    prepare = by_cpu.prepare if name == "cpu" else by_triton.prepare
    before = [previous(s, first, r.lengths, r.reverse) for s, first in zip(r.sequences, v.states, strict=True)]
    return prepare(tape, r.z, v.W, v.U, v.units, v.matrices, before, r.lengths, r.reverse, r.truncated, r.dtype)


@torch.no_grad()
def send(
    r: Recurrence,
    entering: Entering,
    *,
    want_dx: bool = False,
    want_values: bool = False,
    by_sample: bool = False,
) -> Sent:
    """Sends every row of `entering` back through the recurrence, in the recurrence's own dtype.

    In float32 too the range of a size is that of float64. Without the kernels it is float64 in any case.
    by_sample: gives the sizes of each sequence by itself.

    Raises FlowError for another dtype, and where the entering gradients do not fit the cell.
    """
    S, T = len(r.cell.states), r.x.shape[0]
    direct, above = entering.direct, entering.above
    if len(direct) != S or (above is not None and len(above) != S):
        raise FlowError(f"{r.cell!r} has {S} state(s), and so many gradients can enter; came {len(direct)}")
    if r.dtype not in DTYPES:
        raise FlowError(f"the gradient is followed in float64 or float32; came {r.dtype}")
    rows = [0] if entering.summed else list(range(T) if entering.rows is None else entering.rows)
    ready = prepared(r)
    if ready is None:
        return _step_by_step(r, entering, rows, want_dx, want_values, by_sample)
    names = ("z", *r.cell.states)
    slope = r.input_slope if want_dx else None
    direct = [None] * S if entering.summed else direct
    found = ready.send_back(
        rows, direct, above, want_dx=want_dx, input_slope=slope, want_values=want_values, each=by_sample
    )
    values = None if found.values is None else dict(zip(names, found.values, strict=True))
    return Sent(rows, dict(zip(names, found.sizes, strict=True)), found.dx, values)


def _step_by_step(
    r: Recurrence, entering: Entering, rows: Sequence[int], want_dx: bool, want_values: bool, by_sample: bool
) -> Sent:
    r = r if r.dtype == torch.float64 else replace(r, dtype=torch.float64)  # for its range
    (T, B), at, blank = r.x.shape[:2], {t: n for n, t in enumerate(rows)}, r.output.new_zeros
    names = ("z", *r.cell.states)
    sizes = {name: blank(B if by_sample else 1, len(rows), T) for name in names}
    dx = blank(len(rows), T, *r.x.shape[1:]) if want_dx else None
    values = None
    if want_values:
        values = {n: blank(len(rows), *v.shape) for n, v in zip(names, (r.z, *r.sequences), strict=True)}
    for step in r.follow(entering):
        here = [at[t] for t in step.rows]
        for name, value in {"z": step.dz, **step.states}.items():
            for b, v in enumerate(value.split(1, 1) if by_sample else [value]):
                sizes[name][b, here, step.k] = row_sizes(v)
            if values is not None:
                values[name][here, step.k] = value
        if dx is not None:
            dx[here, step.k] = r.to_input(step)
    return Sent(list(rows), sizes if by_sample else {n: v[0] for n, v in sizes.items()}, dx, values)


def row_sizes(v: Tensor) -> Tensor:
    """||v[n]|| for each n, over all the rest; scaled, so that no square leaves the range of the dtype."""
    rows = v.flatten(1)
    largest = rows.abs().amax(1)
    scale = torch.where((largest > 0) & largest.isfinite(), largest, 1.0)
    return (rows / scale[:, None]).norm(dim=1) * scale
