"""The backend that runs a tape with Triton kernels: the same arguments and results as the torch backend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from throughtime.engine.tape import Tape
from throughtime.engine.triton.backward_text import backward_texts, factors
from throughtime.engine.triton.call import (
    Precision,
    backward_analysis,
    form_of,
    forward_analysis,
    kept_widths,
    precision_of,
    run,
    schedule_of,
    sizes_of,
)
from throughtime.engine.triton.forward_text import RECURRENT, forward_texts
from throughtime.engine.triton.scan_text import scan_text
from throughtime.engine.triton.scannable import scannable
from throughtime.engine.triton.schedule import Schedule
from throughtime.engine.triton.support import no_room, refusal
from throughtime.engine.triton.writer import Text
from throughtime.errors import BackendError


def saved_width(tape: Tape, H: int, P: int, matrices: Sequence[tuple[int, int]]) -> int:
    """How many numbers a row (one sequence, one step) keeps from the forward for the backward pass."""
    return sum(H if w == "H" else P for w in kept_widths(tape, H, P, tuple(map(tuple, matrices))))  # type: ignore[arg-type]


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
    with no_room(x):
        return _forward(tape, x, W, U, b, units, matrices, states, lengths, reverse, save)


def _forward(tape, x, W, U, b, units, matrices, states, lengths, reverse, save):
    sizes, p = sizes_of(x, b, tape, states, matrices), precision_of(states, W)
    T, B, H = sizes.T, sizes.B, sizes.H
    dtype = states[0].dtype
    kept = states[0].new_empty((T, B, saved_width(tape, H, sizes.P, sizes.matrices)) if save else (0,))
    sequences = [s.new_empty(T, *s.shape) for s in states]
    finals = [torch.empty_like(s, memory_format=torch.contiguous_format) for s in states]
    if B == 0:
        return sequences, finals, kept
    analysis = forward_analysis(tape, save, H, sizes.P, sizes.matrices)
    recurrent = sum(c.h is not None for c in tape.columns)
    sums = None if recurrent else scannable(analysis.tape, "s")
    s = schedule_of(analysis, sizes, recurrent, p.low, sums is not None, x.device)
    widths = kept_widths(tape, H, sizes.P, sizes.matrices) if save else ()

    def texts_of(s: Schedule) -> tuple[Text, ...]:
        form = form_of(s, sizes, p, lengths, reverse)
        if s.mode == "scan":
            return (scan_text(form, analysis, sums, widths, False),)
        return forward_texts(form, analysis)

    given = _weights(U, b, units, matrices, lengths)
    given |= {"x": _input_products(x, W, p), "kept": kept}
    given |= {f"sequence{j}": v for j, v in enumerate(sequences)}
    first = [v.contiguous() for v in states]
    if s.mode == "stepwise":
        first = [v.to(p.full, copy=True) for v in first]
    last = first if s.mode == "stepwise" else finals
    if s.mode == "scan":  # a sequence of no steps ends where it began
        for final, begun in zip(finals, first, strict=True):
            final.copy_(begun)
    given |= {f"in{j}": v for j, v in enumerate(first)} | {f"out{j}": v for j, v in enumerate(last)}
    if recurrent and s.mode != "alone":
        shown = x.new_empty(2, B, sizes.P, dtype=p.low)
        shown[1] = states[0]  # the first step reads what a step before it would have written
        given[RECURRENT] = shown
    run(texts_of, s, analysis, sizes, p, given, x)
    if s.mode == "stepwise":
        finals = [v.to(dtype) for v in last]
    return sequences, finals, kept


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
    if x.shape[1] == 0:
        nothing = torch.zeros_like(x) if need_dx else x.new_empty(0)
        return [nothing, *(torch.zeros_like(v) for v in (W, U, b, *units, *matrices, *states))]
    with no_room(x):
        sizes, p = sizes_of(x, b, tape, states, matrices), precision_of(states, W)
        dz, d_units, pairs, d_states = _through_time(
            tape, U, b, units, matrices, states, lengths, sequences, saved, d_sequences, d_finals, reverse, truncated,
            sizes, p,
        )  # fmt: skip
        flat = dz.view(-1, dz.shape[-1])
        keep = _within(lengths, sizes.T)
        dzx = flat[:, : W.shape[0]]
        inputs = x if keep is None else torch.where(keep, x, x.new_zeros(()))  # padding may hold anything, a NaN too
        dx = torch.matmul(dzx, W).view_as(x) if need_dx else x.new_empty(0)
        dW = torch.matmul(dzx.mT, inputs.reshape(-1, x.shape[-1]))
        dU = _recurrent_gradient(tape, dz, U, states[0], sequences[0], lengths, reverse, sizes)
        d_matrices = [
            sum((torch.matmul(a.flatten(0, 1).mT, v.flatten(0, 1)) for a, v in of), torch.zeros_like(m))
            for m, of in zip(matrices, pairs, strict=True)
        ]
        db = flat.sum(0, dtype=p.full).to(b.dtype)
        d_units = [g.sum(0).to(w.dtype) for g, w in zip(d_units, units, strict=True)]
        return [dx, dW, dU, db, *d_units, *d_matrices, *(d.to(states[0].dtype) for d in d_states)]


def _through_time(
    tape, U, b, units, matrices, states, lengths, sequences, saved, d_sequences, d_finals, reverse, truncated, sizes, p
):
    """The recurrent part: gradients of the net inputs [T, B, C * H], of units by sequence, pairs, initial states."""
    T, B, H = sizes.T, sizes.B, sizes.H
    analysis = backward_analysis(tape, H, sizes.P, sizes.matrices)
    recurrent = 0 if truncated else sum(c.h is not None for c in tape.columns)
    sums = None if recurrent else scannable(analysis.tape, "d")
    s = schedule_of(analysis, sizes, recurrent, p.low, sums is not None, U.device)
    widths = kept_widths(tape, H, sizes.P, sizes.matrices)

    def texts_of(s: Schedule) -> tuple[Text, ...]:
        form = form_of(s, sizes, p, lengths, reverse, truncated)
        if s.mode == "scan":
            return (scan_text(form, analysis, sums, widths, True),)
        return backward_texts(form, analysis, widths)

    dz = U.new_empty(T, B, len(tape.columns) * H, dtype=p.low)
    outer = [dz.new_empty(T, B, sizes.of(analysis.widths[v])) for v in factors(analysis)]
    ds = [d.to(p.full, memory_format=torch.contiguous_format, copy=True) for d in d_finals]
    d_units = [U.new_zeros(B, H, dtype=p.full) for _ in units]
    given = _weights(U, b, units, matrices, lengths)
    given |= {"dz": dz, "kept": saved}
    for j, (sequence, first, dy) in enumerate(zip(sequences, states, d_sequences, strict=True)):
        given |= {f"sequence{j}": sequence.contiguous(), f"first{j}": first.contiguous(), f"dy{j}": dy}
        given |= {f"in{j}": ds[j].clone() if s.mode == "scan" else ds[j], f"out{j}": ds[j]}
        given |= {f"stride_{letter}{j}": n for letter, n in zip("tbu", dy.stride(), strict=True)}
    given |= {f"factor{n}": v for n, v in enumerate(outer)}
    given |= {f"gin{j}": g for j, g in enumerate(d_units)} | {f"gout{j}": g for j, g in enumerate(d_units)}
    run(texts_of, s, analysis, sizes, p, given, U)
    spot = {v: outer[n] for n, v in enumerate(factors(analysis))}
    values = {o.name: o.values for o in analysis.tape.outputs if o.kind == "m"}
    pairs = [
        [(spot[a], spot[v]) for a, v in zip(values.get(name, ())[::2], values.get(name, ())[1::2], strict=True)]
        for name in tape.names("m")
    ]
    return dz, d_units, pairs, ds


def _recurrent_gradient(tape, dz, U, first, sequence, lengths, reverse, sizes):
    """dU = sum over steps of dz_t^T h_{t-1}, as one product over all steps but the first, which began at `first`."""
    if not U.shape[0]:
        return torch.zeros_like(U)
    H, T = sizes.H, sizes.T
    blocks = {c.h: k for k, c in enumerate(tape.columns) if c.h is not None}
    columns = [blocks[h] for h in sorted(blocks)]
    if columns == list(range(columns[0], columns[0] + len(columns))):
        rec = dz[..., columns[0] * H : (columns[-1] + 1) * H]
    else:
        rec = torch.cat([dz[..., k * H : (k + 1) * H] for k in columns], -1)
    before = sequence.to(U.dtype)
    if not reverse:
        now, begun = rec[1:], rec[0]
    else:
        now = rec[:-1]
        if lengths is None:
            begun = rec[T - 1]
        else:  # a step that begins a sequence finds a zero behind it, for states are shown as 0 beyond the length
            last = (lengths.to(torch.int64) - 1).clamp(min=0).view(1, -1, 1).expand(1, -1, rec.shape[-1])
            begun = rec.gather(0, last)[0]
    behind = before[:-1] if not reverse else before[1:]
    out = torch.matmul(begun.mT, first.to(U.dtype))
    if T > 1:
        out = out + torch.matmul(now.reshape(-1, rec.shape[-1]).mT, behind.reshape(-1, behind.shape[-1]))
    return out


def _input_products(x: Tensor, W: Tensor, p: Precision) -> Tensor:
    """x W^T for all steps [T, B, G * H], not rounded to the 16 bits of its factors: a net input adds up three parts."""
    if p.low.itemsize > 2:
        return F.linear(x, W)
    if not x.is_cuda:  # the interpreter's torch has no such product in main memory
        return F.linear(x.to(p.full), W.to(p.full))
    return torch.mm(x.reshape(-1, x.shape[-1]), W.mT, out_dtype=p.full).view(*x.shape[:-1], W.shape[0])


def _weights(U, b, units, matrices, lengths) -> dict[str, Any]:
    given = {"U": U.contiguous(), "bias": b.contiguous()}
    given |= {f"unit{j}": w.contiguous() for j, w in enumerate(units)}
    given |= {f"matrix{j}": m.contiguous() for j, m in enumerate(matrices)}
    if lengths is not None:
        given["lengths"] = lengths.contiguous()
    return given


def _within(lengths: Tensor | None, T: int) -> Tensor | None:
    return None if lengths is None else (torch.arange(T, device=lengths.device)[:, None] < lengths)[..., None]


def _agree(x: Tensor, W: Tensor, U: Tensor, matrices: Sequence[Tensor], states: Sequence[Tensor]) -> None:
    why = refusal(x, W, U, matrices, states)
    if why is not None:
        raise BackendError(f'{why}; choose backend="torch"')
