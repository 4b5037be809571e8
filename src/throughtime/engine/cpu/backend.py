"""The backend that runs a tape with the CPU kernels: the same arguments and results as the torch backend."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from throughtime.engine.cpu import library
from throughtime.engine.cpu.call import Call, Plan, addresses, cache, fresh, padded_row, plan
from throughtime.engine.cpu.compiled import compiled, everything, ints, sizes_of
from throughtime.engine.cpu.library import BackwardCall
from throughtime.engine.cpu.packed_batch import PackedBatch
from throughtime.engine.cpu.packing import panels_array
from throughtime.engine.tape import Tape
from throughtime.errors import BackendError


def refusal(x: Tensor, W: Tensor, U: Tensor, matrices: Sequence[Tensor], states: Sequence[Tensor]) -> str | None:
    """Why the kernels cannot take these tensors, or None if they can."""
    if any(v.device.type != "cpu" for v in (x, W, U, *matrices, *states)):
        return f"the CPU kernels need tensors in main memory; x is on {x.device}"
    dtype = states[0].dtype
    if dtype not in (torch.float32, torch.float64):
        return f"the CPU kernels carry states in float32 or float64; came {dtype}"
    products = {v.dtype for v in (x, W, U, *matrices)}
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
    T, B, D = x.shape
    shown = everything(tape) if save else None
    dtype = states[0].dtype
    batch = PackedBatch(T, B, lengths)
    p = plan(tape, batch.rows, B, D, W, b, matrices, states, shown)
    kept = fresh((T, B, p.kept_row) if save else (0,), dtype)
    if save and batch.rows < T * B:
        kept.view(T * B, -1)[batch.rows :].zero_()  # packed rows come first; what lies behind them is nobody's
    if B == 0:
        return [s.new_empty(T, *s.shape) for s in states], [s.clone() for s in states], kept
    sequences = [fresh((batch.rows, w), dtype) for w in p.sizes.states]
    finals = [torch.empty((B, w), dtype=dtype) for w in p.sizes.states]
    first = [batch.sorted(s.contiguous()) for s in states]
    _run(
        p,
        batch,
        batch.gather(x.contiguous()),
        W,
        U,
        b.contiguous(),
        _plain(units),
        matrices,
        first,
        reverse,
        sequences,
        finals,
        kept,
    )
    return [batch.spread(s) for s in sequences], [batch.unsorted(f) for f in finals], kept


def _run(p: Plan, batch: PackedBatch, *rest) -> None:
    call = Call(p, False, batch.T, batch.B, batch.offset, *rest)
    _check(library.load().tt_forward(ctypes.byref(call.struct)))


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
    """Gradients in the order x (empty unless need_dx), W, U, b, units, matrices, states.

    With an empty `saved`, what the forward pass did not keep is computed again, about sqrt(T) steps at a time.
    """
    _agree(x, W, U, matrices, states)
    T, B, D = x.shape
    if B == 0:
        nothing = torch.zeros_like(x) if need_dx else x.new_empty(0)
        return [nothing, *(torch.zeros_like(v) for v in (W, U, b, *units, *matrices, *states))]
    batch = PackedBatch(T, B, lengths)
    shown = tuple(not _is_zero(d) for d in d_sequences)
    p = plan(tape, batch.rows, B, D, W, b, matrices, states, shown)
    dtype = states[0].dtype
    x_rows, dy = (
        batch.gather(x.contiguous()),
        [_entering(d, there, batch) for d, there in zip(d_sequences, shown, strict=True)],
    )
    rows = [batch.gather(s) for s in sequences]
    first = [batch.sorted(s.contiguous()) for s in states]
    ds = [batch.sorted(d).clone(memory_format=torch.contiguous_format) for d in d_finals]
    dx = fresh((batch.rows, D), dtype) if need_dx else None
    b, units = b.contiguous(), _plain(units)
    grads: list[Tensor] | None = None
    if saved.numel() or p.kept_row == 0:
        grads = _back(p, batch, x_rows, W, U, b, units, matrices, first, reverse, rows, saved, dy, ds, dx, truncated)
    else:
        length = math.isqrt(T - 1) + 1
        starts = list(range(0, T, length))
        for t in starts if reverse else starts[::-1]:
            part = batch.part(t, min(t + length, T))
            here = slice(part.begin, part.begin + part.rows)
            begin = [_before(batch, part, s, f, reverse) for s, f in zip(rows, first, strict=True)]
            states_here = [s[here] for s in rows]
            kept = torch.empty((part.rows, p.kept_row), dtype=dtype)
            with_kept = plan(tape, batch.rows, B, D, W, b, matrices, states, everything(tape))
            again = [torch.empty_like(s) for s in states_here]
            ends = [torch.empty_like(s) for s in begin]
            _run(with_kept, part, x_rows[here], W, U, b, units, matrices, begin, reverse, again, ends, kept)
            dy_here = [d if d is None or d.dim() == 1 else d[here] for d in dy]
            ds_here = [d[: part.B] for d in ds]
            dx_here = dx[here] if dx is not None else None
            more = _back(
                p,
                part,
                x_rows[here],
                W,
                U,
                b,
                units,
                matrices,
                begin,
                reverse,
                states_here,
                kept,
                dy_here,
                ds_here,
                dx_here,
                truncated,
            )
            grads = more if grads is None else [g.add_(m) for g, m in zip(grads, more, strict=True)]
    assert grads is not None
    out_x = batch.spread(dx).to(x.dtype) if dx is not None else x.new_empty(0)
    targets = [W, U, b, *units, *matrices]
    return [out_x, *(g.to(v.dtype) for g, v in zip(grads, targets, strict=True)), *(batch.unsorted(d) for d in ds)]


def _back(
    p, batch, x, W, U, b, units, matrices, first, reverse, sequences, kept, dy, ds, dx, truncated
) -> list[Tensor]:
    """The kernels' backward pass over packed rows: gradients of W, U, b, units and matrices; writes ds and dx."""
    call = Call(
        p, True, batch.T, batch.B, batch.offset, x, W, U, b, units, matrices, first, reverse, sequences, (), kept
    )
    program = p.programs.backward
    assert program is not None
    dtype, threads = p.dtype, p.threads
    dW, dU, db = (torch.empty(v.shape, dtype=dtype) for v in (W, U, b))
    d_units = [torch.empty(p.sizes.H, dtype=dtype) for _ in units]
    paired = {m for m, _, _ in program.program.pairs}
    d_matrices = [(torch.empty if k in paired else torch.zeros)(m.shape, dtype=dtype) for k, m in enumerate(matrices)]
    W_back, U_back = cache.get(W, p.W_back, threads), cache.get(U, p.U_back, threads)
    turned = [cache.get(m, how, threads) for m, how in zip(matrices, p.matrices_back, strict=True)]
    dy_rows = [w if d is not None and d.dim() == 2 else 0 for d, w in zip(dy, p.sizes.states, strict=True)]
    arrays = (
        addresses(dy), ints(dy_rows),
        addresses(ds), panels_array(turned), addresses(d_units), addresses(d_matrices),
    )  # fmt: skip
    at = [ctypes.addressof(a) for a in arrays]
    struct = BackwardCall(
        call.struct, at[0], at[1], at[2], W_back.address, U_back.address, at[3], ctypes.addressof(p.x_blocks),
        ctypes.addressof(p.h_blocks), x.data_ptr(), p.low, truncated, None if dx is None else dx.data_ptr(),
        dW.data_ptr(), dU.data_ptr(), db.data_ptr(), at[4], at[5], ctypes.addressof(p.shapes),
        ctypes.addressof(program.pairs), program.n_pairs, len(matrices),
    )  # fmt: skip
    _check(library.load().tt_backward(ctypes.byref(struct)))
    return [dW, dU, db, *d_units, *d_matrices]


def _before(batch: PackedBatch, part: PackedBatch, sequence: Tensor, first: Tensor, reverse: bool) -> Tensor:
    """The state in which the first step of a part finds its rows."""
    old = batch.at(part.start + part.T if reverse else part.start - 1)
    n = min(part.B, old.stop - old.start)
    return torch.cat([sequence[old][:n], first[n : part.B]]) if n < part.B else sequence[old][:n].contiguous()


def _entering(d: Tensor, there: bool, batch: PackedBatch) -> Tensor | None:
    # One row stands for all, as the gradient of a plain sum over steps and sequences has it.
    if not there:
        return None
    return d[0, 0].contiguous() if d.stride()[:2] == (0, 0) else batch.gather(d.contiguous())


def _agree(x: Tensor, W: Tensor, U: Tensor, matrices: Sequence[Tensor], states: Sequence[Tensor]) -> None:
    why = refusal(x, W, U, matrices, states)
    if why is not None:
        raise BackendError(f'{why}; choose backend="torch"')


def _plain(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [t.contiguous() for t in tensors]


def _is_zero(d: Tensor) -> bool:
    # Autograd's zero for an output that the loss does not see: one number for all. Read without a tensor operation.
    if d.stride() != (0, 0, 0) or not d.numel():
        return False
    kind = ctypes.c_double if d.dtype == torch.float64 else ctypes.c_float
    return kind.from_address(d.data_ptr()).value == 0


def _check(code: int) -> None:
    if code:
        raise BackendError("the instruction set in use was changed while a call was being prepared")
