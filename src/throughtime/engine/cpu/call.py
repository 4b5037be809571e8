"""One call of the kernels: the plan's structures with a batch's rows and weights filled in, forward and backward."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from throughtime.engine.cpu import library
from throughtime.engine.cpu.compiled import ints
from throughtime.engine.cpu.library import BackwardCall, ForwardCall
from throughtime.engine.cpu.memory import fresh
from throughtime.engine.cpu.packed_batch import PackedBatch
from throughtime.engine.cpu.packing import Layout, PackCache, Packed, panels_array
from throughtime.engine.cpu.plan import Plan
from throughtime.errors import BackendError

cache = PackCache()
_WORD = ctypes.sizeof(ctypes.c_void_p)


class Walk(NamedTuple):
    """What both walks through a batch read, all of it contiguous: rows in the kernels' order, weights, first states."""

    plan: Plan
    batch: PackedBatch
    x: Tensor
    W: Tensor
    U: Tensor
    b: Tensor
    units: Sequence[Tensor]
    matrices: Sequence[Tensor]
    first: Sequence[Tensor]
    reverse: bool


def run_forward(walk: Walk, sequences: Sequence[Tensor], finals: Sequence[Tensor], kept: Tensor) -> None:
    """Writes the states at every step, the last states, and what the plan keeps."""
    call = ForwardCall.from_buffer_copy(walk.plan.forward)
    keep = fill(call, walk), aim(call, walk.units, walk.first, sequences, finals)
    call.kept = kept.data_ptr()
    run(call)
    del keep


def run_backward(
    walk: Walk,
    sequences: Sequence[Tensor],
    kept: Tensor,
    dy: Sequence[Tensor | None],
    ds: Sequence[Tensor],
    dx: Tensor | None,
    truncated: bool,
) -> list[Tensor]:
    """Gives the gradients of W, U, b, units and matrices; writes dx, and into ds the gradients of the first states.

    dy: the gradient that enters at each state's outputs: for every row, or one row that stands for all, or None.
    ds: on entry the gradients of the last states.
    """
    p = walk.plan
    program = p.programs.backward
    assert program is not None and p.backward is not None
    call = BackwardCall.from_buffer_copy(p.backward)
    forward = call.forward
    walk.batch.fill(forward, walk.reverse)
    forward.kept = kept.data_ptr()
    dW, dU, db = (fresh(v.shape, p.dtype) for v in (walk.W, walk.U, walk.b))
    d_units = [torch.empty(p.sizes.H, dtype=p.dtype) for _ in walk.units]
    keep: list[Any] = [aim(forward, walk.units, walk.first, sequences, ())]
    d_matrices: list[Tensor] = []
    if walk.matrices:
        paired = {m for m, _, _ in program.program.pairs}
        d_matrices = [
            (torch.empty if k in paired else torch.zeros)(m.shape, dtype=p.dtype) for k, m in enumerate(walk.matrices)
        ]
        packed, turned = _matrices(walk, p.matrices), _matrices(walk, p.matrices_back)
        forward.matrices, call.turned_matrices = ctypes.addressof(packed[1]), ctypes.addressof(turned[1])
        keep += packed, turned
    U_back = cache.get(walk.U, p.U_back, p.threads)
    # Without dx nothing is multiplied by W; the kernels only ask how wide its panels are, which are as wide as U's.
    W_back = U_back if dx is None else cache.get(walk.W, p.W_back, p.threads)
    rows = ints([w if d is not None and d.dim() > 1 else 0 for d, w in zip(dy, p.sizes.states, strict=True)])
    pointers = addresses([*dy, *ds, *d_units, *d_matrices])
    at, S = ctypes.addressof(pointers), len(ds)
    call.dy, call.ds, call.d_units = at, at + _WORD * S, at + _WORD * 2 * S
    call.d_matrices = at + _WORD * (2 * S + len(d_units))
    call.dy_rows, call.x_rows, call.truncated = ctypes.addressof(rows), walk.x.data_ptr(), truncated
    call.Wt, call.Ut = W_back.address, U_back.address
    call.dW, call.dU, call.db = dW.data_ptr(), dU.data_ptr(), db.data_ptr()
    if dx is not None:
        call.dx = dx.data_ptr()
    _check(library.load().tt_backward(ctypes.byref(call)))
    del keep
    return [dW, dU, db, *d_units, *d_matrices]


def addresses(tensors: Sequence[Tensor | None]) -> ctypes.Array:
    """Where tensors begin, 0 for None."""
    return (ctypes.c_void_p * max(1, len(tensors)))(*[None if t is None else t.data_ptr() for t in tensors])


def fill(call: ForwardCall, walk: Walk) -> tuple[Any, ...]:
    """Fills in the rows and the weights. What it gives back must live as long as the structure is used."""
    p, batch, x = walk.plan, walk.batch, walk.x
    if p.low and not p.pairs:
        x = x.float()
    elif p.low and p.D % 2:
        x = torch.nn.functional.pad(x, (0, 1))
    W, U = cache.get(walk.W, p.W, p.threads), cache.get(walk.U, p.U, p.threads)
    batch.fill(call, walk.reverse)
    call.x, call.bias, call.W, call.U = x.data_ptr(), walk.b.data_ptr(), W.address, U.address
    matrices = _matrices(walk, p.matrices) if walk.matrices else None
    if matrices is not None:
        call.matrices = ctypes.addressof(matrices[1])
    return p, batch, x, walk.b, W, U, matrices


def _matrices(walk: Walk, layouts: Sequence[Layout]) -> tuple[list[Packed], Any]:
    """The packed matrices of the step, and the array of them that the kernels read."""
    packed = [cache.get(m, how, walk.plan.threads) for m, how in zip(walk.matrices, layouts, strict=True)]
    return packed, panels_array(packed)


def aim(
    call: ForwardCall,
    units: Sequence[Tensor],
    first: Sequence[Tensor],
    sequences: Sequence[Tensor],
    finals: Sequence[Tensor],
) -> Any:
    """Fills in where states are read and written, with one array; it must live as long as the structure is used."""
    pointers = addresses([*units, *first, *sequences, *finals])
    at, n, S = ctypes.addressof(pointers), len(units), len(first)
    call.units, call.first = at, at + _WORD * n
    call.sequences, call.finals = at + _WORD * (n + S), at + _WORD * (n + 2 * S)
    return pointers


def run(call: ForwardCall) -> None:
    """The kernels' forward walk."""
    _check(library.load().tt_forward(ctypes.byref(call)))


def _check(code: int) -> None:
    if code:
        raise BackendError("the instruction set in use was changed while a call was being prepared")
