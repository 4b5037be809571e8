"""The backend that runs a tape with the CPU kernels: the same arguments and results as the torch backend."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from throughtime.engine.cpu.call import Walk, run_backward, run_forward
from throughtime.engine.cpu.compiled import compiled, everything, sizes_of
from throughtime.engine.cpu.memory import lent
from throughtime.engine.cpu.packed_batch import PackedBatch, packed_batch
from throughtime.engine.cpu.plan import kind_of, padded_row, plan
from throughtime.engine.tape import Tape
from throughtime.errors import BackendError

_NOTHING = torch.empty(0)


def refusal(x: Tensor, W: Tensor, U: Tensor, matrices: Sequence[Tensor], states: Sequence[Tensor]) -> str | None:
    """Why the kernels cannot take these tensors, or None if they can."""
    dtype, products = states[0].dtype, {v.dtype for v in (x, W, U, *matrices)}
    if {v.is_cpu for v in (x, W, U, *matrices, *states)} != {True}:
        return f"the CPU kernels need tensors in main memory; x is on {x.device}"
    if dtype not in (torch.float32, torch.float64):
        return f"the CPU kernels carry states in float32 or float64; came {dtype}"
    if products != {dtype} and not (products == {torch.bfloat16} and dtype == torch.float32):
        names = ", ".join(sorted(str(d) for d in products))
        return f"the CPU kernels multiply in the states' dtype {dtype}, or in bfloat16 beside float32; came {names}"
    return None


def saved_width(tape: Tape, H: int, P: int, matrices: Sequence[tuple[int, int]]) -> int:
    """How many numbers a row (one sequence, one step) keeps from the forward for the backward pass."""
    return padded_row(compiled(tape, sizes_of(tape, H, P, matrices), everything(tape)).forward.kept_row)


def forward(
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
    save: bool,
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """States at every step [T, B, .], last states [B, .], and if `save` what `backward` wants of them, [T, B, K]."""
    _agree(x, W, U, matrices, states)
    batch = packed_batch(x.shape[0], x.shape[1], lengths)
    return forward_rows(tape, batch, x, W, U, b, units, matrices, states, reverse, save)


def forward_rows(
    tape: Tape,
    batch: PackedBatch,
    x: Tensor,
    W: Tensor,
    U: Tensor,
    b: Tensor,
    units: Sequence[Tensor],
    matrices: Sequence[Tensor],
    states: Sequence[Tensor],
    reverse: bool,
    save: bool,
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """`forward` on a batch made ready; rows [rows, .] in place of [T, B, .] where the batch is one of packed rows."""
    dtype = states[0].dtype
    kind = kind_of(tape, x.shape[-1], W, b, matrices, states)
    p = plan(tape, batch.rows, batch.running, kind, everything(tape) if save else None)
    if save:
        kept = batch.cleared(lent.room(W, batch.shape(p.kept_row, whole=True), dtype))
    else:
        lent.release(W)
        kept = _NOTHING
    if batch.rows == 0:
        return [s.new_zeros(batch.T, *s.shape) for s in states], [s.clone() for s in states], kept
    sequences = [batch.room(w, dtype) for w in p.sizes.states]
    first = [batch.sorted(s.contiguous()) for s in states]
    finals = [torch.empty((batch.B, w), dtype=dtype) for w in p.sizes.states]
    if batch.running < batch.B:  # sequences of no steps keep the state that they have
        for last, begin in zip(finals, first, strict=True):
            last[batch.running :] = begin[batch.running :]
    x_rows = batch.gather(x.contiguous())
    walk = Walk(p, batch, x_rows, W, U, b.contiguous(), _plain(units), matrices, first, reverse)
    run_forward(walk, sequences, finals, kept)
    return [batch.spread(s) for s in sequences], [batch.unsorted(f) for f in finals], kept


def backward(
    tape: Tape,
    x: Tensor,
    W: Tensor,
    U: Tensor,
    b: Tensor,
    units: Sequence[Tensor],
    matrices: Sequence[Tensor],
    states: Sequence[Tensor],
    lengths: Tensor | None,
    sequences: Sequence[Tensor],
    saved: Tensor,
    d_sequences: Sequence[Tensor],
    d_finals: Sequence[Tensor],
    reverse: bool,
    truncated: bool,
    need_dx: bool,
) -> list[Tensor]:
    """Gradients in the order x (empty unless need_dx), W, U, b, units, matrices, states."""
    _agree(x, W, U, matrices, states)
    batch = packed_batch(x.shape[0], x.shape[1], lengths)
    return backward_rows(
        tape, batch, x, W, U, b, units, matrices, states, sequences, saved, d_sequences, d_finals, reverse, truncated,
        need_dx,
    )  # fmt: skip


def backward_rows(
    tape: Tape,
    batch: PackedBatch,
    x: Tensor,
    W: Tensor,
    U: Tensor,
    b: Tensor,
    units: Sequence[Tensor],
    matrices: Sequence[Tensor],
    states: Sequence[Tensor],
    sequences: Sequence[Tensor],
    saved: Tensor,
    d_sequences: Sequence[Tensor],
    d_finals: Sequence[Tensor],
    reverse: bool,
    truncated: bool,
    need_dx: bool,
) -> list[Tensor]:
    """`backward` on a batch made ready; rows [rows, .] in place of [T, B, .] where the batch is one of packed rows."""
    D, dtype = x.shape[-1], states[0].dtype
    if batch.rows == 0:
        nothing = torch.zeros_like(x) if need_dx else x.new_empty(0)
        return [nothing, *(torch.zeros_like(v) for v in (W, U, b, *units, *matrices)), *(d.clone() for d in d_finals)]
    shown = tuple(not is_zero(d) for d in d_sequences)
    p = plan(tape, batch.rows, batch.running, kind_of(tape, D, W, b, matrices, states), shown)
    kept = batch.shape(p.kept_row, whole=True)
    if tuple(saved.shape) != kept or saved.dtype != dtype or not saved.is_contiguous():
        raise BackendError(
            f"the backward pass needs what the forward pass kept, {list(kept)} in {dtype}; came "
            f"{list(saved.shape)} in {saved.dtype}: run forward with save=True on the same tensors"
        )
    first = [batch.sorted(s.contiguous()) for s in states]
    x_rows = batch.gather(x.contiguous())
    walk = Walk(p, batch, x_rows, W, U, b.contiguous(), _plain(units), matrices, first, reverse)
    rows = [batch.gather(s.contiguous()) for s in sequences]
    dy = [entering(d, there, batch) for d, there in zip(d_sequences, shown, strict=True)]
    ds = [batch.sorted(d).clone(memory_format=torch.contiguous_format) for d in d_finals]
    dx = batch.room(D, dtype) if need_dx else None
    grads = run_backward(walk, rows, saved, dy, ds, dx, truncated)
    out_x = x.new_empty(0) if dx is None else batch.spread(dx).to(x.dtype)
    targets = [W, U, b, *units, *matrices]
    return [out_x, *(g.to(v.dtype) for g, v in zip(grads, targets, strict=True)), *(batch.unsorted(d) for d in ds)]


def entering(d: Tensor, there: bool, batch: PackedBatch) -> Tensor | None:
    """The gradient that enters at a state's outputs as the kernels take it. One row stands for all where a plain sum
    over steps and sequences has it so."""
    if not there:
        return None
    return batch.gather(d.contiguous()) if any(d.stride()[:-1]) else d[(0,) * (d.dim() - 1)].contiguous()


def _agree(x: Tensor, W: Tensor, U: Tensor, matrices: Sequence[Tensor], states: Sequence[Tensor]) -> None:
    why = refusal(x, W, U, matrices, states)
    if why is not None:
        raise BackendError(f'{why}; choose backend="torch"')


def _plain(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [t.contiguous() for t in tensors]


def is_zero(d: Tensor) -> bool:
    """Whether this is autograd's zero for an output that the loss does not see: one number for all."""
    if any(d.stride()) or not d.numel():
        return False
    # Read without a tensor operation.
    kind = ctypes.c_double if d.dtype == torch.float64 else ctypes.c_float
    return kind.from_address(d.data_ptr()).value == 0
